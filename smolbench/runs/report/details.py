"""What a report says of a single run: how to repeat it, and its test class by class."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smolbench.errors import SmolbenchError
from smolbench.runs.record import RunRecord, finite
from smolbench.runs.report.cells import Cell, Heading, Table
from smolbench.runs.results import Results

_FACTS = (
    ("status", "status"),
    ("started", "started_at"),
    ("attempts", "attempts"),
    ("seed", "seed"),
    ("its training ended because", "training/ended"),
    ("task", "task"),
    ("method", "method"),
    ("convention", "convention"),
    ("ROUGE's tokenizer", "rouge/tokenizer"),
    ("model", "model/id"),
    ("model's revision", "model/revision"),
    ("dataset", "data/id"),
    ("dataset's revision", "data/revision"),
    ("training examples", "data/n_train"),
    ("validation examples", "data/n_val"),
    ("test examples", "data/n_test"),
    ("training texts that repeat another", "data/duplicates"),
    ("training texts with several labels", "data/two_labels"),
    ("test texts seen in training", "data/overlap"),
    ("teacher", "teacher/run"),
    ("scored checkpoint", "checkpoint"),
    ("prompt", "prompt/example"),
    ("hardware", "hardware/name"),
    ("threads", "hardware/threads"),
    ("processes", "hardware/world_size"),
    ("computed in", "model/dtype"),
    ("precision of what trains", "precision"),
    ("strategy", "strategy"),
    ("git revision", "git_revision"),
    ("settings", "config_digest"),
)
CLASS_COLUMNS = (
    ("test/class_precision", "precision"),  # of those given the class, the share that is right
    ("test/class_recall", "recall"),
    ("test/class_f1", "F1"),
    ("test/class_n", "examples"),
    ("test/predicted_share", "predicted"),
)
MAX_CLASSES = 20
"""With more classes the tables class by class are not shown; they are in the results."""


@dataclass(frozen=True)
class Details:
    """One run, for whoever wants to know more than its row says.

    Attributes:
        facts: What it was and where it ran, with names; only what is known.
        classes: Precision, recall and more of each class; ``None`` where there are no classes.
        confusion: How many of each true class (lines) were called what; ``None`` likewise.
        curves: Its learning curves, as SVG.
        predictions: Some of its test's predictions; ``None`` if there are none.
        samples: Documents with their summaries before and after training; ``None`` likewise.
    """

    facts: tuple[tuple[str, str], ...]
    classes: Table | None
    confusion: Table | None
    curves: tuple[str, ...] = ()
    predictions: Table | None = None
    samples: Table | None = None


def full_details_of(record: RunRecord) -> tuple[Details, list[str]]:
    """What :func:`details_of` says, and what else lies in the run's folder.

    Returns:
        The details, and a sentence for every file that cannot be read.
    """
    from smolbench.runs.report.curves import draw, read_curves  # lazy: only asked for by an option
    from smolbench.runs.report.mistakes import sample_table, summaries_table

    details, refused = details_of(record), []
    try:
        curves = tuple(draw(curve) for curve in read_curves(record.path))
        details = replace(details, curves=curves)
    except SmolbenchError as error:
        refused.append(str(error))
    try:
        details = replace(details, predictions=sample_table(record.path))
    except SmolbenchError as error:
        refused.append(str(error))
    facts = (*details.facts, *_environment(record.path))
    return replace(details, facts=facts, samples=summaries_table(record.path)), refused


def _environment(run: Path) -> list[tuple[str, str]]:
    """What ``environment.json`` says; nothing where it is missing or damaged."""
    try:
        known = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(known, dict):
        return []
    facts = [(name, str(known[name])) for name in ("python", "platform") if known.get(name)]
    if isinstance(command := known.get("command"), list):
        facts.append(("command", shlex.join(map(str, command))))
    return facts


def details_of(record: RunRecord) -> Details:
    """Collect what a run's ``results.json`` says beside scores and costs."""
    facts = [("folder", str(record.path))]
    for label, key in _FACTS:
        if (said := record.text(key)) is not None:
            facts.append((label, said))
        elif (number := record.number(key)) is not None:
            facts.append((label, f"{number:,.0f}"))
    packages = {
        key.removeprefix("packages/"): record.text(key)
        for key in record.results
        if key.startswith("packages/")
    }
    if known := [f"{name} {version}" for name, version in packages.items() if version]:
        facts.append(("packages", ", ".join(known)))
    facts += [("warning", line) for line in record.warnings]
    labels = record.results.get("test/labels")
    named = isinstance(labels, list) and 0 < len(labels) <= MAX_CLASSES
    names = [str(label) for label in labels] if named and labels else []
    return Details(tuple(facts), _classes(record, names), _confusion(record, names))


def _classes(record: RunRecord, names: Sequence[str]) -> Table | None:
    columns = [
        (label, values)
        for key, label in CLASS_COLUMNS
        if (values := _numbers(record.results.get(key), len(names))) is not None
    ]
    if not names or not columns:
        return None
    first = f"class{of_draws(record.results)}"
    headings = (Heading(first, is_text=True), *(Heading(label) for label, _ in columns))
    lines = tuple(
        (Cell(name), *(_cell(label, values[number]) for label, values in columns))
        for number, name in enumerate(names)
    )
    return Table(headings, lines)


def _confusion(record: RunRecord, names: Sequence[str]) -> Table | None:
    rows = record.results.get("test/confusion")
    if not names or not isinstance(rows, list) or len(rows) != len(names):
        return None
    counts = [_numbers(row, len(names)) for row in rows]
    lines = []
    for name, row in zip(names, counts, strict=True):
        if row is None:
            return None
        lines.append((Cell(name), *(_cell("examples", count) for count in row)))
    first = f"true \\ predicted{of_draws(record.results)}"
    headings = (Heading(first, is_text=True), *(Heading(name) for name in names))
    return Table(headings, tuple(lines))


def of_draws(results: Results) -> str:
    """What tables of a prompt's several draws of examples add to their names."""
    draws = finite(results.get("test/n_draws"))
    return "" if draws is None else f" over {draws:.0f} draws"


def _numbers(values: Any, n: int) -> list[float | None] | None:  # noqa: ANN401 - from JSON
    """``n`` numbers, ``None`` for those that are not defined; ``None`` for anything else."""
    if not isinstance(values, list) or len(values) != n:
        return None
    return [finite(value) for value in values]


def _cell(label: str, value: float | None) -> Cell:
    if value is None:
        return Cell("")
    return Cell(f"{value:,.0f}" if label == "examples" else f"{value:.4f}", value)
