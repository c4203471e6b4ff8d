"""Texts and labels as a checked, memory-mapped table on disk.

Rows are read once, in chunks, and checked; what later runs use is an Arrow file in the cache, named
by a digest of where the rows came from.
"""

from __future__ import annotations

import html
import itertools
import json
import logging
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from smolbench.errors import SmolbenchError
from smolbench.utils import notices
from smolbench.utils.cache_folder import crc32, locked, writing

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT = 1
SimilarLabels = Literal["refuse", "merge", "keep"]
"""What becomes of labels that differ only in how they are spelled."""
MAX_CLASSES = 10_000
"""More different labels than this are taken for a mistake, such as the text's column."""
MISSING = frozenset((
    "nan", "NaN", "NAN", "NaT", "<NA>", "NA", "N/A", "n/a", "null", "NULL", "None", "\\N", "#N/A",
    "#REF!", "#NAME?", "#VALUE!", "#DIV/0!", "#NUM!", "#NULL!",
))  # fmt: skip
"""What programs write where there is no value."""

log = logging.getLogger("smolbench")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+")
_COMMA = re.compile(r"(?<=\d),0{1,2}$")
"""Thousands, and whole numbers, as spreadsheets of some languages write them."""
_AROUND = tuple("\"'`()[]\u2018\u2019\u201a\u201c\u201d\u201e\xab\xbb\u2039\u203a")
_TRUTHS = {"true": Decimal(1), "false": Decimal(0)}
_ENDS = ".,;:!\u3002\u3001\u0964\u061b\u060c"
_SHAPING = "\u034f\ufe0e\ufe0f"
_MINUS = re.compile(r"(?<![^\W_])-(?=\d)")
_SEPARATORS = re.compile(r"(?<=[^ _-])[ _-]+(?=[^ _-])")
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

    def remarks(self) -> list[str]:
        """What there is to be known of the rows once they are read, a line each."""
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
    reader: Reader,
    folder: Path,
    key: str,
    known: Sequence[str] | None,
    known_from: str = "",
    similar: SimilarLabels = "refuse",
) -> Table:
    """Open a table in the cache, after reading and checking its rows where it is missing.

    Args:
        reader: Where the rows come from.
        folder: Folder of the tables; made where missing.
        key: Digest of what ``reader`` reads, of ``known`` and of ``similar``.
        known: Names of the classes that may occur, in the order of their numbers; without, all
            labels that occur are classes, in numerical order if all are numbers, else sorted.
        known_from: Where the known classes come from, for messages.
        similar: What becomes of labels that are alike, see :func:`spelling_key`.

    Raises:
        SmolbenchError: If a row is not a text with a label, a label is not known or spelled in two
            ways, there are no rows, or the folder cannot be written or is full.
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
                _write(folder / key, reader, _Classes(reader, known, known_from, similar))
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
        remarks = [str(line) for line in meta["remarks"]]
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
    for line in remarks:
        notices.warn("%s", line)
    return Table(rows, names)


def _write(entry: Path, reader: Reader, classes: _Classes) -> None:
    """Read and check all rows into a folder that gets its name when it is complete."""
    part = entry.with_name(f"{entry.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
    try:
        part.mkdir()
        remarks = _write_rows(part / "rows.arrow", reader, classes)
        names, numbers = classes.finished()
        if numbers != list(range(len(numbers))):
            _renumber(part / "rows.arrow", numbers)
        meta = {
            "format": FORMAT,
            "bytes": (part / "rows.arrow").stat().st_size,
            "crc32": crc32(part / "rows.arrow"),
            "label_names": names,
            "remarks": [*reader.remarks(), *remarks, *classes.remarks()],
        }
        (part / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        part.replace(entry)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_rows(path: Path, reader: Reader, classes: _Classes) -> list[str]:
    """Write the rows; returns what there is to be known of their texts."""
    import pyarrow as pa  # lazy: import cost

    schema = pa.schema({"text": pa.string(), "label": pa.int64()})
    count = 0
    missing: Counter[str] = Counter()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as sink:
        for chunk in reader.chunks():
            missing += check_texts(chunk, reader)
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
    return missing_said(missing, reader)


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
    missing: dict[str, Counter[str]] = {"text": Counter(), "summary": Counter()}
    for chunk in reader.chunks():
        second = Chunk(chunk.labels, [], chunk.numbers)
        for part, what in ((chunk, "text"), (second, "summary")):
            missing[what] += check_texts(part, reader, what)
            try:
                "".join(part.texts).encode()
            except UnicodeEncodeError:
                refuse_encoding(part, reader, what)
        texts += chunk.texts
        summaries += chunk.labels
    if not texts:
        raise SmolbenchError(f"{reader.name} has no rows: add some, or name another source.")
    said = [missing_said(counts, reader, what) for what, counts in missing.items()]
    for line in itertools.chain(reader.remarks(), *said):
        notices.warn("%s", line)
    return texts, summaries


# -- checks ---------------------------------------------------------------------------------------


def check_texts(chunk: Chunk, reader: Reader, what: str = "text") -> Counter[str]:
    """Refuse what is not a text with something in it; ``what`` is how messages call it.

    Returns:
        How often each of :data:`MISSING` is a text, for :func:`missing_said`.
    """
    texts = chunk.texts
    plain = set(map(type, texts)) <= {str} and all(map(str.strip, texts))
    suspect = not plain or "\0" in "".join(texts)
    for text, number in zip(texts, chunk.numbers, strict=True) if suspect else ():
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
    return Counter(text for text in map(str.strip, texts) if text in MISSING)


def missing_said(counts: Mapping[str, int], reader: Reader, what: str = "text") -> list[str]:
    """At most one line of what may be missing and was taken for a text or class.

    Args:
        counts: How many rows have each of :data:`MISSING`.
        reader: Where they come from.
        what: How the line calls it.
    """
    if not counts:
        return []
    found = " and ".join(f"{shown(value)} ({count:,})" for value, count in sorted(counts.items()))
    return [
        f"{reader.name}: a {what} of its rows is {found}, which is what programs write where there"
        f" is none; it is taken for a {what}: if it is none, remove these rows."
    ]


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
    """Numbers the labels in the order in which they occur, or as it is told.

    White space around a label and the composition of its accents never make a class.
    """

    def __init__(
        self,
        reader: Reader,
        known: Sequence[str] | None,
        known_from: str,
        similar: SimilarLabels,
    ) -> None:
        self._fixed = known is not None
        self._known_from = known_from
        self._similar = similar
        self._reader = reader
        self._spelled = [composed(name) for name in known or ()]
        self._names = list(self._spelled)  # of 1.0, where a number is meant, it is 1
        self._counts = [0] * len(self._names)
        self._numbers = {name: n for n, name in reversed(list(enumerate(self._spelled)))}
        self._of_key = {spelling_key(name): self._numbers[name] for name in self._spelled}
        # the type is part of the key: 1 and True would be one
        self._by_value: dict[tuple[type, Any], int] = {}

    def numbers_of(self, chunk: Chunk) -> list[int]:
        """Numbers of a chunk's labels, until :meth:`finished` says which class each is.

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
        for number, count in Counter(found).items():
            self._counts[number] += count
        return found

    def finished(self) -> tuple[list[str], list[int]]:
        """The classes in their final order, and of every number so far the class it is.

        Raises:
            SmolbenchError: If labels differ only in how they are spelled, and nothing says whether
                they are one class.
        """
        self._refuse_similar()
        classes = list(self._names)
        if self._similar == "merge":
            for group in self._groups():
                # by rows, not by their order: a file that is shuffled has the same names
                name = max((self._counts[n], self._names[n]) for n in group)[1]
                for number in group:
                    classes[number] = name
        names = list(dict.fromkeys(classes))
        if not self._fixed:
            numeric = all(_NUMBER.fullmatch(name) for name in names)
            names.sort(key=(lambda name: (float(name), name)) if numeric else None)
        return names, [names.index(name) for name in classes]

    def remarks(self) -> list[str]:
        """What there is to be known of the classes: which were merged, and what may be none."""
        counts = {n: c for n, c in zip(self._spelled, self._counts, strict=True) if c}
        lines = missing_said(
            {n: c for n, c in counts.items() if n in MISSING}, self._reader, "label"
        )
        if self._similar == "merge" and (groups := self._groups()):
            lines.append(f"{self._reader.name}: one class each are {self._said(groups)}.")
        return lines

    def _groups(self) -> list[list[int]]:
        """Numbers of spellings that differ, but not in what they say."""
        groups: dict[str | Decimal, list[int]] = {}
        for number, name in enumerate(self._spelled):
            groups.setdefault(spelling_key(name), []).append(number)
        return [group for group in groups.values() if len({self._spelled[n] for n in group}) > 1]

    def _refuse_similar(self) -> None:
        groups = self._groups() if self._similar == "refuse" else []
        if not groups:
            return
        raise SmolbenchError(
            f"{self._reader.name} has labels that differ only in how they are spelled, with the"
            f" rows of each: {self._said(groups)}; correct them, or give"
            " --data.similar_labels merge, which makes one class of each group, or keep, which"
            " leaves every spelling a class."
        )

    def _said(self, groups: Sequence[Sequence[int]]) -> str:
        """Groups of labels as they stand in a message, with their rows."""
        said = [
            " and ".join(f"{shown(self._spelled[n])} ({self._counts[n]:,})" for n in group)
            for group in groups
        ]
        return ", ".join(said[:6]) + (f", and {len(said) - 6} more" if len(said) > 6 else "")

    def _number_of(self, value: object, number: int) -> int:
        name, spelled = self._name(value, number)
        if self._fixed:
            found = self._numbers.get(name, self._numbers.get(spelled))
            found = self._known_by_key(name, number) if found is None else found
        elif spelled in self._numbers:
            found = self._numbers[spelled]
        else:
            found = len(self._names)
            if found == MAX_CLASSES:
                raise SmolbenchError(
                    f"{self._reader.name} has more than {MAX_CLASSES} different labels, the last"
                    f" {shown(name)}; name the column of the classes with --data.label_column."
                )
            self._numbers[spelled] = found
            self._names.append(name)
            self._spelled.append(spelled)
            self._counts.append(0)
        self._by_value[type(value), value] = found
        return found

    def _known_by_key(self, name: str, number: int) -> int:
        """The known class that a label is another spelling of."""
        place = self._reader.place(number)
        found = self._of_key.get(spelling_key(name))
        if found is None or self._similar == "keep":
            raise SmolbenchError(
                f"{place}: the label {shown(name)} does not occur in {self._known_from}, whose"
                f" labels are {listed(self._names)}; correct it, remove the row, or train on such"
                " rows too."
            )
        if self._similar == "refuse":
            raise SmolbenchError(
                f"{place}: the label {shown(name)} differs only in how it is spelled from"
                f" {shown(self._names[found])}, a label of {self._known_from}; correct it, or give"
                " --data.similar_labels merge, which takes them for one class."
            )
        return found

    def _name(self, value: object, number: int) -> tuple[str, str]:
        """A label as a class's name, and as it was spelled."""
        place = self._reader.place
        spelled = composed(str(value)) if isinstance(value, str | int | float) else ""
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # whole numbers become floats where a column has gaps
        name = spelled if isinstance(value, str) else str(value)
        if value is None or value != value or (isinstance(value, str) and not name):
            raise SmolbenchError(
                f"{place(number)}: the label is missing; fill it in, or remove the row."
            )
        if not isinstance(value, str | int | float) or value in (float("inf"), float("-inf")):
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
        return name, spelled


