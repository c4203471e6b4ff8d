"""A user's own texts and their summaries: files, or any summarization dataset on the Hub."""

from __future__ import annotations

from typing import Any

import numpy as np

from smolbench.data.columns import column_values
from smolbench.data.datasets.samsum import SAMSumDataModule
from smolbench.data.files.options import (
    ENCODING,
    TEST_FRACTION,
    TEST_SPLIT,
    TRAIN_SPLIT,
    OwnRows,
    Where,
)
from smolbench.data.files.readers import Quoting
from smolbench.data.hub import Source, grouped_split
from smolbench.data.summarization import SummarizationDataModule, first_places, renamed_pairs
from smolbench.data.tables import checked_pairs
from smolbench.errors import SmolbenchError
from smolbench.utils.digest import digest

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
        test_fraction: Share of the texts held out for the test, drawn with ``split_seed``, where
            there are no test rows of their own. A text with several summaries is on one side.
        encoding: Encoding of the files, such as ``utf-8``, ``cp1252`` or ``utf-16``.
        quoting: What double quotes mean in CSV and TSV. ``quotes``: texts may stand in them, as
            spreadsheets write them; ``none``: they are a part of the texts and every line is a
            row, as in GLUE's files; ``auto`` finds out, see
            :class:`~smolbench.data.files.readers.CsvReader`.
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
        test_fraction: float = TEST_FRACTION,
        encoding: str = ENCODING,
        quoting: Quoting = "auto",
        dataset_id: str | None = None,
        dataset_config: str | None = None,
        train_split: str = TRAIN_SPLIT,
        val_split: str | None = None,
        test_split: str | None = TEST_SPLIT,
        source: Where | None = None,
        **options: Any,  # noqa: ANN401 - those of the base class
    ) -> None:
        super().__init__(source="sample" if source == "sample" else "hub", **options)
        self.test_fraction = test_fraction
        self.own = OwnRows(
            train_file=train_file,
            val_file=val_file,
            test_file=test_file,
            text_column=text_column,
            other_column=summary_column,
            other_option="summary_column",
            test_fraction=test_fraction,
            encoding=encoding,
            quoting=quoting,
            dataset_id=dataset_id,
            dataset_config=dataset_config,
            train_split=train_split,
            val_split=val_split,
            test_split=test_split,
            revision=self.revision,
            val_fraction=self.val_fraction,
        )
        self.own.check(source, "the built-in dialogues")

    def load_sample(self) -> Source:
        """Generated dialogues, those of SAMSum."""
        return SAMSumDataModule(source="sample").load_sample()

    def load_hub(self) -> Source:
        """Rows of the files, or of the dataset on the Hub; see the base class."""
        dataset_id = self.own.dataset_id
        source = self._of_hub(dataset_id) if dataset_id else self._of_files()
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
            groups = first_places(column_values(rows, "document"))
            train, test = grouped_split(groups, self.test_fraction, seed)
            splits = {**splits, "train": rows.select(train), "test": rows.select(test)}
        return Source(splits, source_id, source.revision, source.facts)

    def _of_files(self) -> Source:
        """Rows of the files; their revision is a digest of all of them."""
        from datasets import Dataset  # lazy: import cost

        splits: dict[str, Any] = {}
        digests: dict[str, str] = {}
        name = ""
        for split, reader, digests[split] in self.own.readers():
            name = name or reader.name
            texts, summaries = checked_pairs(reader)
            splits[_OFFICIAL[split]] = Dataset.from_dict({"document": texts, "summary": summaries})
        return Source(splits, name, digest(digests))

    def _of_hub(self, dataset_id: str) -> Source:
        """Rows of the Hub dataset's splits; those without a text or summary are counted."""
        loaded, wanted = self.own.on_hub(dataset_id, self.revision)
        splits = {_OFFICIAL[split]: loaded.splits[name] for split, name in wanted.items()}
        named = Source(splits, loaded.id, loaded.revision, loaded.facts)
        return renamed_pairs(named, self.own.text_column, self.own.other_column)
