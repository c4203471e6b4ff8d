"""The tables of a report, the same in Markdown and on the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from smolbench.runs.record import RunRecord
from smolbench.runs.report.board import COSTS, MONEY, Board, Comparison, Cost, DatasetReport, Row

_LEGEND = (
    "± is the standard error over the examples, with several seeds the standard deviation over the "
    "seeds; over draws, the standard deviation over the draws of a prompt's examples. Costs of "
    "several seeds are means. Rows without a rank are not compared with the others and say why."
)
_LEGEND_OF_P = (
    "p is that of McNemar's exact test against the best row, on the same texts, of summaries "
    "and of several draws that of a paired bootstrap, adjusted for the number of rows (Holm); of "
    "several seeds the newest run is tested."
)
_PRICE = Cost(MONEY, "training price", lambda record: None)


@dataclass(frozen=True)
class Cell:
    """What is shown in a cell.

    Attributes:
        shown: The text.
        value: The number that it stands for.
        run: The run that it names.
        errors: Other numbers in it, by their names; as CSV they have columns of their own.
    """

    shown: str
    value: float | None = None
    run: RunRecord | None = None
    errors: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Heading:
    """A column's heading, and whether the column holds texts."""

    label: str
    is_text: bool = False


@dataclass(frozen=True)
class Table:
    """Cells by lines, below a heading for each column."""

    headings: tuple[Heading, ...]
    lines: tuple[tuple[Cell, ...], ...]


def legend(report: Sequence[DatasetReport]) -> str:
    """What a reader of the tables has to know."""
    rows = (row for dataset in report for board in dataset.boards for row in board.rows)
    return f"{_LEGEND} {_LEGEND_OF_P}" if any(row.p_value is not None for row in rows) else _LEGEND


def leaderboard_table(board: Board) -> Table:
    """A line for each row of a board, in their order."""
    costs = costs_of(board.rows)
    headings = [
        Heading("rank"),
        Heading(board.metric),
        Heading("run", is_text=True),
        Heading("model", is_text=True),
        Heading("method", is_text=True),
        Heading("seeds"),
        Heading("p to the best"),
        Heading("to published"),
        *(Heading(cost.label) for cost in costs),
        Heading("measured on", is_text=True),
        Heading("computed in", is_text=True),
        Heading("notes", is_text=True),
    ]
    lines = []
    for row in board.rows:
        gap = "" if row.difference is None else f"{row.difference:+.4f}"
        lines.append(
            [
                Cell("" if row.rank is None else str(row.rank), row.rank),
                _quality_cell(row),
                _name_cell(row),
                Cell(row.model),
                Cell(row.method),
                Cell(str(row.seeds or ""), row.seeds or None),
                Cell(_p_text(row.p_value), row.p_value),
                Cell(gap, row.difference),
                *(_cost_cell(cost.key, row) for cost in costs),
                Cell(machines(row)),
                Cell(_computed_in(row)),
                Cell(marks(row)),
            ]
        )
    return without_empty(headings, lines)


REPRODUCED = "Published figures that these runs reproduce"
BESIDE = "Published figures beside which these runs stand, and what differs"


def comparison_tables(board: Board) -> dict[str, Table]:
    """Tables of published figures by their titles; none that is empty."""
    found = {
        REPRODUCED: [one for one in board.comparisons if not one.differs],
        BESIDE: [one for one in board.comparisons if one.differs],
    }
    return {title: comparison_table(lines) for title, lines in found.items() if lines}


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """A line for each published figure and the row that it is compared with."""
    headings = [
        Heading("run", is_text=True),
        Heading("metric", is_text=True),
        Heading("published"),
        Heading("here"),
        Heading("difference"),
        Heading("differs", is_text=True),
        Heading("source", is_text=True),
        Heading("notes", is_text=True),
    ]
    lines = []
    for found in comparisons:
        figure, gap = found.figure, found.ours - found.figure.value
        lines.append(
            [
                _name_cell(found.row),
                Cell(figure.metric),
                Cell(f"{figure.value:.4f}", figure.value),
                Cell(f"{found.ours:.4f}", found.ours),
                Cell(f"{gap:+.4f}", gap),
                Cell("; ".join(found.differs)),
                Cell(figure.source),
                Cell(figure.note),
            ]
        )
    return without_empty(headings, lines)


def unscored_table(rows: Sequence[Row]) -> Table:
    """A line for each run that no board takes."""
    headings = [
        Heading("run", is_text=True),
        Heading("model", is_text=True),
        Heading("method", is_text=True),
        Heading("test"),
        Heading("notes", is_text=True),
    ]
    lines = [
        [
            _name_cell(row),
            Cell(row.model),
            Cell(row.method),
            _quality_cell(row),
            Cell(marks(row)),
        ]
        for row in rows
    ]
    return without_empty(headings, lines)


def without_empty(headings: Sequence[Heading], lines: Sequence[Sequence[Cell]]) -> Table:
    """A table without the columns in which nothing is shown."""
    kept = [i for i in range(len(headings)) if any(line[i].shown for line in lines)]
    return Table(
        tuple(headings[i] for i in kept), tuple(tuple(line[i] for i in kept) for line in lines)
    )


def _name_cell(row: Row) -> Cell:
    return Cell(run_name(row), run=None if row.is_published else row.records[0])


def _quality_cell(row: Row) -> Cell:
    errors = {
        "± over seeds" if row.seeds > 1 else "± over examples": row.spread,
        "± over draws": row.over_draws,
    }
    known = tuple((name, error) for name, error in errors.items() if error is not None)
    return Cell(quality(row), row.value, errors=known)


def _p_text(p_value: float | None) -> str:
    if p_value is None:
        return ""
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _cost_cell(key: str, row: Row) -> Cell:
    value = row.costs.get(key)
    return Cell(cost_text(key, value), value)


def title(board: Board) -> str:
    """What a board's rows have in common."""
    said = [board.metric]
    if board.convention is not None:
        by = "" if board.metric == "f1" else "by the convention "
        said.append(f"{by}{board.convention}")
    if board.n is not None:
        said.append(f"on {board.n:,} examples")
    if board.limit is not None:
        said.append("(limited)")
    apart = len({found for row in board.rows if (found := machines(row))}) > 1
    costs = ", costs of different hardware" if apart else ""
    return f"{' '.join(said)}, test set {board.test_digest}{costs}"


def machines(row: Row) -> str:
    """The hardware behind a row's costs, where it is known."""
    found = []
    for record in row.records:
        for stage in ("", "_test"):
            name = record.text(f"hardware/name{stage}")
            processes = record.number(f"hardware/world_size{stage}") or 1
            found.append(f"{processes:.0f} x {name}" if name and processes > 1 else name)
    return _joined(found)


def _computed_in(row: Row) -> str:
    return _joined([record.text("model/dtype") for record in row.records])


def _joined(said: Iterable[str | None]) -> str:
    return " and ".join(dict.fromkeys(each for each in said if each))


def costs_of(rows: Iterable[Row]) -> list[Cost]:
    """The costs that any of the rows has."""
    have = {key for row in rows for key in row.costs}
    first, *rest = COSTS
    return [cost for cost in (first, _PRICE, *rest) if cost.key in have]


def quality(row: Row) -> str:
    """The metric with its spread."""
    if row.value is None:
        return ""
    spread = "" if row.spread is None else f" ± {row.spread:.4f}"
    draws = "" if row.over_draws is None else f" (over draws ± {row.over_draws:.4f})"
    return f"{row.value:.4f}{spread}{draws}"


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
