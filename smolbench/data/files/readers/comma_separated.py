"""Comma- and tab-separated values."""

from __future__ import annotations

import csv
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from smolbench.data.files.readers.base import CHUNK_ROWS
from smolbench.data.files.readers.text import TextReader
from smolbench.data.tables import Chunk
from smolbench.errors import SmolbenchError

log = logging.getLogger("smolbench")
MAX_FIELD = 1 << 24
"""Characters of one CSV field; more are taken for a quote that is never closed."""
_SUSPECTS = 1000
"""Most rows that are remembered because they may hold others."""
_ENOUGH_LINES = 4
"""Lines of two or three prose texts hold as many commas as the header by chance."""


@dataclass(frozen=True)
class Records:
    """Some rows of a file as they stand there, with their numbers as a user counts them."""

    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int]


@dataclass(frozen=True)
class _Scan:
    """What a file with double quotes in it looks like, read in both ways.

    Attributes:
        plain: Whether every line has as many fields as the header if quotes mean nothing.
        quoted: Whether every row has if texts stand in quotes, and all quotes are closed.
        header_quoted: Whether a column's name stands in quotes.
        holding: First and last lines of rows that span lines of which each could be a row.
        rows_held: Whether in one of them most lines have a label that other rows have, too.
    """

    plain: bool
    quoted: bool
    header_quoted: bool
    holding: list[list[int]]
    rows_held: bool


