"""``metrics.csv``: one row per logging step and per validation, exact over kills and resumes."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer

from smolbench.callbacks.folder import run_folder
from smolbench.callbacks.logged import forget, logged
from smolbench.protocols import NamesLogged, offered
from smolbench.utils.files import write_atomically

_FIRST_COLUMNS = ["step", "epoch"]
Row = dict[str, str]
"""A row as the file has it, without its empty cells."""


class TakesRows(Protocol):
    """Hands on to a trainer's loggers what ``metrics.csv`` gets."""

    def begin(self, trainer: Trainer, rows: Sequence[Row], again: Sequence[Row]) -> None:
        """A run's rows so far, and those that an attempt before has written and that are redone."""

    def take(self, row: Row, hidden: Collection[str]) -> None:
        """One more row, of which loggers are not to have some metrics."""

    def tested(self, metrics: Mapping[str, float | int]) -> None:
        """What a test or a validation by itself has measured."""


class MetricsCSV(Callback):
    """Write what was logged to ``metrics.csv`` in the run folder.

    Training metrics are written every ``log_every_n_steps`` optimiser steps as they are at that
    step, validation metrics after every validation, and means over a training epoch (``on_epoch``)
    at its end, unless a resume began within it. Metrics are those logged as ``train/...`` or
    ``val/...``; of a module that keeps its names by stage (every task of smolbench) all of them. A
    checkpoint holds the number of rows written before it; resuming cuts the file back to them, so
    it ends with the rows of a run that was never killed: none lost, none doubled. (Lightning's
    ``CSVLogger`` starts a new file, or deletes the old one.)

    Args:
        loggers: Is given each row as well.
    """

    def __init__(self, loggers: TakesRows | None = None) -> None:
        self.loggers = loggers
        self._path = Path()
        self._columns: list[str] = []
        self._rows = 0
        self._write = self._trial = False
        self._epoch: int | None = None
        self._step_before = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agree on the file."""
        self._path = run_folder(trainer) / "metrics.csv"
        self._trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        self._write = trainer.is_global_zero and stage == "fit" and not self._trial

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cut the file back to the rows that belong to the state the run starts from."""
        self._step_before = trainer.global_step
        self._epoch = None  # it says nothing of an epoch that began in an attempt before
        if not self._write:
            return
        found = _read(self._path)
        kept = self._rows
        # behind an epoch's last checkpoint come means over the epoch, which are not computed again
        while trainer.is_last_batch and kept < len(found) and _of_now(found[kept], trainer):
            kept += 1
        self._rows, rows = kept, found[:kept]
        # also of a run too short for a row there is a file, with nothing but its header
        self._columns = list(rows[0]) if rows else list(_FIRST_COLUMNS)
        write_atomically(self._path, _render(self._columns, rows, header=True))
        if self.loggers is not None:
            self.loggers.begin(
                trainer, [_filled(r) for r in rows], [_filled(r) for r in found[kept:]]
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the means over the epoch before."""
        self._end_epoch(trainer, pl_module)
        self._epoch = trainer.current_epoch

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ANN401 - as Lightning types it
        batch_idx: int,
    ) -> None:
        """Forget what was logged since the batch before."""
        forget(pl_module, "train")

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - as Lightning types it
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Write the training metrics of a step that is due."""
        step = trainer.global_step
        stepped, self._step_before = step != self._step_before, step
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if stepped and every and step % every == 0:
            self._append(trainer, logged(trainer, pl_module, "train"), _hidden(pl_module))
        forget(pl_module, "train")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what the validation before has logged."""
        forget(pl_module, "val")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the metrics of a validation."""
        if trainer.sanity_checking:
            return
        metrics = logged(trainer, pl_module, "val")
        if trainer.state.fn == "fit":
            self._append(trainer, metrics, _hidden(pl_module))
        else:
            self._measured(trainer, metrics)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the means over the last epoch."""
        self._end_epoch(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand on what a test has measured."""
        self._measured(trainer, logged(trainer, pl_module, "test"))

    def state_dict(self) -> dict[str, Any]:
        """Number of rows written so far."""
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Rows that belong to the state that is resumed."""
        self._rows = int(state_dict["rows"])

    def _end_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._epoch is not None:
            metrics = logged(trainer, pl_module, "train_epoch")
            self._append(trainer, metrics, _hidden(pl_module), epoch=self._epoch)
        forget(pl_module, "train_epoch", "train")

    def _measured(self, trainer: Trainer, metrics: Mapping[str, float | int]) -> None:
        if self.loggers is not None and trainer.is_global_zero and not self._trial:
            rows = [_filled(row) for row in _read(self._path)]
            self.loggers.begin(trainer, rows, ())
            self.loggers.tested(metrics)

    def _append(
        self,
        trainer: Trainer,
        metrics: Mapping[str, float | int],
        hidden: Collection[str],
        epoch: int | None = None,
    ) -> None:
        if not metrics:
            return
        # a rank that does not write still counts: all ranks save the same state
        self._rows += 1
        if not self._write:
            return
        row = {"step": str(trainer.global_step)}
        row |= {"epoch": str(trainer.current_epoch if epoch is None else epoch)}
        row |= {name: repr(value) for name, value in metrics.items()}
        new = [name for name in sorted(metrics) if name not in self._columns]
        if new:
            rows = _read(self._path)
            self._columns += new
            write_atomically(self._path, _render(self._columns, [*rows, row], header=True))
        else:
            with self._path.open("a", encoding="utf-8", newline="") as file:
                file.write(_render(self._columns, [row], header=False))
        if self.loggers is not None:
            self.loggers.take(row, hidden)


def _hidden(pl_module: LightningModule) -> Collection[str]:
    """Names that are logged with ``logger=False``."""
    names = offered(pl_module, NamesLogged)
    return names.logged_names["no_logger"] if names is not None else ()


def _of_now(row: Mapping[str, str], trainer: Trainer) -> bool:
    """Whether a row is of the step and the epoch that a training goes on from."""
    here = (str(trainer.global_step), str(trainer.current_epoch))
    return (row["step"], row["epoch"]) == here


def _filled(row: Mapping[str, str]) -> Row:
    return {name: cell for name, cell in row.items() if cell}


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]


def _render(columns: list[str], rows: list[dict[str, str]], *, header: bool) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
