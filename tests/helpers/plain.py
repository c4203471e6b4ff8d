"""Somebody's plain Lightning project: nothing in it knows smolbench."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset


class PlainModule(pl.LightningModule):
    """A linear model that logs its training loss and, as `val/score`, what it is told to.

    And as `val/loss`.
    """

    def __init__(self, scores: tuple[float, ...] = (), losses: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        torch.nn.init.ones_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)
        self.scores, self.losses = list(scores), list(losses)
        self.events: list[str] = []

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch[0]).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        for name, values in (("score", self.scores), ("loss", self.losses)):
            if values and not self.trainer.sanity_checking:
                self.log(f"val/{name}", values.pop(0))

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.layer(batch[0]).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loader(batches: int = 4) -> DataLoader:
    return DataLoader(TensorDataset(torch.ones(2 * batches, 2)), batch_size=2)


def trainer(folder: Path, *callbacks: pl.Callback, **options) -> pl.Trainer:
    settings = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        # else Lightning writes checkpoints of its own
        "enable_checkpointing": any(isinstance(c, pl.callbacks.Checkpoint) for c in callbacks),
    }
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**settings, **options})