class CsvReader(TextReader):
    """Comma- or tab-separated values as spreadsheets write them, the first row naming the columns.

    Rows are counted as a spreadsheet does: the header is row 1, empty lines count. With ``quoting``
    ``auto`` a file of tabs whose lines all have as many fields as its header, and in which quotes
    are not closed or make one row of several, has no quotes around texts (as GLUE's files).
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
                    self._refuse_header(names, block, numbers)
                    yield Records(names, block, numbers)
            except csv.Error as error:
                self._explain(error)

    def _refuse_header(
        self, names: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int]
    ) -> None:
        """Refuse a row that repeats the header, as where two files were put behind each other."""
        header = [name.casefold() for name in names]
        for row, number in zip(rows, numbers, strict=True):
            # most rows differ in the first cell already
            first = row[0].strip().casefold() == header[0] and len(names) > 1
            if first and [cell.strip().casefold() for cell in row] == header:
                raise SmolbenchError(
                    f"{self.place(number)} repeats the names of the columns: remove it."
                )

    def place(self, number: int) -> str:
        """Where a row is found: its number, and its line where rows span several."""
        line = self._line(number)
        also = "" if line == number else f" (line {line} of the file)"
        return f"{self.name}, row {number}{also}"

    def remarks(self) -> list[str]:
        """Says which row may hold others because a text in it begins with a quotation mark."""
        lines = super().remarks()
        if self._bare or self._scan is None or not self._scan.holding:
            return lines
        (first, last), *more = self._scan.holding
        also = f", and so do {len(more)} more rows" if more else ""
        return [
            *lines,
            f"{self.name}: the lines {first} to {last} are one row, because a quotation mark opens"
            f" on the first and closes on the last, though each could be a row of its own{also}; if"
            f" quotation marks are a part of the texts, give {self.prefix}quoting none.",
        ]

    @property
    def _delimiter(self) -> str:
        return "\t" if self.name.lower().removesuffix(".gz").endswith(".tsv") else ","

    @cached_property
    def _bare(self) -> bool:
        """Whether double quotes are characters like any other."""
        if self.quoting != "auto":
            return self.quoting == "none"
        scan = self._scan
        if scan is None or self._delimiter != "\t" or not scan.plain or scan.header_quoted:
            return False
        if scan.quoted and not scan.rows_held:
            return False
        log.info(
            "%s: quotation marks are a part of its texts, as every line is a row only then; "
            "%squoting quotes reads them as a spreadsheet's.",
            self.name,
            self.prefix,
        )
        return True

    @cached_property
    def _scan(self) -> _Scan | None:
        """The file read in both ways; ``None`` if there is no double quote in it."""
        with self._opened() as file:
            if not any('"' in line for line in file):
                return None
        mark = self._delimiter
        # predict reads no labels, but the file must be cut into the rows that fit and test have
        of_labels = self.label_column if self.label_option == "label_column" else None
        marks = of_labels or self.marked_by
        lines: list[str] = []  # of the row that is being read
        with self._opened() as file:
            rows = self._parsed(_noted(file, lines), bare=False)
            names: list[str] = []
            plain = quoted = True
            header_quoted, number, width, place = False, 0, 0, None
            labels: set[str] = set()
            holding: list[tuple[int, int, list[str]]] = []
            try:
                for row in rows:
                    first, number = number + 1, number + len(lines)
                    filled = [line.rstrip("\r\n") for line in lines if line.strip("\r\n")]
                    lines.clear()
                    if not row:
                        continue
                    if not names:
                        names, width = [name.strip() for name in row], len(row)
                        header_quoted = any('"' in line for line in filled)
                        if marks in names:
                            place = names.index(marks)
                        plain = len(filled) == 1 and filled[0].count(mark) == width - 1
                        continue
                    quoted = quoted and len(row) == width
                    alike = all(line.count(mark) == width - 1 for line in filled)
                    plain = plain and alike
                    if place is not None and len(row) > place:
                        labels.add(row[place].strip())
                    few = mark == "," and place is None and len(filled) < _ENOUGH_LINES
                    if number > first and alike and not few and len(holding) < _SUSPECTS:
                        fields = [line.split(mark) for line in filled]
                        own = [] if place is None else [cells[place] for cells in fields]
                        holding.append((first, number, [cell.strip(' "') for cell in own]))
            except csv.Error:
                quoted = False
                rest = itertools.chain(lines, file)
                plain = plain and all(
                    line.count(mark) == width - 1 for line in rest if line.strip("\r\n")
                )
        sure = [
            2 * sum(label in labels for label in own) > len(own) or not own for *_, own in holding
        ]
        # in prose commas stand everywhere: most of what the lines have for labels must be some
        said = [
            lines for (*lines, _), yes in zip(holding, sure, strict=True) if yes or mark == "\t"
        ]
        return _Scan(plain and width > 1, quoted, header_quoted, said, any(sure))

    def _rows(self, file: Iterable[str]) -> Any:  # noqa: ANN401 - the type has no public name
        return self._parsed(file, bare=self._bare)

    def _parsed(self, file: Iterable[str], *, bare: bool) -> Any:  # noqa: ANN401
        # process-wide, so it is only ever raised: a long text is no mistake
        csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD))
        mark = self._delimiter
        if bare:
            return csv.reader(file, delimiter=mark, quoting=csv.QUOTE_NONE, strict=True)
        return csv.reader(file, delimiter=mark, strict=True)

    def _whole(
        self, block: list[list[str]], numbers: Sequence[int], width: int
    ) -> tuple[list[list[str]], list[int]]:
        """Leave out empty lines, refuse rows with another number of fields.

        In a table of one column an empty line is a row whose field is empty.
        """
        block = [row or [""] for row in block] if width == 1 else block
        kept = [(row, number) for row, number in zip(block, numbers, strict=True) if row]
        for row, number in kept:
            if len(row) != width:
                raise SmolbenchError(
                    f"{self.place(number)} has {len(row)} {'field' if len(row) == 1 else 'fields'},"
                    f" but the header has {width}: {self._advice()}."
                )
        return [row for row, _ in kept], [number for _, number in kept]

    def _advice(self) -> str:
        """What to do about a row of too many or too few fields."""
        marked = "put texts that hold a separator or a line break in double quotes"
        if self._bare:
            return f"{marked} and give {self.prefix}quoting quotes, or correct the row"
        if self._scan is None:
            return f'{marked} ("...")'
        return (
            f'{marked} ("..."), or, if quotation marks are a part of the texts, give'
            f" {self.prefix}quoting none"
        )

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
        raise SmolbenchError(
            f"{self.place(number)} cannot be read: {problem}; or, if quotation marks are a part of"
            f" the texts, give {self.prefix}quoting none."
        ) from error

    def _header_advice(self, names: Sequence[str]) -> str:
        if len(names) == 1 and any(mark in names[0] for mark in ",;|\t"):
            return " Columns of a .csv file are separated by commas, of a .tsv file by tabs."
        return " The first row must name the columns."


def _noted(lines: Iterable[str], note: list[str]) -> Iterator[str]:
    """The lines, each noted when it is taken."""
    for line in lines:
        note.append(line)
        yield line
