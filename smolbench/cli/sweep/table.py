"""What came out of a sweep: a line per trial, as CSV, Markdown and a page."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from smolbench.cli.sweep.ledger import Ledger, Mode, Status
from smolbench.cli.sweep.space import SEED, Point, Space, said
from smolbench.cli.sweep.trial import record_of
from smolbench.metrics.table import levels
from smolbench.runs.record import RunRecord
from smolbench.runs.report.cells import Cell, Heading, Table, cost_text, without_empty
from smolbench.runs.report.markdown import escape, table_text
from smolbench.utils.files import csv_writer, write_atomically

Number = Callable[[RunRecord], float | None]


@dataclass(frozen=True)
class Result:
    """A trial, whether or not it has run.

    Attributes:
        number: Its point's number.
        point: What was varied.
        status: How far it is.
        value: The metric that trials are compared by.
        record: What its results say.
        error: The sentence it failed with.
    """

    number: int
    point: Point
    status: Status
    value: float | None
    record: RunRecord
    error: str | None = None

    @property
    def combination(self) -> Point:
        """What was varied beside the seed."""
        return {name: text for name, text in self.point.items() if name != SEED}

    def number_at(self, key: str) -> float | None:
        """What was varied under a key, if it is a number."""
        return number_of(self.point[key])


@dataclass(frozen=True)
class Column:
    """A measured value of trials."""

    key: str
    label: str
    of: Number
    is_cost: bool = False

    def shown(self, value: float | None) -> str:
        """A value as a reader sees it."""
        if value is None:
            return ""
        return cost_text(self.key, value) if self.is_cost else f"{value:.4f}"


def collect(ledger: Ledger, folder: Path) -> list[Result]:
    """All trials of a sweep in the order of their numbers."""
    found = []
    for entry in ledger.entries():
        record, value, error = RunRecord(Path(), {}), None, None
        if entry.outcome is not None:
            record = record_of(folder, entry.outcome)
            value, error = entry.outcome.value, entry.outcome.error
        found.append(Result(entry.number, entry.point, entry.status, value, record, error))
    return found


def groups_of(results: Sequence[Result]) -> list[list[Result]]:
    """Trials that differ in nothing but their seed, together."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(said(result.combination), []).append(result)
    return list(found.values())


def best_of(results: Sequence[Result], mode: Mode) -> list[Result]:
    """The trials of the best combination; with several seeds it is the best in the mean.

    A combination under some of its seeds only is chosen if no other one is complete.
    """
    groups = groups_of(results)
    complete = [group for group in groups if len(_finished(group)) == len(group)]
    finished = [_finished(group) for group in complete or groups]
    known = [group for group in finished if group]
    sign, level = 1 if mode == "max" else -1, levels(map(_mean, known))
    return max(known, key=lambda group: sign * level[_mean(group)], default=[])


def _as_good(best: Sequence[Result], results: Sequence[Result]) -> int:
    """How many other complete combinations share the best one's value."""
    complete = [group for group in groups_of(results) if len(_finished(group)) == len(group)]
    level = levels(map(_mean, [*complete, best]))
    equal = sum(level[_mean(group)] == level[_mean(best)] for group in complete)
    return max(0, equal - 1)


def _sorted(groups: Sequence[list[Result]], mode: Mode) -> list[list[Result]]:
    """Combinations: the best mean first, then those that lack seeds, or all."""
    level = levels(_mean(finished) for group in groups if (finished := _finished(group)))

    def rank(group: Sequence[Result]) -> tuple[bool, bool, float]:
        finished = _finished(group)
        worth = (-1 if mode == "max" else 1) * level[_mean(finished)] if finished else 0.0
        return not finished, len(finished) < len(group), worth

    return sorted(groups, key=rank)


def _finished(group: Sequence[Result]) -> list[Result]:
    return [result for result in group if result.status == "finished"]


def _mean(group: Sequence[Result]) -> float:
    return statistics.fmean(r.value for r in group if r.value is not None)


def write_tables(
    folder: Path, name: str, space: Space, results: Sequence[Result], metric: str, mode: Mode
) -> str:
    """Write ``results.csv``, ``results.md`` and ``results.html`` into the sweep's folder.

    Returns:
        The Markdown.
    """
    from smolbench.cli.sweep.page import render  # lazy: jinja2

    sign = -1 if mode == "max" else 1
    level = levels(r.value for r in results if r.value is not None)
    ranked = sorted(
        results,
        key=lambda r: (r.value is None, 0 if r.value is None else sign * level[r.value], r.number),
    )
    columns = columns_of(metric)
    tables = {"Trials": trials_table(space, ranked, columns)}
    groups = [[result] for result in ranked]
    if SEED in space.keys and len(space.keys) > 1:
        groups = _sorted(groups_of(ranked), mode)
        tables = {"Means over the seeds": seeds_table(space, groups, columns), **tables}
    best = best_of(results, mode)
    legend = legend_of(results, best, metric)
    failed = [(r.number, said(r.point), r.error) for r in results if r.error is not None]
    text = [f"# Sweep {escape(name)}\n", f"{escape(legend)}\n"]
    for title, table in tables.items():
        text += [f"## {title}\n", table_text(table)]
    if failed:
        text.append("## Failed\n")
        text.append("".join(f"- Trial {n:03}, {escape(p)}: {escape(e)}\n" for n, p, e in failed))
    markdown = "\n".join(text)
    write_atomically(folder / "results.csv", _csv(folder, space, ranked, columns))
    write_atomically(folder / "results.md", markdown)
    page = render(name, legend, space, groups, columns, tables, failed, mode)
    write_atomically(folder / "results.html", page)
    return markdown


