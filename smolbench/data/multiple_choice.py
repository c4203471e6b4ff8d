"""Multiple-choice data: a context, four endings, and which of them is right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from smolbench.data.columns import column_values
from smolbench.data.datamodule import BaseDataModule, Numbers
from smolbench.data.hub import Source, grouped_split
from smolbench.errors import SmolbenchError

CHOICES = 4
"""Endings per example."""


class MultipleChoiceDataModule(BaseDataModule):
    """Multiple-choice data, with the columns that HellaSwag has.

    The context comes in parts, which the scoring conventions put together in ways of their own:
    ``activity_label``, ``ctx_a`` and ``ctx_b``, or ``ctx``, which is the last two in one. Then
    ``endings``, four texts, ``label``, the number of the right one, and ``source_id``, the text
    that an example was taken from. Validation rows are held out by source, so that no text is on
    both sides. Limited splits keep the shares of the sources' kinds (what stands in front of the
    ``~`` in ``source_id``). The options are those of
    :class:`~smolbench.data.datamodule.BaseDataModule`.
    """

    kind: ClassVar[str] = "multiple_choice"
    content: ClassVar[tuple[str, ...]] = ("ctx", "activity_label", "ctx_a", "ctx_b", "endings")

    def check(self, source: Source) -> None:
        """Refuse rows that cannot be learned from.

        Raises:
            SmolbenchError: If a column is missing, a row has not four endings, all of them texts,
                a part of its context is missing, or its label is not 0, 1, 2 or 3.
        """
        wanted = {*self.content, "label", "source_id"}
        for name, split in source.splits.items():
            where = f"The {name} split of {source.id}"
            if missing := sorted(wanted - set(split.column_names)):
                raise SmolbenchError(
                    f"{where} has no column {' and no column '.join(map(repr, missing))}; it has "
                    f"{', '.join(map(repr, split.column_names)) or 'none'}."
                )
            texts = [part for part in self.content if part != "endings"]
            columns = {part: column_values(split, part) for part in (*texts, "endings", "label")}
            for row, values in enumerate(zip(*columns.values(), strict=True)):
                if (fault := _fault(dict(zip(columns, values, strict=True)))) is not None:
                    raise SmolbenchError(f"{where} has {fault} in row {row}.")

    def strata(self, source: Source, split: str) -> Numbers | None:
        """Kinds of source, such as ActivityNet and WikiHow."""
        kinds = (str(name).partition("~")[0] for name in self._sources(source, split))
        return _numbered(kinds)

    def hold_out(self, source: Source) -> tuple[Numbers, Numbers]:
        """``val_fraction`` of the sources, with all rows of each; see the base class."""
        groups = _numbered(self._sources(source, "train"))
        return grouped_split(groups, self.val_fraction, self.split_seed)

    def _sources(self, source: Source, split: str) -> Iterable[Any]:
        return column_values(source.splits[split], "source_id")


def _fault(row: dict[str, Any]) -> str | None:
    """What is wrong with a row, if anything."""
    endings, label = row.pop("endings"), row.pop("label")
    if not isinstance(endings, list) or len(endings) != CHOICES:
        count = len(endings) if isinstance(endings, list) else "no"
        return f"{count} endings, where there must be {CHOICES},"
    if not all(isinstance(ending, str) for ending in endings):
        return f"an ending that is no text ({endings!r})"
    if label not in range(CHOICES):
        return f"the label {label!r}, where 0 to {CHOICES - 1} are possible,"
    for part, text in row.items():
        if not isinstance(text, str):
            return f"no text in the column {part!r}"
    return None


def _numbered(names: Iterable[str]) -> Numbers:
    """A number for each name, equal where the names are."""
    _, numbers = np.unique(np.asarray(list(names), dtype=str), return_inverse=True)
    return np.asarray(numbers, dtype=np.int64)
