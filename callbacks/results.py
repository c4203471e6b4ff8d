"""Writes ``results.json``, ``environment.json``, ``predictions.parquet`` and ``samples.json``."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_only

from smolbench import __version__
from smolbench.callbacks.ending import OUT_OF_TIME, why_ended
from smolbench.callbacks.folder import run_folder
from smolbench.callbacks.graceful_stop import RunInterrupted
from smolbench.callbacks.logged import Stage, as_result, logged
from smolbench.protocols import HasFacts, KeepsRows, Predicts, ShowsSamples, offered
from smolbench.runs.results import FILE_NAME, Results, read_results, write_results
from smolbench.runs.samples import write_samples
from smolbench.utils.files import rename_when_on_disk, write_atomically
from smolbench.utils.notices import begin, gathered, kept
from smolbench.utils.processor import processor_name

_PACKAGES = ("torch", "lightning", "transformers", "datasets", "peft", "bitsandbytes")


class ResultsWriter(Callback):
    """Collect what was measured into one flat file.

    Everything that takes part may have a method ``facts()`` that returns a flat mapping: the
    LightningModule, the DataModule and all callbacks. The file is written when a stage starts
    (``status: running``, which is all that a kill leaves) and when it ends. A stage that adds to a
    run that has results already keeps them; of two peaks of memory the higher one stands. Training
    that goes on removes the test results: they were its old checkpoint's.

    A LightningModule may have ``predictions()``, columns for ``predictions.parquet`` after a test,
    and ``samples()``, texts for ``samples.json`` (see :mod:`smolbench.runs.samples`).

    Args:
        identity: What is known before the run starts: recipe, seed, start time and the like.
        config: Text of ``config.yaml``; ``None`` leaves the run's own.
    """

    def __init__(
        self, identity: Mapping[str, Any] | None = None, config: str | None = None
    ) -> None:
        self.identity = dict(identity or {})
        self.config = config
        self.folder = Path()
        self.results: Results = {}
        self._status_before: str | None = None
        self._warnings: list[str] = []
        self._silent = False
        self._trains = False

    def claim(self, folder: Path) -> None:
        """Make a folder a run's that has not begun: downloads and encoding come before it.

        A run that is killed in them is then found by ``--ckpt_path last`` like any other.
        """
        self.folder = folder
        self._write_config()
        write_results(folder, {**self.identity, "status": "running", "attempts": 0})

    def withdraw(self, *, refused: bool = False) -> None:
        """Give up a claim if the run has never begun.

        Args:
            refused: Whether it cannot go on: if it was set up, but has not trained, it would be
                taken for the newest run.
        """
        path = self.folder / FILE_NAME
        if not path.is_file() or self._trains:
            return
        if refused or read_results(self.folder).get("attempts") == 0:
            for name in (FILE_NAME, "config.yaml", "environment.json", "metrics.csv"):
                (self.folder / name).unlink(missing_ok=True)

    def note(self, facts: Mapping[str, Any]) -> None:
        """Write what a run has decided before it has begun, so that it goes on with that."""
        if getattr(rank_zero_only, "rank", 0) == 0 and (self.folder / FILE_NAME).is_file():
            write_results(self.folder, {**read_results(self.folder), **facts})

    def _write_config(self) -> None:
        if self.config is not None:
            write_atomically(self.folder / "config.yaml", self.config)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say that the stage runs."""
        self.folder = run_folder(trainer)
        self.results = {}
        trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        self._silent = not trainer.is_global_zero or stage == "predict" or trial
        if self._silent:
            return
        known = read_results(self.folder) if (self.folder / FILE_NAME).is_file() else {}
        self._status_before = known.get("status")
        self._warnings = kept(known.get("warnings"), _stage(trainer))
        hardware = _hardware(trainer)
        if stage == "fit":
            self.results = {**known, **self.identity, **hardware, "status": "running"}
            self.results["attempts"] = int(known.get("attempts", 0)) + 1
            self.results["started_at"] = known.get("started_at", self.identity.get("started_at"))
        else:
            self.results = {"status": "running", **self.identity, **hardware, **known}
            for key, value in hardware.items():
                # what is known is the training's, which may have run on another machine
                own = f"{key}_{trainer.state.fn.value}"  # type: ignore[union-attr]
                self.results.pop(own, None)
                if self.results[key] != value:
                    self.results[own] = value
        if known and stage != "fit":
            return  # nothing changes before there is a result, nor if there is none
        self._write_config()
        write_results(self.folder, self.results)
        environment = {
            "command": sys.argv,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpu_count": os.cpu_count(),
            "packages": packages_here(),
        }
        write_atomically(self.folder / "environment.json", json.dumps(environment, indent=2) + "\n")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is known once the model is built."""
        self._trains = True
        self._write(trainer, "running")
        self._write_samples(pl_module)
        keeps = offered(trainer.datamodule, KeepsRows)  # type: ignore[attr-defined]
        rows = keeps.kept_rows() if keeps is not None and not self._silent else None
        if rows is not None:
            rows.write(self.folder)

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ANN401 - as Lightning types it
        batch_idx: int,
    ) -> None:
        """Forget the test of a state that is trained further."""
        tested = [key for key in self.results if _is_of_test(key)]
        if self._silent or not tested:
            return
        for key in tested:
            del self.results[key]
        self._warnings = kept(self._warnings, "test")
        (self.folder / "predictions.parquet").unlink(missing_ok=True)
        write_results(self.folder, self.results)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the finished training, and why it ended."""
        self.results["training/ended"] = why = why_ended(trainer)
        self.results["training/max_epochs"] = trainer.max_epochs if trainer.max_steps < 0 else None
        self.results.pop("training/out_of_time", None)
        if why == OUT_OF_TIME:
            self.results["training/out_of_time"] = True
        self._write(trainer, "finished")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the metrics of ``validate``; those of a fit are its best checkpoint's."""
        if trainer.state.fn == "validate":
            self._add_metrics(logged(trainer, pl_module, "val"), "val")
            self._write(trainer, self._status_before or "finished")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write metrics and predictions."""
        self._add_metrics(logged(trainer, pl_module, "test"), "test")
        self._write(trainer, self._status_before or "finished")
        self._status_before = self.results.get("status")  # what comes behind the test can fail
        predicts = offered(pl_module, Predicts)
        columns = predicts.predictions() if predicts is not None else None
        if columns is not None and not self._silent:
            _write_parquet(self.folder / "predictions.parquet", columns)
        self._write_samples(pl_module)

    def _write_samples(self, pl_module: LightningModule) -> None:
        shows = offered(pl_module, ShowsSamples)
        found = shows.samples() if shows is not None else None
        if found and not self._silent:
            write_samples(self.folder, found)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add what was measured behind a test."""
        if trainer.state.fn == "test" and not self._silent:
            self._write(trainer, self._status_before or "finished")
        begin()  # what comes next in this process is another run, or stage

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Say how the run ended."""
        if not self.results or self._silent:
            return  # it failed before it was set up
        if trainer.state.fn != "fit" and self._status_before is not None:
            return  # it says how the training ended
        stopped = isinstance(exception, (RunInterrupted, KeyboardInterrupt))
        status = "interrupted" if stopped else "failed"
        try:
            self._write(trainer, status)
        except Exception:  # the failure itself may keep others from saying anything
            self.results["status"] = status
            with contextlib.suppress(OSError):  # a full disk may be what this is about
                write_results(self.folder, self.results)

    def _add_metrics(self, metrics: Mapping[str, float | int], stage: Stage) -> None:
        self.results |= {as_result(name, stage): value for name, value in metrics.items()}

    def _write(self, trainer: Trainer, status: str) -> None:
        if self._silent:
            return
        sources = [trainer.lightning_module, trainer.datamodule, *trainer.callbacks]  # type: ignore[attr-defined]
        for source in sources:
            speaks = offered(source, HasFacts)
            for key, value in (speaks.facts() if speaks is not None else {}).items():
                known = self.results.get(key)
                if key.startswith("cost/peak_") and known is not None and value is not None:
                    value = max(known, value)
                if key == "cost/cache_reused" and known is False:
                    value = False  # an earlier attempt of this run has paid for it
                self.results[key] = value
        self.results["status"] = status
        self.results["warnings"] = gathered(self._warnings, _stage(trainer))
        write_results(self.folder, self.results)


def _stage(trainer: Trainer) -> str:
    return str(trainer.state.fn.value) if trainer.state.fn is not None else "fit"


def _is_of_test(key: str) -> bool:
    if key.startswith("data/"):  # `data/limit_test` is a setting of the run
        return False
    return key.startswith(("test/", "cost/test_", "cost/head_test_")) or key.endswith("_test")


def _hardware(trainer: Trainer) -> dict[str, Any]:
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    facts: dict[str, Any] = {
        "hardware/device": device.type,
        "hardware/name": name,
        "hardware/threads": torch.get_num_threads(),
        "hardware/world_size": trainer.world_size,
        "precision": str(trainer.precision),
        "strategy": type(trainer.strategy).__name__,
    }
    return facts | {f"packages/{name}": found for name, found in packages_here().items()}


def packages_here() -> dict[str, str]:
    """Versions of the libraries that results depend on, by their names."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"smolbench": __version__}


def _write_parquet(path: Path, columns: Mapping[str, Any]) -> None:
    import pyarrow  # lazy: only a test writes predictions
    import pyarrow.parquet

    temporary = path.with_suffix(".partial")
    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), temporary)
    rename_when_on_disk(temporary, path)
