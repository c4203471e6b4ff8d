from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import get_scheduler

from smolbench.errors import SmolbenchError
from smolbench.tasks.base import (
    CHECKPOINT_KEY,
    BaseTask,
    lr_factor,
    verify_signature,
    warmup_of,
)
from tests.helpers.training import plain_trainer

SCHEDULERS = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


class Toy(BaseTask):
    kind = "toy"
    monitor = ("val/loss", "min")
    method = "toy"

    def __init__(self, width=3, **options):
        super().__init__(**options)
        self.width = width
        self.frozen = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).requires_grad_(False)
        self.frozen.eval()
        self.body = nn.Sequential(nn.Embedding(9, 3), nn.LayerNorm(3))
        self.norm = nn.BatchNorm1d(3)
        self.out = nn.Linear(3, 2)
        self.out.register_buffer("scratch", torch.zeros(1), persistent=False)
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("own", torch.zeros(2))
        self.rates = []

    def encode(self, examples):
        return {}

    def encoder_key(self):
        return {}

    def signature(self):
        return {"width": self.width, "name": "toy"}

    def training_step(self, batch, batch_idx):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        x = self.norm(self.frozen(self.body(batch)))
        self.own += 1
        return (self.out(x) * self.scale).square().mean()


TRAINED = {
    "scale",
    "own",
    "body.0.weight",
    "body.1.weight",
    "body.1.bias",
    "norm.weight",
    "norm.bias",
    "norm.running_mean",
    "norm.running_var",
    "norm.num_batches_tracked",
    "out.weight",
    "out.bias",
}


