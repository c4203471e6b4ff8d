"""ROUGE of generated summaries, example by example, and what is said of a whole split.

Scores are ``rouge_score``'s F measures with its stemmer, as the model cards of summarizers have
them: the mean over the examples, here as a share of 1. For ROUGE-Lsum a summary's sentences stand
on lines of their own; they are found by :func:`sentences`, because the usual splitter (punkt of
nltk) is a download. Each example has scores of its own, and the means are taken over all of them in
the order of the split, so that they do not depend on the number of processes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from smolbench.metrics.uncertainty import RESAMPLES, mean_stderr

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
SPLITTER = "regex: behind [.!?] and closing quotes or brackets, before white space; and lines"
"""How sentences are found, as results name it."""
_BOUNDARY = re.compile(r"(?<=[.!?])(?=[\s])\s+|(?<=[.!?][\"')\]])\s+|\s*[\r\n]+\s*")
_CONFIDENCE = 0.95

Array = npt.NDArray[np.float64]


def sentences(text: str) -> str:
    """A text with each of its sentences on a line of its own; deterministic, with no model."""
    return "\n".join(part for part in _BOUNDARY.split(text.strip()) if part)


def rouge_scorer() -> Callable[[str, str], list[float]]:
    """What scores a summary against its reference.

    Returns:
        A reference and a summary to their F measures in the order of :data:`ROUGE`.
    """
    from rouge_score.rouge_scorer import RougeScorer  # lazy: import cost

    scorer = RougeScorer(list(ROUGE), use_stemmer=True)

    def score(reference: str, summary: str) -> list[float]:
        found = scorer.score(sentences(reference), sentences(summary))
        return [float(found[name].fmeasure) for name in ROUGE]

    return score


def rouge_metrics(scores: Array) -> dict[str, float]:
    """Means over examples, with their uncertainty.

    Args:
        scores: F measures in the order of :data:`ROUGE`, shape ``(N, 4)``.

    Returns:
        ``rouge1`` and so on, each with ``_stderr``, the standard error of the mean, and the ends
        ``_low`` and ``_high`` of its 95 % bootstrap interval (percentiles over 1,000 resamples of
        the examples, always the same ones); ``nan`` for a single example.
    """
    metrics: dict[str, float] = {}
    means = _resampled_means(scores)
    tail = (1 - _CONFIDENCE) / 2
    for column, name in enumerate(ROUGE):
        metrics[name] = float(scores[:, column].mean())
        metrics[f"{name}_stderr"] = mean_stderr(scores[:, column])
        low, high = np.quantile(means[:, column], [tail, 1 - tail])
        metrics[f"{name}_low"], metrics[f"{name}_high"] = float(low), float(high)
    return metrics


def _resampled_means(scores: Array) -> Array:
    """Means over resamples of the rows, shape ``(1000, 4)``."""
    n = len(scores)
    if n < 2:
        return np.full((1, scores.shape[1]), np.nan)
    generator = np.random.default_rng(0)
    means = np.empty((RESAMPLES, scores.shape[1]))
    for resample in range(RESAMPLES):
        means[resample] = scores[generator.integers(n, size=n)].mean(axis=0)
    return means


def length_metrics(
    tokens: Sequence[int] | npt.NDArray[Any], ended: npt.NDArray[Any]
) -> dict[str, float]:
    """How long the summaries are.

    Args:
        tokens: Generated tokens of each summary, its end token among them, shape ``(N,)``.
        ended: Whether it came to an end token, shape ``(N,)``.

    Returns:
        ``gen_tokens``, their mean number (what model cards call Gen Len), and ``truncated_share``,
        the share of summaries that the most allowed tokens cut off.
    """
    return {
        "gen_tokens": float(np.mean(tokens)),
        "truncated_share": float(1 - np.mean(ended)),
    }
