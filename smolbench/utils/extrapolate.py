"""What a whole work takes, by parts of it that were timed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

LEAST_SHARE = 0.1
"""Half of a range's least width: a few seconds say nothing about how steady a machine is."""
_UNKNOWN_SHARE = 0.5
"""Half of the width where a single part was timed, which says nothing about the others."""
_STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Span:
    """An estimate and the range that it lies in.

    Attributes:
        value: The estimate.
        low: Lower end of the range.
        high: Its upper end.
    """

    value: float
    low: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Span:
        """What is known."""
        return cls(value, value, value)

    def __add__(self, other: Span) -> Span:
        """Both together; ends are added, for what makes one slower makes the other slower, too."""
        return Span(self.value + other.value, self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> Span:
        """The same so many times."""
        return Span(self.value * factor, self.low * factor, self.high * factor)


@dataclass
class Timed:
    """Parts of a work, which are taken to stand for the whole.

    Attributes:
        sizes: How much there was to do in each: tokens with their padding.
        seconds: What each took.
    """

    sizes: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, size: float, seconds: float) -> None:
        """Add a part."""
        self.sizes.append(size)
        self.seconds.append(seconds)

    def whole(self, size: float) -> Span:
        """What a work of this size takes: the ratio estimate of survey sampling.

        Its standard error (Cochran 1977, "Sampling Techniques", equation 6.13, without the
        correction for finite populations) is that of parts drawn by chance; parts spread evenly
        over all sizes, as :func:`spread` chooses them, do better. The range is two standard errors
        to both sides, at least a tenth of the estimate.

        Raises:
            ValueError: If nothing was timed.
        """
        if not self.sizes:
            raise ValueError("No part of the work was timed.")
        count = len(self.sizes)
        ratio = sum(self.seconds) / sum(self.sizes)
        share = _UNKNOWN_SHARE
        if count > 1:
            off = (s - ratio * x for s, x in zip(self.seconds, self.sizes, strict=True))
            error = math.sqrt(sum(o * o for o in off) / (count - 1) / count)
            share = _STANDARD_ERRORS * error / (sum(self.seconds) / count)
        share = max(share, LEAST_SHARE)
        value = ratio * size
        return Span(value, value * max(0.0, 1 - share), value * (1 + share))


def spread(sizes: Sequence[float] | npt.NDArray[np.int64], count: int) -> list[int]:
    """Numbers of parts whose sizes stand for all: evenly spread over the parts sorted by size."""
    order = np.argsort(np.asarray(sizes), kind="stable")
    count = min(count, len(order))
    places = ((np.arange(count) + 0.5) * len(order) / max(count, 1)).astype(int)
    return [int(number) for number in order[places]]
