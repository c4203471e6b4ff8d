"""A user's own texts: files, or any classification dataset on the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from smolbench.data.classification import TextDataModule
from smolbench.data.columns import column_numbers
from smolbench.data.datamodule import Numbers
from smolbench.data.datasets.imdb import IMDbDataModule
from smolbench.data.files.options import (
    ENCODING,
    TEST_FRACTION,
    TEST_SPLIT,
    TRAIN_SPLIT,
    OwnRows,
    Where,
)
from smolbench.data.files.readers import HubReader, Quoting
from smolbench.data.hub import Source, first_of_equal, hold_out_test, text_split
from smolbench.data.tables import SimilarLabels, Table, checked_table, composed, listed, shown
from smolbench.errors import SmolbenchError
from smolbench.utils.digest import digest

_DRAWN = ("train", "test")


class TextFilesDataModule(TextDataModule):
    """Texts with a label each, any number of classes, from a user's own files or from the Hub.

    Files are CSV, TSV, JSON lines (``.jsonl``), each also compressed (``.gz``), or Parquet, by
    their ending. Labels are names or whole numbers; the classes are those of the training rows, in
    numerical order if all are numbers, else sorted. White space around a label and the Unicode
    composition of its accents make no class. Rows with the same text, up to white space at its
    ends, are on one side wherever rows are held out. Files are read and checked once and kept as an
    Arrow file in ``cache_dir``; a file that changed is read again.

    Args:
        train_file: File of the training rows. Give it or ``dataset_id``.
        val_file: File of the validation rows; without, ``val_fraction`` of the training rows.
        test_file: File of the test rows; without, ``test_fraction`` of the training file's rows.
        text_column: Name of the column of the texts.
        label_column: Name of the column of the labels.
        positive_label: The class that precision, recall, specificity and F1 are of, and by whose F1
            runs are compared. Without it, where there are two classes, nothing says which one is
            looked for: the four are left out and runs are compared by the macro average of F1.
        similar_labels: What becomes of labels that differ only in case, width, blanks, hyphens or
            underscores inside, punctuation behind or the spelling of a number, as ``Pos`` and
            ``pos.``, ``sci-fi`` and ``sci_fi``, ``1`` and ``1.0``, or ``true`` and ``"True"``:
            ``refuse`` names them; ``merge`` makes one class of them, with the name that most
            training rows have; ``keep`` leaves each a class.
        test_fraction: Share of the rows held out for the test, stratified by label and drawn with
            ``split_seed``, where there are no test rows of their own.
        encoding: Encoding of the files, such as ``utf-8``, ``cp1252`` or ``utf-16``.
        quoting: What double quotes mean in CSV and TSV. ``quotes``: texts may stand in them, as
            spreadsheets write them; ``none``: they are a part of the texts and every line is a
            row, as in GLUE's files; ``auto`` finds out, see
            :class:`~smolbench.data.files.readers.CsvReader`.
        dataset_id: A dataset on the Hub instead of files, such as ``stanfordnlp/imdb``.
        dataset_config: Its configuration, where it has several.
        train_split: Name of its training split.
        val_split: Name of its validation split; without, ``val_fraction`` of the training rows.
        test_split: Name of its test split; ``null`` for ``test_fraction`` of the training rows.
        source: ``files``, ``hub``, or ``sample`` for the built-in reviews, which need none of the
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
        label_column: str = "label",
        positive_label: str | None = None,
        similar_labels: SimilarLabels = "refuse",
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
        self.chosen_label = None if positive_label is None else composed(str(positive_label))
        self.similar_labels: SimilarLabels = similar_labels
        self.test_fraction = test_fraction
        self.own = OwnRows(
            train_file=train_file,
            val_file=val_file,
            test_file=test_file,
            text_column=text_column,
            other_column=label_column,
            other_option="label_column",
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
        self.own.check(source, "the built-in reviews")

    @property
    def positive_label(self) -> str | None:
        """The option, or of the built-in reviews the second class; see the base class."""
        if self.chosen_label is None and self.source == "sample":
            return super().positive_label
        return self.chosen_label

    @property
    def ranked_by(self) -> str:
        """F1 of the positive class, if it is named; of two classes else the average of both's."""
        if self.chosen_label is not None:
            return "f1"
        return "f1_macro" if len(self.label_names) == 2 and self.source != "sample" else "accuracy"

    def check(self, source: Source) -> None:
        """Refuse also a positive class that is none; see the base class."""
        super().check(source)
        names = source.splits["train"].features["label"].names
        if self.chosen_label not in (None, *names):
            raise SmolbenchError(
                f"data.positive_label {self.chosen_label!r} is no class of {source.id}; its"
                f" classes are {listed(names)}: name one of them."
            )

    def load_sample(self) -> Source:
        """Generated reviews, those of IMDb."""
        return IMDbDataModule(source="sample").load_sample()

    def load_hub(self) -> Source:
        """Rows of the files, or of the dataset on the Hub; see the base class."""
        if self.own.dataset_id is not None:
            tables, source_id, revision = self._hub_tables(self.own.dataset_id)
        else:
            tables, source_id, revision = self._file_tables()
        train = tables["train"].rows
        labels = np.asarray(train.data.column("label"), dtype=np.int64)
        names = tables["train"].label_names
        counts = np.bincount(labels, minlength=len(names))
        if np.count_nonzero(counts) < 2:
            raise SmolbenchError(
                f"All rows of {source_id} have the label {shown(names[int(counts.argmax())])}:"
                " there must be two classes at least, or there is nothing to learn."
            )
        keys = None if self.by_rows else self.row_keys(train)
        if keys is not None:  # a class has as many rows to divide as it has texts
            counts = np.bincount(labels[first_of_equal(keys.texts)[0]], minlength=len(names))
        splits = {"train": train}
        fractions = {} if "test" in tables else {"test_fraction": self.test_fraction}
        if "val" not in tables and self.val_fraction > 0:
            fractions["val_fraction"] = self.val_fraction
        _check_fractions(source_id, names, counts, fractions)
        if "test" in tables:
            splits["test"] = tables["test"].rows
        elif keys is None:
            splits = hold_out_test(train, labels, self.test_fraction, self.split_seed)
        else:
            sides = text_split(keys.texts, labels, self.test_fraction, self.split_seed)
            splits = {name: train.select(side) for name, side in zip(_DRAWN, sides, strict=True)}
            for name, side in zip(_DRAWN, sides, strict=True):
                self.row_keys(splits[name], keys[side])
        if "val" in tables:
            splits["validation"] = tables["val"].rows
        return Source(splits, id=source_id, revision=revision)

    def hold_out(self, source: Source) -> tuple[Numbers, Numbers]:
        """As of other data, but all rows of a text are on one side; see the base class."""
        if self.by_rows:
            return super().hold_out(source)
        train = source.splits["train"]
        labels, texts = column_numbers(train, "label"), self.row_keys(train).texts
        return text_split(texts, labels, self.val_fraction, self.split_seed)

    def _file_tables(self) -> tuple[dict[str, Table], str, str]:
        """Tables of the files, the name of the data and a digest of all files."""
        tables: dict[str, Table] = {}
        digests: dict[str, str] = {}
        names: list[str] | None = None
        train_name = ""
        for split, reader, content in self.own.readers():
            digests[split] = content
            tables[split] = checked_table(
                reader,
                self.cache_dir / "tables",
                self._table_key(f"{reader.path.suffixes} {content}", names),
                names,
                train_name,
                self.similar_labels,
            )
            if names is None:
                names, train_name = tables[split].label_names, reader.name
        return tables, train_name, digest(digests)

    def _hub_tables(self, dataset_id: str) -> tuple[dict[str, Table], str, str | None]:
        """Tables of the Hub dataset's splits, its name and its commit."""
        loaded, wanted = self.own.on_hub(dataset_id, self.revision)
        tables: dict[str, Table] = {}
        names: list[str] | None = None
        for split, hub_name in wanted.items():
            rows = loaded.splits[hub_name]
            reader = HubReader(
                rows, f"{dataset_id} ({hub_name})", self.own.text_column, self.own.other_column
            )
            names = names or reader.class_names()
            content = f"{dataset_id} {self.own.dataset_config} {loaded.revision} {hub_name}"
            tables[split] = checked_table(
                reader,
                self.cache_dir / "tables",
                self._table_key(content, names),
                names,
                f"its split {wanted['train']!r}",
                self.similar_labels,
            )
            names = tables["train"].label_names
        return tables, dataset_id, loaded.revision

    def _table_key(self, content: str, names: Sequence[str] | None) -> str:
        return digest(
            {
                "table": 3,
                "content": content,
                "columns": [self.own.text_column, self.own.other_column],
                "encoding": self.own.encoding,
                "quoting": self.own.quoting,
                "names": None if names is None else list(names),
                "similar_labels": self.similar_labels,
            }
        )


def _check_fractions(
    source_id: str, names: Sequence[str], counts: np.ndarray, fractions: dict[str, float]
) -> None:
    """Refuse stratified splits for which a class has too few rows, or that would be too small."""
    if not fractions:
        return
    rare = [
        f"{shown(name)} ({count})"
        for name, count in zip(names, counts, strict=True)
        if 0 < count <= len(fractions)
    ]
    if rare:
        raise SmolbenchError(
            f"{source_id} is split by {' and '.join(fractions)}, so that every class needs"
            f" {len(fractions) + 1} rows, but these have fewer: {', '.join(rare[:12])}. Add rows,"
            " remove the class, or give files of their own for the other splits."
        )
    rows, classes = int(counts.sum()), int(np.count_nonzero(counts))
    for option, fraction in fractions.items():
        held_out = int(np.ceil(rows * fraction))
        if min(held_out, rows - held_out) < classes:
            raise SmolbenchError(
                f"data.{option} {fraction} would split {rows} rows of {source_id} into"
                f" {rows - held_out} and {held_out}, but each part needs one row per class"
                f" ({classes}): choose another fraction, or add rows."
            )
        rows -= held_out
