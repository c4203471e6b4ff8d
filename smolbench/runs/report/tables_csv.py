"""Every table of a report as a CSV file, for papers and spreadsheets."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from smolbench.runs.record import RunRecord
from smolbench.runs.report.board import DatasetReport
from smolbench.runs.report.cells import (
    BESIDE,
    REPRODUCED,
    Table,
    comparison_tables,
    leaderboard_table,
    unscored_table,
)
from smolbench.runs.report.details import Details, details_of
from smolbench.utils.files import csv_writer, write_atomically


def write_tables(
    report: Sequence[DatasetReport],
    folder: Path,
    describe: Callable[[RunRecord], Details] = details_of,
) -> list[Path]:
    """Write the tables of a report, numbers in full.

    The names of the files say what they hold: ``stanfordnlp_imdb-1-leaderboard.csv``.

    Args:
        report: The report.
        folder: Where they go.
        describe: What is said of a single run.

    Returns:
        The files.

    Raises:
        OSError: If one cannot be written.
    """
    tables: list[tuple[str, Table]] = []
    for dataset in report:
        name = plain_name(dataset.dataset)
        for number, board in enumerate(dataset.boards, start=1):
            tables.append((f"{name}-{number}-leaderboard", leaderboard_table(board)))
            published = comparison_tables(board)
            tables += [
                (f"{name}-{number}-{kind}", published[title])
                for title, kind in ((REPRODUCED, "published"), (BESIDE, "beside"))
                if title in published
            ]
        tables.append((f"{name}-unscored", unscored_table(dataset.unscored)))
        rows = [*(row for board in dataset.boards for row in board.rows), *dataset.unscored]
        for record in (record for row in rows for record in row.records):
            details = describe(record)
            run = plain_name(record.name)
            kinds = ("classes", "confusion", "predictions", "samples")
            tables += [
                (f"run-{run}-{kind}", table)
                for kind in kinds
                if (table := getattr(details, kind)) is not None
            ]
    written: list[Path] = []
    for name, table in tables:
        if not table.lines:
            continue
        path = folder / f"{name}.csv"
        number = 1
        while path in written:  # two folders may hold runs of the same name
            number += 1
            path = folder / f"{name}-{number}.csv"
        write_atomically(path, _csv(table))
        written.append(path)
    return written


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv_writer(text)
    errors = [
        list(dict.fromkeys(name for line in table.lines for name, _ in line[column].errors))
        for column in range(len(table.headings))
    ]
    writer.writerow(
        name
        for heading, names in zip(table.headings, errors, strict=True)
        for name in (heading.label, *names)
    )
    for line in table.lines:
        values: list[str | float] = []
        for cell, names in zip(line, errors, strict=True):
            known = dict(cell.errors)
            values.append(cell.shown if cell.value is None else cell.value)
            values += [known.get(name, "") for name in names]
        writer.writerow(values)
    return text.getvalue()


def plain_name(name: str) -> str:
    """A name as part of a file's."""
    return re.sub(r"[^\w.+-]+", "_", name)
