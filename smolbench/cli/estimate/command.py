"""``smolbench fit --estimate``, the command itself."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from time import perf_counter
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger

from smolbench.callbacks import (
    BatchWatch,
    GracefulStop,
    MemoryMonitor,
    RunCheckpoint,
    ThroughputMonitor,
    TrainingPlateau,
)
from smolbench.callbacks.checkpoint import read_checkpoint
from smolbench.cli.command_line import Invocation
from smolbench.cli.estimate.cost import Measured, estimate_of
from smolbench.cli.estimate.planned import Planned
from smolbench.cli.estimate.rehearsal import Rehearsal, RehearsalClock
from smolbench.cli.estimate.text import print_estimate
from smolbench.cli.lightning_cli import SmolCLI
from smolbench.data import BaseDataModule
from smolbench.errors import SmolbenchError
from smolbench.models.frozen.rehearsal import PassRehearsal
from smolbench.runs.settings import Settings
from smolbench.utils.files import write_atomically

log = logging.getLogger("smolbench")
_PEAKS = "peaks.json"


def estimate(call: Invocation, stop: GracefulStop, watch: BatchWatch) -> None:
    """Run a part of a training and of its test, and print what all of it would cost.

    Everything is done as in a run, in a temporary folder on the disk that the run would write to.
    Token ids and what else belongs to the data stay in the cache, as after any run; outputs of
    frozen networks do not, as only a part of them is computed.

    Raises:
        SmolbenchError: If the settings are refused, or a part of such a run says nothing.
    """
    disk = call.runs_dir
    while not disk.is_dir():
        disk = disk.parent
    with tempfile.TemporaryDirectory(prefix=".smolbench-estimate-", dir=disk) as folder:
        EstimateCLI(call, stop, watch, Path(folder))


class EstimateCLI(SmolCLI):
    """LightningCLI for an estimate.

    Args:
        call: What the command line asks for.
        stop: Handles the signals.
        watch: Knows the current batch.
        folder: Where the part of the run writes to.
        only_test: Whether it is only tested, on what another process has trained there.
    """

    def __init__(
        self,
        call: Invocation,
        stop: GracefulStop,
        watch: BatchWatch,
        folder: Path,
        *,
        only_test: bool = False,
    ) -> None:
        self.temporary = folder
        self.only_test = only_test
        self.passes = PassRehearsal()
        self.planned: Planned
        self.rehearsal: Rehearsal
        self.clock: RehearsalClock
        self.remarks: list[str] = []
        self.preparation_s = 0.0
        # a latency has no part in what a run costs
        call.argv.append("--latency.examples=0")
        super().__init__(call, stop, watch)

    def _choose_folder(self, settings: Settings) -> tuple[Path, bool]:
        return self.temporary, True

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401 - as Lightning types it
        """A Trainer that goes once through the part, and validates and writes as in a run."""
        asked: Mapping[str, Any] = self._get(self.config_init, "trainer", default={})
        self.planned = Planned.of(asked)
        self.rehearsal = Rehearsal()
        self.clock = RehearsalClock(self.rehearsal)
        kwargs |= {
            "max_epochs": 1,
            "max_steps": -1,
            "min_epochs": None,
            "min_steps": None,
            "max_time": None,
            "check_val_every_n_epoch": 1,
            "val_check_interval": 1.0,
            "num_sanity_val_steps": 0,
            # nothing is sent anywhere, but callbacks that need a logger find one
            "logger": DummyLogger() if asked["logger"] else False,
        }
        trainer = super().instantiate_trainer(**kwargs)
        own: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        elsewhere = [c for c in own if isinstance(c, ModelCheckpoint)]
        if elsewhere:
            self.remarks.append(
                "What ModelCheckpoint writes is not counted: only smolbench's own best and last."
            )
        if any(isinstance(c, (EarlyStopping, TrainingPlateau)) for c in own):
            self.remarks.append("All epochs are counted, although the training may stop earlier.")
        if self.planned.max_time:
            self.remarks.append("trainer.max_time is not counted; it may end the training earlier.")
        if self.planned.val_interval is None:
            self.remarks.append(
                "Validations come by the clock (trainer.val_check_interval); one is counted."
            )
        unused = (EarlyStopping, ThroughputMonitor)  # the clock times the test's batches, too
        kept = [c for c in own if c not in elsewhere and not isinstance(c, unused)]
        trainer.callbacks = [self.clock, *kept]  # type: ignore[attr-defined]
        return trainer

    def before_fit(self) -> None:
        """Let everything read a part, and refuse what cannot be estimated."""
        data = self.datamodule
        if not isinstance(data, BaseDataModule):
            raise SmolbenchError(
                "--estimate chooses batches of all lengths, which it can do with smolbench's "
                f"DataModules only, not with {type(data).__name__}."
            )
        self.remarks += self.model.remarks_on_estimate()
        self.check_training()
        self.model.rehearsal = self.passes
        data.part_of = lambda split, plan: self.rehearsal.part_of(
            split, plan, self.trainer.accumulate_grad_batches
        )

    def fit(self, **kwargs: Any) -> None:  # noqa: ANN401 - as Lightning types it
        """Train on the part, then test on a part."""
        if self.only_test:
            checkpoint = self.temporary / "checkpoints" / "best.ckpt"
            self.model.before_data(read_checkpoint(checkpoint))
            self.trainer.test(
                self.model,
                datamodule=self.datamodule,
                ckpt_path=str(checkpoint),
                verbose=False,
                weights_only=True,
            )
            return
        started = perf_counter()
        self.trainer.fit(**kwargs)
        assert self.clock.began_training is not None, "there is a step"
        spent = sum(one.spent for one in self.passes.passes)
        self.preparation_s = max(0.0, self.clock.began_training - started - spent)
        self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)

    def after_fit(self) -> None:
        """Print the estimate."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        memory = next(c for c in callbacks if isinstance(c, MemoryMonitor))
        if self.only_test:
            write_atomically(self.temporary / _PEAKS, json.dumps(memory.facts()))
            return
        train = self.rehearsal.parts["train"]
        # what the run itself would be refused for
        self.model.check_warmup(
            self.planned.steps(train.batches, self.trainer.accumulate_grad_batches)
        )
        if not self.trainer.is_global_zero:
            return
        checkpoint = next(c for c in callbacks if isinstance(c, RunCheckpoint))
        found = estimate_of(
            self.call.recipe,
            self.planned,
            Measured(
                parts=self.rehearsal.parts,
                passes=self.passes.passes,
                accumulate=self.trainer.accumulate_grad_batches,
                preparation_s=self.preparation_s,
                encoded_bytes=self.datamodule.encoded_bytes,
                write_s=checkpoint.write_s,
                save_every_s=checkpoint.every_minutes * 60,
                folder=self.temporary,
            ),
        )
        found.remarks += self.remarks
        alone = self._tested_alone()
        if not alone:
            found.remarks.append("The memory of the test is measured in the training's process.")
        found.memory = _peaks(memory.facts() | alone)
        print_estimate(found, self.trainer.world_size, self.temporary)

    def _tested_alone(self) -> dict[str, Any]:
        """The memory of the test in a process of its own, as a run has it; nothing if it failed."""
        if self.trainer.world_size > 1:
            return {}
        process = multiprocessing.get_context("spawn").Process(
            target=_test_alone, args=(self.call, self.temporary)
        )
        process.start()
        process.join()
        try:
            facts: dict[str, Any] = json.loads((self.temporary / _PEAKS).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return {key: mib for key, mib in facts.items() if key.endswith("_test")}


def _test_alone(call: Invocation, folder: Path) -> None:
    """Test on a part what lies in a folder, and write there what memory that takes."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        logging.disable()
        EstimateCLI(call, GracefulStop(), BatchWatch(), folder, only_test=True)


def _peaks(facts: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Peaks in MiB, by kind and stage, and how they were measured."""
    names = {"rss": "resident", "allocated": "allocated", "reserved": "reserved"}
    found = []
    for kind, name in names.items():
        for stage in ("fit", "test"):
            if (peak := facts.get(f"cost/peak_{kind}_mib_{stage}")) is not None:
                method = facts.get(f"cost/{'rss' if kind == 'rss' else 'allocated'}_method")
                found.append((f"{name}, {stage}", float(peak), str(method)))
    return found
