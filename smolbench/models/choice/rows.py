"""Rows of a multiple-choice question: the context once, its endings as branches behind it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from smolbench.data.token_cache import TokenTable

Indices = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int32]


class ChoiceRows:
    """Encoded questions as batches for :func:`~smolbench.models.choice.scoring.log_likelihoods`.

    A question whose context is shared is one row: context, then each ending without its last token,
    which nothing is predicted from. Every ending starts at the position behind the context. A
    question of which a row would be longer than ``max_length`` becomes a row per ending, each
    truncated from the left on its own, as lm_eval does it: the longer an ending, the less of the
    context is left to it.

    Args:
        table: From :class:`~smolbench.models.choice.conventions.ChoiceEncoder`.
        labels: Numbers of the right endings, shape ``(N,)``.
        max_length: Most tokens that the model reads in one row.
        shared: Whether the endings of a question share a row; else each has one of its own.
        only_right: Whether rows hold the right ending alone, for training on it.
        prefix: Tokens at the beginning of all contexts that are left out: the model has their keys
            and values. Shorter than every context.
    """

    def __init__(
        self,
        table: TokenTable,
        labels: npt.NDArray[Any],
        max_length: int,
        *,
        shared: bool = True,
        only_right: bool = False,
        prefix: int = 0,
    ) -> None:
        self.table = table
        self.labels = np.asarray(labels, dtype=np.int64)
        self.max_length = max_length
        self.shared = shared
        self.only_right = only_right
        self._sizes: Indices = table.ragged["ending_tokens"].padded(np.arange(len(table)), 0)
        self.context_lengths: Indices = table.ragged["input_ids"].lengths - self._sizes.sum(axis=1)
        self.fitting: npt.NDArray[np.bool_] = (
            self.context_lengths + self._sizes.max(axis=1) - 1 <= max_length
        )
        """Whether a question is read whole, its context with any one ending [N]."""
        self.prefix = prefix
        read = self._sizes
        if only_right:
            read = read[np.arange(len(table)), self.labels][:, None]
        # the same whether rows are shared or not, so that batches hold the same questions
        self.lengths: Indices | None = self.context_lengths + (read - 1).sum(axis=1) - prefix

    def __len__(self) -> int:
        """Return the number of questions, N."""
        return len(self.table)

    def batch(self, rows: Indices) -> dict[str, torch.Tensor]:
        """Pack questions into rows.

        Args:
            rows: Numbers of the questions [B].

        Returns:
            ``index`` and ``labels`` int64 [B]; ``input_ids`` and ``attention_mask`` int64 [R, T],
            right-padded, ``R`` rows for ``B`` questions; where rows branch or a prefix is left out,
            ``position_ids`` and ``branch`` int64 [R, T] (0 for the context, ``c`` for the ``c``-th
            ending); for each of the ``S`` scored tokens its id ``token``, and ``row`` and ``place``
            of what it is predicted from, all int64 [S]; ``spans`` int64 [B, C, L], the scored
            tokens of each ending, filled up with ``S``; ``ending_tokens`` int64 [B, C], and
            likewise ``lengths``, ``n_bytes``; ``truncated`` bool [B].
        """
        packer = Packer(self.max_length, self.prefix)
        spans: list[list[tuple[int, int]]] = []
        fitting = self.fitting[rows]
        for number, fit in zip(rows.tolist(), fitting.tolist(), strict=True):
            context, endings = self._question(number)
            if self.only_right:
                endings = [endings[self.labels[number]]]
            spans.append(
                packer.add_tree(context, endings)
                if fit and self.shared
                else [packer.add_row(context, ending, whole=fit) for ending in endings]
            )
        batch = {
            "index": torch.from_numpy(np.array(rows, dtype=np.int64)),
            "labels": torch.from_numpy(self.labels[rows]),
            **packer.tensors(branching=self.shared and not self.only_right),
            "spans": _rectangle(spans, packer.scored),
        }
        for name in ("ending_tokens", "lengths", "n_bytes"):
            values = self.table.ragged[name].padded(rows, 0)
            if self.only_right:
                values = values[np.arange(len(rows)), self.labels[rows]][:, None]
            batch[name] = torch.from_numpy(np.ascontiguousarray(values))
        batch["truncated"] = torch.from_numpy(~fitting)
        return batch

    def _question(self, number: int) -> tuple[Ids, list[Ids]]:
        ids = self.table.ragged["input_ids"][number]
        ends = self.context_lengths[number] + np.cumsum(self._sizes[number])
        context, *endings = np.split(ids, [self.context_lengths[number], *ends[:-1]])
        return context, endings


class Packer:
    """Collects the rows of a batch.

    Args:
        max_length: Most tokens that the model reads in one row.
        prefix: Tokens at the beginning of all contexts that are left out.
    """

    def __init__(self, max_length: int, prefix: int) -> None:
        self.max_length = max_length
        self.prefix = prefix
        self.scored = 0
        self._rows: list[dict[Literal["ids", "positions", "branch"], npt.NDArray[Any]]] = []
        self._row: list[Indices] = []
        self._place: list[Indices] = []
        self._token: list[Ids] = []

    def add_tree(self, context: Ids, endings: list[Ids]) -> list[tuple[int, int]]:
        """One row for all endings; returns the places of their tokens among the scored ones."""
        start, parts = len(context) - self.prefix, [context[self.prefix :]]
        positions = [np.arange(self.prefix, len(context))]
        branches = [np.zeros(start, np.int64)]
        spans = []
        for number, ending in enumerate(endings, start=1):
            inner = len(ending) - 1
            # the first token is predicted from the context's last, the others from the one before
            places = np.concatenate([[len(context) - self.prefix - 1], start + np.arange(inner)])
            spans.append(self._score(places, ending))
            parts.append(ending[:-1])
            positions.append(len(context) + np.arange(inner))
            branches.append(np.full(inner, number))
            start += inner
        self._rows.append(
            {
                "ids": np.concatenate(parts),
                "positions": np.concatenate(positions),
                "branch": np.concatenate(branches),
            }
        )
        return spans

    def add_row(self, context: Ids, ending: Ids, *, whole: bool) -> tuple[int, int]:
        """A row for one ending, which loses its beginning if it is too long."""
        if whole:
            (span,) = self.add_tree(context, [ending])
            self._rows[-1]["branch"] = np.zeros_like(self._rows[-1]["branch"])
            return span
        ids = np.concatenate([context, ending])[-(self.max_length + 1) : -1]
        span = self._score(np.arange(len(ids) - len(ending), len(ids)), ending)
        self._rows.append(
            {"ids": ids, "positions": np.arange(len(ids)), "branch": np.zeros(len(ids), np.int64)}
        )
        return span

    def _score(self, places: Indices, ending: Ids) -> tuple[int, int]:
        begin = self.scored
        self.scored += len(ending)
        self._row.append(np.full(len(ending), len(self._rows)))
        self._place.append(places)
        self._token.append(ending)
        return begin, self.scored

    def tensors(self, *, branching: bool) -> dict[str, torch.Tensor]:
        """The rows side by side, and what is scored."""
        lengths = np.array([len(row["ids"]) for row in self._rows])
        mask = np.arange(lengths.max()) < lengths[:, None]
        wanted: dict[str, Literal["ids", "positions", "branch"]] = {"input_ids": "ids"}
        if branching or self.prefix:
            wanted |= {"position_ids": "positions", "branch": "branch"}
        found = {"attention_mask": torch.from_numpy(mask.astype(np.int64))}
        for name, part in wanted.items():
            padded = np.zeros(mask.shape, np.int64)
            padded[mask] = np.concatenate([row[part] for row in self._rows])
            found[name] = torch.from_numpy(padded)
        for name, parts in (("row", self._row), ("place", self._place), ("token", self._token)):
            found[name] = torch.from_numpy(np.concatenate(parts).astype(np.int64))
        return found


def _rectangle(spans: list[list[tuple[int, int]]], fill: int) -> torch.Tensor:
    longest = max(end - begin for each in spans for begin, end in each)
    filled = np.full((len(spans), len(spans[0]), longest), fill, np.int64)
    for number, each in enumerate(spans):
        for choice, (begin, end) in enumerate(each):
            filled[number, choice, : end - begin] = np.arange(begin, end)
    return torch.from_numpy(filled)
