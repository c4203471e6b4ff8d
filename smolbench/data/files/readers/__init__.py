"""Readers of a user's own rows, checked as they are read: files by their endings, and the Hub."""

from __future__ import annotations

from pathlib import Path

from smolbench.data.files.readers.base import CHUNK_ROWS, FileReader, Quoting
from smolbench.data.files.readers.comma_separated import CsvReader
from smolbench.data.files.readers.hub import HubReader
from smolbench.data.files.readers.json_lines import JsonLinesReader
from smolbench.data.files.readers.parquet import ParquetReader
from smolbench.errors import SmolbenchError

__all__ = [
    "CHUNK_ROWS",
    "ENDINGS",
    "CsvReader",
    "FileReader",
    "HubReader",
    "JsonLinesReader",
    "ParquetReader",
    "Quoting",
    "file_reader",
    "has_quotes",
]

ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet")


def has_quotes(name: str) -> bool:
    """Whether texts may stand in double quotes in a file of this name: CSV and TSV."""
    return name.lower().removesuffix(".gz").endswith((".csv", ".tsv"))


def file_reader(
    path: Path,
    text_column: str,
    label_column: str | None,
    encoding: str,
    option: str,
    prefix: str = "--data.",
    label_option: str = "label_column",
    quoting: Quoting = "auto",
    marked_by: str | None = None,
) -> FileReader:
    """The reader for a file, by its ending.

    Args:
        path: The file.
        text_column: Name of the column of the texts.
        label_column: Name of the column of the labels; ``None`` where there are none to read.
        encoding: Name of its encoding.
        option: The option that named the file, for messages.
        prefix: What the names of options begin with, for messages.
        label_option: The option that named the column of the labels, for messages.
        quoting: What double quotes mean in CSV and TSV: ``auto`` finds out, ``quotes`` are around
            texts, ``none`` are a part of them.
        marked_by: Name of a column of labels that need not be there, by which it is found out, too.

    Raises:
        SmolbenchError: If there is no such file, or its ending is not known.
    """
    if path.is_dir():
        raise SmolbenchError(f"{prefix}{option} {path} is a folder: name one file in it.")
    if not path.is_file():
        raise SmolbenchError(
            f"{prefix}{option}: there is no file {path.absolute()}; a relative path starts at the"
            " folder where smolbench is run."
        )
    name = path.name.lower()
    if not name.endswith(ENDINGS):
        raise SmolbenchError(
            f"{prefix}{option} {path} has an ending that is not known: it must be one of"
            f" {', '.join(ENDINGS)}."
        )
    kind: type[FileReader] = CsvReader
    if name.endswith(".parquet"):
        kind = ParquetReader
    elif name.removesuffix(".gz").endswith(".jsonl"):
        kind = JsonLinesReader
    return kind(path, text_column, label_column, encoding, prefix, label_option, quoting, marked_by)
