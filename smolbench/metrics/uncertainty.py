"""Standard errors of classification metrics.

Rows are taken as independent draws. Means over rows have the usual formula, areas under a curve
DeLong's; the rest is a bootstrap with a fixed seed: the standard deviation over 1,000 resamples of
the rows. The resamples of a confusion matrix are drawn as its cells, which is the same and takes
milliseconds whatever the number of rows. Of a mean over several draws (of the examples in a prompt)
it is the error of that mean: all draws are of the same rows, and are resampled together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from smolbench.metrics.table import METRICS

RESAMPLES = 1000
Array = np.ndarray[Any, np.dtype[Any]]


def mean_stderr(values: Array) -> float:
    """Standard error of a mean over rows, shape ``(N,)``; ``nan`` for a single row."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def ties(scores: Array) -> int:
    """How many rows have their highest score more than once.

    Args:
        scores: Shape ``(N, C)``.
    """
    return int(((scores == scores.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum())


def mean_over_seeds(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of the same examples under several seeds: their means and, by ``<name>_std``, spread.

    The standard error of such a mean over the examples is no mean of standard errors: the seeds
    share the examples. It is that of each example's mean over the seeds.

    Args:
        each: Metrics by name, the same for each seed. The spread is the sample's standard
            deviation; counts of the examples have none, nor has a single seed.
    """
    metrics = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
    if len(each) > 1:
        metrics |= {
            f"{name}_std": float(np.std([one[name] for one in each], ddof=1))
            for name in each[0]
            if name not in METRICS or METRICS[name].averaged
        }
    return metrics


def confusion_scores(cells: Array, positive: int | None = None) -> dict[str, Array]:
    """What a confusion matrix determines; undefined ratios are 0, as torchmetrics has them.

    Args:
        cells: True (second last axis) by predicted class (last), shape ``(..., C, C)``.
        positive: The class of the scores without an ending, if there are to be any.

    Returns:
        ``precision``, ``recall``, ``specificity``, ``f1`` with ``_macro`` (over classes that occur
        or are predicted) and ``_weighted``; of the positive class also bare.
    """
    right = np.diagonal(cells, axis1=-2, axis2=-1).astype(np.float64)
    predicted, true = cells.sum(axis=-2), cells.sum(axis=-1)
    others = cells.sum(axis=(-2, -1))[..., None] - true
    per_class = {
        "precision": _ratio(right, predicted),
        "recall": _ratio(right, true),
        "specificity": _ratio(others - (predicted - right), others),
        "f1": _ratio(2 * right, predicted + true),
    }
    known = (predicted + true) > 0
    scores = {}
    for name, values in per_class.items():
        scores[f"{name}_macro"] = _ratio((values * known).sum(axis=-1), known.sum(axis=-1))
        scores[f"{name}_weighted"] = _ratio((values * true).sum(axis=-1), true.sum(axis=-1))
    if positive is not None:
        scores |= {name: values[..., positive] for name, values in per_class.items()}
    return scores


def confusion_stderrs(
    predictions: Array, labels: Array, classes: int, positive: int | None = None
) -> dict[str, float]:
    """Standard errors of :func:`confusion_scores`, by bootstrap; ``nan`` for a single row.

    Args:
        predictions: Predicted classes, shape ``(N,)``; of a mean over several draws each draw's,
            shape ``(S, N)``.
        labels: True classes, shape ``(N,)``.
        classes: Number of classes, ``C``.
        positive: The class of the scores without an ending, if there are to be any.
    """
    n = len(labels)
    # rows of one kind are alike in all draws
    kinds, counts = np.unique(
        np.vstack([labels, np.atleast_2d(predictions)]), axis=1, return_counts=True
    )
    if n < 2:
        names = confusion_scores(np.zeros((classes, classes), np.int64), positive)
        return dict.fromkeys(names, math.nan)
    places = kinds[0] * classes + kinds[1:]
    generator = np.random.default_rng(0)
    chunk = max(1, 4_000_000 // max(classes**2, len(counts)))  # 32 MB at once
    parts: list[dict[str, Array]] = []
    for start in range(0, RESAMPLES, chunk):
        drawn = generator.multinomial(n, counts / n, size=min(chunk, RESAMPLES - start))
        each = []
        for place in places:
            cells = np.zeros((len(drawn), classes**2), np.int64)
            np.add.at(cells.T, place, drawn.T)
            each.append(confusion_scores(cells.reshape(-1, classes, classes), positive))
        parts.append({name: np.mean([one[name] for one in each], axis=0) for name in each[0]})
    return {
        name: float(np.concatenate([part[name] for part in parts]).std(ddof=1)) for name in parts[0]
    }


def calibration_stderr(confidence: Array, right: Array, bins: int) -> float:
    """Standard error of the expected calibration error, by bootstrap.

    Args:
        confidence: Probability of the predicted class, shape ``(N,)``; of a mean over several
            draws each draw's, shape ``(S, N)``.
        right: Whether it is the true one, likewise.
        bins: Number of equal bins.

    Returns:
        ``nan`` for a single row.
    """
    confidence, right = np.atleast_2d(confidence, right)
    n = confidence.shape[1]
    if n < 2:
        return math.nan
    generator = np.random.default_rng(0)
    of_bin = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gap = right - confidence
    found = np.zeros(RESAMPLES)
    for resample in range(RESAMPLES):
        rows = generator.integers(n, size=n)
        for places, gaps in zip(of_bin, gap, strict=True):
            found[resample] += np.abs(np.bincount(places[rows], gaps[rows], minlength=bins)).sum()
    return float((found / n / len(gap)).std(ddof=1))


def auroc_stderr(curves: Sequence[tuple[Array, Array]]) -> float:
    """Standard error of an area under the ROC curve, or of the mean of several on the same rows.

    DeLong et al. (1988), through each row's influence on the area.

    Args:
        curves: For each curve the rows' scores and whether they are positive, both ``(N,)``.

    Returns:
        ``nan`` where a class has a single row.
    """
    n = len(curves[0][0])
    influence = np.zeros(n)
    for scores, positive in curves:
        positives = int(positive.sum())
        negatives = n - positives
        if min(positives, negatives) < 2:
            return math.nan
        ranks = _ranks(scores)
        # the share of the other class that a row stands on the right side of
        beaten = np.empty(n)
        beaten[positive] = (ranks[positive] - _ranks(scores[positive])) / negatives
        beaten[~positive] = 1 - (ranks[~positive] - _ranks(scores[~positive])) / positives
        gap = beaten - beaten[positive].mean()
        influence[positive] += gap[positive] / math.sqrt(positives * (positives - 1))
        influence[~positive] += gap[~positive] / math.sqrt(negatives * (negatives - 1))
    return float(np.sqrt((influence**2).sum()) / len(curves))


def _ranks(scores: Array) -> Array:
    """Ranks from 1; equal scores share the mean of theirs."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks: Array = np.cumsum(counts) - (counts - 1) / 2
    return ranks[place]


def _ratio(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole > 0)
