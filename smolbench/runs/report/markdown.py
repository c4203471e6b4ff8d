"""A report as Markdown: one table per test set, readable as it stands and when rendered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import fill

from smolbench.runs.report.board import DatasetReport
from smolbench.runs.report.cells import (
    Table,
    comparison_tables,
    leaderboard_table,
    legend,
    title,
    unscored_table,
)

_TAG = re.compile(r"<(?=[A-Za-z/!?])|>")
"""What may begin or end an HTML tag: not the sign in "<0.001"."""


def render(report: Sequence[DatasetReport]) -> str:
    """Write a report as Markdown."""
    parts = ["# Runs\n", f"{fill(legend(report), 100)}\n"]
    for dataset in report:
        parts.append(f"## {escape(dataset.dataset)}\n")
        for board in dataset.boards:
            parts += [f"### {escape(title(board))}\n", table_text(leaderboard_table(board))]
            for name, table in comparison_tables(board).items():
                parts += [f"{name}:\n", table_text(table)]
        if dataset.unscored:
            parts += ["### Without a score\n", table_text(unscored_table(dataset.unscored))]
    return "\n".join(parts)


def table_text(table: Table) -> str:
    """A table whose columns are of even width."""
    left = [heading.is_text for heading in table.headings]
    cells = [[escape(heading.label) for heading in table.headings]]
    cells += [[escape(cell.shown) for cell in line] for line in table.lines]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rules = [
        "-" * width if text else f"{'-' * (width - 1)}:"
        for width, text in zip(widths, left, strict=True)
    ]
    lines = []
    for line in (cells[0], rules, *cells[1:]):
        padded = (
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(line, widths, left, strict=True)
        )
        lines.append(f"| {' | '.join(padded)} |\n")
    return "".join(lines)


def escape(text: str) -> str:
    """Text as Markdown shows it in a table: on one line, nothing of it taken for markup."""
    flat = " ".join(text.split())
    for character in "\\|`*[]":
        flat = flat.replace(character, f"\\{character}")
    return _TAG.sub(r"\\\g<0>", flat)
