"""Leaderboards: runs beside each other where they can be compared, and only there.

Runs share a board if they were scored on the same texts (``data/test_digest``) and labels, by the
same metric and convention. Within a board, runs that differ in nothing but their seed are one row:
settings, rows and weights are the same. A run that is not finished, is an untrained baseline, or
repeats a seed stays visible with a mark, has a row of its own, and is not ranked. A training
competes once: other tests of it stand below that row, without a rank.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from smolbench.identity import compare, key, made_of
from smolbench.metrics.table import direction, levels
from smolbench.runs.record import PROMPT, RunRecord
from smolbench.runs.report.board import (
    COSTS,
    MONEY,
    OF_TRAINING,
    PEAKS,
    TRAINING,
    Board,
    Comparison,
    Cost,
    DatasetReport,
    Row,
)
from smolbench.runs.report.published import Published, published_figures

_BEST = "best.ckpt"
WARNINGS = 3
"""Most warnings that stand on a row; a run's own part of the page has them all."""


def build_report(
    records: Sequence[RunRecord], price_per_hour: float | None = None
) -> tuple[DatasetReport, ...]:
    """Put runs into leaderboards, by dataset and test set.

    Args:
        records: The runs, newest first.
        price_per_hour: Price of an hour of the machine; without it there is no ``money``.
    """
    builder = _Builder(records, price_per_hour)
    datasets: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        datasets[record.dataset].append(record)
    return tuple(builder.dataset(name, datasets[name]) for name in sorted(datasets))


class _Test(NamedTuple):
    """What runs must share to be compared."""

    metric: str
    convention: str | None
    digest: str
    n: int | None
    rows: str | None


