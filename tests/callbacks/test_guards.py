from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from smolbench.callbacks import guards
from smolbench.callbacks.guards import TrainingGuard
from smolbench.errors import SmolbenchError


class Module(pl.LightningModule):
    """Two linear layers; subclasses break one thing each."""

    def __init__(self, sparse: bool = False):
        super().__init__()
        self.used = nn.Linear(2, 1)
        self.other = nn.Linear(2, 1)
        self.embedding = nn.Embedding(3, 2, sparse=sparse)

    def training_step(self, batch, batch_idx):
        (x,) = batch
        rows = self.embedding(torch.zeros(len(x), dtype=torch.long))
        return (self.used(x) + self.other(x + rows)).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, guard=None, batches=4, **options):
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[guard or TrainingGuard()],
        **options,
    )
    trainer.fit(module, DataLoader(TensorDataset(torch.ones(2 * batches, 2)), batch_size=2))
    return trainer


@pytest.mark.parametrize("accumulate", [1, 3])
def test_healthy_training_passes(accumulate):
    trainer = fit(Module(), batches=7, accumulate_grad_batches=accumulate)
    assert trainer.global_step == (7 if accumulate == 1 else 3)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_parameter_without_gradient_is_named(accumulate):
    class Unused(Module):
        def training_step(self, batch, batch_idx):
            return self.used(batch[0]).mean()

    module = Unused()
    before = module.used.weight.detach().clone()
    with pytest.raises(SmolbenchError, match="step 0") as error:
        fit(module, accumulate_grad_batches=accumulate)
    assert "3 of 5" in str(error.value)
    assert "other.weight, other.bias, embedding.weight" in str(error.value)
    assert "used.weight" not in str(error.value)
    assert torch.equal(module.used.weight, before)


def test_many_parameters_without_gradient_are_counted():
    class Unused(Module):
        def __init__(self):
            super().__init__()
            self.spare = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(7))

    with pytest.raises(SmolbenchError, match=r"spare\.4\.weight and 2 more"):
        fit(Unused())


def test_an_expert_that_no_token_was_sent_to_is_legal_and_nothing_else_is():
    class Mixture(Module):
        routed_modules = frozenset({"experts.0", "experts.1"})

        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(2, 1) for _ in range(12))

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + self.experts[1](batch[0]).mean()

    with pytest.raises(SmolbenchError, match=r"reaches 20 of .* experts\.2\.weight"):
        fit(Mixture())
    Mixture.routed_modules = frozenset(f"experts.{n}" for n in range(12))
    assert fit(Mixture()).global_step == 4


def test_a_zero_gradient_is_legal():
    class Zero(Module):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * 0

    assert fit(Zero()).global_step == 4


def test_frozen_and_empty_parameters_need_no_gradient():
    class Frozen(Module):
        def __init__(self):
            super().__init__()
            self.frozen = nn.Linear(2, 2).requires_grad_(False)
            self.elsewhere = nn.Parameter(torch.empty(0))

    assert fit(Frozen()).global_step == 4


def test_gradient_steps_zero_turns_the_check_off():
    class Unused(Module):
        def training_step(self, batch, batch_idx):
            return self.used(batch[0]).mean()

    assert fit(Unused(), TrainingGuard(gradient_steps=0)).global_step == 4


def test_negative_gradient_steps_are_refused():
    with pytest.raises(SmolbenchError, match="gradient_steps=-1"):
        TrainingGuard(gradient_steps=-1)


@pytest.mark.parametrize("skipped", [0, 1])
def test_a_step_that_is_skipped_says_nothing_about_gradients(skipped):
    class Skips(Module):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == skipped else super().training_step(batch, batch_idx)

    assert fit(Skips()).fit_loop.epoch_loop.batch_idx == 3


class CutOffLater(Module):
    """Loses a layer from batch 3 on."""

    def training_step(self, batch, batch_idx):
        if batch_idx < 3:
            return super().training_step(batch, batch_idx)
        return (self.used(batch[0]) + self.embedding.weight.sum()).mean()

    def validation_step(self, batch, batch_idx):
        pass

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(1, 2)))


def test_later_steps_are_not_checked():
    assert fit(CutOffLater(), batches=6, limit_val_batches=0).global_step == 6


def test_steps_after_a_validation_are_checked():
    with pytest.raises(SmolbenchError, match=r"step 3 .*batch 3\): other.weight, other.bias"):
        fit(CutOffLater(), batches=6, val_check_interval=3)


