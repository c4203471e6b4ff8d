"""Comma- and tab-separated values."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from smolbench.data.readers.base import CHUNK_ROWS
from smolbench.data.readers.text import TextReader
from smolbench.data.tables import Chunk
from smolbench.errors import SmolbenchError

MAX_FIELD = 1 << 24
"""Characters of one CSV field; more are taken for a quote that is never closed."""


@dataclass(frozen=True)
class Records:
    """Some rows of a file as they stand there, with their numbers as a user counts them."""

    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int]


class CsvReader(TextReader):
    """Comma- or tab-separated values as spreadsheets write them, the first row naming the columns.

    Rows are counted as a spreadsheet does: the header is row 1, empty lines count.
    """

    def chunks(self) -> Iterator[Chunk]:
        """Read texts and labels."""
        for found in self._records():
            text, label = self._columns(found.names)
            yield Chunk(
                [r[text] for r in found.rows], [r[label] for r in found.rows], found.numbers
            )

    def columns(self) -> tuple[dict[str, Any], Sequence[int]]:
        """Read all columns, as strings."""
        table: dict[str, Any] = {}
        numbers: list[int] = []
        for found in self._records():
            self._refuse_doubled(found.names)
            for place, name in enumerate(found.names):
                table.setdefault(name, []).extend(row[place] for row in found.rows)
            numbers.extend(found.numbers)
        return table, numbers

    def _records(self) -> Iterator[Records]:
        """Rows block by block; the first block has none and says which columns there are."""
        number = 0
        header: list[str] = []
        with self._opened() as file:
            rows = self._rows(file)
            try:
                for number, header in enumerate(rows, start=1):  # noqa: B007 - it goes on below
                    if header:
                        break
                names = [name.strip() for name in header]
                self._columns(names)
                yield Records(names, [], [])
                while block := list(itertools.islice(rows, CHUNK_ROWS)):
                    first = number + 1
                    number += len(block)
                    numbers: Sequence[int] = range(first, number + 1)
                    if set(map(len, block)) != {len(names)}:
                        block, numbers = self._whole(block, numbers, len(names))
                    yield Records(names, block, numbers)
            except csv.Error as error:
                self._explain(error)

    def place(self, number: int) -> str:
        """Where a row is found: its number, and its line where rows span several."""
        line = self._line(number)
        also = "" if line == number else f" (line {line} of the file)"
        return f"{self.name}, row {number}{also}"

    def _rows(self, file: TextIO) -> Any:  # noqa: ANN401 - the type has no public name
        # process-wide, so it is only ever raised: a long text is no mistake
        csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD))
        tabs = self.name.lower().removesuffix(".gz").endswith(".tsv")
        return csv.reader(file, delimiter="\t" if tabs else ",", strict=True)

    def _whole(
        self, block: list[list[str]], numbers: Sequence[int], width: int
    ) -> tuple[list[list[str]], list[int]]:
        """Leave out empty lines, refuse rows with another number of fields."""
        kept = [(row, number) for row, number in zip(block, numbers, strict=True) if row]
        for row, number in kept:
            if len(row) != width:
                raise SmolbenchError(
                    f"{self.place(number)} has {len(row)} {'field' if len(row) == 1 else 'fields'},"
                    f" but the header has {width}: put texts that hold a separator or a line break"
                    ' in double quotes ("...").'
                )
        return [row for row, _ in kept], [number for _, number in kept]

    def _line(self, number: int) -> int:
        """The line on which a row starts; reads the file anew, for messages only."""
        with self._opened() as file:
            rows = self._rows(file)
            for _ in itertools.islice(rows, number - 1):
                pass
            return int(rows.line_num) + 1

    def _explain(self, error: csv.Error) -> None:
        """Name the row that cannot be parsed, and what is wrong with it."""
        number = 1
        with self._opened() as file:
            try:
                for _ in self._rows(file):
                    number += 1
            except csv.Error:
                pass
        problem = str(error)
        if "unexpected end" in problem or "field limit" in problem:
            problem = 'a double quote (") is opened and never closed'
        elif "expected after" in problem:
            problem = (
                "a quoted field goes on behind its closing quote; inside quotes, write a double"
                ' quote twice ("")'
            )
        raise SmolbenchError(f"{self.place(number)} cannot be read: {problem}.") from error

    def _header_advice(self, names: Sequence[str]) -> str:
        if len(names) == 1 and any(mark in names[0] for mark in ",;|\t"):
            return " Columns of a .csv file are separated by commas, of a .tsv file by tabs."
        return " The first row must name the columns."
