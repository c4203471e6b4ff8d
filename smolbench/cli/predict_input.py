"""What ``smolbench predict`` labels: texts of the command line, lines, or a table with a column."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from smolbench.data.files.readers import ENDINGS, FileReader, Quoting, file_reader, has_quotes
from smolbench.data.tables import Chunk, check_texts, missing_said, refuse_encoding
from smolbench.errors import SmolbenchError
from smolbench.utils.notices import warn

TEXT_COLUMN = "text"
"""The column of the texts, in a table if no other is named, and in what is written."""
LABEL_COLUMN = "label"
"""The column of the labels, if a table has any and no other is named."""
_LINES = ("", ".txt")
"""Endings of files with a text per line."""


@dataclass(frozen=True)
class Inputs:
    """Texts to label.

    Attributes:
        texts: The texts, ``N`` of them.
        columns: What is written in front of the labels, ``N`` values each: the texts and, of a
            table, everything else that stood there.
    """

    texts: Sequence[str]
    columns: Mapping[str, Any]


def read_inputs(
    texts: Sequence[str],
    source: str | None = None,
    text_column: str | None = None,
    encoding: str | None = None,
    quoting: str | None = None,
    label_column: str | None = None,
) -> Inputs:
    """The texts to label.

    Args:
        texts: Given on the command line.
        source: A table (CSV, TSV, JSON lines, Parquet) or a file with a text per line, by its
            ending; ``-`` for standard input, which is also read if nothing else is given and it is
            not a terminal.
        text_column: The table's column of the texts; ``text`` if not given.
        encoding: The file's encoding; UTF-8 if not given.
        quoting: What double quotes mean in a CSV or TSV; found out if not given.
        label_column: The column of labels that such a table may have, as ``test`` reads it.

    Raises:
        SmolbenchError: If there is no text, a row has none, or the file cannot be read.
    """
    path = None if source in (None, "-") else Path(str(source)).expanduser()
    is_table = path is not None and path.name.lower().endswith(ENDINGS)
    _check_options(texts, path, is_table, text_column, encoding)
    if quoting is not None and (path is None or not has_quotes(path.name)):
        raise SmolbenchError(
            f"--quoting {quoting} is for a CSV or TSV: give one with --input FILE."
        )
    if quoting not in (None, *get_args(Quoting)):
        raise SmolbenchError(
            f"--quoting {quoting} is not known: it is one of {', '.join(get_args(Quoting))}."
        )
    if path is not None and is_table:
        reader = file_reader(
            path,
            text_column or TEXT_COLUMN,
            None,
            encoding or "utf-8",
            "input",
            prefix="--",
            quoting=cast("Quoting", quoting or "auto"),
            marked_by=label_column or LABEL_COLUMN,
        )
        return _read_table(reader)
    lines = _lines(source, path, encoding, given=bool(texts))
    if not any(map(str.strip, [*texts, *lines])):
        raise SmolbenchError(
            'There is no text to predict: give --text "...", --input FILE, or pipe lines in.'
        )
    if not all(text.strip() for text in texts):
        raise SmolbenchError("One of the texts given by --text is empty: leave it out.")
    for text in texts:
        _refuse_unreadable(text, "--text")
    where = path.name if path is not None else "standard input"
    for number, line in enumerate(lines, start=1):
        # a line in is a line out, or what is pasted beside it would stand beside another text
        if not line.strip():
            raise SmolbenchError(
                f"{where}, line {number}: the text is empty; fill it in, or remove the line."
            )
        _refuse_unreadable(line, f"{where}, line {number}")
    found = [*texts, *lines]
    return Inputs(found, {TEXT_COLUMN: found})


def _check_options(
    texts: Sequence[str],
    path: Path | None,
    is_table: bool,
    text_column: str | None,
    encoding: str | None,
) -> None:
    if path is not None and not is_table and path.suffix.lower() not in _LINES:
        raise SmolbenchError(
            f"--input {path} has an ending that is not known: a file with a text per line ends in "
            f".txt or has no ending, a table in {', '.join(ENDINGS)}."
        )
    if text_column is not None and not is_table:
        raise SmolbenchError(
            f"--text_column {text_column} is for a table: give one with --input FILE, ending in "
            f"{', '.join(ENDINGS)}."
        )
    if texts and is_table:
        raise SmolbenchError(
            f"Both --text and the table --input {path} are given: give one of them."
        )
    if encoding is not None:
        if path is None:
            raise SmolbenchError("--encoding is for a file: give one with --input FILE.")
        try:
            "".encode(encoding)
        except (LookupError, ValueError) as error:
            raise SmolbenchError(
                f"--encoding {encoding!r} is not known: name one such as utf-8, cp1252, latin-1 or "
                "utf-16."
            ) from error


def _lines(
    source: str | None, path: Path | None, encoding: str | None, *, given: bool
) -> list[str]:
    """Lines of a file or of standard input, where either is asked for."""
    read = ""
    try:
        if path is not None:
            # some editors put a mark in front, which is no part of the first text
            with path.open(encoding=encoding or "utf-8-sig", newline="") as file:
                read = file.read()
        elif source == "-" or (not given and not sys.stdin.isatty()):
            if isinstance(sys.stdin, io.TextIOWrapper):
                sys.stdin.reconfigure(newline="")
            read = sys.stdin.read()
    except (OSError, UnicodeError) as error:
        raise SmolbenchError(f"--input {source or '-'} cannot be read: {error}.") from error
    if "\n" not in read:  # lines of an old Mac
        read = read.replace("\r", "\n")
    # not splitlines(): that also cuts at rare characters within a text, and whatever puts the
    # predictions beside the lines knows newlines alone
    lines = read.removeprefix("\ufeff").removesuffix("\n").split("\n") if read else []
    return [line.removesuffix("\r") for line in lines]


def _refuse_unreadable(text: str, where: str) -> None:
    """Refuse what a table may not hold either."""
    if "\0" in text:
        raise SmolbenchError(f"{where}: the text holds a NUL character (byte 0); remove it.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SmolbenchError(
            f"{where}: the text is not valid in the terminal's encoding ({error.reason}): write it"
            " to a file, and name its encoding with --encoding."
        ) from error


def _read_table(reader: FileReader) -> Inputs:
    columns, numbers = reader.columns()
    if not numbers:
        raise SmolbenchError(f"{reader.name} has no rows: add some, or name another file.")
    texts = columns[reader.text_column]
    texts = texts if isinstance(texts, list) else texts.to_pylist()
    remarks = missing_said(check_texts(Chunk(texts, [], numbers), reader), reader)
    for values in columns.values():
        if not isinstance(values, list):
            continue  # Arrow's strings are valid
        strings = [value for value in values if isinstance(value, str)]
        try:
            "\0".join(strings).encode()
        except UnicodeEncodeError:
            kept = [value if isinstance(value, str) else "" for value in values]
            refuse_encoding(Chunk(kept, [], numbers), reader)
    for line in [*reader.remarks(), *remarks]:
        warn("%s", line)
    return Inputs(texts, columns)
