"""Texts and labels as a checked, memory-mapped table on disk.

Rows are read once, in chunks, and checked; what later runs use is an Arrow file in the cache, named
by a digest of where the rows came from.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from smolbench.cache_folder import crc32, locked, writing
from smolbench.errors import SmolbenchError

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT = 1
MAX_CLASSES = 10_000
"""More different labels than this are taken for a mistake, such as the text's column."""

log = logging.getLogger("smolbench")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_SHOWN = 40
"""Characters shown of a value in a message."""


@dataclass(frozen=True)
class Chunk:
    """Some rows in their order: raw texts, raw labels, and their numbers as a user counts them."""

    texts: Sequence[Any]
    labels: Sequence[Any]
    numbers: Sequence[int]


class Reader(Protocol):
    """Where rows come from."""

    @property
    def name(self) -> str:
        """The source as the user knows it, for messages."""
        ...

    def chunks(self) -> Iterator[Chunk]:
        """Read the rows; memory holds no more than a few chunks."""
        ...

    def place(self, number: int) -> str:
        """Where a row is found, such as ``reviews.csv, row 7``."""
        ...

    def encoding_advice(self) -> str:
        """What to do about a text that is not valid in the encoding assumed."""
        ...


@dataclass(frozen=True)
class Table:
    """Checked rows.

    Attributes:
        rows: Columns ``text`` and ``label``, memory-mapped.
        label_names: Names of the classes, in the order of their numbers.
    """

    rows: Dataset
    label_names: list[str]


def checked_table(
    reader: Reader, folder: Path, key: str, known: Sequence[str] | None, known_from: str = ""
) -> Table:
    """Open a table in the cache, after reading and checking its rows where it is missing.

    Args:
        reader: Where the rows come from.
        folder: Folder of the tables; made where missing.
        key: Digest of what ``reader`` reads and of ``known``.
        known: Names of the classes that may occur, in the order of their numbers; without, all
            labels that occur are classes, in numerical order if all are numbers, else sorted.
        known_from: Where the known classes come from, for messages.

    Raises:
        SmolbenchError: If a row is not a text with a label, a label is not known, there are no
            rows, or the folder cannot be written or is full.
    """
    table = _open(folder / key, warn=False)
    if table is not None:
        return table
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(
        folder / f"{key}.lock", f"{reader.name}: waiting for another process that reads it."
    ):
        table = _open(folder / key, warn=True)  # another process may have been first
        if table is None:
            with writing(folder):
                shutil.rmtree(folder / key, ignore_errors=True)
                _write(folder / key, reader, known, known_from)
            table = _open(folder / key, warn=True)
    if table is None:
        raise SmolbenchError(
            f"The table {folder / key} could not be read back after it was written: the disk may be"
            " failing; choose another folder with `--data.cache_dir DIR`."
        )
    return table


def shown(value: object) -> str:
    """A value as it stands in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]} ..."


def listed(names: Sequence[str], limit: int = 12) -> str:
    """Names as they stand in a message, the first of them where there are many."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(shown, names[:limit])) + rest


# -- the cache ------------------------------------------------------------------------------------


