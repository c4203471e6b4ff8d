"""Whether a row's distance to the best one may be chance: paired tests on the same texts.

Two runs that were scored on the same texts differ only where one of them is right and the other is
not. If neither were better, such texts would fall to either side like a coin: the exact test of
McNemar (1947), two-sided. Summaries are neither right nor wrong: of these the mean difference of
ROUGE is resampled over the documents, a paired bootstrap; so is, over the texts, the difference of
F1. Every row of a board is tested against its best one; so that many rows do not find a difference
by their number, the p values are adjusted by Holm's method (1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolbench.runs.report.board import Board, DatasetReport, Row

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Right = npt.NDArray[np.bool_]
    Scores = npt.NDArray[np.float64]

FILE_NAME = "predictions.parquet"
_ANSWERS = {"accuracy": "prediction", "acc_norm": "prediction_norm"}
"""Columns of what was answered, by metrics that count the right answers."""
OF_SHOTS = "prediction_of_shots_"
"""What columns of further draws of a prompt's examples begin with."""
_F1 = ("f1", "f1_macro")
"""Metrics of what was answered that are no mean over texts."""
_SCORES = {"rouge1": "rouge1"}
"""Columns of what each text scored, by metrics that are its mean."""
RESAMPLES = 9_999
_AT_ONCE = 1_000
_TOLERANCE = 1e-4
"""Scores that differ by more are not of these predictions, or of one of several draws alone."""


