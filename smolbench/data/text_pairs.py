"""A user's own texts and their summaries: files, or any summarization dataset on the Hub."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np

from smolbench.data.readers import file_reader
from smolbench.data.samsum import SAMSumDataModule
from smolbench.data.sources import Source, grouped_split, load_hub
from smolbench.data.summarization import SummarizationDataModule, renamed_pairs
from smolbench.data.tables import checked_pairs
from smolbench.data.text_files import check_encoding, check_where, enter_content
from smolbench.digest import digest
from smolbench.errors import SmolbenchError

log = logging.getLogger("smolbench")
_OFFICIAL = {"train": "train", "val": "validation", "test": "test"}
"""How the splits are called in a source."""


class TextPairsDataModule(SummarizationDataModule):
    """Texts with a summary each, from a user's own files or from the Hub.

    Files are CSV, TSV, JSON lines (``.jsonl``), each also compressed (``.gz``), or Parquet, by
    their ending. In a file, a row without a text or a summary is an error that names it; in a
    dataset of the Hub, which its user cannot correct, it is dropped and counted. All rows of files
    are held in memory.

    Args:
        train_file: File of the training rows. Give it or ``dataset_id``.
        val_file: File of the validation rows; without, ``val_fraction`` of the training rows.
        test_file: File of the test rows; without, ``test_fraction`` of the training file's rows.
        text_column: Name of the column of the texts.
        summary_column: Name of the column of the summaries.
        test_fraction: Share of the rows held out for the test, drawn with ``split_seed``, where
            there are no test rows of their own.
        encoding: Encoding of the files, such as ``utf-8``, ``cp1252`` or ``utf-16``.
        dataset_id: A dataset on the Hub instead of files, such as ``knkarthick/dialogsum``.
        dataset_config: Its configuration, where it has several.
        train_split: Name of its training split.
        val_split: Name of its validation split; without, ``val_fraction`` of the training rows.
        test_split: Name of its test split; ``null`` for ``test_fraction`` of the training rows.
        source: ``files``, ``hub``, or ``sample`` for the built-in dialogues, which need none of the
            above; what is given decides if it is not.
        **options: See :class:`~smolbench.data.datamodule.BaseDataModule`.

    Raises:
        SmolbenchError: If the options contradict each other.
    """

    def __init__(
        self,
        *,
        train_file: str | None = None,
        val_file: str | None = None,
        test_file: str | None = None,
        text_column: str = "text",
        summary_column: str = "summary",
        test_fraction: float = 0.2,
        encoding: str = "utf-8",
        dataset_id: str | None = None,
        dataset_config: str | None = None,
        train_split: str = "train",
        val_split: str | None = None,
        test_split: str | None = "test",
        source: Literal["files", "hub", "sample"] | None = None,
        **options: Any,  # noqa: ANN401 - those of the base class
    ) -> None:
        super().__init__(source="sample" if source == "sample" else "hub", **options)
        if source is None:
            source = "hub" if dataset_id else "files"
        if source == "sample":
            log.info(
                "data.source is 'sample': the built-in dialogues are read, not %s.", train_file
            )
        else:
            check_where(source, train_file, val_file or test_file, dataset_id, self.revision)
        if text_column == summary_column:
            raise SmolbenchError(
                f"data.text_column and data.summary_column are both {text_column!r}: they must be "
                "two columns."
            )
        if not 0 < test_fraction < 1:
            raise SmolbenchError(
                f"data.test_fraction must lie between 0 and 1, but is {test_fraction}."
            )
        check_encoding(encoding)
        self.files = {"train": train_file, "val": val_file, "test": test_file}
        self.text_column = text_column
        self.summary_column = summary_column
        self.test_fraction = test_fraction
        self.encoding = encoding
        self.dataset_id = dataset_id
        self.dataset_config = dataset_config
        self.hub_splits = {"train": train_split, "val": val_split, "test": test_split}

    def load_sample(self) -> Source:
        """Generated dialogues, those of SAMSum."""
        return SAMSumDataModule(source="sample").load_sample()

    def load_hub(self) -> Source:
        """Rows of the files, or of the dataset on the Hub; see the base class."""
        source = self._of_hub(self.dataset_id) if self.dataset_id else self._of_files()
        splits, source_id = source.splits, source.id
        if "test" not in splits:
            rows = splits["train"]
            held_out = int(np.ceil(len(rows) * self.test_fraction))
            if len(rows) - held_out < 2:
                raise SmolbenchError(
                    f"data.test_fraction {self.test_fraction} would leave {len(rows) - held_out} "
                    f"of the {len(rows)} rows of {source_id} to train on: choose a smaller one, or "
                    "add rows."
                )
            # another draw than that of the validation rows, which are taken from what is left
            seed = self.split_seed + 1
            train, test = grouped_split(np.arange(len(rows)), self.test_fraction, seed)
            splits = {**splits, "train": rows.select(train), "test": rows.select(test)}
        return Source(splits, source_id, source.revision, source.facts)

    def _of_files(self) -> Source:
        """Rows of the files; their revision is a digest of all of them."""
        from datasets import Dataset  # lazy: import cost

        splits: dict[str, Any] = {}
        digests: dict[str, str] = {}
        name = ""
        for split, given in self.files.items():
            if given is None:
                continue
            reader = file_reader(
                Path(given).expanduser(),
                self.text_column,
                self.summary_column,
                self.encoding,
                f"{split}_file",
                label_option="summary_column",
            )
            name = name or reader.name
            content = reader.digest()
            enter_content(digests, split, content)
            texts, summaries = checked_pairs(reader)
            splits[_OFFICIAL[split]] = Dataset.from_dict({"document": texts, "summary": summaries})
        return Source(splits, name, digest(digests))

    def _of_hub(self, dataset_id: str) -> Source:
        """Rows of the Hub dataset's splits; those without a text or summary are counted."""
        wanted = {split: name for split, name in self.hub_splits.items() if name is not None}
        loaded = load_hub(
            dataset_id,
            config=self.dataset_config,
            revision=self.revision,
            splits=tuple(wanted.values()),
        )
        splits = {_OFFICIAL[split]: loaded.splits[name] for split, name in wanted.items()}
        named = Source(splits, loaded.id, loaded.revision, loaded.facts)
        return renamed_pairs(named, self.text_column, self.summary_column)
