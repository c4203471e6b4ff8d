"""Multiple-choice metrics from log-likelihoods of whole splits; no Lightning here.

Definitions are lm-evaluation-harness's (``lm_eval/api/task.py``), with the normaliser that a
scoring convention asks for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Choices:
    """What is known of the endings of ``N`` examples, ``C`` each; all shapes ``(N, C)``.

    Attributes:
        log_likelihoods: Sum over an ending's tokens, in nats.
        lengths: What ``acc_norm`` divides by: characters, or tokens, as the convention has it.
        n_bytes: Bytes in UTF-8, for ``acc_bytes``.
        tokens: Number of tokens.
    """

    log_likelihoods: Array
    lengths: Array
    n_bytes: Array
    tokens: Array

    def predictions(self) -> dict[str, npt.NDArray[np.int64]]:
        """The chosen endings ``(N,)`` by metric; of equal ones the first."""
        scores = {
            "acc": self.log_likelihoods,
            "acc_norm": _per(self.log_likelihoods, self.lengths),
            "acc_bytes": _per(self.log_likelihoods, self.n_bytes),
        }
        return {name: np.argmax(values, axis=1) for name, values in scores.items()}


def multiple_choice_metrics(choices: Choices, labels: Array) -> dict[str, float]:
    """Shares of right choices, and two losses.

    Args:
        choices: The endings.
        labels: Numbers of the right ones, shape ``(N,)``.

    Returns:
        ``acc`` (by log-likelihood), ``acc_norm`` (per unit of length) and ``acc_bytes`` (per byte),
        each with its standard error ``<metric>_stderr``, ``sqrt(p (1 - p) / (n - 1))``;
        ``choice_loss``, the mean cross-entropy over the endings' log-likelihoods, and
        ``ending_loss``, the mean over the tokens of the right endings, both in nats; ``n``.
    """
    n = len(labels)
    rows = np.arange(n)
    metrics: dict[str, float] = {}
    for name, chosen in choices.predictions().items():
        share = float(np.mean(chosen == labels))
        metrics[name] = share
        metrics[f"{name}_stderr"] = math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else math.nan
    wide = choices.log_likelihoods.astype(np.float64)
    right = wide[rows, labels]
    metrics["choice_loss"] = float(np.mean(np.logaddexp.reduce(wide, axis=1) - right))
    metrics["ending_loss"] = float(-right.sum() / choices.tokens[rows, labels].sum())
    metrics["n"] = float(n)
    return metrics


def _per(scores: Array, lengths: Array) -> Array:
    """Scores per unit of length; an ending of no length is never the best, as in lm_eval."""
    with np.errstate(divide="ignore"):
        return scores.astype(np.float64) / lengths
