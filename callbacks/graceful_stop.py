"""Ctrl-C and SIGTERM: finish the step, save, then stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class RunInterrupted(BaseException):
    """A run that a signal ended.

    No ``Exception``, as ``KeyboardInterrupt`` is none: a library that tries a download again after
    any error must not take it for one.

    Attributes:
        status: Exit status that shells expect: 128 plus the signal's number.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.status = 128 + signum


class GracefulStop(Callback):
    """Turn the first Ctrl-C or SIGTERM into a wish that the training loop grants at a safe moment.

    Lightning's own handling of Ctrl-C raises in the middle of a step, possibly inside
    ``optimizer.step``. Here the current step ends first; :class:`RunCheckpoint` then saves it and
    raises :class:`RunInterrupted` (without a RunCheckpoint it is raised after the batch, unsaved).
    A second signal stops at once. Outside the training loop (while data is prepared, a cache is
    filled, or a test runs) the first signal stops at once: nothing is lost there that a checkpoint
    could hold.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._training = False
        self._previous: dict[int, Any] = {}
        self._process = os.getpid()
        self._launcher: object = None
        self.saved_by_checkpoint = False
        """Whether a RunCheckpoint grants the wish."""

    def take_over(self) -> None:
        """Handle the signals from now on; Python allows that in the main thread only.

        Lightning calls no hook before data is prepared; whoever wants a stop there to end as any
        other calls this before.
        """
        if threading.current_thread() is threading.main_thread() and not self._previous:
            self._process = os.getpid()
            for signum in _SIGNALS:
                self._previous[signum] = signal.signal(signum, self._handle)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the signals, and keep Lightning from it.

        Lightning 2.6 would put a SIGTERM handler in front that ends an accumulation in the middle,
        unsaved and with status 0, that with several ranks broadcasts from inside the handler, out
        of step with the others, and that on SLURM saves in the middle of a step.
        """
        trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
        self._launcher = trainer.strategy.launcher
        self._received = None
        self.take_over()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is a step to finish."""
        self._training = True

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - as Lightning types it
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Stop here if nobody saves first."""
        if not self.saved_by_checkpoint and (signum := self.requested(trainer)) is not None:
            raise RunInterrupted(signum, "Stopped after the current batch.")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """There is no step to finish any more."""
        self._training = False

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        self.give_back()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        self.give_back()

    def requested(self, trainer: Trainer) -> int | None:
        """The signal that some rank has received, the same answer on every rank.

        With several ranks this is a collective call: all must make it at the same step.
        """
        if trainer.world_size == 1:
            return self._received
        flag = torch.tensor([self._received or 0], device=trainer.strategy.root_device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return int(flag.item()) or None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loader's worker, which is ended by the process that this is meant for
        name = signal.Signals(signum).name
        if self._training and self._received is None:
            self._received = signum
            sys.stderr.write(
                f"\n{name}: finishing the current step, then saving. Once more stops at once.\n"
            )
            return
        if isinstance(self._launcher, _SubprocessScriptLauncher):
            self._launcher.kill(signum)  # the ranks that this one started
        raise RunInterrupted(signum, f"Stopped by {name}.")

    def give_back(self) -> None:
        """Let the signals do what they did before."""
        self._training = False
        previous, self._previous = self._previous, {}
        for signum, handler in previous.items():
            restored: Callable[..., Any] | int = signal.SIG_DFL if handler is None else handler
            signal.signal(signum, restored)


def _nothing() -> None:
    """Stand in for Lightning's registration of signal handlers."""
