from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from smolbench.callbacks import TrainingThreads


class Model(LightningModule):
    def __init__(self, fail: bool = False) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.fail = fail
        self.seen: list[int] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(torch.get_num_threads())
        if self.fail:
            raise ValueError("broken")
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        self.seen.append(torch.get_num_threads())
        return torch.utils.data.DataLoader(torch.zeros(4, 2))


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def fit(model: Model, folder) -> None:
    Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=folder,
        callbacks=[TrainingThreads(1)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model)


def test_only_the_loop_has_fewer_threads(three_threads, tmp_path):
    model = Model()
    fit(model, tmp_path)
    assert model.seen == [3, 1, 1, 1, 1]
    assert torch.get_num_threads() == 3


def test_threads_come_back_after_an_error(three_threads, tmp_path):
    with pytest.raises(ValueError, match="broken"):
        fit(Model(fail=True), tmp_path)
    assert torch.get_num_threads() == 3
