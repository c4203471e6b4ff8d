"""How many CPU threads a training loop computes with."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class TrainingThreads(Callback):
    """Use a given number of CPU threads while the training loop runs.

    For steps so small that starting and joining threads takes longer than the work (a head on
    cached features): one thread is faster there, and on a busy machine many times faster. What is
    computed before the loop, such as a pass of a frozen network, keeps all threads.

    Args:
        threads: Number of threads; nothing is changed on devices other than the CPU.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self._before: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change the number."""
        if trainer.strategy.root_device.type == "cpu":
            self._before = torch.get_num_threads()
            torch.set_num_threads(self.threads)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change it back."""
        self._restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Change it back."""
        self._restore()

    def _restore(self) -> None:
        if self._before is not None:
            torch.set_num_threads(self._before)
            self._before = None
