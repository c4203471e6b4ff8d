"""Averages of weights are torch's."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils.data import DataLoader

from smolbench.callbacks import AveragedWeights
from smolbench.errors import SmolbenchError
from tests.callbacks.test_plateau import Told
from tests.helpers.training import plain_trainer


class Moving(Told):
    """Moves by what it is told, with a part that does not train."""

    def __init__(self):
        super().__init__([0.0] * 12)
        self.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)

    def training_step(self, batch, batch_idx):
        self.seen += 1
        return (self.weight * self.seen).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Reference(Callback):
    """torch's average of the same steps."""

    def on_train_start(self, trainer, pl_module):
        self.average = AveragedModel(
            torch.nn.ParameterList([pl_module.weight]), avg_fn=get_ema_avg_fn(0.9)
        )
        self.average.update_parameters(torch.nn.ParameterList([pl_module.weight]))
        self.raw = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.average.update_parameters(torch.nn.ParameterList([pl_module.weight]))
        self.raw.append(pl_module.weight.item())


def test_the_average_is_that_of_torch(tmp_path):
    module, reference = Moving(), Reference()
    callbacks = [reference, AveragedWeights(decay=0.9)]
    plain_trainer(tmp_path, max_epochs=3, callbacks=callbacks).fit(
        module, DataLoader([0, 1], batch_size=1)
    )
    (expected,) = reference.average.module.parameters()
    assert module.weight.item() == pytest.approx(expected.item(), rel=1e-6)
    assert module.weight.item() != pytest.approx(reference.raw[-1])


def test_before_its_start_the_average_is_the_weights(tmp_path):
    module, reference = Moving(), Reference()
    callbacks = [reference, AveragedWeights(decay=0.9, start_step=6)]
    plain_trainer(tmp_path, max_epochs=3, callbacks=callbacks).fit(
        module, DataLoader([0, 1], batch_size=1)
    )
    assert module.weight.item() == reference.raw[-1]


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": -0.1}, {"start_step": -1}])
def test_options_out_of_range_are_a_sentence(options):
    with pytest.raises(SmolbenchError, match="AveragedWeights takes"):
        AveragedWeights(**options)
