"""What a LightningModule has logged in a stage."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch import LightningModule, Trainer

from smolbench.callbacks.values import counted, plain
from smolbench.protocols import NamesLogged, offered

Stage = Literal["train", "train_epoch", "val", "test"]
_ONE_OF_SEVERAL_LOADERS = "/dataloader_idx_"
_OF_EVERY_ROW = {"step", "epoch"}


def logged(trainer: Trainer, pl_module: LightningModule, stage: Stage) -> dict[str, float | int]:
    """Metrics of a stage as they stand: all, of a module that keeps their names by stage.

    Of another one only the prefix says what a metric is of: ``train/``, ``val/`` or ``test/``.
    """
    names = offered(pl_module, NamesLogged)
    if names is None:
        found = {
            name: value
            for name, value in trainer.callback_metrics.items()
            if name.startswith(f"{stage}/")
        }
    else:
        of_stage = names.logged_names[stage] - _OF_EVERY_ROW
        if stage == "train_epoch":  # what is logged behind the last batch is of the epoch, too
            of_stage |= names.logged_names["train"] - _OF_EVERY_ROW
        found = {
            name: value
            for name, value in trainer.callback_metrics.items()
            if name.partition(_ONE_OF_SEVERAL_LOADERS)[0] in of_stage
        }
    return {name: counted(name, plain(value)) for name, value in found.items()}


def forget(pl_module: LightningModule, *stages: Stage) -> None:
    """Begin a stage: what an earlier one has logged is not of it."""
    if (names := offered(pl_module, NamesLogged)) is not None:
        for stage in stages:
            names.logged_names[stage].clear()


def as_result(name: str, stage: Stage) -> str:
    """A metric's key in results, where every one says which split it is of."""
    return name if name.startswith(f"{stage}/") else f"{stage}/{name}"