def with_significance(
    report: Sequence[DatasetReport],
) -> tuple[tuple[DatasetReport, ...], list[str]]:
    """Test the ranked rows of every board against its best one.

    Of several seeds the newest run is tested. Rows whose predictions are missing, or are not those
    of the score, have no p value.

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


def paired_bootstrap(first: Scores, second: Scores) -> float:
    """A two-sided test of the mean difference of two runs' scores, by resampling the texts.

    The differences are shifted to a mean of 0, as if neither run were better, and drawn with
    replacement 9,999 times, always the same (Efron and Tibshirani 1993, section 16.4).

    Args:
        first: What one run scores on each text, shape ``(N,)``.
        second: The same of another run, in the same order.

    Returns:
        The share of draws, that of the data among them, whose mean is at least as far from 0: no
        less than 1 / 10,000.
    """
    import numpy as np  # lazy: a report without tests needs none

    differences = first - second
    n = len(differences)
    centred = differences - differences.mean()
    # sums in another order may differ in their last digits
    distance = abs(float(differences.mean())) - 1e-12
    generator = np.random.default_rng(0)
    as_far = 1
    for start in range(0, RESAMPLES, _AT_ONCE):
        draws = generator.integers(n, size=(min(_AT_ONCE, RESAMPLES - start), n))
        as_far += int((np.abs(centred[draws].mean(axis=1)) >= distance).sum())
    return as_far / (RESAMPLES + 1)


def paired_bootstrap_of_f1(
    first: npt.NDArray[Any], second: npt.NDArray[Any], positive: int | None
) -> float:
    """A two-sided test of the difference of two runs' F1, by resampling the texts.

    As :func:`paired_bootstrap`; F1 is no mean over texts, so it is computed anew from each draw,
    and the differences of the draws are centred on the observed one.

    Args:
        first: True and predicted class of each text by one run, shape ``(N, 2)``.
        second: The same of another run, in the same order.
        positive: The class that F1 is of; ``None`` for the mean over classes.

    Returns:
        As :func:`paired_bootstrap`; 1 where the runs do not differ or have other true classes.
    """
    import numpy as np  # lazy: a report without tests needs none

    if (first[:, 0] != second[:, 0]).any():
        return 1.0
    rows = np.column_stack([first, second[:, 1]])
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    labels, one, other = kinds.T

    def difference(weights: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        return _f1(weights, labels, one, positive) - _f1(weights, labels, other, positive)

    observed = float(difference(counts[None])[0])
    generator = np.random.default_rng(0)
    as_far = 1
    for start in range(0, RESAMPLES, _AT_ONCE):
        size = min(_AT_ONCE, RESAMPLES - start)
        draws = difference(generator.multinomial(len(rows), counts / len(rows), size=size))
        as_far += int((np.abs(draws - observed) >= abs(observed) - 1e-12).sum())
    return as_far / (RESAMPLES + 1)


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
    best = _scores(ranked[0], board.metric, refused) if len(ranked) > 1 else None
    if best is None:
        return board
    found: dict[int, float] = {}
    for row in ranked[1:]:
        other = _scores(row, board.metric, refused)
        if other is not None and len(other) == len(best):
            if board.metric in _F1:
                found[id(row)] = paired_bootstrap_of_f1(best, other, _positive(row, board.metric))
                continue
            if best.dtype == other.dtype == bool:
                found[id(row)] = mcnemar(best, other)
            else:
                found[id(row)] = paired_bootstrap(best.astype(float), other.astype(float))
    adjusted = dict(zip(found, holm(list(found.values())), strict=True))
    rows = (replace(row, p_value=adjusted.get(id(row))) for row in board.rows)
    return replace(board, rows=tuple(rows))


def _scores(row: Row, metric: str, refused: list[str]) -> npt.NDArray[Any] | None:
    """What a row's newest run scores on each text, in the order of the test split.

    Returns:
        Whether each is right, or its score, shape ``(N,)``, or of F1 the true and the predicted
        class, shape ``(N, 2)``; ``None`` if that is not known.
    """
    import numpy as np  # lazy: a report without tests needs none
    import pyarrow.parquet  # lazy: only this reads predictions

    record = row.records[0]
    path: Path = record.path / FILE_NAME
    if not path.is_file():
        return None
    scores: npt.NDArray[Any]
    draws = record.number("test/n_draws") or 1
    if draws > 1 and metric in _F1:  # the mean of several F1 is no F1
        return None
    try:
        if metric in _F1:
            columns = ["label", "prediction"]
            table = pyarrow.parquet.read_table(path, columns=["index", *columns])
            table = table.sort_by("index")
            scores = np.stack([table[name].to_numpy() for name in columns], axis=1)
        elif metric in _ANSWERS:
            answers = [_ANSWERS[metric]]
            if draws > 1:  # each text scores the share of the draws that are right
                known = pyarrow.parquet.read_schema(path).names
                answers += [name for name in known if name.startswith(OF_SHOTS)]
            table = pyarrow.parquet.read_table(path, columns=["index", "label", *answers])
            table = table.sort_by("index")
            label = table["label"].to_numpy()
            right = [label == table[name].to_numpy() for name in answers]
            scores = right[0] if draws == 1 else np.mean(right, axis=0)
        else:
            table = pyarrow.parquet.read_table(path, columns=["index", _SCORES[metric]])
            scores = table.sort_by("index")[_SCORES[metric]].cast("float64").to_numpy()
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are among them
        said = " ".join(str(error).split())
        refused.append(f"{path} cannot be read ({said}).")
        return None
    score = record.number(f"test/{metric}")
    if score is None or not len(scores):
        return None
    if metric in _F1:
        ones = np.ones((1, len(scores)))
        mean = float(_f1(ones, scores[:, 0], scores[:, 1], _positive(row, metric))[0])
    else:
        mean = scores.mean()
    return scores if abs(mean - score) <= _TOLERANCE else None


def _positive(row: Row, metric: str) -> int | None:
    """Number of the class that a row's F1 is of; ``None`` for the mean over classes."""
    record = row.records[0]
    labels = record.results.get("test/labels")
    if metric != "f1" or not isinstance(labels, list):
        return None
    label = record.results.get("positive_label")
    return labels.index(label) if label in labels else None


def _f1(
    weights: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    predictions: npt.NDArray[Any],
    positive: int | None,
) -> npt.NDArray[np.float64]:
    """F1 of a class, or its mean over the classes that occur or are predicted, shape ``(R,)``.

    Args:
        weights: How often each kind of text counts, shape ``(R, U)``.
        labels: Their true classes, shape ``(U,)``.
        predictions: The predicted ones, shape ``(U,)``.
        positive: The class; ``None`` for the mean.
    """
    import numpy as np  # lazy: see above

    classes = np.arange(1 + max(int(labels.max()), int(predictions.max()), positive or 0))
    true, called = (column[:, None] == classes for column in (labels, predictions))
    of_either = weights @ true.astype(float) + weights @ called.astype(float)
    right = weights @ (true & called).astype(float)
    each = np.divide(2 * right, of_either, out=np.zeros_like(right), where=of_either > 0)
    if positive is not None:
        found: npt.NDArray[np.float64] = each[:, positive]
        return found
    mean: npt.NDArray[np.float64] = each.sum(axis=1) / np.maximum((of_either > 0).sum(axis=1), 1)
    return mean
