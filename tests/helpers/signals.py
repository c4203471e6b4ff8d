"""Callbacks for runs that signals end."""

from __future__ import annotations

import os
import time
from pathlib import Path

from lightning.pytorch import Callback


class SignalAt(Callback):
    """Send this process a signal at the start of a batch, counted over epochs from 0.

    Args:
        batch: Which batch.
        signum: Number of the signal.
    """

    def __init__(self, batch: int, signum: int = 2) -> None:
        self.batch = batch
        self.signum = signum

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), self.signum)


class Slow(Callback):
    """Take ``$SLOW_S`` seconds per batch, and leave the file ``step`` when one begins."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        Path("step").touch()
        end = time.monotonic() + float(os.environ.get("SLOW_S", "0"))
        while time.monotonic() < end:
            time.sleep(0.02)
