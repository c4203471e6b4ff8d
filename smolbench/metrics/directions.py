"""Which way each metric gets better: asked by checkpoints, sweeps, tables, pictures and pages."""

from __future__ import annotations

from typing import Literal

from smolbench.errors import SmolbenchError

Mode = Literal["min", "max"]
"""Whether a metric should fall or rise."""

_FALL = ("loss", "ece", "brier", "perplexity")
_RISE = ("acc", "accuracy", "f1", "precision", "recall", "specificity", "auroc")


def direction(metric: str) -> Mode | None:
    """Whether a metric should fall or rise; ``None`` of one that is not known here.

    Args:
        metric: Such as ``val/accuracy``, ``test/rougeLsum`` or ``train/loss``.
    """
    name = metric.rpartition("/")[2]
    if name.endswith("_stderr") or name.startswith("n_"):
        return None
    if any(name == known or name.endswith(f"_{known}") for known in _FALL):
        return "min"
    rises = any(name == known or name.startswith(f"{known}_") for known in _RISE)
    return "max" if rises or name.startswith("rouge") else None


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
