"""What readers of all kinds of files share: the columns that are asked for, and sentences."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from smolbench.data.tables import Chunk, listed
from smolbench.errors import SmolbenchError

CHUNK_ROWS = 2000
"""Rows that are read at once."""
Quoting = Literal["auto", "quotes", "none"]
"""What double quotes mean in CSV and TSV: found out per file, around texts, nothing."""


@dataclass(frozen=True)
class FileReader:
    """Rows of one file.

    Attributes:
        path: The file.
        text_column: Name of the column of the texts.
        label_column: Name of the column of the labels; ``None`` where there are none to read.
        encoding: Name of the file's encoding; of no meaning for Parquet.
        prefix: What the names of options begin with, for messages.
        label_option: The option that names the column of the labels, or of what else belongs to
            each text.
        quoting: What double quotes mean in CSV and TSV.
        marked_by: Name of a column of labels that need not be there nor be read; how the file is
            quoted is told by it where ``label_column`` does not.
    """

    path: Path
    text_column: str
    label_column: str | None
    encoding: str
    prefix: str = "--data."
    label_option: str = "label_column"
    quoting: Quoting = "auto"
    marked_by: str | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def chunks(self) -> Iterator[Chunk]:
        """Read texts and labels."""
        raise NotImplementedError

    def columns(self) -> tuple[dict[str, Any], Sequence[int]]:
        """Read all columns, which memory must hold.

        Returns:
            Columns of ``N`` values by name, lists or, of Parquet, Arrow arrays; and the rows'
            numbers.
        """
        raise NotImplementedError

    def digest(self) -> str:
        """SHA-256 of the file's bytes, hexadecimal."""
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise SmolbenchError(unreadable(self.path, error)) from error

    def place(self, number: int) -> str:
        """Where a row is found."""
        return f"{self.name}, row {number}"

    def remarks(self) -> list[str]:
        """What there is to be known of the rows, a line each."""
        return []

    def encoding_advice(self) -> str:
        """What to do about wrong bytes."""
        return (
            f"the file was read as {self.encoding}: save it as UTF-8, or name its encoding with"
            f" {self.prefix}encoding, such as cp1252 or utf-16"
        )

    def _wanted(self) -> list[tuple[str, str]]:
        """The columns to read, with the options that name them."""
        wanted = [("text_column", self.text_column)]
        if self.label_column is not None:
            wanted.append((self.label_option, self.label_column))
        return wanted

    def _refuse_doubled(self, names: Sequence[str]) -> None:
        """Refuse columns of one name where all are read."""
        doubled = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if doubled:
            raise SmolbenchError(
                f"{self.name} has {names.count(doubled[0])} columns named {doubled[0]!r}: rename"
                " all but one."
            )

    def _columns(self, names: Sequence[str]) -> list[int]:
        """Places of the wanted columns among the names, each of which must be there once."""
        places = []
        for option, wanted in self._wanted():
            if names.count(wanted) > 1:
                raise SmolbenchError(
                    f"{self.name} has {names.count(wanted)} columns named {wanted!r}: rename all"
                    " but one."
                )
            if wanted not in names:
                raise SmolbenchError(
                    f"{self.name} has no column {wanted!r}; its columns are {listed(names)}: name"
                    f" the right one with {self.prefix}{option}.{self._header_advice(names)}"
                )
            places.append(names.index(wanted))
        return places

    def _header_advice(self, names: Sequence[str]) -> str:
        return ""

    def _size(self) -> int:
        return self.path.stat().st_size


def unreadable(path: Path, error: OSError) -> str:
    """Why a file cannot be opened or read."""
    return f"{path} cannot be read ({error.strerror or error}): check the file and its permissions."
