# ruff: noqa: E501, RUF001 - lists of strange texts
"""Small tables as people bring them, drawn at random: what is in them, and how they are written."""

from __future__ import annotations

import gzip
import json
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from smolbench.data.tables import spelling_key

WORDS = (
    "good", "bad", "Bad", "film", "don't", "naïve", "nai\u0308ve", "ﬁne", "ſo", "I\u0307", "straße",
    "अच्छी", "फ़िल्म", "ख़राब", "这部电影很好", "不好看", "فيلم", "رائع", "סרט", "ภาพยนตร์", "映画",
    "👍🏽", "👩\u200d👩\u200d👧", "e\u0301", "1.0", "1", "-3", "NA", "null", "None", "nan", "true", "no", "=1+1",
    r"\N", "\\", r"\n", "#", "//", "@user", "https://a.b/c?d=e&f", "<br />", "&amp;", "x" * 60,
)  # fmt: skip
DELIMITERS = (
    ",", "\t", ";", "|", '"', '""', "'", "“", " ", "  ", "\n", "\r\n", "\r", "\n\n", "\u2028", "\x0b",
    "\x0c", "\x1c", "\x85", "\xa0", "\u200b", "\u200f", "\ufeff", "\x1b[31m", "\x07", "{", "}", "%s",
)  # fmt: skip
PROMPTS = (
    "{text}", "{label}", "{0}", "Label:", "\nLabel: pos", "\n\n", "###", "<|im_start|>user\n",
    "<|im_end|>", "<|endoftext|>", "</s>", "<s>", "<pad>", "<unk>", "<mask>", "<n>", "[INST]", "[CLS]",
    "<extra_id_0>", "summarize:", "TL;DR:", "{{ messages }}", "{% if x %}",
)  # fmt: skip
LABELS = (
    ("neg", "pos"),
    ("0", "1"),
    ("-1", "0", "1"),
    ("2", "10", "1"),
    ("yes", "no", "maybe"),
    ("अच्छा", "बुरा"),
    ("好", "坏", "一般"),
    ("négatif", "positif"),
    ("true", "false"),
    ("NA", "null", "None"),
    ("very good", "very bad"),
    ("a,b", 'c "d"', "e|f"),
    ("label", "text", "index"),
    ("accuracy", "n", "macro"),
    ("[red]", "{text}", "<b>"),
    ("x_before", "x"),
)
ENCODINGS = (
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "cp1252",
    "latin-1",
    "gb18030",
    "shift_jis",
)
_LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


@dataclass(frozen=True)
class Drawn:
    """A table, and how it is written.

    Attributes:
        rows: Texts, and labels as the classes' names.
        ending: Of the file.
        encoding: Of the file.
        quoted: Whether a CSV's or TSV's fields stand in quotes: ``all``, ``needed``, ``none``.
        line: What a line ends in.
        dressed: How labels are written that are the same class: plain, ``decomposed``, ``blanks``.
        numbers: Whether labels that are numbers are written as such, where the format has them.
        extra: Whether there is a third column.
        blank: Whether empty lines stand between rows, where the format has them.
        told: Whether the options say what quotes mean, also where that can be found out.
    """

    rows: tuple[tuple[str, str], ...]
    ending: str = ".csv"
    encoding: str = "utf-8"
    quoted: str = "needed"
    line: str = "\n"
    dressed: str = "plain"
    numbers: bool = False
    extra: bool = False
    blank: bool = False
    told: bool = False

    @property
    def texts(self) -> list[str]:
        return [text for text, _ in self.rows]

    @property
    def labels(self) -> list[str]:
        return [label for _, label in self.rows]

    @property
    def kind(self) -> str:
        return self.ending.removesuffix(".gz")

    @property
    def options(self) -> list[str]:
        """What the command line has to be told of the file, behind ``--data.`` or ``--``."""
        found = []
        if self.kind != ".parquet" and self.encoding not in ("utf-8", "utf-8-sig"):
            found.append(f"encoding={self.encoding}")
        if self.kind in (".csv", ".tsv") and (self.told or self.quoted == "none"):
            found.append(f"quoting={'none' if self.quoted == 'none' else 'quotes'}")
        return found

    def with_rows(self, rows: Any) -> Drawn:
        return replace(self, rows=tuple(rows))

    def write(self, path: Path, other: str = "label") -> None:
        """Write the file; ``other`` names the second column."""
        labels = [self._label(n, label) for n, label in enumerate(self.labels)]
        columns: dict[str, list[Any]] = {"text": self.texts, other: labels}
        if self.extra:
            columns = {"no.": list(range(len(labels))), **columns}
        if self.kind == ".parquet":
            pq.write_table(pa.table(columns), path)
            return
        content = self._lines(columns).encode(self.encoding)
        path.write_bytes(gzip.compress(content) if self.ending.endswith(".gz") else content)

    def _label(self, number: int, label: str) -> str | int:
        if self.numbers and self.kind in (".jsonl", ".parquet"):
            return int(label)
        if self.dressed == "decomposed" and number % 2:
            return unicodedata.normalize("NFD", label)
        return f" {label}  " if self.dressed == "blanks" and number % 2 else label

    def _lines(self, columns: dict[str, list[Any]]) -> str:
        rows: list[Any] = list(zip(*columns.values(), strict=True))
        if self.kind == ".jsonl":
            ascii_only = self.quoted == "all"
            lines = [
                json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=ascii_only)
                for row in rows
            ]
        else:
            lines = [self._line(row) for row in [tuple(columns), *rows]]
        between = self.line * (2 if self.blank else 1)
        return between.join(lines) + self.line

    def _line(self, cells: tuple[Any, ...]) -> str:
        mark = "\t" if self.kind == ".tsv" else ","
        return mark.join(self._cell(str(cell), mark) for cell in cells)

    def _cell(self, cell: str, mark: str) -> str:
        needed = any(c in cell for c in (mark, '"', "\r", "\n"))
        if self.quoted == "none" or (self.quoted == "needed" and not needed):
            return cell
        return '"' + cell.replace('"', '""') + '"'


