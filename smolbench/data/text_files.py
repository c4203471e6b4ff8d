"""A user's own texts: files, or any classification dataset on the Hub."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from smolbench.data.classification import TextDataModule
from smolbench.data.imdb import IMDbDataModule
from smolbench.data.readers import HubReader, file_reader
from smolbench.data.sources import Source, hold_out_test, load_hub
from smolbench.data.tables import Table, checked_table, shown
from smolbench.digest import digest
from smolbench.errors import SmolbenchError

log = logging.getLogger("smolbench")


class TextFilesDataModule(TextDataModule):
    """Texts with a label each, any number of classes, from a user's own files or from the Hub.

    Files are CSV, TSV, JSON lines (``.jsonl``), each also compressed (``.gz``), or Parquet, by
    their ending. Labels are names or whole numbers; the classes are those of the training rows, in
    numerical order if all are numbers, else sorted. Files are read and checked once and kept as an
    Arrow file in ``cache_dir``; a file that changed is read again.

    Args:
        train_file: File of the training rows. Give it or ``dataset_id``.
        val_file: File of the validation rows; without, ``val_fraction`` of the training rows.
        test_file: File of the test rows; without, ``test_fraction`` of the training file's rows.
        text_column: Name of the column of the texts.
        label_column: Name of the column of the labels.
        test_fraction: Share of the rows held out for the test, stratified by label and drawn with
            ``split_seed``, where there are no test rows of their own.
        encoding: Encoding of the files, such as ``utf-8``, ``cp1252`` or ``utf-16``.
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
            log.info("data.source is 'sample': the built-in reviews are read, not %s.", train_file)
        else:
            check_where(source, train_file, val_file or test_file, dataset_id, self.revision)
        if text_column == label_column:
            raise SmolbenchError(
                f"data.text_column and data.label_column are both {text_column!r}: they must be two"
                " columns."
            )
        if not 0 < test_fraction < 1:
            raise SmolbenchError(
                f"data.test_fraction must lie between 0 and 1, but is {test_fraction}."
            )
        check_encoding(encoding)
        self.files = {"train": train_file, "val": val_file, "test": test_file}
        self.text_column = text_column
        self.label_column = label_column
        self.test_fraction = test_fraction
        self.encoding = encoding
        self.dataset_id = dataset_id
        self.dataset_config = dataset_config
        self.hub_splits = {"train": train_split, "val": val_split, "test": test_split}

    def load_sample(self) -> Source:
        """Generated reviews, those of IMDb."""
        return IMDbDataModule(source="sample").load_sample()

    def load_hub(self) -> Source:
        """Rows of the files, or of the dataset on the Hub; see the base class."""
        if self.dataset_id is not None:
            tables, source_id, revision = self._hub_tables(self.dataset_id)
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
        splits = {"train": train}
        fractions = {} if "test" in tables else {"test_fraction": self.test_fraction}
        if "val" not in tables and self.val_fraction > 0:
            fractions["val_fraction"] = self.val_fraction
        _check_fractions(source_id, names, counts, fractions)
        if "test" in tables:
            splits["test"] = tables["test"].rows
        else:
            splits = hold_out_test(train, labels, self.test_fraction, self.split_seed)
        if "val" in tables:
            splits["validation"] = tables["val"].rows
        return Source(splits, id=source_id, revision=revision)

    def _file_tables(self) -> tuple[dict[str, Table], str, str]:
        """Tables of the files, the name of the data and a digest of all files."""
        tables: dict[str, Table] = {}
        digests: dict[str, str] = {}
        names: list[str] | None = None
        train_name = ""
        for split, given in self.files.items():
            if given is None:
                continue
            path = Path(given).expanduser()
            reader = file_reader(
                path, self.text_column, self.label_column, self.encoding, f"{split}_file"
            )
            content = reader.digest()
            enter_content(digests, split, content)
            tables[split] = checked_table(
                reader,
                self.cache_dir / "tables",
                self._table_key(f"{path.suffixes} {content}", names),
                names,
                train_name,
            )
            if names is None:
                names, train_name = tables[split].label_names, reader.name
        return tables, train_name, digest(digests)

    def _hub_tables(self, dataset_id: str) -> tuple[dict[str, Table], str, str | None]:
        """Tables of the Hub dataset's splits, its name and its commit."""
        wanted = {split: name for split, name in self.hub_splits.items() if name is not None}
        loaded = load_hub(
            dataset_id,
            config=self.dataset_config,
            revision=self.revision,
            splits=tuple(wanted.values()),
        )
        tables: dict[str, Table] = {}
        names: list[str] | None = None
        for split, hub_name in wanted.items():
            rows = loaded.splits[hub_name]
            reader = HubReader(
                rows, f"{dataset_id} ({hub_name})", self.text_column, self.label_column
            )
            names = names or reader.class_names()
            content = f"{dataset_id} {self.dataset_config} {loaded.revision} {hub_name}"
            tables[split] = checked_table(
                reader,
                self.cache_dir / "tables",
                self._table_key(content, names),
                names,
                f"its split {wanted['train']!r}",
            )
            names = tables["train"].label_names
        return tables, dataset_id, loaded.revision

    def _table_key(self, content: str, names: Sequence[str] | None) -> str:
        return digest(
            {
                "table": 1,
                "content": content,
                "columns": [self.text_column, self.label_column],
                "encoding": self.encoding,
                "names": None if names is None else list(names),
            }
        )


def enter_content(digests: dict[str, str], split: str, content: str) -> None:
    """Enter what a file holds, and warn if another one holds the same.

    Args:
        digests: Contents so far, by the splits' names; the file's is added.
        split: What the file is for.
        content: Digest of its rows.
    """
    for other, same in digests.items():
        if same == content:
            log.warning(
                "%s_file and %s_file hold the same rows: what is measured on them says nothing "
                "about new texts.",
                other,
                split,
            )
    digests[split] = content


def check_where(
    source: str,
    train_file: str | None,
    other_file: str | None,
    dataset_id: str | None,
    revision: str | None,
) -> None:
    """Refuse options that do not say where the rows are, or say it twice."""
    if source == "files" and not train_file:
        raise SmolbenchError(
            "There is no data: give --data.train_file FILE, or --data.dataset_id for a dataset on"
            " the Hub."
        )
    if source == "hub" and not dataset_id:
        raise SmolbenchError("data.source is 'hub', so --data.dataset_id is needed.")
    if dataset_id and (train_file or other_file):
        raise SmolbenchError(
            f"Both data.dataset_id ({dataset_id}) and files ({train_file or other_file}) are given:"
            " give one of them, and null for the other."
        )
    if revision and not dataset_id:
        raise SmolbenchError(
            f"data.revision {revision!r} is for a dataset on the Hub; files have none: leave it"
            " out."
        )


def check_encoding(encoding: str) -> None:
    """Refuse an encoding that Python does not know."""
    try:
        "".encode(encoding)
    except (LookupError, ValueError) as error:
        raise SmolbenchError(
            f"data.encoding {encoding!r} is not known: name one such as utf-8, cp1252, latin-1"
            " or utf-16."
        ) from error


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