def fit(task, tmp_path, ckpt_path=None, **options):
    trainer = plain_trainer(tmp_path, **{"max_epochs": 2, **options})
    loader = DataLoader(torch.arange(27) % 9, batch_size=3)  # 9 batches
    trainer.fit(task, loader, ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize("warmup", [0, 1, 4, 12])
def test_the_factor_is_that_of_transformers(schedule, warmup):
    total = 10
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(SCHEDULERS[schedule], optimizer, warmup, total)
    for step in range(total + 1):
        expected = optimizer.param_groups[0]["lr"]
        assert lr_factor(step, warmup, total, schedule) == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        theirs.step()


def test_the_factor_without_an_end_is_constant():
    assert lr_factor(10**9, 0, float("inf"), "linear") == 1
    assert lr_factor(10**9, 0, float("inf"), "cosine") == 1


@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize("accumulate", [1, 4])
def test_training_steps_along_the_schedule(schedule, accumulate, tmp_path):
    task = Toy(lr=0.5, warmup_steps=2, schedule=schedule)
    trainer = fit(task, tmp_path, accumulate_grad_batches=accumulate)
    per_epoch = -(-9 // accumulate)  # the rest of an epoch is a step too
    assert trainer.global_step == 2 * per_epoch
    steps = [epoch * per_epoch + batch // accumulate for epoch in range(2) for batch in range(9)]
    expected = [0.5 * lr_factor(step, 2, 2 * per_epoch, schedule) for step in steps]
    assert task.rates == pytest.approx(expected)


@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize(("share", "steps"), [(0.0, 0), (0.1, 1), (0.25, 2), (0.49, 3)])
def test_a_warm_up_may_be_a_share_of_the_planned_steps(schedule, share, steps, tmp_path):
    task = Toy(lr=0.5, warmup_steps=share, schedule=schedule)
    fit(task, tmp_path, accumulate_grad_batches=4)  # two epochs of three steps
    expected = [0.5 * lr_factor(step, steps, 6, schedule) for step in (0, 0, 0, 0, 1, 1, 1, 1, 2)]
    assert task.rates[:9] == pytest.approx(expected)


def test_a_share_is_rounded_up_as_it_is_written():
    assert [warmup_of(0.1, planned) for planned in (1, 10, 11)] == [1, 1, 2]
    assert warmup_of(0.07, 100) == 7  # though the product is above it
    assert warmup_of(7, 1000) == 7


@pytest.mark.parametrize(
    ("warmup", "options", "said"),
    [
        (19, {}, "warmup_steps is 19, but only 18 optimiser steps are planned"),
        (7, {"accumulate_grad_batches": 4}, "but only 6 optimiser steps"),
        (6, {"max_steps": 5}, "but only 5 optimiser steps"),
        (0.1, {"max_epochs": -1}, "0.1, a share of the planned steps, but the training has no"),
    ],
)
def test_a_warm_up_that_outlasts_the_training_is_refused(warmup, options, said, tmp_path):
    task = Toy(warmup_steps=warmup)
    with pytest.raises(SmolbenchError, match=said) as caught:
        fit(task, tmp_path, **options)
    assert task.rates == [], "refused before the first step"
    assert "max_epochs" in str(caught.value)


def test_a_loader_without_a_length_has_no_share(tmp_path):
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(torch.arange(9))

    trainer = plain_trainer(tmp_path, max_epochs=1)
    with pytest.raises(SmolbenchError, match="no planned end"):
        trainer.fit(Toy(warmup_steps=0.1), DataLoader(Endless(), batch_size=3))
    task = Toy(warmup_steps=2, lr=0.5)
    plain_trainer(tmp_path, max_epochs=1).fit(task, DataLoader(Endless(), batch_size=3))
    assert task.rates == [0, 0.25, 0.5]


@pytest.mark.parametrize(
    ("warmup", "warned"),
    [(18, True), (10, True), (0.6, True), (9, False), (0.5, False), (0, False)],
)
def test_a_warm_up_that_outlasts_half_of_the_training_is_remarked(tmp_path, caplog, warmup, warned):
    fit(Toy(warmup_steps=warmup), tmp_path)
    assert ("of the 18 planned optimiser steps" in caplog.text) == warned


def test_a_trial_is_too_short_for_any_warm_up(tmp_path):
    fit(Toy(warmup_steps=100), tmp_path, fast_dev_run=True)


@pytest.mark.parametrize("warmup", [1.0, 1.5, -0.1, float("nan"), 10.0])
def test_what_is_no_share_is_a_sentence(warmup):
    with pytest.raises(SmolbenchError, match="warmup_steps"):
        Toy(warmup_steps=warmup)


def test_the_schedule_ends_at_max_steps(tmp_path):
    task = Toy(lr=1.0, schedule="linear")
    fit(task, tmp_path, max_epochs=-1, max_steps=5)
    assert task.rates == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])


def test_matrices_decay_and_nothing_else(tmp_path):
    task = Toy(weight_decay=0.3)
    trainer = fit(task, tmp_path, fast_dev_run=True)
    names = {id(p): name for name, p in task.named_parameters()}
    decay = {
        names[id(p)]: group["weight_decay"]
        for group in trainer.optimizers[0].param_groups
        for p in group["params"]
    }
    assert decay == {
        "body.0.weight": 0.3,
        "out.weight": 0.3,
        "body.1.weight": 0,
        "body.1.bias": 0,
        "norm.weight": 0,
        "norm.bias": 0,
        "out.bias": 0,
        "scale": 0,
    }


def test_nothing_to_train_is_a_sentence(tmp_path):
    with pytest.raises(SmolbenchError, match="Toy has nothing to train"):
        fit(Toy().requires_grad_(False), tmp_path)


@pytest.mark.parametrize(
    "options", [{"lr": 0}, {"lr": -1.0}, {"weight_decay": -0.1}, {"warmup_steps": -1}]
)
def test_options_out_of_range_are_a_sentence(options):
    with pytest.raises(SmolbenchError, match=r"model\.lr must be positive"):
        Toy(**options)


def test_a_checkpoint_holds_what_was_trained(tmp_path):
    task = Toy()
    assert task.trained_names() == TRAINED
    fit(task, tmp_path).save_checkpoint(tmp_path / "toy.ckpt")
    checkpoint = torch.load(tmp_path / "toy.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == TRAINED
    assert checkpoint[CHECKPOINT_KEY] == {
        "task": "Toy",
        "signature": {"width": 3, "name": "toy"},
    }


def saved(tmp_path, task=None):
    path = tmp_path / "toy.ckpt"
    task = task or Toy()
    fit(task, tmp_path).save_checkpoint(path)
    return task, torch.load(path, weights_only=True)


def test_a_checkpoint_gives_back_what_was_trained_and_keeps_the_frozen_rest(tmp_path):
    task, checkpoint = saved(tmp_path)
    other = Toy()
    frozen = {k: v.clone() for k, v in other.state_dict().items() if k not in TRAINED}
    assert frozen
    other.on_load_checkpoint(checkpoint)
    other.load_state_dict(checkpoint["state_dict"], strict=other.strict_loading)
    for name, value in other.state_dict().items():
        assert torch.equal(value, (task.state_dict() if name in TRAINED else frozen)[name]), name


class SaveAfterFirstEpoch(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "half.ckpt")


@pytest.mark.parametrize("warmup", [3, 0.7])
def test_resuming_goes_on_where_it_stopped(tmp_path, warmup):
    options = {"lr": 0.1, "schedule": "cosine", "warmup_steps": warmup}
    whole = Toy(**options)
    fit(whole, tmp_path, callbacks=[SaveAfterFirstEpoch()])
    rest = Toy(**options)
    rest.frozen.load_state_dict(whole.frozen.state_dict())
    fit(rest, tmp_path, ckpt_path=tmp_path / "half.ckpt")
    assert rest.rates == whole.rates[9:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop(CHECKPOINT_KEY), "not written by smolbench"),
        (lambda c: c.update({CHECKPOINT_KEY: "x"}), "not written by smolbench"),
        (lambda c: c[CHECKPOINT_KEY].update(task="Other"), "is of a Other, not of a Toy"),
        (lambda c: c[CHECKPOINT_KEY].pop("task"), "is of a None, not of a Toy"),
        (
            lambda c: c[CHECKPOINT_KEY].update(signature={"width": 4, "name": "x", "old": 1}),
            r"name was 'x', is 'toy'; old was 1, is None; width was 4, is 3\. Use the",
        ),
        (
            lambda c: c["state_dict"].pop("out.bias"),
            r"missing are \['out.bias'\], unexpected are n",
        ),
        (
            lambda c: c["state_dict"].update(more=torch.zeros(1)),
            r"missing are none, unexpected are \['more'\]",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, change, message):
    _, checkpoint = saved(tmp_path)
    change(checkpoint)
    with pytest.raises(SmolbenchError, match=message):
        Toy().on_load_checkpoint(checkpoint)


def test_a_plain_lightning_checkpoint_is_refused(tmp_path):
    with pytest.raises(SmolbenchError, match="not written by smolbench"):
        verify_signature({"state_dict": {}, "epoch": 1}, "Toy", {})


def test_facts_count_what_trains():
    facts = Toy().facts()
    assert facts["model/trainable_params"] == 9 * 3 + 6 + 6 + 8 + 1
    assert (facts["task"], facts["method"]) == ("Toy", "toy")


def test_the_seed_is_that_of_seed_everything(monkeypatch):
    assert Toy().seed == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert Toy().seed == 17


# -- building --------------------------------------------------------------------------------------


class Built(Toy):
    """Builds a part of itself when it is asked to."""

    builds = 0
    error: Exception | None = None

    def build_model(self):
        self.builds += 1
        if self.error is not None:
            raise self.error
        self.late = nn.Linear(3, 3)


def test_a_model_is_built_once(tmp_path):
    task = Built()
    fit(task, tmp_path, max_epochs=1)
    task.configure_model()
    assert task.builds == 1
    assert {"late.weight", "late.bias"} <= task.trained_names()


def test_what_goes_wrong_on_one_process_is_told_to_all(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        "smolbench.utils.ranks.TrainerRanks.gather",
        lambda self, value: [told.append(value) or value],
    )
    task = Built()
    task.error = SmolbenchError("There is no such model.")
    with pytest.raises(SmolbenchError, match="There is no such model"):
        fit(task, tmp_path)
    assert told[-1] == ("There is no such model.", False)


class Spread(nn.Module):
    """Puts into names and shapes what FSDP does."""

    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = nn.Module()
        self._fsdp_wrapped_module._checkpoint_wrapped_module = module
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                flat = nn.Parameter(parameter.detach().flatten(), parameter.requires_grad)
                setattr(part, name, flat)


def test_spread_weights_keep_their_names_and_what_decays(tmp_path):
    task = Toy()
    task.configure_model()
    task.out = Spread(task.out)
    task.trainer = plain_trainer(tmp_path)
    assert task.trained_names() == TRAINED
    decayed, kept = task.configure_optimizers()["optimizer"].param_groups
    out = dict(task.out._fsdp_wrapped_module._checkpoint_wrapped_module.named_parameters())
    assert out["weight"].ndim == 1
    assert any(p is out["weight"] for p in decayed["params"])
    assert any(p is out["bias"] for p in kept["params"])


def test_weights_that_the_strategy_has_loaded_are_not_missed(tmp_path):
    trainer = fit(Toy(), tmp_path)
    trainer.save_checkpoint(tmp_path / "toy.ckpt")
    checkpoint = torch.load(tmp_path / "toy.ckpt", weights_only=True)
    del checkpoint["state_dict"]
    Toy().on_load_checkpoint(checkpoint)
    with pytest.raises(SmolbenchError, match="other settings"):
        Toy(width=4).on_load_checkpoint(checkpoint)


def test_a_checkpoint_from_before_an_option_is_one_without_it():
    signature = {"head": "linear", "teacher_labels": None}
    before = {CHECKPOINT_KEY: {"task": "Toy", "signature": {"head": "linear"}}}
    verify_signature(before, "Toy", signature)
    with pytest.raises(SmolbenchError, match=r"teacher_labels was None, is \['a'\]"):
        verify_signature(before, "Toy", {**signature, "teacher_labels": ["a"]})
