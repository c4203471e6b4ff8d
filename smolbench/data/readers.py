"""Readers of a user's own files: CSV, TSV, JSON lines and Parquet, checked as they are read."""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import itertools
import json
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from smolbench.data.tables import Chunk, listed, shown
from smolbench.errors import SmolbenchError

if TYPE_CHECKING:
    from datasets import Dataset

ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet")
CHUNK_ROWS = 2000
MAX_FIELD = 1 << 24
"""Characters of one CSV field; more are taken for a quote that is never closed."""
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Records:
    """Some rows of a file as they stand there, with their numbers as a user counts them."""

    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int]


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
    """

    path: Path
    text_column: str
    label_column: str | None
    encoding: str
    prefix: str = "--data."
    label_option: str = "label_column"

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
            raise SmolbenchError(_unreadable(self.path, error)) from error

    def place(self, number: int) -> str:
        """Where a row is found."""
        return f"{self.name}, row {number}"

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


class _TextReader(FileReader):
    """A file of text, perhaps compressed."""

    @contextmanager
    def _opened(self) -> Generator[TextIO, None, None]:
        """Open the file; failures become sentences.

        Bytes that are not valid are kept as lone surrogates, so that the row can be named.
        """
        compressed = self.name.lower().endswith(".gz")
        encoding = "utf-8-sig" if self._assumes_utf8() else self.encoding
        try:
            with gzip.open(self.path) if compressed else self.path.open("rb") as raw:
                start = raw.read(4)
                raw.seek(0)
                if not start:
                    raise SmolbenchError(f"{self.path} is empty: name a file with rows.")
                if start[:2] in _UTF16 and self._assumes_utf8():
                    raise SmolbenchError(
                        f"{self.name} starts like a UTF-16 file, but was to be read as"
                        f" {self.encoding}: save it as UTF-8, or add {self.prefix}encoding utf-16."
                    )
                with io.TextIOWrapper(
                    raw,  # a GzipFile will do too
                    encoding=encoding,
                    errors="surrogateescape",
                    newline="",
                ) as file:
                    yield file
        except UnicodeError as error:  # in an encoding whose bytes are not kept so
            raise SmolbenchError(
                f"{self.name} cannot be read as {self.encoding} ({error}): name its encoding with"
                f" {self.prefix}encoding."
            ) from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise SmolbenchError(
                f"{self.path} is not a whole gzip file ({error}): compress it again."
            ) from error
        except OSError as error:
            raise SmolbenchError(_unreadable(self.path, error)) from error

    def _assumes_utf8(self) -> bool:
        return codecs.lookup(self.encoding).name in {"utf-8", "utf-8-sig"}


class CsvReader(_TextReader):
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


class JsonLinesReader(_TextReader):
    """One JSON object per line; rows are counted as lines."""

    def chunks(self) -> Iterator[Chunk]:
        """Read texts and labels."""
        assert self.label_column is not None, "labels are asked for"
        objects = self._objects()
        while block := list(itertools.islice(objects, CHUNK_ROWS)):
            yield Chunk(
                [row[self.text_column] for _, row in block],
                [row[self.label_column] for _, row in block],
                [number for number, _ in block],
            )

    def columns(self) -> tuple[dict[str, Any], Sequence[int]]:
        """Read all columns; what an object lacks is ``None``."""
        found = list(self._objects())
        names = dict.fromkeys(name for _, row in found for name in row)
        table = {name: [row.get(name) for _, row in found] for name in names}
        return table, [number for number, _ in found]

    def _objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with self._opened() as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, self._object(line, number)

    def place(self, number: int) -> str:
        """Where a row is found."""
        return f"{self.name}, line {number}"

    def _object(self, line: str, number: int) -> dict[str, Any]:
        advice = ""
        if number == 1 and line.lstrip().startswith("["):
            advice = " A JSON array must be turned into one object per line first."
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SmolbenchError(
                f"{self.place(number)} is not valid JSON ({error}): correct it; every line must be"
                f" one object.{advice}"
            ) from error
        if not isinstance(row, dict):
            needed = " and ".join(repr(wanted) for _, wanted in self._wanted())
            raise SmolbenchError(
                f"{self.place(number)} is {shown(row)}, not an object with {needed}.{advice}"
            )
        for option, wanted in self._wanted():
            if wanted not in row:
                raise SmolbenchError(
                    f"{self.place(number)} has no {wanted!r}; it has {listed(list(row))}: add it,"
                    f" or name another one with {self.prefix}{option}."
                )
        return row


class ParquetReader(FileReader):
    """A Parquet file; rows are counted from 1."""

    def chunks(self) -> Iterator[Chunk]:
        """Read texts and labels."""
        columns = [column for _, column in self._wanted()]
        with self._opened() as file:
            first = 1
            for batch in file.iter_batches(CHUNK_ROWS, columns=columns):
                texts, labels = (batch.column(column).to_pylist() for column in columns)
                yield Chunk(texts, labels, range(first, first + len(texts)))
                first += len(texts)

    def columns(self) -> tuple[dict[str, Any], Sequence[int]]:
        """Read all columns, with their types."""
        with self._opened() as file:
            self._refuse_doubled(file.schema_arrow.names)
            table = file.read()
        return dict(zip(table.column_names, table.columns, strict=True)), range(
            1, table.num_rows + 1
        )

    @contextmanager
    def _opened(self) -> Generator[Any, None, None]:
        """Open the file and check its columns; failures become sentences."""
        import pyarrow as pa  # lazy: import cost
        import pyarrow.parquet as pq

        if not self._size():
            raise SmolbenchError(f"{self.path} is empty: name a file with rows.")
        try:
            with pq.ParquetFile(self.path) as file:
                self._check_types(file.schema_arrow)
                yield file
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, PermissionError):
                raise SmolbenchError(_unreadable(self.path, error)) from error
            raise SmolbenchError(
                f"{self.path} is not a whole Parquet file ({_brief(error)}): write or download it"
                " again."
            ) from error

    def encoding_advice(self) -> str:
        """What to do about wrong bytes."""
        return "write the file again, with texts in UTF-8"

    def _check_types(self, schema: Any) -> None:  # noqa: ANN401 - pyarrow has no types
        import pyarrow.types as types  # lazy: import cost

        self._columns(schema.names)
        for option, column in self._wanted():
            kind = schema.field(column).type
            value = kind.value_type if types.is_dictionary(kind) else kind
            text = (
                types.is_string(value)
                or types.is_large_string(value)
                or str(value) == "string_view"
            )
            number = types.is_integer(value) or types.is_floating(value) or types.is_boolean(value)
            if not text and not (option == "label_column" and number):
                raise SmolbenchError(
                    f"{self.name}: the column {column!r} holds {kind},"
                    f" {'not names or numbers' if option == 'label_column' else 'not strings'};"
                    f" convert it, or name another column with {self.prefix}{option}."
                )


@dataclass(frozen=True)
class HubReader:
    """Rows of a split of a Hub dataset, counted from 1."""

    dataset: Dataset
    name: str
    text_column: str
    label_column: str

    def chunks(self) -> Iterator[Chunk]:
        """Read the rows."""
        names = self.class_names()
        first = 1
        for batch in self.dataset.iter(CHUNK_ROWS):
            texts, labels = batch[self.text_column], batch[self.label_column]
            if names is not None:
                if -1 in labels:
                    raise SmolbenchError(
                        f"{self.place(first + labels.index(-1))}: the label is held back (-1);"
                        " name another split, such as --data.test_split validation, or null for a"
                        " part of the training rows."
                    )
                labels = [None if number is None else names[number] for number in labels]
            yield Chunk(texts, labels, range(first, first + len(texts)))
            first += len(texts)

    def class_names(self) -> list[str] | None:
        """Names of the classes where the dataset says them.

        Raises:
            SmolbenchError: If the dataset lacks a column.
        """
        features = self.dataset.features
        for option, wanted in (
            ("text_column", self.text_column),
            ("label_column", self.label_column),
        ):
            if wanted not in features:
                raise SmolbenchError(
                    f"{self.name} has no column {wanted!r}; its columns are"
                    f" {listed(list(features))}: name the right one with --data.{option}."
                )
        names: list[str] | None = getattr(features[self.label_column], "names", None)
        return names

    def place(self, number: int) -> str:
        """Where a row is found."""
        return f"{self.name}, row {number}"

    def encoding_advice(self) -> str:
        """What to do about wrong bytes."""
        return "ask the owner of the dataset to correct it"


def file_reader(
    path: Path,
    text_column: str,
    label_column: str | None,
    encoding: str,
    option: str,
    prefix: str = "--data.",
    label_option: str = "label_column",
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
    return kind(path, text_column, label_column, encoding, prefix, label_option)


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path} cannot be read ({error.strerror or error}): check the file and its permissions."


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
