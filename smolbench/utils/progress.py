"""Progress of long jobs outside the Trainer's loops: encoding, downloads, frozen passes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning_utilities.core.rank_zero import rank_zero_only

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

DELAY_S = 2.0
"""Seconds that a job may take before anything is shown."""

REDRAW_S = 0.2
"""Seconds between two drawings."""

BYTES = "bytes"
"""Unit that is shown with its multiples."""


@contextmanager
def progress_bar(
    description: str, total: int | None, *, unit: str = "examples"
) -> Generator[Callable[[int], None], None, None]:
    """Show a bar with count, rate and remaining time, for loops that advance by varying counts.

    The bar appears once the job has taken ``DELAY_S`` seconds, on rank 0 only, on the console that
    Lightning's ``RichProgressBar`` draws on, below it where both are active. Where that console is
    no terminal, a job longer than that leaves one plain line on standard error.

    Args:
        description: What is being done.
        total: How much there is to do, in ``unit``; None if unknown.
        unit: What is counted, in the plural.

    Yields:
        ``advance(count)``: tell that ``count`` more are done.
    """
    bar = _Bar(description, total, unit) if _rank() == 0 else None
    try:
        yield bar.advance if bar else _ignore
    except BaseException:
        if bar:
            bar.stop()
        raise
    if bar:
        bar.finish()


class _Bar:
    """One job's progress, drawn late."""

    def __init__(self, description: str, total: int | None, unit: str, done: int = 0) -> None:
        self.description = description
        self.total = total
        self.unit = unit
        self.done = done
        self.started = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._drawable = True
        self._redrawn = 0.0

    def advance(self, count: int) -> None:
        self.done += count
        if self._progress is None and self._drawable and self.seconds > DELAY_S:
            self._draw()
        if self._progress is not None and self._task is not None:
            self._progress.update(
                self._task,
                completed=self.done,
                total=self.total,
                description=self.description,
            )
            # inside another live display nothing but this redraws the bar
            if time.monotonic() - self._redrawn > REDRAW_S:
                self._progress.refresh()
                self._redrawn = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def _draw(self) -> None:
        # rich is imported here because most jobs are over before anything is shown
        from rich import get_console, reconfigure
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.text import Text

        class RateColumn(ProgressColumn):
            def render(self, task: Task) -> Text:
                rate = task.finished_speed or task.speed
                return Text(f"{rate:,.0f}/s" if rate else "", style="progress.data.speed")

        # the console of Lightning's bar: two would overwrite each other
        console = get_console()
        # what is piped on is for data; not while another bar is drawn on it
        if not console.stderr and console.file is sys.stdout:
            reconfigure(stderr=True)
        if not console.is_terminal:
            self._drawable = False
            return
        amounts: tuple[ProgressColumn, ...]
        if self.unit == BYTES:
            amounts = (DownloadColumn(), TransferSpeedColumn())
        else:
            amounts = (MofNCompleteColumn(), TextColumn(self.unit), RateColumn())
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *amounts,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task(
            self.description, total=self.total, completed=self.done
        )
        # rate and elapsed time count from when the job began, not from when it was first drawn
        self._progress.tasks[0].start_time = self._progress.get_time() - self.seconds
        self._progress.start()

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.refresh()
            self._progress.stop()

    def finish(self) -> None:
        self.stop()
        if self._progress is None and self.seconds > DELAY_S:
            amount = f"{self.done:,} {self.unit}"
            if self.unit == BYTES:
                amount = f"{self.done / 2**20:,.1f} MiB"
            line = f"{self.description}: {amount} in {self.seconds:.0f} s"
            print(line, file=sys.stderr, flush=True)


def draw_library_bars() -> None:
    """Let downloads by huggingface_hub and datasets draw the bars that everything else draws.

    Neither can be told which progress bar to use, but each has one class for all of them. It keeps
    counting; what it shows is replaced, for the rest of the process.
    """
    import datasets.utils  # lazy: import cost
    import huggingface_hub.utils

    hub_bar = huggingface_hub.utils.tqdm  # type: ignore[attr-defined] # not listed, yet documented
    for bar_class in (hub_bar, datasets.utils.tqdm):
        _draw_with_rich(bar_class)
    # transformers, told not to draw bars of its own, switches those of downloads off as well
    huggingface_hub.utils.enable_progress_bars()  # type: ignore[attr-defined] # as above


def _draw_with_rich(bar_class: Any) -> None:  # noqa: ANN401 - a subclass of tqdm, which is untyped
    if hasattr(bar_class, "_bar"):
        return
    count, stop_counting = bar_class.__init__, bar_class.close

    def start(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        count(self, *args, **{**kwargs, "gui": True})  # to tqdm: somebody else draws
        if not self.disable and _rank() == 0:
            unit = BYTES if self.unit == "B" else self.unit.strip()
            self._bar = _Bar(self.desc or "Downloading", self.total or None, unit, done=self.n)

    def display(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        if self._bar is not None:
            self._bar.description = self.desc or "Downloading"
            self._bar.total = self.total or None  # 0 where it is not known
            self._bar.advance(self.n - self._bar.done)

    def close(self: Any) -> None:  # noqa: ANN401
        display(self)
        if self._bar is not None:
            complete = not self.total or self.n >= self.total
            self._bar.finish() if complete else self._bar.stop()
            self._bar = None
        stop_counting(self)

    bar_class._bar = None
    bar_class.__init__, bar_class.display, bar_class.close = start, display, close


def _ignore(_count: int) -> None:
    """Advance nothing: another rank shows the bar."""


def _rank() -> int:
    """Rank of this process among all of the job's; 0 outside of one."""
    known = getattr(rank_zero_only, "rank", None)  # set by Lightning, also where it spawns
    if known is not None:
        return int(known)
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if name in os.environ:
            return int(os.environ[name])
    return 0
