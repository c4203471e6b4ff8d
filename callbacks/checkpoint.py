"""``checkpoints/best.ckpt`` and ``last.ckpt``, written so that no kill can spoil them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from smolbench.callbacks.averaged_weights import AveragedWeights
from smolbench.callbacks.folder import run_folder
from smolbench.callbacks.graceful_stop import GracefulStop, RunInterrupted
from smolbench.callbacks.logged import as_result, logged
from smolbench.callbacks.metric_names import not_logged
from smolbench.callbacks.plateau_steps import PlateauSteps
from smolbench.callbacks.streamed_io import StreamedCheckpointIO
from smolbench.callbacks.validation_times import (
    ValidationTimes,
    ends_early,
    is_last_step,
    validation_may_follow,
)
from smolbench.callbacks.values import plain
from smolbench.errors import SmolbenchError
from smolbench.metrics.table import mode_of
from smolbench.protocols import Monitored, Validates, offered
from smolbench.utils.files import rename_when_on_disk

log = logging.getLogger("smolbench")


class RunCheckpoint(Checkpoint):
    """Keep a run's last state, from which it goes on, and its best one, which is tested.

    ``last.ckpt`` is everything that resuming needs. It is written after every validation, at the
    end of every epoch, when a stop is requested, and at an optimiser step at least every
    ``every_minutes``. ``best.ckpt`` holds weights only. Both are written under a temporary name and
    renamed when they are complete.

    Of states with equal scores, as they are common on few rows, the one with the lower validation
    loss is the best (``val/loss``, or what the LightningModule names as its ``tie_breaker``), and
    of these the later one.

    A training that ends off a validation (by ``max_steps`` or ``max_time``, or in an epoch that
    ``check_val_every_n_epoch`` leaves out) is validated once more, so that its last state may be
    the best.

    A checkpoint is never written before a validation at the same step: Lightning would skip that
    validation after resuming. Nor between the micro-batches of one optimiser step: their gradients
    are in no checkpoint.

    Args:
        every_minutes: Longest time between two writes of ``last.ckpt`` during training, in minutes
            of wall time (a validation in between is waited for).
        monitor: Metric that decides what is best; every validation must log it, or the
            LightningModule name it in its ``validated()`` (without ``val/``). If not given, the
            LightningModule's ``monitor``; if that is never logged, the last state is the best.
        mode: Whether the monitored metric should rise (``max``) or fall (``min``); need not be said
            of metrics of smolbench.

    A :class:`GracefulStop` among the trainer's callbacks is asked for a requested stop. Unless the
    strategy has a way of its own to write, files are written by :class:`StreamedCheckpointIO`.
    """

    def __init__(
        self,
        every_minutes: float = 10.0,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
    ) -> None:
        if every_minutes <= 0:
            raise SmolbenchError(f"checkpoint.every_minutes must be positive, is {every_minutes}.")
        self.every_minutes = every_minutes
        self.monitor = monitor
        self.mode: str | None = mode
        self._monitor_given = monitor is not None
        self._stop: GracefulStop | None = None
        self._tie_breaker = "val/loss"
        self._fits = False
        self._trial = False
        self._plateaus = PlateauSteps()
        self._validated_step = -1
        self._times = ValidationTimes()
        self.best_score: float | None = None
        self.best_metrics: dict[str, float | int] = {}
        self.write_s: dict[str, list[float]] = {}
        """Seconds that each write of this attempt took, by the checkpoint's name."""
        self._folder = Path()
        self._saved_step = -1
        self._saved_at = 0.0
        self._step_before = -1
        self._between_steps = True
        self._due = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agree on the folder and on what is monitored."""
        self._folder = run_folder(trainer) / "checkpoints"
        stops = [c for c in trainer.callbacks if isinstance(c, GracefulStop)]  # type: ignore[attr-defined]
        self._stop = stops[0] if stops else None
        if self._stop is not None:
            self._stop.saved_by_checkpoint = True
        self._fits = stage == "fit"
        self._trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = StreamedCheckpointIO()
        if self._fits:  # else nothing is compared, and no data are read to know by what
            monitored = offered(pl_module, Monitored)
            own = monitored.monitor if monitored is not None else None
            if isinstance(own, tuple):  # another's may be anything
                self.monitor = self.monitor or own[0]
                self.mode = self.mode or (own[1] if self.monitor == own[0] else None)
            if self.monitor is not None:
                self.mode = mode_of("checkpoint.mode", self.monitor, self.mode)
        if isinstance(tie_breaker := getattr(pl_module, "tie_breaker", None), str):
            self._tie_breaker = tie_breaker
        if stage == "fit" and trainer.is_global_zero:
            _sweep(self._folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._saved_at = time.monotonic()
        self._saved_step = self._step_before = trainer.global_step
        self._plateaus.take_over(trainer, pl_module)
        self._times.take_over(trainer)
        if trainer.is_last_batch and self._validated_step == trainer.global_step:
            self._times.end_epoch_that_is_over(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate as often as it was asked for."""
        self._times.give_back(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - as Lightning types it
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Save when the time is up or a stop is requested, if this is a safe moment."""
        self._between_steps = trainer.global_step != self._step_before
        self._step_before = trainer.global_step
        if self._between_steps and is_last_step(trainer):
            self._times.validate_now(trainer)
        if not self._between_steps or validation_may_follow(trainer, batch_idx):
            return
        # Without a validation an epoch ends here: Lightning 2.6 resumes a checkpoint of
        # `on_train_epoch_end` with an empty epoch too many if `max_steps` is set. So does an epoch
        # that is broken off (by `max_time`): what is saved after it counts it as complete.
        self._plateaus.end_epoch(trainer, pl_module)
        self._due |= trainer.is_last_batch or ends_early(trainer)
        overdue = self._due or time.monotonic() - self._saved_at > self.every_minutes * 60
        if trainer.strategy.broadcast(overdue) if trainer.world_size > 1 else overdue:
            self._save_last(trainer)
        self._stop_if_requested(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the state if it is the best so far, then as the last one."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validated_step = trainer.global_step
        self._plateaus.remember(trainer)
        self._plateaus.end_epoch(trainer, pl_module)
        there = trainer.callback_metrics
        score = plain(there[self.monitor]) if self.monitor in there else None
        if score is None and self._monitor_given:
            self._check_monitor(pl_module, sorted(there))
        metrics = {as_result(k, "val"): v for k, v in logged(trainer, pl_module, "val").items()}
        if score is not None and self._is_better(score, metrics):
            self.best_score = score
            self.best_metrics = {
                "best/epoch": trainer.current_epoch,
                "best/step": trainer.global_step,
                **metrics,
            }
            with ExitStack() as validated:
                for one in trainer.callbacks:  # type: ignore[attr-defined]
                    if isinstance(one, AveragedWeights):
                        validated.enter_context(one.in_place())
                self._write(trainer, "best", weights_only=True)
        if self._between_steps:
            self._save_last(trainer)
            self._stop_if_requested(trainer)
        else:
            self._due = True  # validated between micro-batches: saved when their step is done

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save an epoch that no validation ended."""
        self._plateaus.end_epoch(trainer, pl_module)
        self._save_last(trainer)
        self._stop_if_requested(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Without anything monitored the last state is the best."""
        self._times.give_back(trainer)
        if self.best_score is None:
            self._write(trainer, "best", weights_only=True)
            if trainer.is_global_zero and not self._trial:
                log.info("No validation says which state is the best: the last one is kept.")
        elif self._validated_step != trainer.global_step and trainer.is_global_zero:
            log.info("The last state was not validated, and cannot be the best one.")

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs, as plain values."""
        return {
            "best_score": self.best_score,
            "best_metrics": dict(self.best_metrics),
            "validated_step": self._validated_step,
            "plateaus": self._plateaus.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with an earlier attempt's best; a test of another checkpoint has no part in it."""
        if not self._fits:
            return
        self._validated_step = int(state_dict.get("validated_step", -1))
        if "plateaus" in state_dict:  # of an earlier version there is none
            self._plateaus.load_state_dict(state_dict["plateaus"])
        self.best_metrics = dict(state_dict["best_metrics"])
        # of what is monitored now, should an earlier version have monitored something else
        monitored = as_result(str(self.monitor), "val")
        self.best_score = self.best_metrics.get(monitored, state_dict["best_score"])

    def facts(self) -> dict[str, Any]:
        """The best validation's metrics, and what a checkpoint takes on disk."""
        facts: dict[str, Any] = dict(self.best_metrics)
        best, last = (self._folder / f"{name}.ckpt" for name in ("best", "last"))
        if best.is_file():
            facts["cost/checkpoint_mib"] = best.stat().st_size / 2**20
        if last.is_file():
            facts["cost/resume_checkpoint_mib"] = last.stat().st_size / 2**20
        return facts

    def _check_monitor(self, pl_module: LightningModule, there: list[str]) -> None:
        """Refuse a metric that this validation has not logged, unless others will."""
        validates = offered(pl_module, Validates)
        known = validates.validated() if validates is not None else ()
        if self.monitor not in {f"val/{name}" for name in known}:
            said = not_logged("checkpoint.monitor", str(self.monitor), pl_module, there)
            raise SmolbenchError(said)

    def _is_better(self, score: float, metrics: Mapping[str, float]) -> bool:
        if math.isnan(score):
            return False
        if self.best_score is None:
            return True
        if score == self.best_score:
            # a checkpoint carries the best state's metrics, so that a resumed run knows its loss
            loss = as_result(self._tie_breaker, "val")
            before, now = (m.get(loss, math.nan) for m in (self.best_metrics, metrics))
            return now <= before or math.isnan(before)
        return score > self.best_score if self.mode == "max" else score < self.best_score

    def _stop_if_requested(self, trainer: Trainer) -> None:
        signum = self._stop.requested(trainer) if self._stop is not None else None
        if signum is not None:
            self._save_last(trainer)
            raise RunInterrupted(signum, "Stopped after the current step, which is saved.")

    def _save_last(self, trainer: Trainer) -> None:
        if self._saved_step != trainer.global_step or not (self._folder / "last.ckpt").exists():
            self._write(trainer, "last", weights_only=False)
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()
        self._due = False

    def _write(self, trainer: Trainer, name: str, *, weights_only: bool) -> None:
        if self._trial:
            return  # `fast_dev_run` leaves no trace
        path = self._folder / f"{name}.ckpt"
        temporary = path.with_suffix(".partial")
        start = time.perf_counter()
        try:
            trainer.save_checkpoint(temporary, weights_only=weights_only)
            if trainer.is_global_zero:
                rename_when_on_disk(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise SmolbenchError(
                f"The checkpoint {path} cannot be written ({error.strerror or error}); the one "
                "before it is untouched. Free some space and resume with --ckpt_path last."
            ) from error
        trainer.strategy.barrier("checkpoint")
        self.write_s.setdefault(name, []).append(time.perf_counter() - start)


def _sweep(folder: Path) -> None:
    """Remove what a kill in the middle of a write has left."""
    for left in folder.glob("*.partial"):
        left.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint without running any code in it.

    Raises:
        SmolbenchError: If the file is missing, truncated, or not a checkpoint.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise SmolbenchError(f"There is no checkpoint {path}.") from None
    except Exception as error:  # torch.load fails in many ways on damaged files
        raise SmolbenchError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__}); give another one "
            "with --ckpt_path, or train anew."
        ) from error
    needed = ("state_dict", "pytorch-lightning_version")
    if not isinstance(checkpoint, dict) or any(key not in checkpoint for key in needed):
        raise SmolbenchError(
            f"{path} is not a Lightning checkpoint: it lacks {' or '.join(needed)}."
        )
    return checkpoint
