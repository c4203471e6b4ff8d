"""JSON lines: an object per line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

from smolbench.data.files.readers.base import CHUNK_ROWS
from smolbench.data.files.readers.text import TextReader
from smolbench.data.tables import Chunk, listed, shown
from smolbench.errors import SmolbenchError


class JsonLinesReader(TextReader):
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
        outer: list[tuple[str, Any]] = []  # of objects in each other the outer one is read last

        def noted(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            outer[:] = pairs
            return dict(pairs)

        try:
            row = json.loads(line, object_pairs_hook=noted)
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
        if len(outer) > len(row):
            names = [name for name, _ in outer]
            doubled = next(name for name in names if names.count(name) > 1)
            raise SmolbenchError(
                f"{self.place(number)} has {doubled!r} {names.count(doubled)} times: leave one."
            )
        for option, wanted in self._wanted():
            if wanted not in row:
                raise SmolbenchError(
                    f"{self.place(number)} has no {wanted!r}; it has {listed(list(row))}: add it,"
                    f" or name another one with {self.prefix}{option}."
                )
        return row
