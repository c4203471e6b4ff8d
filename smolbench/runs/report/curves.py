"""Learning curves of a run, from its ``metrics.csv``, as pictures that need no script."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from smolbench.errors import SmolbenchError
from smolbench.metrics.table import is_measured

FILE_NAME = "metrics.csv"
_MOST_POINTS = 400
"""A line of more is thinned out: no screen shows more, and the page has to be sent."""
_WIDTH, _HEIGHT = 420, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 408, 12, 204
_TICKS = 4

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Curve:
    """A metric over the optimiser steps of a training.

    Attributes:
        metric: Its name, such as ``loss``.
        lines: Steps and values, by the split they were measured on: ``train``, ``val``.
    """

    metric: str
    lines: tuple[tuple[str, Points], ...]


def read_curves(run: Path) -> tuple[Curve, ...]:
    """The curves of a run: the loss first, the learning rate last.

    Standard errors and counts are left out, as are metrics that were measured but once.

    Raises:
        SmolbenchError: If the file is there and cannot be read.
    """
    path = run / FILE_NAME
    if not path.is_file():
        return ()
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        said = " ".join(str(error).split())
        raise SmolbenchError(f"{path} cannot be read ({said}).") from error
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        step = _number(row.get("step"))
        for name, text in row.items():
            # `None`: the name of what stands behind the last column, and of what is missing
            split, _, metric = (name or "").partition("/")
            value = _number(text)
            if split not in ("train", "val") or step is None or value is None:
                continue
            if not is_measured(metric):
                continue
            found.setdefault(metric, {}).setdefault(split, []).append((step, value))
    curves = [
        Curve(metric, tuple((split, _thinned(points)) for split, points in sorted(lines.items())))
        for metric, lines in found.items()
        if any(len(points) > 1 for points in lines.values())
    ]
    return tuple(sorted(curves, key=lambda c: (c.metric == "lr", c.metric != "loss", c.metric)))


def _number(text: object) -> float | None:
    try:
        value = float(text)  # type: ignore[arg-type] # that is what the errors are for
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _thinned(points: Sequence[tuple[float, float]]) -> Points:
    """At most so many points, the first and the last among them."""
    if len(points) <= _MOST_POINTS:
        return tuple(points)
    last = len(points) - 1
    return tuple(points[round(i * last / (_MOST_POINTS - 1))] for i in range(_MOST_POINTS))


def draw(curve: Curve) -> str:
    """A curve as SVG, a point for each value and a line through them.

    Colours are those of the page (``--c0`` and so on), with others where it stands alone.
    """
    steps = [step for _, points in curve.lines for step, _ in points]
    values = [value for _, points in curve.lines for _, value in points]
    left, right = _span(steps)
    low, high = _span(values)

    def x(step: float) -> float:
        return _LEFT + (step - left) / (right - left) * (_RIGHT - _LEFT)

    def y(value: float) -> float:
        return _BOTTOM - (value - low) / (high - low) * (_BOTTOM - _TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{_quoted(curve.metric)} over the steps" font-family="sans-serif" '
        'font-size="11">'
    ]
    for number in range(_TICKS + 1):
        share = number / _TICKS
        value, step = low + share * (high - low), left + share * (right - left)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
            'stroke="#8884"/>'
            f'<text x="{_LEFT - 5}" y="{y(value) + 4:.1f}" text-anchor="end" fill="#808890">'
            f"{value:.3g}</text>"
            f'<text x="{x(step):.1f}" y="{_BOTTOM + 15}" text-anchor="middle" fill="#808890">'
            f"{step:.4g}</text>"
        )
    for number, (split, points) in enumerate(curve.lines):
        colour = f"var(--c{number}, {('#0072b2', '#c14e00')[number]})"
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        )
        if len(points) <= 40:
            parts += [
                f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.5" fill="{colour}"/>'
                for step, value in points
            ]
        parts.append(
            f'<text x="{_LEFT + 70 * number}" y="{_HEIGHT - 5}" fill="{colour}">{split}</text>'
        )
    parts.append(
        f'<text x="{_RIGHT}" y="{_HEIGHT - 5}" text-anchor="end" fill="#808890">'
        f"{escape(curve.metric)} over the steps</text></svg>"
    )
    return "".join(parts)


def _quoted(text: str) -> str:
    return escape(text, {'"': "&quot;"})


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Smallest and largest value, apart from each other."""
    low, high = min(values), max(values)
    if high > low:
        return low, high
    pad = abs(low) * 0.05 or 0.5
    return low - pad, high + pad
