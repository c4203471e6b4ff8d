"""Whether a row's distance to the best one may be chance: McNemar's test on the same texts.

Two runs that were scored on the same texts differ only where one of them is right and the other is
not. If neither were better, such texts would fall to either side like a coin: the exact test of
McNemar (1947), two-sided. Every row of a board is tested against its best one; so that many rows do
not find a difference by their number, the p values are adjusted by Holm's method (1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from smolbench.runs.board import Board, DatasetReport, Row

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Right = npt.NDArray[np.bool_]

FILE_NAME = "predictions.parquet"
_COLUMNS = {"accuracy": "prediction", "acc_norm": "prediction_norm"}
_TOLERANCE = 1e-4
"""Scores that differ by more are not of these predictions: such as means over a prompt's draws."""


def with_significance(
    report: Sequence[DatasetReport],
) -> tuple[tuple[DatasetReport, ...], list[str]]:
    """Test the ranked rows of every board against its best one.

    Of several seeds the newest run is tested. Rows whose predictions are missing, or are not those
    of the score, have no p value, and neither have summaries.

    Returns:
        The report with p values, and a sentence for every file that cannot be read.
    """
    refused: list[str] = []
    tested = tuple(
        replace(dataset, boards=tuple(_tested(board, refused) for board in dataset.boards))
        for dataset in report
    )
    return tested, refused


def mcnemar(first: Right, second: Right) -> float:
    """The exact two-sided McNemar test.

    Args:
        first: Whether one run is right on each text, shape ``(N,)``.
        second: The same of another run, in the same order.

    Returns:
        The probability of a difference at least as large if neither were better.
    """
    wins, losses = int((first & ~second).sum()), int((~first & second).sum())
    n = wins + losses
    term = tail = 1  # binomial coefficients, exact however many texts there are
    for i in range(min(wins, losses)):
        term = term * (n - i) // (i + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << n))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for their number by Holm's method, in the order given."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _tested(board: Board, refused: list[str]) -> Board:
    ranked = [row for row in board.rows if row.rank is not None]
    best = _right(ranked[0], board.metric, refused) if len(ranked) > 1 else None
    if best is None:
        return board
    found: dict[int, float] = {}
    for row in ranked[1:]:
        other = _right(row, board.metric, refused)
        if other is not None and len(other) == len(best):
            found[id(row)] = mcnemar(best, other)
    adjusted = dict(zip(found, holm(list(found.values())), strict=True))
    rows = (replace(row, p_value=adjusted.get(id(row))) for row in board.rows)
    return replace(board, rows=tuple(rows))


def _right(row: Row, metric: str, refused: list[str]) -> Right | None:
    """Whether a row's newest run is right on each text, in the order of the test split."""
    import pyarrow.parquet  # lazy: only this reads predictions

    record = row.records[0]
    path: Path = record.path / FILE_NAME
    if metric not in _COLUMNS or not path.is_file():  # a summary is not right or wrong
        return None
    try:
        table = pyarrow.parquet.read_table(path, columns=["index", "label", _COLUMNS[metric]])
        table = table.sort_by("index")
        label, prediction = (table[name].to_numpy() for name in ("label", _COLUMNS[metric]))
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are among them
        said = " ".join(str(error).split())
        refused.append(f"{path} cannot be read ({said}).")
        return None
    right: Right = label == prediction
    score = record.number(f"test/{metric}")
    if score is None or not len(right) or abs(right.mean() - score) > _TOLERANCE:
        return None
    return right
