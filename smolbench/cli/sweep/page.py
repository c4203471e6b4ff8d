"""A sweep as one HTML page: what each setting does to the metric, and what it costs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smolbench.cli.sweep.space import SEED, Space, said
from smolbench.metrics.table import Mode, levels
from smolbench.runs.report.cells import Table
from smolbench.runs.report.page import environment, part, worth

if TYPE_CHECKING:
    from smolbench.cli.sweep.table import Column, Result

_PLOT = "combinations"


def render(
    name: str,
    legend: str,
    space: Space,
    groups: Sequence[Sequence[Result]],
    columns: Sequence[Column],
    tables: Mapping[str, Table],
    failed: Sequence[tuple[int, str, str | None]],
    mode: Mode,
) -> str:
    """Write a sweep as a page.

    Args:
        name: The sweep's name.
        legend: What a reader has to know.
        space: What was varied.
        groups: Trials by combination, in the order of the first table's lines.
        columns: What was measured; the first is the metric.
        tables: Tables by their headings.
        failed: Numbers, values and sentences of failed trials.
        mode: Whether the metric should rise or fall.
    """
    import markupsafe  # lazy: comes with jinja2, which takes long

    plot = _plot(space, groups, columns, falls=mode == "min")
    data = json.dumps({_PLOT: plot}, allow_nan=False)
    return (
        environment()
        .get_template("sweep.html.jinja")
        .render(
            name=name,
            legend=legend,
            plot=_PLOT,
            row_ids=[(f"{_PLOT}-{number}", "run") for number in range(1, len(groups) + 1)],
            metric=columns[0].key,
            tables=tables,
            failed=failed,
            css=markupsafe.Markup(part("report.css")),
            script=markupsafe.Markup(part("report.js")),
            data=markupsafe.Markup(data.replace("<", "\\u003c")),
        )
    )


def _plot(
    space: Space, groups: Sequence[Sequence[Result]], columns: Sequence[Column], *, falls: bool
) -> dict[str, Any]:
    """What the plot shows: a point per combination, over each setting and each cost."""
    metric, *others = columns
    costs = [column for column in others if column.is_cost]
    settings = [key for key in space.keys if key != SEED or len(space.keys) == 1]
    rows = []
    used: set[str] = set()
    means = [known for group in groups if (known := _values(group))]
    level = levels(map(statistics.fmean, means))
    for number, group in enumerate(groups, start=1):
        finished = [result for result in group if result.status == "finished"]
        values = _values(group)
        if not values:
            continue
        value = statistics.fmean(values)
        spread = statistics.stdev(values) if len(values) > 1 else None
        combination = group[0].combination or group[0].point
        at: dict[str, Any] = {
            key: {"value": place, "said": combination[key]}
            for key in settings
            if (place := group[0].number_at(key)) is not None
        }
        for column in costs:
            known = [v for r in finished if (v := column.of(r.record)) is not None]
            if known:
                mean = statistics.fmean(known)
                at[column.key] = {"value": mean, "said": column.shown(mean)}
        rows.append(
            {
                "id": f"{_PLOT}-{number}",
                "name": said(combination),
                "kind": "run",
                "method": _without(combination, _main(space)) or "all trials",
                "value": value,
                "worth": worth(value, level, falls=falls),
                "spread": spread,
                "said": f"{value:.4f}" + (f" ± {spread:.4f}" if spread is not None else ""),
                "notes": f"{len(values)} seeds" if len(values) > 1 else "",
                "lines": {key: _without(combination, key) for key in settings},
                "costs": at,
            }
        )
        used |= at.keys()
    labels = [(key, key, True) for key in settings]
    labels += [(column.key, column.label, False) for column in costs]
    axes = [
        {"key": key, "label": label, "setting": setting, "more": False}
        for key, label, setting in labels
        if key in used
    ]
    return {"metric": metric.key, "falls": falls, "costs": axes, "rows": rows}


def _values(group: Sequence[Result]) -> list[float]:
    """What finished trials were compared by."""
    return [r.value for r in group if r.status == "finished" and r.value is not None]


def _main(space: Space) -> str:
    """The setting with the most values: colours tell the others apart."""
    return max(space.keys, key=lambda key: len(getattr(space.keys[key], "texts", range(99))))


def _without(combination: Mapping[str, str], key: str) -> str:
    return said({name: text for name, text in combination.items() if name != key})
