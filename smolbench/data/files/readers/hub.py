"""Splits of the Hub's datasets, by the names of their columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smolbench.data.files.readers.base import CHUNK_ROWS
from smolbench.data.tables import Chunk, listed
from smolbench.errors import SmolbenchError

if TYPE_CHECKING:
    from datasets import Dataset


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

    def remarks(self) -> list[str]:
        """None."""
        return []

    def encoding_advice(self) -> str:
        """What to do about wrong bytes."""
        return "ask the owner of the dataset to correct it"
