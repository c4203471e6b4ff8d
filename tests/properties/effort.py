"""How many cases are tried: few and always the same; with `make properties` many new ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings

TIMES = float(os.environ.get("SMOLBENCH_PROPERTIES", "0"))
"""How many times the usual number of new cases; 0 in `make test`."""
LONG = TIMES > 0


def examples(*, short: int, long: int, slow: bool = False) -> Callable[[Any], Any]:
    """Decorates a property.

    Args:
        short: Cases of `make test`.
        long: Cases of `make properties`.
        slow: Whether a case takes seconds; a failing one is shown as it was found then.
    """
    return settings(
        max_examples=max(1, round(long * TIMES)) if LONG else short,
        derandomize=not LONG,
        database=None,
        deadline=None,
        print_blob=LONG,
        phases=set(Phase) - {Phase.explain} - ({Phase.shrink} if slow else set()),
        suppress_health_check=list(HealthCheck),
    )