def texts() -> st.SearchStrategy[str]:
    """Texts of anything, never empty."""
    piece = st.one_of(
        st.sampled_from(WORDS),
        st.sampled_from(WORDS),
        st.sampled_from(DELIMITERS),
        st.sampled_from(PROMPTS),
        st.text(_LETTERS, max_size=6),
    )
    parts = st.lists(piece, min_size=1, max_size=12)
    return st.builds(
        "".join, st.one_of(parts, parts.map(lambda p: [f"{one} " for one in p]))
    ).filter(str.strip)


def classes() -> st.SearchStrategy[tuple[str, ...]]:
    """Names of classes, no two of which are alike."""
    name = st.text(_LETTERS, min_size=1, max_size=8).map(
        lambda s: unicodedata.normalize("NFC", s.strip())
    )
    # a number with a fraction is refused
    own = st.lists(
        name.filter(lambda s: s and isinstance(spelling_key(s), str)),
        min_size=2,
        max_size=4,
        unique_by=spelling_key,
    )
    return st.one_of(st.sampled_from(LABELS), st.sampled_from(LABELS), own.map(tuple))


def writable(drawn: Drawn) -> Drawn:
    """The table without what its format cannot hold."""
    if drawn.kind == ".parquet":
        return drawn

    def fits(cell: str) -> str:
        cell = cell.encode(drawn.encoding, "ignore").decode(drawn.encoding)
        if drawn.kind in (".csv", ".tsv") and drawn.quoted == "none":
            for bad in ("\t" if drawn.kind == ".tsv" else ",", "\r", "\n"):
                cell = cell.replace(bad, " ")
        return cell

    rows = [(fits(text) if fits(text).strip() else "plain", label) for text, label in drawn.rows]
    if any(fits(label) != label for _, label in rows):
        names = sorted({label for _, label in rows})
        rows = [(text, f"class{names.index(label)}") for text, label in rows]
    return drawn.with_rows(rows)


@st.composite
def tables(draw: Any, min_rows: int = 2, max_rows: int = 12, told_apart: bool = False) -> Drawn:
    """Tables that can be read.

    Args:
        draw: From hypothesis.
        min_rows: Rows at least, all classes among them.
        max_rows: Rows at most.
        told_apart: Whether all texts but a few stand once, so that there are enough to divide.
    """
    names = draw(classes())
    content = draw(st.lists(texts(), min_size=max(min_rows, len(names)), max_size=max_rows))
    if not told_apart and draw(st.booleans()):  # some stand twice
        content[-1] = content[0]
    first = list(range(len(names))) * (len(content) // len(names))
    rest = draw(st.integers(0, len(names) - 1))
    numbers = (first + [rest] * len(content))[: len(content)]
    rows = [(text, names[n]) for text, n in zip(content, numbers, strict=True)]
    drawn = Drawn(
        tuple(rows),
        ending=draw(st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz", ".tsv.gz"])),
        encoding=draw(st.one_of(st.just("utf-8"), st.sampled_from(ENCODINGS))),
        quoted=draw(st.sampled_from(["needed", "all", "none"])),
        line=draw(st.sampled_from(["\n", "\r\n"])),
        dressed=draw(st.sampled_from(["plain", "decomposed", "blanks"])),
        numbers=all(name.lstrip("-").isdecimal() for name in names) and draw(st.booleans()),
        extra=draw(st.booleans()),
        blank=draw(st.booleans()),
        told=draw(st.booleans()),
    )
    if drawn.numbers and not all(name.isascii() for name in names):
        drawn = replace(drawn, numbers=False)
    drawn = writable(drawn)
    if told_apart:
        rows = []
        for number, (text, label) in enumerate(drawn.rows):
            rows.append((f"{text} no{number % (len(drawn.rows) - 1)}", label))
        drawn = drawn.with_rows(rows)
    if drawn.dressed == "decomposed":  # what cannot be written so stands composed
        try:
            for label in drawn.labels:
                unicodedata.normalize("NFD", label).encode(drawn.encoding)
        except UnicodeEncodeError:
            drawn = replace(drawn, dressed="plain")
    return drawn