def test_with_two_optimisers_each_answers_for_its_own_parameters():
    class Two(Module):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.embedding.requires_grad_(False)

        def training_step(self, batch, batch_idx):
            for optimizer, layer in zip(self.optimizers(), (self.used, self.other), strict=True):
                optimizer.zero_grad()
                self.manual_backward(layer(batch[0]).mean())
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(m.parameters(), lr=0.1) for m in (self.used, self.other)]

    assert fit(Two()).global_step == 8

    class Half(Two):
        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.used(batch[0]).mean())
                optimizer.step()

    with pytest.raises(SmolbenchError, match=r"2 of 2 .*: other\.weight, other\.bias"):
        fit(Half())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(value):
    class Explodes(Module):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if batch_idx == 2:
                self.before = self.used.weight.detach().clone()
                return loss * value
            return loss

    module = Explodes()
    with pytest.raises(SmolbenchError) as error:
        fit(module)
    message = str(error.value)
    assert f"The loss is {value}" in message or "The loss is -inf" in message
    assert "optimiser step 2 (epoch 0, batch 2)" in message
    for advice in ("checkpoint is untouched", "learning rate", "32-true", "gradient clipping"):
        assert advice in message
    assert torch.equal(module.used.weight, module.before)


def test_within_accumulation_the_batch_of_the_bad_loss_is_named():
    class Explodes(Module):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * float("nan") if batch_idx == 4 else loss

    with pytest.raises(SmolbenchError, match=r"loss is nan at optimiser step 1 .*batch 4"):
        fit(Explodes(), batches=6, accumulate_grad_batches=3)


def test_no_checkpoint_is_written_between_a_bad_loss_and_the_step(tmp_path):
    class Explodes(Module):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * float("nan")

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.trainer.save_checkpoint(tmp_path / "bad.ckpt")

    with pytest.raises(SmolbenchError, match="loss is nan"):
        fit(Explodes(), accumulate_grad_batches=4)
    assert not list(tmp_path.iterdir())


class BadGradient(Module):
    """A finite loss with an infinite gradient for one parameter."""

    def on_after_backward(self):
        if self.trainer.fit_loop.batch_idx == 1:
            self.other.weight.grad[0, 1] = float("inf")


def test_a_gradient_that_is_not_finite_is_named():
    with pytest.raises(SmolbenchError, match=r"gradient of other\.weight is not finite") as error:
        fit(BadGradient())
    assert "optimiser step 1 (epoch 0, batch 1)" in str(error.value)
    assert "1 of 5" in str(error.value)


def test_a_gradient_scaler_may_find_infinite_gradients():
    class Scaled(BadGradient):
        def on_fit_start(self):
            # Stands for 16-mixed, which a CPU does not have.
            self.trainer.precision_plugin.scaler = object()

    assert fit(Scaled(), batches=2).global_step == 2


def test_a_gradient_scaler_does_not_excuse_the_loss():
    class Scaled(Module):
        def on_fit_start(self):
            self.trainer.precision_plugin.scaler = object()

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * float("nan")

    with pytest.raises(SmolbenchError, match="loss is nan"):
        fit(Scaled())


def test_finite_gradients_with_an_overflowing_norm_pass():
    class Huge(Module):
        def on_after_backward(self):
            self.other.weight.grad.fill_(3e38)

    assert fit(Huge(), batches=1).global_step == 1


def test_sparse_gradients_are_read():
    assert fit(Module(sparse=True)).global_step == 4

    class Bad(Module):
        def on_after_backward(self):
            self.embedding.weight.grad._values().fill_(float("nan"))

    with pytest.raises(SmolbenchError, match=r"embedding\.weight is not finite"):
        fit(Bad(sparse=True))


def test_a_new_fit_does_not_remember_a_failed_one():
    class Explodes(Module):
        def training_step(self, batch, batch_idx):
            if batch_idx == 1:
                raise RuntimeError("broken")
            return super().training_step(batch, batch_idx) * float("nan")

    guard = TrainingGuard()
    with pytest.raises(RuntimeError, match="broken"):
        fit(Explodes(), guard, accumulate_grad_batches=4)
    assert fit(Module(), guard).global_step == 4


def test_of_a_sharded_gradient_the_local_part_is_read():
    from torch.distributed.tensor import distribute_tensor

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        sharded = distribute_tensor(torch.tensor([1.0, float("nan")]), mesh)
        local = guards._values(sharded)
    finally:
        torch.distributed.destroy_process_group()
    assert type(local) is torch.Tensor
    assert local.isnan().tolist() == [False, True]