def composed(label: str) -> str:
    """A label without what no reader sees: white space around it, how accents are composed."""
    return unicodedata.normalize("NFC", label.strip())


def spelling_key(name: str) -> str | Decimal:
    """What spellings of one name share.

    A number's value, 1 and 0 of true and false; else the name without case, width, what nobody
    sees, quotation marks and brackets around it, punctuation behind it, and blanks, hyphens and
    underscores inside it. Those between two digits (``1-2``) and a minus before a digit tell names
    apart.
    """
    letters = "".join(map(_seen, html.unescape(name)))
    plain = unicodedata.normalize("NFKC", letters).strip()
    while plain[:1] in _AROUND and plain[-1:] in _AROUND and plain[1:-1].strip():
        plain = plain[1:-1].strip()
    number = plain.replace(",", "") if _GROUPED.fullmatch(plain) else _COMMA.sub("", plain)
    if _NUMBER.fullmatch(number):
        return Decimal(number)
    folded = " ".join(unicodedata.normalize("NFKC", plain.casefold()).split())
    bare = folded.rstrip(_ENDS).strip("_ ") or folded
    joined = _SEPARATORS.sub(_between, _MINUS.sub("\0", bare))
    return _TRUTHS.get(joined, joined)


def _seen(character: str) -> str:
    """A character as a reader sees it: nothing of those that only shape others, one dash of all."""
    kind = unicodedata.category(character)
    if kind == "Cf" or character in _SHAPING:
        return ""
    return "-" if kind == "Pd" or character == "\u2212" else character


def _between(found: re.Match[str]) -> str:
    """What is left of blanks and dashes: they matter only between two digits."""
    before, after = found.string[found.start() - 1], found.string[found.end()]
    return "-" if before.isdigit() and after.isdigit() else ""


def _kind(value: object) -> str:
    """What a value is, in a user's words."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    kinds = ((dict, "an object"), (list, "a list"), (bytes, "bytes"))
    return next((word for kind, word in kinds if isinstance(value, kind)), type(value).__name__)
