"""An estimate as a reader sees it."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.console import Console
from rich.table import Table

from smolbench.cli.estimate.cost import MIB, Estimate, Seconds
from smolbench.utils.extrapolate import Span


def print_estimate(found: Estimate, processes: int, folder: Path) -> None:
    """Print an estimate.

    Args:
        found: The estimate.
        processes: Processes of the job.
        folder: A folder on the disk that the run would write to.
    """
    console = Console()
    epochs = f"{found.epochs:,.2f}".rstrip("0").rstrip(".")
    table = Table(
        title=f"Estimate of {found.recipe}: {found.steps:,} steps, {epochs} "
        f"epoch{'s' * (found.epochs != 1)}",
        box=None,
    )
    table.add_column("", style="dim")
    table.add_column("estimate", justify="right")
    table.add_column("range", justify="right")
    table.add_column("", overflow="fold")
    _add_times(table, found.fit, "smolbench fit", found.fit_s)
    if found.test:
        table.add_section()
        _add_times(table, found.test, "smolbench test", found.test_s)
    table.add_section()
    for name, mib, method in found.memory:
        whose = " of the first process" if processes > 1 else ""
        table.add_row(f"peak memory, {name}", f"{mib:,.0f} MiB", "", f"{method}{whose}")
    table.add_section()
    for name, size in found.run_folder.items():
        table.add_row(f"run folder: {name}", _size(size), "", "")
    table.add_row("run folder", f"[bold]{_size(found.run_folder_bytes)}[/bold]", "", _room(folder))
    for name, size in found.caches.items():
        table.add_row(f"cache: {name}", _size(size), "", "")
    console.print(table)
    largest = max(
        (size for name, size in found.run_folder.items() if name.endswith(".ckpt")), default=0
    )
    remarks = [
        "Ranges are two standard errors of the steps timed, at least a tenth: they know nothing of "
        "what else the machine will do.",
        f"While a checkpoint is written, it takes up to {_size(largest)} more on the disk.",
        *found.remarks,
    ]
    for remark in remarks:
        console.print(remark, soft_wrap=True, highlight=False)


def _add_times(table: Table, lines: list[Seconds], name: str, whole: Span) -> None:
    for line in lines:
        exact = line.span.low == line.span.high
        table.add_row(
            line.name, duration(line.span.value), "" if exact else _range(line.span), line.note
        )
    table.add_row(f"[bold]{name}[/bold]", f"[bold]{duration(whole.value)}[/bold]", _range(whole))


def _range(span: Span) -> str:
    return f"{duration(span.low)} to {duration(span.high)}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02} min"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h"


def _size(number: int) -> str:
    mib = number / MIB
    if mib < 0.1:
        return f"{number / 1024:.1f} KiB"
    return f"{mib:,.1f} MiB"


def _room(folder: Path) -> str:
    return f"{_size(shutil.disk_usage(folder).free)} are free"
