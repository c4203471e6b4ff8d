"""How much of everything a recipe asks for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from smolbench.cli.estimate.planned import Planned
from smolbench.errors import SmolbenchError
from tests.helpers.training import plain_trainer

UNSET: dict[str, Any] = {
    "max_epochs": None,
    "max_steps": -1,
    "max_time": None,
    "check_val_every_n_epoch": 1,
    "val_check_interval": None,
    "log_every_n_steps": 10,
}
BATCHES = 7


class Counted(LightningModule):
    """Counts its batches and validations."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.batches = self.validations = 0

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.batches += 1
        return self.layer(batch[0]).mean()

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        self.validations += 1

    def configure_optimizers(self) -> optim.Optimizer:
        return optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 3},
        {"max_epochs": 4, "check_val_every_n_epoch": 2},
        {"max_epochs": 2, "val_check_interval": 0.5},
        {"max_epochs": 2, "val_check_interval": 3},
        {"max_epochs": 3, "val_check_interval": 4, "check_val_every_n_epoch": None},
        {"max_epochs": -1, "max_steps": 5},
        {"max_epochs": 2, "max_steps": 4, "val_check_interval": 2},
        {"max_epochs": 1, "max_steps": 100},
    ],
    ids=str,
)
def test_counts_are_lightnings(options: dict[str, Any], accumulate: int, tmp_path: Any) -> None:
    module = Counted()
    trainer = plain_trainer(
        tmp_path, accumulate_grad_batches=accumulate, num_sanity_val_steps=0, **options
    )
    rows = DataLoader(TensorDataset(torch.ones(BATCHES, 1)))
    trainer.fit(module, rows, rows)
    planned = Planned.of({**UNSET, **options})
    assert planned.steps(BATCHES, accumulate) == trainer.global_step
    assert planned.batches(BATCHES, accumulate) == module.batches
    assert planned.validations(BATCHES, accumulate) == module.validations


def test_the_usual_epochs_are_lightnings() -> None:
    assert Planned.of(UNSET).steps(2, 1) == 2000


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_epochs": -1}, "no planned end"),
        ({"max_time": "00:01:00:00"}, "no planned end"),
        ({"fast_dev_run": True}, "fast_dev_run"),
        ({"overfit_batches": 0.5}, "overfit_batches"),
    ],
)
def test_what_has_no_end_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SmolbenchError, match=sentence):
        Planned.of({**UNSET, **options})


def test_validations_by_the_clock_are_not_counted() -> None:
    planned = Planned.of({**UNSET, "max_epochs": 2, "val_check_interval": "00:00:10:00"})
    assert planned.validations(BATCHES, 1) is None
