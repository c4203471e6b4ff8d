"""A report as Markdown: one table per test set, readable as it stands and when rendered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from smolbench.runs.board import COSTS, MONEY, Board, DatasetReport, Row

LEGEND = """\
± is the standard error over the examples, with several seeds the standard deviation over the seeds.
Costs of several seeds are means. Rows without a rank are not compared with the others, and say why.
"""


def render(report: Sequence[DatasetReport]) -> str:
    """Write a report as Markdown."""
    parts = ["# Runs\n", LEGEND]
    for dataset in report:
        parts.append(f"## {escape(dataset.dataset)}\n")
        for board in dataset.boards:
            parts.append(f"### {title(board)}\n")
            parts.append(_leaderboard(board))
            if board.comparisons:
                parts.append("Published figures that these runs reproduce:\n")
                parts.append(_comparisons(board))
        if dataset.unscored:
            parts.append("### Without a score\n")
            parts.append(_unscored(dataset.unscored))
    return "\n".join(parts)


def title(board: Board) -> str:
    """What a board's rows have in common."""
    said = [board.metric]
    if board.convention is not None:
        said.append(f"by the convention {board.convention}")
    if board.n is not None:
        said.append(f"on {board.n:,} examples")
    if board.limit is not None:
        said.append("(limited)")
    return f"{escape(' '.join(said))}, test set {escape(board.test_digest)}"


def cost_columns(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """Keys and headings of the costs that any of the rows has."""
    have = {key for row in rows for key in row.costs}
    columns = [(cost.key, cost.label) for cost in COSTS]
    columns.insert(1, (MONEY, "price of it"))
    return [(key, label) for key, label in columns if key in have]


def quality(row: Row) -> str:
    """The metric with its spread."""
    if row.value is None:
        return ""
    spread = "" if row.spread is None else f" ± {row.spread:.4f}"
    return f"{row.value:.4f}{spread}"


def cost_text(key: str, value: float | None) -> str:
    """A cost as it is shown; empty where it is not known."""
    if value is None:
        return ""
    if key == MONEY:
        return f"{value:.2f}" if value >= 1 else f"{value:.2g}"
    if key in ("trainable_params", "n_train") or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 or value == 0 else f"{value:.2f}"


def marks(row: Row) -> str:
    """What has to be known of a row, and where a published figure stands."""
    return "; ".join([*row.marks, *([row.source] if row.source else [])])


def run_name(row: Row) -> str:
    """The folder of a row's newest run, and how many more there are; the recipe if published."""
    if row.is_published:
        return row.name
    return row.records[0].name + (f" +{row.seeds - 1}" if row.seeds > 1 else "")


def _leaderboard(board: Board) -> str:
    costs = cost_columns(board.rows)
    headings = ["", "run", "model", "method", board.metric, "seeds", "to published"]
    lines = [
        [
            "" if row.rank is None else str(row.rank),
            run_name(row),
            row.model,
            row.method,
            quality(row),
            str(row.seeds or ""),
            "" if row.difference is None else f"{row.difference:+.4f}",
            *(cost_text(key, row.costs.get(key)) for key, _ in costs),
            marks(row),
        ]
        for row in board.rows
    ]
    headings += [label for _, label in costs]
    return _table([*headings, "notes"], lines, left={1, 2, 3, len(headings)})


def _comparisons(board: Board) -> str:
    lines = [
        [
            run_name(found.row),
            found.figure.metric,
            f"{found.figure.value:.4f}",
            f"{found.ours:.4f}",
            f"{found.ours - found.figure.value:+.4f}",
            found.figure.source,
            found.figure.note,
        ]
        for found in board.comparisons
    ]
    headings = ["run", "metric", "published", "here", "difference", "source", "notes"]
    return _table(headings, lines, left={0, 1, 5, 6})


def _unscored(rows: Sequence[Row]) -> str:
    lines = [[run_name(row), row.model, row.method, quality(row), marks(row)] for row in rows]
    return _table(["run", "model", "method", "test", "notes"], lines, left={0, 1, 2, 4})


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]], left: set[int]) -> str:
    """A Markdown table with columns of even width, without those that are empty."""
    kept = [i for i in range(len(headings)) if i == 0 or any(line[i] for line in lines)]
    cells = [[escape(line[i]) for i in kept] for line in [headings, *lines]]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    shown = []
    for line in cells:
        padded = (
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, cell, width in zip(kept, line, widths, strict=True)
        )
        shown.append(f"| {' | '.join(padded)} |")
    rules = (
        "-" * w if i in left else f"{'-' * (w - 1)}:" for i, w in zip(kept, widths, strict=True)
    )
    shown.insert(1, f"| {' | '.join(rules)} |")
    return "".join(f"{line}\n" for line in shown)


def escape(text: str) -> str:
    """Text as Markdown shows it in a table: on one line, nothing of it taken for markup."""
    flat = " ".join(text.split())
    for character in "\\|<>`*[]":
        flat = flat.replace(character, f"\\{character}")
    return flat
