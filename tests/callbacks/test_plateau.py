from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from smolbench.callbacks import TrainingPlateau
from smolbench.errors import SmolbenchError
from tests.helpers.training import plain_trainer


class Told(LightningModule):
    """Logs the losses it is told, two batches per epoch."""

    def __init__(self, losses, name="train/loss"):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.losses, self.name = losses, name
        self.seen = 0

    def training_step(self, batch, batch_idx):
        value = self.losses[self.seen]
        self.seen += 1
        self.log(self.name, value)
        return self.weight.sum() + value

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def epochs(losses, tmp_path, name="train/loss", **options):
    """Epochs that are trained when each epoch's two batches have these mean losses."""
    module = Told([value + shift for value in losses for shift in (-0.5, 0.5)], name)
    trainer: Trainer = plain_trainer(
        tmp_path, max_epochs=len(losses), callbacks=[TrainingPlateau(**options)]
    )
    trainer.fit(module, DataLoader([0, 1], batch_size=1))
    return module.seen // 2


@pytest.mark.parametrize(
    ("losses", "options", "expected"),
    [
        ([5, 4, 3, 2, 1], {}, 5),
        ([5, 4, 4, 3, 2], {}, 3),
        ([5, 4, 4.5, 3, 3.5, 3.2, 1], {"patience": 2}, 6),
        ([5, 4.9, 4.8, 4.7], {"min_delta": 0.5}, 2),
        ([5, math.nan, 1], {}, 2),
    ],
)
def test_training_ends_when_the_loss_stops_falling(tmp_path, losses, options, expected):
    assert epochs(losses, tmp_path, **options) == expected


def test_a_metric_that_is_not_logged_is_an_error(tmp_path):
    with pytest.raises(SmolbenchError, match=r"but .* logs .* at every training step"):
        epochs([1, 1], tmp_path, name="train/other")


@pytest.mark.parametrize("options", [{"patience": 0}, {"min_delta": -1.0}])
def test_arguments_out_of_range_are_refused(options):
    with pytest.raises(SmolbenchError, match="TrainingPlateau got"):
        TrainingPlateau(**options)


def test_the_state_is_that_of_the_running_epoch_and_plain():
    one = TrainingPlateau()
    one._values = [torch.tensor(0.1), torch.tensor(0.7)]
    one._lowest = 3.0
    state = one.state_dict()
    other = TrainingPlateau()
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert state["counts"] == [2]
    assert all(isinstance(value, float | int | list) for value in state.values())
