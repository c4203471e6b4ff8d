"""What a batch weighs in an optimiser step that several batches and processes share."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from smolbench.data.batching import BatchLoader, BatchPlan


def planned_steps(trainer: Trainer) -> float:
    """Optimiser steps of the whole training; infinite or -1 where it has no planned end.

    ``Trainer.estimated_stepping_batches`` takes the accumulation of the moment for that of all
    epochs, which a ``GradientAccumulationScheduler`` changes.
    """
    estimated = float(trainer.estimated_stepping_batches)
    epochs, batches = trainer.max_epochs, trainer.num_training_batches
    if epochs in (None, -1) or math.isinf(batches):
        return estimated
    for one in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(one, GradientAccumulationScheduler):
            steps = sum(
                math.ceil(batches / one.get_accumulate_grad_batches(epoch))
                for epoch in range(epochs)
            )
            return float(steps if trainer.max_steps == -1 else min(steps, trainer.max_steps))
    return estimated


def weight_of_batch(
    trainer: Trainer, batch_idx: int, sizes: npt.NDArray[np.int64] | None = None
) -> float:
    """By what a batch's mean is multiplied, so that a step minimises the mean over all it holds.

    Lightning divides by ``accumulate_grad_batches``, also where the last step of an epoch is of
    fewer batches, and a strategy takes the mean over the processes. Where batches hold different
    numbers of rows or tokens, that is not the mean over these: those of small batches would weigh
    more, and an epoch's last step would be a fraction of one. Which batches make a step, on all
    processes, is known from the plan, so nothing needs to be counted or exchanged. transformers'
    Trainer does the same by ``num_items_in_batch``.

    Args:
        trainer: In a training. With a loader that is not smolbench's all batches are taken as
            alike.
        batch_idx: Number of the batch in its epoch, as ``training_step`` is given it.
        sizes: What the mean of each training row is over: its tokens, for example, shape ``(N,)``.
            If not given, the mean is over rows.
    """
    loader, ranks = trainer.train_dataloader, trainer.world_size
    accumulated = trainer.accumulate_grad_batches
    if accumulated * ranks == 1:
        return 1.0
    first = batch_idx - batch_idx % accumulated
    end = int(min(first + accumulated, trainer.num_training_batches))  # of some without an end
    # an estimate has a part of a plan, which decides nothing
    if not isinstance(loader, BatchLoader) or not isinstance(loader.plan, BatchPlan):
        return accumulated / (end - first)
    batches = loader.plan.of_all_ranks()

    def size(rows: npt.NDArray[np.int64]) -> int:
        return len(rows) if sizes is None else int(sizes[rows].sum())

    together = sum(map(size, batches[first * ranks : end * ranks]))
    own = size(batches[batch_idx * ranks + trainer.global_rank])
    return accumulated * ranks * own / together
