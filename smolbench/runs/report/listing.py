"""``smolbench runs``: the runs below a folder, a line each, or as JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from smolbench.runs.record import RunRecord

_HEADINGS = (
    "run", "started", "status", "task", "model", "dataset", "metric", "value", "n",
    "fit+cache s", "peak MiB",
)  # fmt: skip


def as_json(records: Sequence[RunRecord]) -> str:
    """A list of runs with an object each; what is not known is ``null``."""
    return json.dumps([_facts(record) for record in records], indent=2, allow_nan=False) + "\n"


def as_text(records: Sequence[RunRecord]) -> str:
    """A line per run, under headings."""
    lines = [_HEADINGS, *(_cells(record) for record in records)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "".join(f"{line.rstrip()}\n" for line in padded)


def _facts(record: RunRecord) -> dict[str, Any]:
    metric, peak = record.metric, record.peak_memory
    seed, n = record.number("seed"), record.number("test/n")
    return {
        "run": str(record.path),
        "recipe": record.recipe,
        "started_at": record.text("started_at"),
        "status": record.status,
        "seed": None if seed is None else int(seed),
        "task": record.text("task"),
        "method": record.text("method"),
        "model": record.text("model/id"),
        "dataset": record.text("data/id"),
        "test_digest": record.text("data/test_digest"),
        "metric": metric,
        "value": record.number(f"test/{metric}"),
        "stderr": record.number(f"test/{metric}_stderr"),
        "n": None if n is None else int(n),
        "training_s": record.training_s,
        "peak_memory_mib": None if peak is None else peak[0],
        "peak_memory_kind": None if peak is None else peak[1],
    }


def _cells(record: RunRecord) -> tuple[str, ...]:
    facts = _facts(record)
    value = "-"
    if facts["value"] is not None:
        spread = "" if facts["stderr"] is None else f" ± {facts['stderr']:.4f}"
        value = f"{facts['value']:.4f}{spread}"
    peak = "-"
    if record.peak_memory is not None:
        peak = f"{record.peak_memory[0]:,.0f} {record.peak_memory[1]}"
    ways = "/".join(part for part in (facts["task"], facts["method"]) if part)
    return (
        str(record.path),
        record.started_at or "-",
        record.status,
        ways or "-",
        facts["model"] or "-",
        facts["dataset"] or "-",
        facts["metric"] or "-",
        value,
        "-" if facts["n"] is None else f"{facts['n']:,}",
        "-" if facts["training_s"] is None else f"{facts['training_s']:,.1f}",
        peak,
    )
