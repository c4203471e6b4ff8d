"""Rows that wait until they fill a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from smolbench.data.batching import IGNORE_LABEL


class PendingRows:
    """Chosen rows of many batches, to be worked on together.

    Rows of one batch of a length-sorted evaluation are of like length, and so are those of the next
    ones: what is put together here is, too.
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, torch.Tensor]] = []

    def clear(self) -> None:
        """Forget all."""
        self._rows = []

    def add(self, batch: dict[str, torch.Tensor], chosen: torch.Tensor) -> None:
        """Let rows of a batch wait.

        Args:
            batch: Tensors ``(B, ...)``.
            chosen: Which rows, shape ``(B,)``.
        """
        for row in chosen.nonzero().flatten().tolist():
            self._rows.append({name: column[row] for name, column in batch.items()})

    def take(self, n: int) -> dict[str, torch.Tensor] | None:
        """The rows that wait longest as one batch, if at least ``n`` wait, else ``None``.

        With ``n`` of 1: all that are left, if any. Short rows are filled up on the right,
        ``labels`` with -100, all else with 0, which ``attention_mask`` hides.
        """
        if len(self._rows) < n:
            return None
        count = len(self._rows) if n == 1 else n
        rows, self._rows = self._rows[:count], self._rows[count:]
        return {name: _stacked(name, [row[name] for row in rows]) for name in rows[0]}


def _stacked(name: str, columns: list[torch.Tensor]) -> torch.Tensor:
    if columns[0].ndim == 0:
        return torch.stack(columns)
    width = max(len(column) for column in columns)
    fill = IGNORE_LABEL if name == "labels" else 0
    return torch.stack([F.pad(column, (0, width - len(column)), value=fill) for column in columns])
