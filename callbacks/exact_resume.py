"""Random numbers that a resumed run draws as if it had never been killed."""

from __future__ import annotations

import os
import random

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.progress import _ProcessedTracker


class ExactResume(Callback):
    """Seed all random generators before every training batch.

    The seed of a batch is a pure function of the run's seed, the epoch, the batch's number and the
    rank, so there is nothing to save in a checkpoint and nothing that can be restored wrongly: what
    validation, logging or another callback draws in between does not matter either. Together with a
    loader that saves its position (``smolbench.data.batching.BatchLoader``) a run that was killed
    and resumed ends with the same weights, bit by bit.

    Args:
        seed: Seed of the run; the one given to ``seed_everything`` if not given.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make sure that the training loader knows its position.

        Lightning 2.6 never tells it if ``configure_optimizers`` asked for
        ``estimated_stepping_batches``, which builds the loader before the position is restored.
        """
        trainer.fit_loop._load_combined_loader_states()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Seed python, numpy and torch, on the CPU and on the module's device."""
        _mend_epoch_progress(trainer)
        base = self.seed if self.seed is not None else int(os.environ.get("PL_GLOBAL_SEED", "0"))
        entropy = [base, trainer.current_epoch, batch_idx, trainer.global_rank]
        words = np.random.SeedSequence(entropy).generate_state(3, dtype=np.uint32)
        random.seed(int(words[0]))
        np.random.seed(int(words[1]))  # users' code draws from the global generator
        # not torch.manual_seed: where there is no GPU it records a traceback for each kind of GPU
        # at every call, which takes as long as a small step
        torch.default_generator.manual_seed(int(words[2]))
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(int(words[2]))
        elif pl_module.device.type == "mps":
            torch.mps.manual_seed(int(words[2]))


def _mend_epoch_progress(trainer: Trainer) -> None:
    """Count the running epoch as started.

    Lightning 2.6 does not when it resumes from a checkpoint of ``on_train_batch_end`` that ended an
    epoch; from the next checkpoint it would then take the wrong turn at its next resume.
    """
    progress = trainer.fit_loop.epoch_progress
    for counts in (progress.total, progress.current):
        assert isinstance(counts, _ProcessedTracker), "the kind that epochs are counted with"
        counts.completed = counts.processed
        counts.ready = counts.started = counts.processed + 1
