"""Weights averaged over the steps of a training, of what trains only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from smolbench.errors import SmolbenchError


class AveragedWeights(Callback):
    """Keep an exponential moving average of what trains; validate, keep and test the average.

    Polyak averaging in the form of ``torch.optim.swa_utils.get_ema_avg_fn``:
    ``average = decay * average + (1 - decay) * weights`` after every optimiser step. Lightning's
    callbacks of this kind copy and save the whole module, frozen parts included, and leave the raw
    weights in checkpoints that hold weights only.

    Here validations see the average, checkpoints hold it as their weights, and a resumed training
    goes on with the raw weights, which ``last.ckpt`` holds as well. Buffers, such as running means
    of a batch normalisation, are not averaged.

    Args:
        decay: Share of the average that stays at each step.
        start_step: Optimiser steps after which the average begins; until then it is the weights.

    Raises:
        SmolbenchError: If an argument is out of range, or weights are spread over processes.
    """

    def __init__(self, decay: float = 0.999, start_step: int = 0) -> None:
        if not 0 <= decay < 1 or start_step < 0:
            raise SmolbenchError(
                f"AveragedWeights takes a decay in [0, 1) and a start_step of 0 or more; given are "
                f"decay={decay}, start_step={start_step}."
            )
        self.decay = decay
        self.start_step = start_step
        self._weights: dict[str, torch.nn.Parameter] = {}
        self._average: dict[str, torch.Tensor] = {}
        self._resumed: dict[str, torch.Tensor] = {}
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a strategy under which a process holds parts of weights."""
        if type(trainer.strategy).__name__ in {"FSDPStrategy", "ModelParallelStrategy"}:
            raise SmolbenchError(
                "AveragedWeights needs whole weights on every process: take the strategy ddp, or "
                "leave it out."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the weights; what was resumed are the average, and the raw ones beside it."""
        named = pl_module.named_parameters()
        self._weights = {name: weight for name, weight in named if weight.requires_grad}
        self._average = {name: weight.detach().clone() for name, weight in self._weights.items()}
        with torch.no_grad():
            for name, raw in self._resumed.items():
                self._weights[name].copy_(raw)
        self._resumed = {}
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401
        """Take the weights of a new step in."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        decay = self.decay if self._step > self.start_step else 0.0
        for name, weight in self._weights.items():
            self._average[name].lerp_(weight, 1 - decay)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in."""
        self._swap()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the raw weights."""
        self._swap()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What was trained is the average."""
        self._swap()
        self._weights, self._average = {}, {}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The average are the checkpoint's weights."""
        for name, average in self._average.items():
            if name in checkpoint["state_dict"]:
                checkpoint["state_dict"][name] = average

    def state_dict(self) -> dict[str, Any]:
        """The raw weights."""
        return {"raw": {name: weight.detach() for name, weight in self._weights.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the raw weights until the training starts."""
        self._resumed = dict(state_dict["raw"])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the module have the average, as it was validated."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._weights.items():
            raw = weight.detach().clone()
            weight.copy_(self._average[name])
            self._average[name].copy_(raw)
