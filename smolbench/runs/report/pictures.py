"""The plots of a report as PNG files, for papers; the page's own are drawn by its script."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolbench.errors import SmolbenchError
from smolbench.runs.record import RunRecord
from smolbench.runs.report.board import DatasetReport
from smolbench.runs.report.cells import Table
from smolbench.runs.report.curves import Curve, read_curves
from smolbench.runs.report.details import details_of
from smolbench.runs.report.page import plot_of
from smolbench.runs.report.tables_csv import plain_name
from smolbench.utils.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES = (6.4, 4.2)
_DPI = 200
_LOG_FROM = 10.0
"""Costs that span more than this factor are drawn on a logarithmic axis, as on the page."""
Row = Mapping[str, Any]
"""A row of :func:`smolbench.runs.report.page.plot_of`."""


def require_matplotlib() -> None:
    """Say how to get it if it is not there.

    Raises:
        SmolbenchError: If it is not.
    """
    try:
        import matplotlib  # noqa: F401 # lazy: an extra
    except ImportError as error:
        raise SmolbenchError(
            f"--png needs matplotlib ({error}): `pip install matplotlib` (the extra `plots`)."
        ) from None


def write_pictures(report: Sequence[DatasetReport], folder: Path, *, details: bool) -> list[Path]:
    """Draw the plots of a report.

    Every board has one of quality over each of its costs, under the name of its table as CSV:
    ``stanfordnlp_imdb-1-training_s.png``. A board of fewer than two runs has none, as on the page.

    Args:
        report: The report.
        folder: Where they go.
        details: Whether the runs' learning curves and confusion matrices are drawn, too; curves
            that cannot be read are passed over, for the page's details say so.

    Returns:
        The files.

    Raises:
        OSError: If a file cannot be written.
    """
    made: list[tuple[str, Figure]] = []
    for dataset in report:
        name = plain_name(dataset.dataset)
        for number, board in enumerate(dataset.boards, start=1):
            plot = plot_of(f"board-{number}", board)
            made += [
                (f"{name}-{number}-{cost['key']}", figure)
                for cost in plot["costs"]
                if (figure := quality_over_cost(plot, cost)) is not None
            ]
        rows = [*(row for board in dataset.boards for row in board.rows), *dataset.unscored]
        for record in (record for row in rows for record in row.records if details):
            run = plain_name(record.name)
            if (confusion := details_of(record).confusion) is not None:
                made.append((f"run-{run}-confusion", confusion_matrix(confusion, record)))
            try:
                found = read_curves(record.path)
            except SmolbenchError:
                continue
            made += [
                (f"run-{run}-{plain_name(curve.metric)}", curve_over_steps(curve, record))
                for curve in found
            ]
    written: list[Path] = []
    for name, figure in made:
        path, number = folder / f"{name}.png", 1
        while path in written:  # two folders may hold runs of the same name
            number += 1
            path = folder / f"{name}-{number}.png"
        write_atomically(path, _png(figure))
        written.append(path)
    return written


def quality_over_cost(plot: Mapping[str, Any], cost: Mapping[str, Any]) -> Figure | None:
    """A point for every run, the Pareto front, and at the right edge what was published.

    Args:
        plot: A board, as :func:`smolbench.runs.report.page.plot_of` describes it.
        cost: One of its costs.

    Returns:
        The figure; ``None`` if fewer than two runs have this cost and a score.
    """
    key = cost["key"]
    scored = [r for r in plot["rows"] if r["kind"] != "published" and r["value"] is not None]
    known = [row for row in scored if key in row["costs"]]
    if len(known) < 2:
        return None
    figure, axes = _figure()
    methods = sorted({row["method"] for row in scored})
    for row in known:
        colour = f"C{methods.index(row['method']) % 10}"
        ranked = row["kind"] == "run"
        axes.errorbar(
            [_cost_of(row, key)],
            [row["value"]],
            yerr=None if row["spread"] is None else [row["spread"]],
            fmt="o",
            color=colour,
            markerfacecolor=colour if ranked else "white",
            label=row["name"],
        )
    front = pareto_front([row for row in known if row["kind"] == "run"], cost)
    if len(front) > 1:
        places = [_cost_of(row, key) for row in front]
        axes.step(
            places, [row["value"] for row in front], "--", color="0.5", where="post", label="front"
        )
    recipes = [row["name"].split("/")[0] for row in front]
    for row, recipe in zip(front, recipes, strict=True):
        axes.annotate(
            recipe if recipes.count(recipe) == 1 else row["name"],
            (_cost_of(row, key), row["value"]),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=6,
        )
    _scale(axes, [_cost_of(row, key) for row in known])
    low, high = axes.get_ylim()
    for row in plot["rows"]:
        if row["kind"] == "published" and low <= row["value"] <= high:
            axes.plot(
                [1.0],
                [row["value"]],
                "D",
                color="0.6",
                transform=axes.get_yaxis_transform(),  # the right edge, at its quality
                clip_on=False,
                label="published",
            )
    axes.set_xlabel(cost["label"] + (" (more is better)" if cost["more"] else ""))
    axes.set_ylabel(plot["metric"] + (" (less is better)" if plot["falls"] else ""))
    _legend(axes, methods, plot["rows"])
    return figure


def pareto_front(rows: Sequence[Row], cost: Mapping[str, Any]) -> list[Row]:
    """Rows that no other row beats in both cost and quality, the cheapest first; as on the page."""
    sign = -1 if cost["more"] else 1
    front: list[Row] = []
    for row in sorted(rows, key=lambda r: (sign * _cost_of(r, cost["key"]), -r["worth"])):
        if not front or row["worth"] > front[-1]["worth"]:
            front.append(row)
    return front


def curve_over_steps(curve: Curve, record: RunRecord) -> Figure:
    """A metric of a run over its optimiser steps, a line for each split."""
    figure, axes = _figure()
    for split, points in curve.lines:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, marker="." if len(points) < 50 else "", label=split)
    axes.set_title(record.name, fontsize=8)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(curve.metric)
    axes.legend(fontsize=7)
    return figure


def confusion_matrix(table: Table, record: RunRecord) -> Figure:
    """How many texts of each class (lines) were called what; darker where more of the class were.

    Args:
        table: From :func:`smolbench.runs.report.details.details_of`.
        record: The run.
    """
    figure, axes = _figure()
    names = [heading.label for heading in table.headings[1:]]
    counts = [[cell.value or 0.0 for cell in line[1:]] for line in table.lines]
    shares = [[count / (sum(line) or 1.0) for count in line] for line in counts]
    axes.grid(visible=False)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for y, line in enumerate(table.lines):
        for x, cell in enumerate(line[1:]):
            colour = "white" if shares[y][x] > 0.6 else "black"
            axes.text(x, y, cell.shown, ha="center", va="center", color=colour, fontsize=7)
    axes.set_xticks(range(len(names)), names, rotation=45 if len(names) > 4 else 0)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(record.name, fontsize=8)
    return figure


def _cost_of(row: Row, key: str) -> float:
    return float(row["costs"][key]["value"])


def _scale(axes: Axes, costs: Sequence[float]) -> None:
    positive = [cost for cost in costs if cost > 0]
    if not positive or max(positive) / min(positive) <= _LOG_FROM:
        return
    if len(positive) < len(costs):  # 0 has its place, too
        axes.set_xscale("symlog", linthresh=min(positive))
    else:
        axes.set_xscale("log")


def _legend(axes: Axes, methods: Sequence[str], rows: Sequence[Row]) -> None:
    from matplotlib.lines import Line2D  # lazy: an extra

    def dot(marker: str, colour: str, name: str, face: str | None = None) -> Line2D:
        return Line2D(
            [], [], marker=marker, color=colour, markerfacecolor=face or colour, ls="", label=name
        )

    shown = [dot("o", f"C{n % 10}", method) for n, method in enumerate(methods)]
    kinds = {row["kind"] for row in rows}
    if "unranked" in kinds:
        shown.append(dot("o", "0.3", "without a rank", "white"))
    if "published" in kinds:
        shown.append(dot("D", "0.6", "published"))
    shown.append(Line2D([], [], color="0.5", ls="--", label="Pareto front"))
    axes.legend(handles=shown, fontsize=7)


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # lazy: an extra; no pyplot, which keeps every figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    return figure, axes


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    # without the version of matplotlib: equal runs give equal files
    figure.savefig(content, format="png", dpi=_DPI, metadata={"Software": None})
    return content.getvalue()
