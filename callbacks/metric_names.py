"""What is said where something watches a metric that is not logged."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches


def not_logged(option: str, metric: str, module: object, names: Collection[str]) -> str:
    """A sentence about a metric that is not there, with those that are and the nearest of them.

    Args:
        option: Who watches it by which option, such as ``EarlyStopping.monitor``.
        metric: The name that was given.
        module: The LightningModule that logs.
        names: Names of the metrics that are logged.
    """
    said = f"{option} is {metric!r}, but {type(module).__name__} logs"
    if not names:
        return f"{said} no metric: leave {option} out, or log one."
    near = get_close_matches(metric, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "name one of these."
    return f"{said} {', '.join(names)}: {hint}"
