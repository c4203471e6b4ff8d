"""Ratios and differences of two sides with their spread, and whether a target is reached."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Spread:
    """The median of some values, and their smallest and largest."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up values, of which there must be one at least."""
        if not values:
            raise ValueError("There are no values to sum up.")
        return cls(statistics.median(values), min(values), max(values), len(values))

    def shown(self, digits: int = 2, unit: str = "") -> str:
        """As it stands in a table: ``12.30x (11.90 to 12.80)``."""
        median = f"{self.median:,.{digits}f}{unit}"
        if self.n == 1:
            return f"{median} (one round)"
        return f"{median} ({self.low:,.{digits}f} to {self.high:,.{digits}f})"


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """The ratio of two sides, round by round, so that what slows a whole round cancels out.

    Raises:
        ValueError: If the sides have another number of rounds, or something took no time.
    """
    _check_rounds(above, below)
    if min(below) <= 0:
        raise ValueError("A ratio to nothing is not defined.")
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


def difference(left: Sequence[float], right: Sequence[float]) -> Spread:
    """The difference of two sides, round by round.

    Raises:
        ValueError: If the sides have another number of rounds.
    """
    _check_rounds(left, right)
    return Spread.of([a - b for a, b in zip(left, right, strict=True)])


def _check_rounds(left: Sequence[float], right: Sequence[float]) -> None:
    if len(left) != len(right) or not left:
        raise ValueError(f"Sides of {len(left)} and {len(right)} rounds cannot be compared.")


Verdict = Literal["", "reached", "reached by the median only", "missed"]


@dataclass(frozen=True)
class Finding:
    """One line of the result: what was found and, if there is one, its target.

    Attributes:
        what: What is compared, in words.
        value: Ratio, difference or size.
        target: What is to be reached, such as ``at least 12x``; empty if nothing is.
        verdict: Whether it was; empty without a target.
    """

    what: str
    value: str
    target: str = ""
    verdict: Verdict = ""


def at_least(what: str, spread: Spread, bound: float, *, digits: int = 1) -> Finding:
    """A ratio that must not be smaller; reached if no round misses it."""
    verdict: Verdict = "missed"
    if spread.median >= bound:
        verdict = "reached" if spread.low >= bound else "reached by the median only"
    return Finding(what, spread.shown(digits, "x"), f"at least {bound:g}x", verdict)


def at_most(
    what: str, spread: Spread, bound: float, *, digits: int = 2, unit: str = "x"
) -> Finding:
    """A ratio, or another number, that must not be larger; reached if no round misses it."""
    verdict: Verdict = "missed"
    if spread.median <= bound:
        verdict = "reached" if spread.high <= bound else "reached by the median only"
    return Finding(what, spread.shown(digits, unit), f"at most {bound:g}{unit}", verdict)
