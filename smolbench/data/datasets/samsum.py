"""SAMSum: messenger-like dialogues and their summaries."""

from __future__ import annotations

from typing import Any

from smolbench.data.datamodule import VAL_FRACTION
from smolbench.data.hub import Source, load_hub
from smolbench.data.samples.samsum import samsum_sample
from smolbench.data.summarization import SummarizationDataModule, renamed_pairs
from smolbench.errors import SmolbenchError


class SAMSumDataModule(SummarizationDataModule):
    r"""SAMSum (Gliwa et al., 2019), ``knkarthick/samsum`` on the Hub. CC BY-NC-ND 4.0 licence.

    14,731 training, 818 validation and 819 test dialogues, written by linguists in the manner of a
    messenger, each with one summary in the third person. The official splits are used as they are.
    A row without a dialogue or without a summary is dropped and counted
    (``data/n_dropped_empty``); other copies of the dataset have one such. Known artefacts: turns
    end in ``\r\n``, pictures and links are ``<file_photo>`` and the like, and names recur between
    splits.

    Args:
        **options: See :class:`~smolbench.data.datamodule.BaseDataModule`.

    Raises:
        SmolbenchError: If a ``val_fraction`` is given that would draw validation rows.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - those of the base class
        super().__init__(**options)
        if self.val_fraction not in (0, VAL_FRACTION):  # 0: none is drawn, as it is
            raise SmolbenchError(
                f"data.val_fraction {self.val_fraction} would divide the training rows, but SAMSum "
                "has validation rows of its own: leave it out (data.limit_val takes fewer of them)."
            )

    def load_hub(self) -> Source:
        """See the base class."""
        splits = ("train", "validation", "test")
        loaded = load_hub("knkarthick/samsum", revision=self.revision, splits=splits)
        return renamed_pairs(loaded, "dialogue", "summary")

    def load_sample(self) -> Source:
        """Generated dialogues in the same form."""
        from datasets import Dataset  # lazy: import cost

        splits = {
            name: Dataset.from_dict(samsum_sample(name)) for name in ("train", "validation", "test")
        }
        return renamed_pairs(Source(splits, "sample/samsum", None), "dialogue", "summary")
