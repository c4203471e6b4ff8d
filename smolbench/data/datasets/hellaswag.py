"""HellaSwag: which of four endings follows."""

from __future__ import annotations

from typing import Any

from smolbench.data.columns import column_values
from smolbench.data.hub import Source, load_hub
from smolbench.data.multiple_choice import MultipleChoiceDataModule
from smolbench.data.samples.hellaswag import hellaswag_sample
from smolbench.errors import SmolbenchError


class HellaSwagDataModule(MultipleChoiceDataModule):
    """HellaSwag (Zellers et al., ACL 2019), ``Rowan/hellaswag`` on the Hub. MIT licence.

    39,905 training, 10,042 validation and 10,003 test rows from captions of videos (ActivityNet)
    and how-to articles (WikiHow). The labels of the official test split are secret, so the official
    **validation** split is the test here, as everywhere in the literature. For validation a seeded
    twentieth of the training sources is held out, with all rows of each, so that no video and no
    article is on both sides. The wrong endings are written by a language model and filtered until
    other models took them for right. Known artefacts: WikiHow rows hold marks such as ``[header]``
    and ``[title]``, which two of the scoring conventions remove; texts are lower-cased and their
    punctuation is set off here and there.

    Args:
        val_fraction: Share of the training sources that is held out for validation.
        **options: See :class:`~smolbench.data.datamodule.BaseDataModule`.
    """

    def __init__(
        self,
        *,
        val_fraction: float = 0.05,
        **options: Any,  # noqa: ANN401 - those of the base class
    ) -> None:
        super().__init__(val_fraction=val_fraction, **options)

    def load_hub(self) -> Source:
        """See the base class."""
        loaded = load_hub("Rowan/hellaswag", revision=self.revision, splits=("train", "validation"))
        return _official(loaded)

    def load_sample(self) -> Source:
        """Generated rows in the same form."""
        from datasets import Dataset  # lazy: import cost

        splits = {
            name: Dataset.from_dict(hellaswag_sample(name)) for name in ("train", "validation")
        }
        return _official(Source(splits, id="sample/hellaswag", revision=None))


def _official(source: Source) -> Source:
    """The labelled splits as training and test rows, with labels as numbers.

    Raises:
        SmolbenchError: If a label is not a number.
    """
    splits = {}
    for name, own in (("train", "train"), ("test", "validation")):
        rows = source.splits[own]
        if "label" in rows.column_names:
            labels = []
            for row, label in enumerate(column_values(rows, "label")):
                try:
                    labels.append(int(label))
                except (TypeError, ValueError):
                    raise SmolbenchError(
                        f"The {own} split of {source.id} has the label {label!r} in row {row}, "
                        "where 0 to 3 are possible."
                    ) from None
            rows = rows.remove_columns("label").add_column("label", labels)
        splits[name] = rows
    return Source(splits, source.id, source.revision, source.facts)