class _Builder:
    def __init__(self, records: Sequence[RunRecord], price_per_hour: float | None) -> None:
        self.price_per_hour = price_per_hour
        self.by_path = {str(record.path.resolve()): record for record in records}
        self.by_name = {record.name: record for record in records}

    def dataset(self, name: str, records: Sequence[RunRecord]) -> DatasetReport:
        boards: dict[_Test, list[RunRecord]] = defaultdict(list)
        unscored: list[Row] = []
        labelled = _test_rows(records)
        for record in records:
            digest = record.text("data/test_digest")
            if record.metric is None:
                unscored.append(self.row([record], self.unfinished(record) or "not tested"))
            elif digest is None:
                unscored.append(self.row([record], "test set not known"))
            else:
                n = record.number("test/n")
                rows = record.text("data/test_rows") or labelled.get(digest)
                n = None if n is None else int(n)
                test = _Test(record.metric, record.convention, digest, n, rows)
                boards[test].append(record)
        made = [self.board(name, test, found) for test, found in boards.items()]
        # the whole test set before a part of it
        made.sort(key=lambda b: (-(b.n or 0), b.metric, b.convention or "", b.test_digest))
        unscored.sort(key=lambda row: _by_quality(row, {}))
        return DatasetReport(name, tuple(made), tuple(unscored))

    def board(self, dataset: str, test: _Test, records: Sequence[RunRecord]) -> Board:
        metric, n = test.metric, test.n
        figures = [f for f in published_figures() if f.of_test_set(dataset, n, test.convention)]
        rows = []
        comparisons = []
        competing, others = self.competing(records)
        for row in self.rows(competing):
            found = self.compared(figures, row)
            # as far as is known: what a source leaves open is said, too
            repeated = [f for f, differs in found if set(differs) <= set(f.unknown)]
            repeats = {figure.metric for figure in repeated}
            for figure, differs in found:
                ours = _mean(row.records, f"test/{figure.metric}")
                # a run that repeats one figure need not stand beside those of other models
                beside = figure.metric == metric and metric not in repeats
                if ours is not None and (beside or figure in repeated):
                    comparisons.append(Comparison(figure, row, ours, differs))
            main = next((figure for figure in repeated if figure.metric == metric), None)
            if main is not None and row.value is not None:
                row = replace(row, difference=row.value - main.value)
            rows.append(row)
        rows += [_published_row(figure) for figure in figures if figure.metric == metric]
        level = levels(row.value for row in rows if row.value is not None)
        rows.sort(key=lambda row: _by_quality(row, level))
        rows = [one for row in rows for one in (row, *self.other_tests(row, others))]
        comparisons.sort(key=lambda c: (figures.index(c.figure), _by_quality(c.row, level)))
        limit = next((r.number("data/limit_test") for r in records), None)
        limit = limit if limit is not None and n is not None and limit <= n else None
        return Board(
            metric=metric,
            convention=test.convention,
            test_digest=test.digest,
            n=n,
            limit=None if limit is None else int(limit),
            rows=_ranked(rows, level),
            comparisons=tuple(comparisons),
        )

    def competing(
        self, records: Sequence[RunRecord]
    ) -> tuple[list[RunRecord], dict[str, list[RunRecord]]]:
        """The test by which each training competes, and its other tests, by the training.

        It competes by its best checkpoint under its own settings, where that was tested.
        """
        tests: dict[str, list[RunRecord]] = defaultdict(list)
        for record in records:
            tests[self.training(record)].append(record)
        others = {}
        for training, found in tests.items():
            _, *others[training] = sorted(
                found, key=lambda r: (self.unfinished(r) is not None, self.tested_otherwise(r))
            )
        apart = {id(record) for found in others.values() for record in found}
        return [record for record in records if id(record) not in apart], others

    def training(self, record: RunRecord) -> str:
        """What tests of one training have in common; an untrained run is one of its own."""
        parent = record.text("parent_run")
        if parent is None or record.state != "trained":
            return str(record.path)
        trained = self.trained(record)
        return parent if trained is record else str(trained.path)

    def tested_otherwise(self, record: RunRecord) -> tuple[bool, bool, bool]:
        """Whether a test is not of the best checkpoint, of other settings, in another folder."""
        own = self.trained(record).text("series_digest")
        checkpoint = Path(record.text("checkpoint") or _BEST).name
        return (
            checkpoint != _BEST,
            record.text("series_digest") != own,
            record.text("parent_run") is not None,
        )

    def other_tests(self, row: Row, others: dict[str, list[RunRecord]]) -> list[Row]:
        """Rows of the other tests of a row's trainings."""
        return [
            self.row([test], f"another test of {record.name}")
            for record in row.records
            for test in others[self.training(record)]
        ]

    def rows(self, records: Sequence[RunRecord]) -> list[Row]:
        """A row for each configuration, and one for each run that must not be mixed into it."""
        rows = []
        series: dict[tuple[Any, ...], list[RunRecord]] = defaultdict(list)
        for record in records:
            if (obstacle := self.unfinished(record)) is not None:
                rows.append(self.row([record], obstacle))
            else:
                series[self.series(record)].append(record)
        for members in series.values():
            seeds: dict[Any, RunRecord] = {}
            for record in members:  # newest first
                if seeds.setdefault(self.trained(record).number("seed"), record) is not record:
                    rows.append(self.row([record], "a newer run has this seed"))
            counted = list(seeds.values())
            rows.append(self.row(counted, "untrained" if counted[0].state == "untrained" else None))
        return rows

    def compared(
        self, figures: Sequence[Published], row: Row
    ) -> list[tuple[Published, tuple[str, ...]]]:
        """Published figures of a row's recipe, and in what its runs differ from each."""
        found = []
        for figure in figures if row.obstacle in (None, "untrained") else ():
            each = [figure.beside(record, self.trained(record)) for record in row.records]
            known = [differs for differs in each if differs is not None]
            if len(known) == len(each):
                said = dict.fromkeys(one for differs in known for one in differs)
                found.append((figure, tuple(said)))
        return found

    def row(self, records: Sequence[RunRecord], obstacle: str | None) -> Row:
        newest = records[0]
        metric = newest.metric
        values = [v for r in records if (v := r.number(f"test/{metric}")) is not None]
        if len(values) > 1:
            spread: float | None = stdev(values)
        else:
            spread = newest.number(f"test/{metric}_stderr")
        notes = []
        if newest.text("method") == PROMPT and (rule := newest.text("convention")) is not None:
            notes.append(f"rule: {rule}")
        if any(record.results.get("teacher/same_rows") is False for record in records):
            notes.append("its teacher may have seen rows that it is scored on")
        if any(self.trained(record).text("parent_run") for record in records):
            notes.append("the run that trained it is not in this report")
        if newest.state == "trained":  # the same of all records, see `series`
            last, otherwise, _ = self.tested_otherwise(newest)
            if last:
                notes.append(f"scored {Path(newest.text('checkpoint') or '').name}")
            if otherwise:
                notes.append("tested under other settings than its training's")
        if any(self.trained(record).out_of_time for record in records):
            notes.append("its training was cut: its time was up")
        notes += self._told(records)
        lines = list(dict.fromkeys(line for record in records for line in record.warnings))
        notes += [line.rstrip(".") for line in lines[:WARNINGS]]
        if len(lines) > WARNINGS:
            notes.append(f"{len(lines) - WARNINGS} more warnings")
        return Row(
            name=newest.recipe,
            model=newest.text("model/id") or "unknown",
            method=newest.text("method") or "unknown",
            value=fmean(values) if values else None,
            spread=spread,
            seeds=len(records),
            obstacle=obstacle,
            notes=tuple(notes),
            costs=self.costs(records),
            records=tuple(records),
            metric=metric,
            over_draws=newest.number(f"test/{metric}_std"),
        )

    def _told(self, records: Sequence[RunRecord]) -> list[str]:
        """How runs of one row differ, where they may but it is to be known: versions, for one."""
        first, *others = [made_of(self.trained(record).results) for record in records]
        told = {field for one in others for field in compare("average", first, one).told}
        return [
            f"{field.removeprefix('packages/')} is "
            f"{' and '.join(dict.fromkeys(str(one.get(field)) for one in (first, *others)))} among "
            "its runs"
            for field in sorted(told)
        ]

    def costs(self, records: Sequence[RunRecord]) -> dict[str, float]:
        found = {}
        for cost in COSTS:
            values = [self.cost_of(cost, record) for record in records]
            known = [value for value in values if value is not None]
            if len(known) == len(values):
                found[cost.key] = fmean(known)
        if self.price_per_hour is not None and TRAINING.key in found:
            found[MONEY] = found[TRAINING.key] / 3600 * self.price_per_hour
        return found

    def cost_of(self, cost: Cost, record: RunRecord) -> float | None:
        value = cost.of(record)
        if record.text("parent_run") is None or record.state != "trained":
            return value
        trained = self.trained(record)
        if cost.key in PEAKS:
            fit = trained.number(f"cost/{cost.key}_fit")
            fit = cost.of(trained) if fit is None else fit
            known = trained is not record and fit is not None and value is not None
            return max(fit, value) if known else None  # type: ignore[type-var]
        return cost.of(trained) if value is None and cost.key in OF_TRAINING else value

    def trained(self, record: RunRecord) -> RunRecord:
        """The run that trained what a run has scored: itself, too, where that is not known."""
        parent = record.text("parent_run")
        if parent is None:
            return record
        # the folder may have been moved since
        name = "/".join(Path(parent).parts[-2:])
        return self.by_path.get(parent) or self.by_name.get(name) or record

    def unfinished(self, record: RunRecord) -> str | None:
        """Why a run's score is not that of a whole training; ``None`` if it is."""
        if record.status != "finished":
            return f"not finished: {record.status}"
        trained = self.trained(record)
        return None if trained.status == "finished" else f"training not finished: {trained.status}"

    def series(self, record: RunRecord) -> tuple[Any, ...]:
        """What is the same in runs that differ in their seed only.

        The seed is the training's: one model scored twice is no second sample.
        """
        trained = self.trained(record)
        digest = record.text("series_digest")
        if digest is None or trained.number("seed") is None or trained.text("parent_run"):
            return (str(record.path),)
        tested = {"data/test_rows": None, "precision": None, "convention": None}
        made = made_of({**trained.results, **{name: record.results.get(name) for name in tested}})
        return (
            digest,
            record.recipe,
            record.state,
            Path(record.text("checkpoint") or _BEST).name,
            key("average", made),
        )


