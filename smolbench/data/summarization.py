"""Summarization data: a document, and the summary that somebody wrote of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from smolbench.data.columns import column_values
from smolbench.data.datamodule import BaseDataModule, Numbers, SplitName
from smolbench.data.hub import Source, Split, grouped_split
from smolbench.errors import SmolbenchError

# No `if TYPE_CHECKING:` here, see datamodule.py: hence `Any` where datasets' types would stand.


class SummarizationDataModule(BaseDataModule):
    """Summarization data, in the columns ``document`` and ``summary``.

    Both are texts with something in them. The options are those of
    :class:`~smolbench.data.datamodule.BaseDataModule`.
    """

    kind: ClassVar[str] = "summarization"
    content: ClassVar[tuple[str, ...]] = ("document", "summary")

    def check(self, source: Source) -> None:
        """Refuse rows that cannot be learned from.

        Raises:
            SmolbenchError: If a column is missing, or a document or summary is missing or empty.
        """
        for name, split in source.splits.items():
            where = f"The {name} split of {source.id}"
            missing = [column for column in self.content if column not in split.column_names]
            if missing:
                raise SmolbenchError(
                    f"{where} has no column {' and no column '.join(map(repr, missing))}; it has "
                    f"{', '.join(map(repr, split.column_names)) or 'none'}."
                )
            for column in self.content:
                for row, text in enumerate(column_values(split, column)):
                    if not _is_text(text):
                        found = "an empty" if isinstance(text, str) else "no"
                        raise SmolbenchError(f"{where} has {found} {column} in row {row}.")

    def hold_out(self, source: Source) -> tuple[Numbers, Numbers]:
        """``val_fraction`` of the documents, each with all its summaries; see the base class."""
        groups = first_places(column_values(source.splits["train"], "document"))
        return grouped_split(groups, self.val_fraction, self.split_seed)

    def texts(self, name: SplitName) -> list[str]:
        """Documents of a split, after the limit."""
        return list(column_values(self.split(name).examples, "document"))

    def predict_on(self, texts: Sequence[str]) -> None:
        """Give the documents that ``Trainer.predict`` is to summarize.

        Raises:
            SmolbenchError: If there is none.
        """
        from datasets import Dataset  # lazy: import cost

        if not texts:
            raise SmolbenchError("There is no text to summarize.")
        self._splits["predict"] = Split(Dataset.from_dict({"document": list(texts)}), None)

    def _nothing_to_predict(self) -> str:
        return (
            "There is no text to summarize: give the texts to predict_on(texts) of "
            f"{type(self).__name__} first."
        )


def renamed_pairs(source: Source, document: str, summary: str) -> Source:
    """Documents and summaries under their names here, without the rows that lack either.

    Args:
        source: Rows with two columns of texts.
        document: Name of the column of the documents.
        summary: Name of the column of the summaries.

    Returns:
        The rows, and among the facts ``data/n_dropped_empty``, how many were left out of all
        splits.

    Raises:
        SmolbenchError: If a column is missing.
    """
    splits: dict[str, Any] = {}
    dropped = 0
    for name, rows in source.splits.items():
        for column in (document, summary):
            if column not in rows.column_names:
                raise SmolbenchError(
                    f"The {name} split of {source.id} has no column {column!r}; it has "
                    f"{', '.join(map(repr, rows.column_names)) or 'none'}."
                )
        pairs = zip(column_values(rows, document), column_values(rows, summary), strict=True)
        kept = [row for row, pair in enumerate(pairs) if all(_is_text(text) for text in pair)]
        dropped += len(rows) - len(kept)
        chosen = rows.select(kept) if len(kept) < len(rows) else rows
        chosen = chosen.select_columns([document, summary])
        splits[name] = chosen.rename_columns({document: "document", summary: "summary"})
    facts = {**source.facts, "data/n_dropped_empty": dropped}
    return Source(splits, source.id, source.revision, facts)


def first_places(texts: Iterable[str]) -> Numbers:
    """Of each text the row where it stands first: equal texts are of one group, shape ``(N,)``."""
    places: dict[str, int] = {}
    return np.array([places.setdefault(text, row) for row, text in enumerate(texts)], np.int64)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
