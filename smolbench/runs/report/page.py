"""A report as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolbench.metrics.table import direction, levels
from smolbench.runs.record import RunRecord
from smolbench.runs.report.board import Board, DatasetReport, Row
from smolbench.runs.report.cells import (
    comparison_tables,
    cost_text,
    costs_of,
    leaderboard_table,
    legend,
    marks,
    quality,
    run_name,
    title,
    unscored_table,
)
from smolbench.runs.report.details import Details, details_of

if TYPE_CHECKING:
    import jinja2

PARTS = Path(__file__).with_name("page_parts")


def environment() -> jinja2.Environment:
    """Reads the templates of pages; what they are given is escaped."""
    import jinja2  # lazy: takes longer than everything else here

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(PARTS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
    )


def render(
    report: Sequence[DatasetReport],
    describe: Callable[[RunRecord], Details] = details_of,
) -> str:
    """Write a report as a page.

    Args:
        report: The report.
        describe: What is said of a single run.
    """
    import markupsafe  # lazy: comes with jinja2

    datasets: list[dict[str, Any]] = []
    plots: dict[str, Any] = {}
    for dataset in report:
        boards = []
        for board in dataset.boards:
            name = f"board-{len(plots) + 1}"
            plots[name] = plot_of(name, board)
            boards.append(
                {
                    "id": name,
                    "title": title(board),
                    "metric": board.metric,
                    "table": leaderboard_table(board),
                    "rows": [(_row_id(name, i), _kind(row)) for i, row in enumerate(board.rows)],
                    "comparisons": comparison_tables(board),
                }
            )
        unscored = unscored_table(dataset.unscored)
        datasets.append({"name": dataset.dataset, "boards": boards, "unscored": unscored})
    rows = [
        row
        for dataset in report
        for row in [*(row for board in dataset.boards for row in board.rows), *dataset.unscored]
    ]
    records = [record for row in rows for record in row.records]
    ids = {id(record): f"run-{number}" for number, record in enumerate(records, start=1)}
    # `<` could end the script that the data stands in
    data = json.dumps(plots, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            legend=legend(report),
            n_runs=len(records),
            runs=[(ids[id(record)], record.name, describe(record)) for record in records],
            drawn=markupsafe.Markup,  # made here, its texts escaped
            id_of=lambda record: ids[id(record)],
            datasets=datasets,
            css=markupsafe.Markup(part("report.css")),
            script=markupsafe.Markup(part("report.js")),
            data=markupsafe.Markup(data),
        )
    )


def part(name: str) -> str:
    """Style or script of a page."""
    return (PARTS / name).read_text(encoding="utf-8").rstrip()


def plot_of(name: str, board: Board) -> dict[str, Any]:
    """What the plot of a board shows."""
    costs = costs_of(board.rows)
    falls = direction(board.metric) == "min"
    level = levels(row.value for row in board.rows if row.value is not None)
    return {
        "metric": board.metric,
        "falls": falls,
        "costs": [
            {"key": cost.key, "label": cost.label, "more": cost.more_is_better} for cost in costs
        ],
        "rows": [
            {
                "id": _row_id(name, number),
                "name": run_name(row),
                "kind": _kind(row),
                "method": row.method,
                "value": row.value,
                "worth": worth(row.value, level, falls=falls),
                "spread": row.spread,
                "said": f"{board.metric} {quality(row)}",
                "notes": marks(row),
                "costs": {
                    key: {"value": value, "said": cost_text(key, value)}
                    for key, value in row.costs.items()
                },
            }
            for number, row in enumerate(board.rows)
        ],
    }


def worth(value: float | None, level: Mapping[float, float], *, falls: bool) -> float | None:
    """What a metric's value is compared by: more is better, and equals are equal."""
    return None if value is None else -level[value] if falls else level[value]


def _row_id(board: str, number: int) -> str:
    return f"{board}-row-{number + 1}"


def _kind(row: Row) -> str:
    """``run``, ``unranked`` or ``published``."""
    if row.is_published:
        return "published"
    return "run" if row.obstacle is None else "unranked"
