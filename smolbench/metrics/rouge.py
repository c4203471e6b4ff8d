"""ROUGE of generated summaries, example by example, and what is said of a whole split.

Scores are ``rouge_score``'s F measures with its stemmer, as the model cards of summarizers have
them: the mean over the examples, here as a share of 1. What counts as a word is said by one of the
tokenizers of :mod:`smolbench.metrics.rouge_tokens`; scores by different ones are not comparable.
For ROUGE-Lsum a summary's sentences stand on lines of their own; they are found by
:func:`~smolbench.metrics.rouge_tokens.sentences`, because the usual splitter (punkt of nltk) is a
download. Each example has scores of its own, and the means are taken over all of them in the order
of the split, so that they do not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from smolbench.metrics.rouge_tokens import RougeTokenizer, sentences, tokenizer_named
from smolbench.metrics.uncertainty import RESAMPLES, mean_stderr

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_CONFIDENCE = 0.95

Array = npt.NDArray[np.float64]


def rouge_scores(
    references: Sequence[str],
    summaries: Sequence[str],
    advance: Callable[[int], None],
    tokenizer: RougeTokenizer = "rouge_score",
) -> Array:
    """F measures of summaries, in the order of :data:`ROUGE`, shape ``(N, 4)``.

    Args:
        references: What people wrote, ``N`` texts.
        summaries: What is scored.
        advance: Told that one more is done.
        tokenizer: What finds words, and sentences for ROUGE-Lsum.
    """
    from rouge_score.rouge_scorer import RougeScorer  # lazy: import cost

    scorer = RougeScorer(list(ROUGE), tokenizer=tokenizer_named(tokenizer, use_stemmer=True))
    scores = np.empty((len(summaries), len(ROUGE)))
    for row, (reference, summary) in enumerate(zip(references, summaries, strict=True)):
        found = scorer.score(sentences(reference, tokenizer), sentences(summary, tokenizer))
        scores[row] = [found[name].fmeasure for name in ROUGE]
        advance(1)
    return scores


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


@dataclass(frozen=True)
class Summaries:
    """Scored summaries of ``N`` documents.

    Attributes:
        rows: Numbers of the documents in their split, shape ``(N,)``.
        texts: The summaries.
        references: What people wrote.
        scores: From :func:`rouge_scores`.
        tokens: Generated tokens of each, its end token among them, shape ``(N,)``.
        ended: Whether it came to an end token, shape ``(N,)``.
        wordless: Whether its reference has no token that ROUGE counts, shape ``(N,)``.
    """

    rows: npt.NDArray[np.int64]
    texts: Sequence[str]
    references: Sequence[str]
    scores: Array
    tokens: npt.NDArray[np.int64]
    ended: npt.NDArray[np.bool_]
    wordless: npt.NDArray[np.bool_]

    def metrics(self) -> dict[str, float]:
        """What is said of them all.

        Returns:
            What :func:`rouge_metrics` says; ``gen_tokens``, their mean number of tokens (what model
            cards call Gen Len); ``truncated_share``, the share of summaries that the most allowed
            tokens cut off; ``n_without_tokens``, how many references have no token, so that nothing
            scores above 0 on them.
        """
        return {
            **rouge_metrics(self.scores),
            "gen_tokens": float(self.tokens.mean()),
            "truncated_share": float(1 - self.ended.mean()),
            "n_without_tokens": float(self.wordless.sum()),
        }

    def columns(self) -> dict[str, Any]:
        """What is said of each."""
        return {
            "index": self.rows,
            "summary": self.texts,
            "reference": self.references,
            **{name: self.scores[:, column] for column, name in enumerate(ROUGE)},
            "n_tokens": self.tokens,
            "ended": self.ended,
        }