def _test_rows(records: Sequence[RunRecord]) -> dict[str | None, str]:
    """By the digest of test texts that of texts and labels, where there is but one.

    Runs of earlier versions do not say on which labels they were scored.
    """
    found: dict[str | None, set[str]] = defaultdict(set)
    for record in records:
        if (rows := record.text("data/test_rows")) is not None:
            found[record.text("data/test_digest")].add(rows)
    return {digest: rows.pop() for digest, rows in found.items() if len(rows) == 1}


def _mean(records: Sequence[RunRecord], key: str) -> float | None:
    values = [record.number(key) for record in records]
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _published_row(figure: Published) -> Row:
    notes = ("untrained",) if figure.state == "untrained" else ()
    return Row(
        name=figure.recipe,
        model=figure.model,
        method=figure.method,
        value=figure.value,
        spread=None,
        seeds=0,
        obstacle="published",
        notes=(*notes, figure.note) if figure.note else notes,
        costs={},
        source=figure.source,
        metric=figure.metric,
    )


_Level = Mapping[float, float]
"""What values are ranked by, see :func:`~smolbench.metrics.table.levels`."""


def _by_quality(row: Row, level: _Level) -> tuple[Any, ...]:
    """Best first, what is not ranked last, in an order that does not depend on the file system."""
    last = row.obstacle not in (None, "published") or "untrained" in row.notes
    value = _ranked_by(row, level)
    paths = tuple(str(record.path) for record in row.records)
    return (last, -value, row.is_published, row.name, paths, row.source or "")


def _ranked_by(row: Row, level: _Level) -> float:
    """A row's value, more is better."""
    if row.value is None:
        return -math.inf
    falls = row.metric is not None and direction(row.metric) == "min"
    value = level.get(row.value, row.value)  # rows that were not scored have no levels
    return -value if falls else value


def _ranked(rows: Sequence[Row], level: _Level) -> tuple[Row, ...]:
    """Rows with their places; equal values share one."""
    values = [_ranked_by(row, level) for row in rows if row.obstacle is None]  # best first
    return tuple(
        replace(row, rank=values.index(_ranked_by(row, level)) + 1) if row.obstacle is None else row
        for row in rows
    )