def legend_of(results: Sequence[Result], best: Sequence[Result], metric: str) -> str:
    """How far the sweep is, and what is best."""
    done = sum(r.status not in ("waiting", "running") for r in results)
    parts = [f"{done} of {len(results)} trials are done."]
    if best:
        seeds = f" in the mean of {len(best)} seeds" if len(best) > 1 else ""
        chosen = said(best[0].combination) or said(best[0].point)
        equal = _as_good(best, results)
        others = f"; {equal} more {'is' if equal == 1 else 'are'} as good" if equal else ""
        parts.append(f"Best by {metric}{seeds}: {chosen}{others}.")
    parts.append(
        "Runtime is training with frozen passes; the memory delta is resident memory at the end of "
        "training minus at its start, in a process of its own, without what frozen passes left."
    )
    return " ".join(parts)


def columns_of(metric: str) -> list[Column]:
    """Figure 5 of Henderson et al. 2025, and what other tasks and devices have in its place."""
    rouge = ("rouge1", "rouge2", "rougeL")
    quality = [metric, *(f"val/{name}" for name in ("f1_macro", "accuracy", "acc_norm", *rouge))]
    tested = [f"test/{name}" for name in ("accuracy", "f1_macro", "acc_norm", *rouge)]
    costs = [
        Column("runtime_s", "runtime, s", lambda r: r.training_s, is_cost=True),
        _cost("cost/rss_delta_mib", "memory delta, MiB"),
        _cost("cost/peak_rss_mib", "peak resident, MiB"),
        _cost("cost/peak_allocated_mib", "peak allocated, MiB"),
    ]
    return [
        *(Column(key, key, _number(key)) for key in dict.fromkeys(quality)),
        *costs,
        *(Column(key, key, _number(key)) for key in tested),
    ]


def _cost(key: str, label: str) -> Column:
    return Column(key, label, _number(key), is_cost=True)


def _number(key: str) -> Number:
    return lambda record: record.number(key)


def trials_table(space: Space, results: Sequence[Result], columns: Sequence[Column]) -> Table:
    """A line per trial."""
    headings = [
        Heading("trial"),
        *_headings_of(space.keys, results),
        *(Heading(column.label) for column in columns),
        Heading("status", is_text=True),
    ]
    lines = []
    for result in results:
        values = [column.of(result.record) for column in columns]
        cut = ", cut by time" if result.record.out_of_time else ""
        lines.append(
            [
                Cell(f"{result.number:03}", result.number),
                *(_cell_of(text) for text in result.point.values()),
                *(Cell(c.shown(v), v) for c, v in zip(columns, values, strict=True)),
                Cell(f"{result.status}{cut}"),
            ]
        )
    return without_empty(headings, lines)


def seeds_table(space: Space, groups: Sequence[list[Result]], columns: Sequence[Column]) -> Table:
    """A line per combination: means over its seeds, with the standard deviation of metrics."""
    keys = [key for key in space.keys if key != SEED]
    headings = [
        *_headings_of(keys, [group[0] for group in groups]),
        Heading("seeds"),
        *(Heading(column.label) for column in columns),
    ]
    lines = []
    for group in groups:
        finished = _finished(group)
        cells = [_cell_of(group[0].point[key]) for key in keys]
        of = "" if len(finished) == len(group) else f" of {len(group)}"
        cut = sum(result.record.out_of_time for result in finished)
        of += f", {cut} cut by time" if cut else ""
        cells.append(Cell(f"{len(finished)}{of}", len(finished)))
        for column in columns:
            values = [v for r in finished if (v := column.of(r.record)) is not None]
            mean = statistics.fmean(values) if values else None
            spread = ""
            if len(values) > 1 and not column.is_cost:
                spread = f" ± {statistics.stdev(values):.4f}"
            cells.append(Cell(column.shown(mean) + spread, mean))
        lines.append(cells)
    return without_empty(headings, lines)


def _headings_of(keys: Iterable[str], results: Sequence[Result]) -> list[Heading]:
    return [Heading(key, any(r.number_at(key) is None for r in results)) for key in keys]


def number_of(text: str) -> float | None:
    """A swept value that is a finite number, else ``None``."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _cell_of(text: str) -> Cell:
    return Cell(text, number_of(text))


def _csv(folder: Path, space: Space, results: Sequence[Result], columns: Sequence[Column]) -> str:
    text = io.StringIO(newline="")
    writer = csv_writer(text)
    keys = list(space.keys)
    writer.writerow(["trial", *keys, *(c.key for c in columns), "status", "run", "error"])
    for result in results:
        values = [column.of(result.record) for column in columns]
        path = result.record.path
        run = path.relative_to(folder) if path.is_relative_to(folder) else ""
        writer.writerow(
            [result.number, *result.point.values(), *values, result.status, run, result.error]
        )
    return text.getvalue()
