"""What a batch weighs in an optimiser step that several batches and processes share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from lightning.pytorch import Trainer

from smolbench.data.batching import BatchLoader, BatchPlan


def weight_of_batch(trainer: Trainer, batch_idx: int, sizes: npt.NDArray[np.int64]) -> float:
    """By what a batch's mean is multiplied, so that a step minimises the mean over all it holds.

    Lightning takes the mean over the batches that are accumulated, a strategy the mean over the
    processes. Where batches hold different numbers of tokens, that is not the mean over the tokens:
    those of short batches would weigh more. Which batches make a step, on all processes, is known
    from the plan, so nothing needs to be counted or exchanged. transformers' Trainer does the same
    by ``num_items_in_batch``.

    Args:
        trainer: In a training whose loader is smolbench's; with another one all batches are alike.
        batch_idx: Number of the batch in its epoch, as ``training_step`` is given it.
        sizes: What the mean of each training row is over: its tokens, for example, shape ``(N,)``.
    """
    loader, ranks = trainer.train_dataloader, trainer.world_size
    shared_by = trainer.accumulate_grad_batches * ranks
    if shared_by == 1 or not isinstance(loader, BatchLoader):
        return 1.0
    if not isinstance(loader.plan, BatchPlan):  # an estimate's part of one, which decides nothing
        return 1.0
    first = batch_idx - batch_idx % trainer.accumulate_grad_batches
    # the last step of an epoch may be of fewer batches, which Lightning divides by as many
    end = min(first + trainer.accumulate_grad_batches, int(trainer.num_training_batches))
    batches = loader.plan.of_all_ranks()
    together = sum(int(sizes[rows].sum()) for rows in batches[first * ranks : end * ranks])
    own = int(sizes[batches[batch_idx * ranks + trainer.global_rank]].sum())
    return shared_by * own / together
