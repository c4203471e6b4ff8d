"""Stops a training that cannot work: a parameter without gradient, a loss that is not finite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from smolbench.errors import SmolbenchError

NAMED = 5
"""Parameters that an error names before it counts the rest."""


class TrainingGuard(pl.Callback):
    """Stops a fit when it trains nothing, or trains on numbers that are not finite.

    - In the first optimiser steps that follow a backward pass, every parameter with
      ``requires_grad`` must have a gradient. One of exactly zero is legal: that is how LoRA starts.
      The first steps after a validation are checked again, since a change to evaluation mode and
      back must not cut a layer off. With one optimiser all parameters of the module are checked,
      with several those of the optimiser that steps. Parameters that this rank holds no part of
      (FSDP) are passed over, and those of modules that the LightningModule names in an attribute
      ``routed_modules``: experts of a mixture, which a router chooses for some batches only.
    - The loss of every batch must be finite.
    - All gradients must be finite at every optimiser step, unless a gradient scaler (16-mixed) is
      at work: infinite ones are part of its search, and it skips their step.

    Everything is checked before the weights change. The cost is one read of all gradients (their
    total norm) and one device synchronisation per optimiser step; with gradient accumulation, a
    loss that is not finite is therefore found at the end of its window, or before a checkpoint is
    written in between. A norm that overflows while all its gradients are finite is let through.

    Args:
        gradient_steps: Optimiser steps in which every parameter must have a gradient, at the start
            and after each validation. 0 turns this check off, for a module that uses some of its
            parameters only now and then.

    Raises:
        SmolbenchError: If `gradient_steps` is negative, and from the hooks, naming the step and the
            parameters.
    """

    def __init__(self, gradient_steps: int = 2) -> None:
        """Check the arguments."""
        if gradient_steps < 0:
            raise SmolbenchError(
                f"TrainingGuard got gradient_steps={gradient_steps}, but it takes 0 or more; "
                "give 0 to turn the check off."
            )
        self._gradient_steps = gradient_steps
        self._checked: Counter[int] = Counter()
        self._losses: list[tuple[int, Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget what an earlier fit, perhaps one that failed, left behind."""
        self._checked.clear()
        self._losses.clear()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the gradients' presence again in the next steps."""
        self._checked.clear()

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Keep the loss; looking at it now would make an accelerator wait in every batch."""
        self._losses.append((trainer.fit_loop.batch_idx, loss.detach()))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Check losses and gradients while the weights are still those of the last step."""
        # A step without backward (`training_step` returned None) says nothing about gradients.
        if self._losses and self._checked[id(optimizer)] < self._gradient_steps:
            self._checked[id(optimizer)] += 1
            # An expert without a gradient is no fault: no token of this batch was sent to it.
            routed = tuple(f"{name}." for name in getattr(pl_module, "routed_modules", ()))
            always = [
                (name, parameter)
                for name, parameter in _parameters_of(pl_module, optimizer)
                if not name.startswith(routed)
            ]
            _check_presence(trainer, always)
        gradients: dict[str, Tensor] = {}
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            gradients = {
                name: _values(parameter.grad)
                for name, parameter in pl_module.named_parameters()
                if parameter.grad is not None
            }
        checks = [loss.float().sum() for _, loss in self._losses]
        if gradients:
            checks.append(nn.utils.get_total_norm(gradients.values()))
        # One transfer for all of them; which one it was is asked only when something is wrong.
        if not checks or _all_finite(torch.stack([check.to(checks[0]) for check in checks])):
            self._losses.clear()
            return
        self._check_losses(trainer)
        _check_gradients(trainer, gradients)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let no checkpoint be written after a loss that is not finite."""
        self._check_losses(trainer)

    def _check_losses(self, trainer: pl.Trainer) -> None:
        pending, self._losses = self._losses, []
        for batch_idx, loss in pending:
            if not _all_finite(loss):
                raise SmolbenchError(
                    f"The loss is {loss.float().sum().item()} at {_place(trainer, batch_idx)}, but "
                    f"it must be finite; {_remedy()}"
                )


def _check_presence(trainer: pl.Trainer, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
    trainable = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    missing = [
        name for name, parameter in trainable if parameter.grad is None and parameter.numel()
    ]
    if missing:
        rest = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise SmolbenchError(
            f"No gradient reaches {len(missing)} of {len(trainable)} trainable parameters at "
            f"{_place(trainer, trainer.fit_loop.batch_idx)}: {', '.join(missing[:NAMED])}{rest}; "
            "every parameter with requires_grad must take part in the loss (a gradient of zero is "
            "legal), so use them in training_step or freeze them with requires_grad_(False)."
        )


def _check_gradients(trainer: pl.Trainer, gradients: dict[str, Tensor]) -> None:
    broken = [name for name, gradient in gradients.items() if not _all_finite(gradient)]
    if broken:
        raise SmolbenchError(
            f"The gradient of {broken[0]} is not finite at "
            f"{_place(trainer, trainer.fit_loop.batch_idx)} ({len(broken)} of {len(gradients)} "
            f"gradients are not); {_remedy()}"
        )


def _parameters_of(
    pl_module: pl.LightningModule, optimizer: Optimizer
) -> list[tuple[str, nn.Parameter]]:
    named = list(pl_module.named_parameters())
    if len(pl_module.trainer.optimizers) == 1:
        return named
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [(name, parameter) for name, parameter in named if id(parameter) in own]


def _values(gradient: Tensor) -> Tensor:
    """The numbers this rank holds: those of a sparse gradient, the local part of a sharded one."""
    if gradient.is_sparse:
        return gradient._values()
    to_local = getattr(gradient, "to_local", None)
    return gradient if to_local is None else to_local()


def _all_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _place(trainer: pl.Trainer, batch_idx: int) -> str:
    return (
        f"optimiser step {trainer.global_step} (epoch {trainer.current_epoch}, batch {batch_idx})"
    )


def _remedy() -> str:
    return (
        "the weights were not updated and the last checkpoint is untouched, so resume from it with "
        "a lower learning rate, with precision 32-true, or with gradient clipping."
    )
