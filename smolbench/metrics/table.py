"""The one table of metrics: checkpoints, early stopping, sweeps, tables, pages and cards ask it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from smolbench.errors import SmolbenchError

Mode = Literal["min", "max"]
"""Whether a metric should fall or rise."""
Error = Literal["rows", "bootstrap", "DeLong"]
"""How its standard error is found: that of a mean over rows, by resampling rows, by DeLong's."""
ENDINGS = ("_stderr", "_std", "_low", "_high")
"""What names of a metric's error, spread over a prompt's draws, and interval end in."""


@dataclass(frozen=True)
class Metric:
    """What is known of a metric.

    Attributes:
        name: As behind ``val/`` and ``test/``.
        label: As tables call it.
        mode: Whether it should fall or rise; ``None`` where neither is better.
        error: How its standard error is found; ``None`` where it has none.
        unit: Of its values; none of shares.
        high: Its largest value; the smallest is 0.
        averaged: Whether a mean of it over seeds or draws says something. Counts of the examples
            are the same of all of them.
        of_probabilities: Whether it needs probabilities: margins have none.
        of_class: Whether it is of the positive class.
    """

    name: str
    label: str
    mode: Mode | None = None
    error: Error | None = None
    unit: str = ""
    high: float = 1.0
    averaged: bool = True
    of_probabilities: bool = False
    of_class: bool = False


def _of_classes(
    name: str, label: str, others: Iterable[str] = ("macro", "weighted")
) -> Iterator[Metric]:
    """A metric of the positive class, and its averages over the classes."""
    bare = Metric(name, label, "max", "bootstrap")
    yield replace(bare, of_class=True)
    for average in others:
        yield replace(bare, name=f"{name}_{average}", label=f"{label} ({average})")


def _count(name: str, label: str) -> Metric:
    return Metric(name, label, unit="examples", high=math.inf, averaged=False)


def _loss(name: str, label: str, error: Error | None = None) -> Metric:
    return Metric(name, label, "min", error, "nats", math.inf)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "accuracy", "max", "rows"),
        Metric("accuracy_unknown_wrong", "accuracy, unknown as wrong", "max", "rows"),
        Metric("accuracy_uncalibrated", "accuracy without calibration", "max", "rows"),
        Metric("accuracy_contextual", "accuracy, contextual calibration", "max", "rows"),
        Metric("accuracy_pmi", "accuracy, PMI", "max", "rows"),
        *_of_classes("precision", "precision"),
        *_of_classes("recall", "recall"),
        *_of_classes("specificity", "specificity"),
        *_of_classes("f1", "F1"),
        Metric("auroc", "AUROC", "max", "DeLong"),
        Metric("ece", "calibration error", "min", "bootstrap", of_probabilities=True),
        Metric("brier", "Brier score", "min", "rows", high=2.0, of_probabilities=True),
        Metric("acc", "accuracy", "max", "rows"),
        Metric("acc_norm", "accuracy per length", "max", "rows"),
        Metric("acc_bytes", "accuracy per byte", "max", "rows"),
        Metric("rouge1", "ROUGE-1", "max", "rows"),
        Metric("rouge2", "ROUGE-2", "max", "rows"),
        Metric("rougeL", "ROUGE-L", "max", "rows"),
        Metric("rougeLsum", "ROUGE-Lsum", "max", "rows"),
        Metric("gen_tokens", "tokens per summary", unit="tokens", high=math.inf),
        Metric("truncated_share", "share of summaries cut off"),
        _count("n_without_tokens", "references without tokens"),
        replace(_loss("loss", "loss", "rows"), of_probabilities=True),
        _loss("choice_loss", "loss per choice"),
        _loss("ending_loss", "loss per token"),
        Metric("n_unknown", "unknown", unit="examples", high=math.inf),
        Metric("n_draws", "draws of examples", high=math.inf, averaged=False),
        _count("n", "examples"),
        _count("n_truncated", "of them truncated"),
        _count("n_references_cut", "of their references"),
    )
}
"""Metrics by their names, in the order in which tables show them."""
_OF_OTHERS = {"perplexity": "min"}
"""What tasks of one's own may log, and whether it should fall."""
_FALL = tuple(n for n, m in METRICS.items() if m.mode == "min") + tuple(_OF_OTHERS)
_RISE = tuple(n for n, m in METRICS.items() if m.mode == "max")
MAIN_METRICS = ("acc_norm", "accuracy", "rouge1")
"""What runs are ranked by: multiple choice, classification, summaries. A run has one of them, and
may name another in ``headline``: ``f1`` of its ``positive_label``, or ``f1_macro``."""


def is_measured(metric: str) -> bool:
    """Whether a name is of a value that is measured, not of its error or of a count."""
    name = metric.rpartition("/")[2]
    return not (name == "n" or name.startswith("n_") or name.endswith(ENDINGS))


def direction(metric: str) -> Mode | None:
    """Whether a metric should fall or rise; ``None`` of one that is not known here.

    One that is not in the table is judged by what its name ends or begins with.

    Args:
        metric: Such as ``val/accuracy``, ``test/rougeLsum`` or ``train/loss``.
    """
    name = metric.rpartition("/")[2]
    if name in METRICS:
        return METRICS[name].mode
    if not is_measured(name):
        return None
    if any(name == known or name.endswith(f"_{known}") for known in _FALL):
        return "min"
    rises = any(name.startswith(f"{known}_") for known in _RISE) or name.startswith("rouge")
    return "max" if rises else None


def levels(values: Iterable[float]) -> dict[float, float]:
    """What values are ranked by: those that float32 hardly tells apart are one.

    Results have float32's digits: means over seeds of equal counts differ in the last of them. One
    more right answer of a million texts is still seen.

    Returns:
        For each value the smallest of those that are equal to it.
    """
    found: dict[float, float] = {}
    least = -math.inf
    for value in sorted(set(values)):
        if value - least > 2**-22 * max(1.0, abs(value)):
            least = value
        found[value] = least
    return found


def mode_of(option: str, metric: str, mode: str | None) -> Mode:
    """The mode by which a metric is compared.

    Args:
        option: What the mode is given by, such as ``checkpoint.mode``.
        metric: Its name.
        mode: What was said of it, if anything.

    Raises:
        SmolbenchError: If nothing is known or said, or what was said would keep the worst.
    """
    known = direction(metric)
    if mode is None and known is None:
        raise SmolbenchError(
            f"Whether {metric!r} should rise or fall is not known: add {option} max or min."
        )
    if mode is not None and known is not None and mode != known:
        raise SmolbenchError(
            f"{option} is {mode} for {metric!r}, by which the worst would be the best: give "
            f"{option} {known}."
        )
    return mode or known  # type: ignore[return-value]
