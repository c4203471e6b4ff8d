"""Ctrl-C and SIGTERM: finish the step, save, then stop."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class RunInterrupted(Exception):  # noqa: N818 - it ends a run, it is not an error in it
    """A run that a signal ended.

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
    raises :class:`RunInterrupted`. A second signal stops at once. Outside the training loop (while
    data is prepared, a cache is filled, or a test runs) the first signal stops at once: nothing is
    lost there that a checkpoint could hold.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._training = False
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the signals; Python allows that in the main thread only."""
        if threading.current_thread() is threading.main_thread() and not self._previous:
            for signum in _SIGNALS:
                self._previous[signum] = signal.signal(signum, self._handle)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is a step to finish."""
        self._training = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """There is no step to finish any more."""
        self._training = False

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        self._restore()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._restore()

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
        name = signal.Signals(signum).name
        if self._training and self._received is None:
            self._received = signum
            sys.stderr.write(
                f"\n{name}: finishing the current step, then saving. Once more stops at once.\n"
            )
            return
        raise RunInterrupted(signum, f"Stopped by {name}.")

    def _restore(self) -> None:
        self._training = False
        previous, self._previous = self._previous, {}
        for signum, handler in previous.items():
            restored: Callable[..., Any] | int = signal.SIG_DFL if handler is None else handler
            signal.signal(signum, restored)