def _open(entry: Path, *, warn: bool) -> Table | None:
    """Check and map an entry; None where there is none, or it is damaged."""
    from datasets import ClassLabel, Dataset, DatasetInfo, Features, Value  # lazy: import cost

    if not entry.exists():
        return None
    rows_file = entry / "rows.arrow"
    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        found = {"format": FORMAT, "bytes": rows_file.stat().st_size, "crc32": crc32(rows_file)}
        if any(meta[name] != value for name, value in found.items()):
            raise ValueError("another size, checksum or format")
        names = [str(name) for name in meta["label_names"]]
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        rows = Dataset.from_file(str(rows_file), info=DatasetInfo(features=features))
    except PermissionError as error:
        raise SmolbenchError(
            f"The cached table {entry} may not be read: change its permissions, or choose another"
            " folder with `--data.cache_dir DIR`."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        if warn:
            log.warning("The cached table %s is damaged (%s): it is made again.", entry, error)
        return None
    return Table(rows, names)


def _write(entry: Path, reader: Reader, known: Sequence[str] | None, known_from: str) -> None:
    """Read and check all rows into a folder that gets its name when it is complete."""
    part = entry.with_name(f"{entry.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
    try:
        part.mkdir()
        classes = _Classes(reader, known, known_from)
        _write_rows(part / "rows.arrow", reader, classes)
        names = classes.sorted_names()
        if names != classes.names:
            _renumber(part / "rows.arrow", [names.index(name) for name in classes.names])
        meta = {
            "format": FORMAT,
            "bytes": (part / "rows.arrow").stat().st_size,
            "crc32": crc32(part / "rows.arrow"),
            "label_names": names,
        }
        (part / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        part.replace(entry)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_rows(path: Path, reader: Reader, classes: _Classes) -> None:
    import pyarrow as pa  # lazy: import cost

    schema = pa.schema({"text": pa.string(), "label": pa.int64()})
    count = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as sink:
        for chunk in reader.chunks():
            check_texts(chunk, reader)
            try:
                texts = pa.array(chunk.texts, pa.string())
            except UnicodeEncodeError:
                refuse_encoding(chunk, reader)
                raise
            labels = pa.array(classes.numbers_of(chunk), pa.int64())
            sink.write_batch(pa.record_batch([texts, labels], schema=schema))
            count += len(chunk.texts)
    if not count:
        raise SmolbenchError(f"{reader.name} has no rows: add some, or name another source.")


def _renumber(path: Path, numbers: list[int]) -> None:
    """Replace every class number by its new one."""
    import pyarrow as pa  # lazy: import cost

    new = np.asarray(numbers, dtype=np.int64)
    old_file = path.with_name("unsorted.arrow")
    path.replace(old_file)
    with pa.memory_map(str(old_file)) as mapped, pa.ipc.open_stream(mapped) as batches:
        schema = batches.schema
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as sink:
            for batch in batches:
                labels = pa.array(new[batch.column("label").to_numpy()])
                columns = [batch.column("text"), labels]
                sink.write_batch(pa.record_batch(columns, schema=schema))
    old_file.unlink()


def checked_pairs(reader: Reader) -> tuple[list[str], list[str]]:
    """Read all texts and summaries, which memory must hold.

    Args:
        reader: Where the rows come from; what it reads as labels are the summaries.

    Raises:
        SmolbenchError: If a text or summary is missing or is none, or there are no rows.
    """
    texts: list[str] = []
    summaries: list[str] = []
    for chunk in reader.chunks():
        second = Chunk(chunk.labels, [], chunk.numbers)
        for part, what in ((chunk, "text"), (second, "summary")):
            check_texts(part, reader, what)
            try:
                "".join(part.texts).encode()
            except UnicodeEncodeError:
                refuse_encoding(part, reader, what)
        texts += chunk.texts
        summaries += chunk.labels
    if not texts:
        raise SmolbenchError(f"{reader.name} has no rows: add some, or name another source.")
    return texts, summaries


# -- checks ---------------------------------------------------------------------------------------


def check_texts(chunk: Chunk, reader: Reader, what: str = "text") -> None:
    """Refuse what is not a text with something in it; ``what`` is how messages call it."""
    texts = chunk.texts
    if set(map(type, texts)) <= {str} and all(map(str.strip, texts)):
        joined = "".join(texts)
        if "\0" not in joined:
            return
    for text, number in zip(texts, chunk.numbers, strict=True):
        if text is None or (isinstance(text, str) and not text.strip()):
            raise SmolbenchError(
                f"{reader.place(number)}: the {what} is {'missing' if text is None else 'empty'};"
                " fill it in, or remove the row."
            )
        if not isinstance(text, str):
            raise SmolbenchError(
                f"{reader.place(number)}: the {what} is {_kind(text)} ({shown(text)}), not a"
                f" string; name the right column ({what}_column), or convert it."
            )
        if "\0" in text:
            raise SmolbenchError(
                f"{reader.place(number)}: the {what} holds a NUL character (byte 0); remove it, or"
                f" {reader.encoding_advice()}."
            )


def refuse_encoding(chunk: Chunk, reader: Reader, what: str = "text") -> None:
    """Name the first text that cannot be written as UTF-8."""
    for text, number in zip(chunk.texts, chunk.numbers, strict=True):
        bad = next((c for c in text if "\ud800" <= c <= "\udfff"), None)
        if bad is None:
            continue
        before = text[: text.index(bad)][-12:]
        if bad >= "\udc80":
            fault = f"byte 0x{ord(bad) - 0xDC00:02X}"  # how `surrogateescape` keeps a bad byte
        else:
            fault = f"half a character, \\u{ord(bad):04x},"
        behind = f"behind {before!r}" if before else "at its beginning"
        raise SmolbenchError(
            f"{reader.place(number)}: the {what} is not valid, it has {fault} {behind};"
            f" {reader.encoding_advice()}."
        )


class _Classes:
    """Numbers the labels in the order in which they occur, or as it is told."""

    def __init__(self, reader: Reader, known: Sequence[str] | None, known_from: str) -> None:
        self.names = list(known or ())
        self._fixed = known is not None
        self._known_from = known_from
        self._reader = reader
        self._numbers = {name: number for number, name in enumerate(self.names)}
        # the type is part of the key: 1 and True would be one
        self._by_value: dict[tuple[type, Any], int] = {}

    def numbers_of(self, chunk: Chunk) -> list[int]:
        """Class numbers of a chunk's labels.

        Raises:
            SmolbenchError: If a label is missing, no class, or not known.
        """
        found = []
        known = self._by_value
        for value, number in zip(chunk.labels, chunk.numbers, strict=True):
            try:
                found.append(known[type(value), value])
            except (KeyError, TypeError):  # a list or mapping has no hash
                found.append(self._number_of(value, number))
        return found

    def sorted_names(self) -> list[str]:
        """The classes in their final order."""
        if self._fixed:
            return self.names
        if all(_NUMBER.fullmatch(name) for name in self.names):
            return sorted(self.names, key=lambda name: (float(name), name))
        return sorted(self.names)

    def _number_of(self, value: object, number: int) -> int:
        name = self._name(value, number)
        if name not in self._numbers:
            if self._fixed:
                raise SmolbenchError(
                    f"{self._reader.place(number)}: the label {shown(name)} does not occur in"
                    f" {self._known_from}, whose labels are {listed(self.names)}; correct it,"
                    " remove the row, or train on such rows too."
                )
            if len(self.names) == MAX_CLASSES:
                raise SmolbenchError(
                    f"{self._reader.name} has more than {MAX_CLASSES} different labels, the last"
                    f" {shown(name)}; name the column of the classes with --data.label_column."
                )
            self._numbers[name] = len(self.names)
            self.names.append(name)
        self._by_value[type(value), value] = self._numbers[name]
        return self._numbers[name]

    def _name(self, value: object, number: int) -> str:
        """A label as a class's name."""
        place = self._reader.place
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # whole numbers become floats where a column has gaps
        name = str(value).strip() if isinstance(value, str | int | float) else ""
        if value is None or value != value or (isinstance(value, str) and not name):
            raise SmolbenchError(
                f"{place(number)}: the label is missing; fill it in, or remove the row."
            )
        if not isinstance(value, str | int | float):
            raise SmolbenchError(
                f"{place(number)}: the label is {_kind(value)} ({shown(value)}); a label is a"
                " string or a whole number."
            )
        if _NUMBER.fullmatch(name) and not float(name).is_integer():
            raise SmolbenchError(
                f"{place(number)}: the label {name} is a number with a fraction; classes are names"
                " or whole numbers: round the numbers, or turn them into names."
            )
        try:
            name.encode()
        except UnicodeEncodeError:
            raise SmolbenchError(
                f"{place(number)}: the label {name!a} is not valid;"
                f" {self._reader.encoding_advice()}."
            ) from None
        if "\0" in name:
            raise SmolbenchError(
                f"{place(number)}: the label holds a NUL character (byte 0); remove it, or"
                f" {self._reader.encoding_advice()}."
            )
        return name


def _kind(value: object) -> str:
    """What a value is, in a user's words."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    kinds = ((dict, "an object"), (list, "a list"), (bytes, "bytes"))
    return next((word for kind, word in kinds if isinstance(value, kind)), type(value).__name__)
