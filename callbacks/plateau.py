"""Ends a training whose loss has stopped falling."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer

from smolbench.callbacks.metric_names import not_logged
from smolbench.errors import SmolbenchError

log = logging.getLogger("smolbench")


class TrainingPlateau(Callback):
    """End the training after epochs in which the mean training loss has not fallen.

    The mean is over the epoch's batches, as logged. Lightning's ``EarlyStopping`` would forget the
    part of an epoch that came before a kill; here a checkpoint carries it, and a resumed training
    ends after the same epoch as one that was never killed.

    Args:
        patience: Epochs in a row without a lower loss.
        min_delta: By how much the loss must fall below its lowest value to count as lower.
        metric: What is averaged: a metric that is logged at every training step.

    Raises:
        SmolbenchError: If an argument is out of range; from the hooks, if the metric is not logged.
    """

    def __init__(
        self, patience: int = 1, min_delta: float = 0.0, metric: str = "train/loss"
    ) -> None:
        if patience < 1 or min_delta < 0:
            raise SmolbenchError(
                f"TrainingPlateau got patience={patience} and min_delta={min_delta}; the first "
                "must be at least 1, the second at least 0."
            )
        self.patience = patience
        self.min_delta = min_delta
        self.metric = metric
        self._values: list[torch.Tensor] = []
        self._sum = 0.0
        self._count = 0
        self._lowest = math.inf
        self._waited = 0

    @property
    def reached(self) -> bool:
        """Whether the loss has stopped falling."""
        return self._waited >= self.patience

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not go on with a training that ended before it was killed."""
        if self.reached:
            trainer.should_stop = True

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - as Lightning types it
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Keep the batch's loss; after the last batch of an epoch, see whether it has fallen.

        Then, and not at the end of the epoch: a checkpoint that is written in between holds the
        outcome.
        """
        value = trainer.callback_metrics.get(self.metric)
        if value is None:
            there = sorted(trainer.callback_metrics)
            raise SmolbenchError(
                not_logged("TrainingPlateau.metric", self.metric, pl_module, there)
                + " It is needed at every training step."
            )
        self._values.append(value.detach().clone())  # looked at later: no wait for the device
        if trainer.is_last_batch:
            self._end_epoch(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the training after the epoch's validation."""
        if self.reached and not trainer.should_stop:
            if trainer.is_global_zero:
                log.info(
                    "%s has not fallen below %.4f for %d epochs: the training ends.",
                    self.metric,
                    self._lowest,
                    self._waited,
                )
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """The running epoch's part, rank by rank, and the epochs before it, as plain values."""
        self._add_up()
        parts = [(self._sum, self._count)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = parts * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, (self._sum, self._count))
        return {
            "sums": [part[0] for part in parts],
            "counts": [part[1] for part in parts],
            "lowest": self._lowest,
            "waited": self._waited,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where an earlier attempt stood."""
        rank = 0
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank = torch.distributed.get_rank()
        self._values = []
        self._sum = float(state_dict["sums"][rank])
        self._count = int(state_dict["counts"][rank])
        self._lowest = float(state_dict["lowest"])
        self._waited = int(state_dict["waited"])

    def _add_up(self) -> None:
        """Add the losses kept so far, one by one, so that it does not matter how often."""
        if self._values:
            for value in torch.stack(self._values).tolist():
                self._sum += value
            self._count += len(self._values)
            self._values = []

    def _end_epoch(self, trainer: Trainer) -> None:
        self._add_up()
        sums = torch.tensor([self._sum, float(self._count)], dtype=torch.float64)
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, sums)
            sums = torch.stack(parts).sum(dim=0)
        mean = float(sums[0] / sums[1])
        self._sum, self._count = 0.0, 0
        if mean < self._lowest - self.min_delta:
            self._lowest, self._waited = mean, 0
        else:
            self._waited += 1
