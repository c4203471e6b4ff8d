"""The whole of a work by parts of it."""

from __future__ import annotations

import numpy as np
import pytest

from smolbench.utils.extrapolate import LEAST_SHARE, Span, Timed, spread


def timed(*parts: tuple[float, float]) -> Timed:
    made = Timed()
    for size, seconds in parts:
        made.add(size, seconds)
    return made


def test_time_follows_size_not_the_number_of_parts() -> None:
    span = timed((10, 1.0), (30, 3.0)).whole(1000)
    assert span.value == pytest.approx(100.0)
    assert (span.low, span.high) == pytest.approx((90.0, 110.0))  # nothing deviates: the least


def test_the_range_is_two_standard_errors() -> None:
    sizes, seconds = [10.0, 20.0, 30.0], [2.0, 2.0, 2.0]
    ratio = 6 / 60
    deviations = np.array(seconds) - ratio * np.array(sizes)
    share = 2 * np.sqrt((deviations**2).sum() / 2 / 3) / 2.0
    assert share > LEAST_SHARE
    span = timed(*zip(sizes, seconds, strict=True)).whole(100)
    assert span.value == pytest.approx(10.0)
    assert span.high == pytest.approx(10.0 * (1 + share))
    assert span.low == pytest.approx(10.0 * (1 - share))


def test_the_truth_lies_in_the_range() -> None:
    random = np.random.default_rng(0)
    sizes = random.lognormal(6, 0.7, 5000)
    seconds = 0.05 + 1e-3 * sizes * random.normal(1, 0.1, len(sizes))
    chosen = spread(sizes, 20)
    span = timed(*((sizes[n], seconds[n]) for n in chosen)).whole(sizes.sum())
    assert span.low < seconds.sum() < span.high
    assert span.value == pytest.approx(seconds.sum(), rel=0.05)


def test_one_part_says_little() -> None:
    span = timed((10, 1.0)).whole(10)
    assert (span.low, span.high) == (0.5, 1.5)


def test_nothing_timed() -> None:
    with pytest.raises(ValueError, match="No part"):
        Timed().whole(1)


def test_spans_add_up() -> None:
    assert Span(2, 1, 3) + Span.exactly(1) == Span(3, 2, 4)
    assert Span(2, 1, 3).times(2) == Span(4, 2, 6)


def test_spread_takes_all_sizes() -> None:
    sizes = list(range(100))[::-1]
    assert sorted(sizes[n] for n in spread(sizes, 5)) == [10, 30, 50, 70, 90]
    assert sorted(spread([3, 1, 2], 9)) == [0, 1, 2]
