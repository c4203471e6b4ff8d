from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything

from smolbench.callbacks import ExactResume
from tests.helpers.plain import PlainModule, loader, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
]


class Drawing(PlainModule):
    """Remembers what each generator gives in every training batch; validation draws as well."""

    def __init__(self, extra: int = 0) -> None:
        super().__init__()
        self.extra = extra
        self.drawn: dict[tuple[int, int], tuple[float, ...]] = {}

    def training_step(self, batch, batch_idx):
        self.drawn[self.current_epoch, batch_idx] = (
            random.random(),
            float(np.random.rand()),
            float(torch.rand(())),
            float(torch.nn.functional.dropout(torch.ones(1000)).sum()),
        )
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        for _ in range(self.extra):
            torch.rand(())
            random.random()


def draw(folder, callback=None, extra=0, **options):
    module = Drawing(extra)
    callbacks = [callback] if callback else [ExactResume()]
    trainer(folder, *callbacks, max_epochs=2, **options).fit(module, loader(3), loader(1))
    return module.drawn


def test_the_same_numbers_whatever_happens_in_between(tmp_path):
    seed_everything(1)
    expected = draw(tmp_path)
    torch.rand(7)
    random.random()
    assert draw(tmp_path, extra=3, val_check_interval=1) == expected
    assert len(expected) == 6
    for generator in range(4):
        assert len({values[generator] for values in expected.values()}) == 6


def test_another_seed_gives_other_numbers(tmp_path):
    seed_everything(1)
    first = draw(tmp_path)
    seed_everything(2)
    second = draw(tmp_path)
    assert not set(first.values()) & set(second.values())
    assert draw(tmp_path, ExactResume(seed=1)) == first


def test_without_a_seed_it_is_zero(tmp_path):
    assert draw(tmp_path) == draw(tmp_path, ExactResume(seed=0))


def test_ranks_draw_different_numbers(tmp_path, monkeypatch):
    expected = draw(tmp_path)
    monkeypatch.setattr("lightning.pytorch.Trainer.global_rank", 1)
    assert not set(draw(tmp_path).values()) & set(expected.values())


def test_a_resumed_run_draws_on(tmp_path):
    whole = draw(tmp_path)
    fit = trainer(tmp_path, ExactResume(), max_steps=4)
    fit.fit(Drawing(), loader(3))
    fit.save_checkpoint(tmp_path / "4.ckpt")
    rest = Drawing()
    trainer(tmp_path, ExactResume(), max_epochs=2).fit(
        rest, loader(3), ckpt_path=tmp_path / "4.ckpt"
    )
    assert rest.drawn
    assert rest.drawn.items() <= whole.items()


def test_nothing_is_saved(tmp_path):
    assert ExactResume().state_dict() == {}
