"""``metrics.csv``: one row per logging step and per validation, exact over kills and resumes."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from smolbench.callbacks.folder import run_folder
from smolbench.callbacks.values import counted, plain
from smolbench.files import write_atomically

_FIRST_COLUMNS = ["step", "epoch"]


class MetricsCSV(Callback):
    """Write what was logged to ``metrics.csv`` in the run folder.

    Training metrics (logged as ``train/...``) are written every ``log_every_n_steps`` optimiser
    steps as they are at that step, validation metrics (``val/...``) after every validation. A
    checkpoint holds the number of rows written before it; resuming cuts the file back to them, so
    it ends with the rows of a run that was never killed: none lost, none doubled. (Lightning's
    ``CSVLogger`` starts a new file, or deletes the old one.)
    """

    def __init__(self) -> None:
        self._path = Path()
        self._columns: list[str] = []
        self._rows = 0
        self._write = False
        self._step_before = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agree on the file."""
        self._path = run_folder(trainer) / "metrics.csv"
        trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        self._write = trainer.is_global_zero and stage == "fit" and not trial

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cut the file back to the rows that belong to the state the run starts from."""
        self._step_before = trainer.global_step
        if not self._write:
            return
        rows = _read(self._path)[: self._rows]
        # also of a run too short for a row there is a file, with nothing but its header
        self._columns = list(rows[0]) if rows else list(_FIRST_COLUMNS)
        write_atomically(self._path, _render(self._columns, rows, header=True))

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
            self._append(trainer, "train/")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the metrics of a validation."""
        if not trainer.sanity_checking:
            self._append(trainer, "val/")

    def state_dict(self) -> dict[str, Any]:
        """Number of rows written so far."""
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Rows that belong to the state that is resumed."""
        self._rows = int(state_dict["rows"])

    def _append(self, trainer: Trainer, prefix: str) -> None:
        metrics = {k: v for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}
        if not metrics:
            return
        # a rank that does not write still counts: all ranks save the same state
        self._rows += 1
        if not self._write:
            return
        row = {"step": str(trainer.global_step), "epoch": str(trainer.current_epoch)}
        row |= {name: repr(counted(name, plain(value))) for name, value in metrics.items()}
        new = [name for name in sorted(metrics) if name not in self._columns]
        if new:
            rows = _read(self._path)
            self._columns += new
            write_atomically(self._path, _render(self._columns, [*rows, row], header=True))
            return
        with self._path.open("a", encoding="utf-8", newline="") as file:
            file.write(_render(self._columns, [row], header=False))


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
