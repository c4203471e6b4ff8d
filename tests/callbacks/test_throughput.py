from __future__ import annotations

from collections import UserDict
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from smolbench.callbacks import memory, throughput
from smolbench.callbacks.throughput import ThroughputMonitor
from smolbench.errors import SmolbenchError
from smolbench.protocols import ReadAhead


class Clock:
    """Stands still until told."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "perf_counter", clock)
    return clock


class Module(pl.LightningModule):
    """Each step takes `step_s[batch_idx]` (the last one for all later batches)."""

    def __init__(self, clock, step_s=(0.5,)):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.clock = clock
        self.step_s = step_s

    def work(self, batch_idx):
        self.clock.now += self.step_s[min(batch_idx, len(self.step_s) - 1)]

    def training_step(self, batch, batch_idx):
        self.work(batch_idx)
        return self.layer.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.clock.now += 7.0

    def test_step(self, batch, batch_idx):
        self.work(batch_idx)

    def predict_step(self, batch, batch_idx):
        self.work(batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Batches:
    """Ready batches; each takes `wait_s` to come."""

    def __init__(self, batches, clock=None, wait_s=0.0):
        self.batches = batches
        self.clock = clock
        self.wait_s = wait_s

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            if self.clock is not None:
                self.clock.now += self.wait_s
            yield batch


def tokens(rows, width, real):
    """A batch [rows, width] with `real` real tokens in each row."""
    mask = torch.zeros(rows, width, dtype=torch.long)
    mask[:, :real] = 1
    return {
        "input_ids": torch.ones(rows, width, dtype=torch.long),
        "attention_mask": mask,
        "labels": torch.zeros(rows),
    }


def features(rows):
    return {"features": torch.ones(rows, 3), "labels": torch.zeros(rows)}


def trainer_with(*callbacks, **options):
    options = {"max_epochs": 1, "enable_checkpointing": False} | options
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )


def test_rates_are_sums_over_sums_with_varying_batches(clock):
    monitor = ThroughputMonitor(warmup_steps=0)
    batches = [tokens(4, 10, 5), tokens(2, 20, 20), tokens(1, 40, 10)]
    trainer_with(monitor).fit(Module(clock, (1.0, 2.0, 5.0)), Batches(batches))
    assert monitor.facts() == {
        "cost/fit_s": pytest.approx(8.0),
        "cost/train_samples_per_s": pytest.approx(7 / 8),
        "cost/train_tokens_per_s": pytest.approx((20 + 40 + 10) / 8),
        "cost/padding_share": pytest.approx(1 - 70 / (40 + 40 + 40)),
        "cost/train_step_ms_p50": pytest.approx(2000.0),
        "cost/train_step_ms_p95": pytest.approx(2000 + 0.9 * 3000),
    }


@pytest.mark.parametrize(
    ("batches", "left_out"), [(1, 0), (2, 1), (3, 1), (4, 2), (7, 3), (10, 5), (12, 5)]
)
def test_warmup_is_left_out_but_never_more_than_half(clock, batches, left_out):
    monitor = ThroughputMonitor(warmup_steps=5)
    step_s = [float(1 + index) for index in range(batches)]
    trainer_with(monitor).fit(Module(clock, step_s), Batches([features(2)] * batches))
    facts = monitor.facts()
    measured = step_s[left_out:]
    assert facts["cost/train_samples_per_s"] == pytest.approx(2 * len(measured) / sum(measured))
    assert facts["cost/fit_s"] == pytest.approx(sum(step_s))
    assert facts["cost/train_step_ms_p50"] == pytest.approx(1000 * (measured[0] + measured[-1]) / 2)


def test_waiting_for_data_counts_but_not_at_the_start_of_an_epoch(clock):
    monitor = ThroughputMonitor(warmup_steps=0)
    loader = Batches([features(1)] * 4, clock, wait_s=0.25)
    trainer_with(monitor, max_epochs=2).fit(Module(clock, (0.5,)), loader)
    # Per epoch 4 steps and, since the first batch's wait is part of the gap, 3 waits.
    assert monitor.facts()["cost/train_samples_per_s"] == pytest.approx(8 / (8 * 0.5 + 6 * 0.25))


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 2}])
def test_validation_and_sanity_check_are_left_out_of_the_rate(clock, options):
    monitor = ThroughputMonitor(warmup_steps=0)
    trainer_with(monitor, **options).fit(
        Module(clock, (0.5,)), Batches([features(3)] * 4), Batches([features(1)] * 2)
    )
    facts = monitor.facts()
    assert facts["cost/train_samples_per_s"] == pytest.approx(6.0)
    assert facts["cost/train_step_ms_p95"] == pytest.approx(500.0)
    validations = 2 if options else 1
    # Wall time has the validations, but not the sanity check.
    assert facts["cost/fit_s"] == pytest.approx(4 * 0.5 + validations * 2 * 7.0)
    assert not [key for key in facts if "validate" in key]


def test_time_between_epochs_is_left_out(clock):
    class Slow(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            clock.now += 100.0

    monitor = ThroughputMonitor(warmup_steps=0)
    trainer_with(monitor, Slow(), max_epochs=3).fit(Module(clock), Batches([features(1)] * 2))
    assert monitor.facts()["cost/train_samples_per_s"] == pytest.approx(2.0)


@pytest.mark.parametrize("first", [True, False])
def test_writing_a_checkpoint_is_left_out(clock, tmp_path, first):
    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                trainer.save_checkpoint(tmp_path / "x.ckpt")
                clock.now += 50.0

    monitor = ThroughputMonitor(warmup_steps=0)
    callbacks = [Saves(), monitor] if first else [monitor, Saves()]
    trainer_with(*callbacks).fit(Module(clock), Batches([features(1)] * 4))
    assert monitor.facts()["cost/train_samples_per_s"] == pytest.approx(2.0)
    assert monitor.facts()["cost/fit_s"] == pytest.approx(52.0)


def test_a_step_is_a_batch_under_accumulation(clock):
    monitor = ThroughputMonitor(warmup_steps=0)
    trainer_with(monitor, accumulate_grad_batches=4).fit(
        Module(clock, (0.5,)), Batches([features(1)] * 8)
    )
    assert monitor.facts()["cost/train_step_ms_p50"] == pytest.approx(500.0)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_every_stage_is_measured_under_its_own_name(clock, stage):
    class Same(Module):
        def validation_step(self, batch, batch_idx):
            self.work(batch_idx)

    monitor = ThroughputMonitor(warmup_steps=0)
    trainer = trainer_with(monitor)
    silent = {} if stage == "predict" else {"verbose": False}
    getattr(trainer, stage)(Same(clock, (1.0, 3.0)), Batches([tokens(2, 8, 6)] * 2), **silent)
    assert monitor.facts() == {
        f"cost/{stage}_s": pytest.approx(4.0),
        f"cost/{stage}_samples_per_s": pytest.approx(1.0),
        f"cost/{stage}_tokens_per_s": pytest.approx(6.0),
        f"cost/{stage}_padding_share": pytest.approx(0.25),
        f"cost/{stage}_step_ms_p50": pytest.approx(2000.0),
        f"cost/{stage}_step_ms_p95": pytest.approx(2900.0),
    }


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_an_evaluation_is_every_batch_and_no_wait_for_data(clock, stage):
    class Same(Module):
        def validation_step(self, batch, batch_idx):
            self.work(batch_idx)

    monitor = ThroughputMonitor()
    trainer = trainer_with(monitor)
    silent = {} if stage == "predict" else {"verbose": False}
    loader = Batches([features(3)] * 6, clock, wait_s=0.25)
    getattr(trainer, stage)(Same(clock, (5.0, 1.0)), loader, **silent)
    facts = monitor.facts()
    rate = facts[f"cost/{stage}_samples_per_s"]
    assert rate == pytest.approx(18 / 10), "the first is the longest"
    assert facts[f"cost/{stage}_s"] == pytest.approx(10.0 + 6 * 0.25)
    assert facts[f"cost/{stage}_step_ms_p50"] == pytest.approx(1000.0)


class WithMiddle(Batches):
    def middle(self):
        return self.batches[len(self.batches) // 2]


class Warms(Module):
    """Is slow as long as it is cold, and draws random numbers."""

    def __init__(self, clock):
        super().__init__(clock)
        self.seen = []

    def warm_up(self, batch):
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.seen.append(("warm-up", len(batch["features"])))
        self.drawn = torch.rand(1)
        self.clock.now += 100.0

    def test_step(self, batch, batch_idx):
        self.seen.append((batch_idx, len(batch["features"])))
        self.drawn_in_test = torch.rand(1)
        self.work(batch_idx)

    def validation_step(self, batch, batch_idx):
        self.test_step(batch, batch_idx)

    predict_step = validation_step


@pytest.mark.parametrize(("stage", "warmed"), [("validate", 1), ("test", 1), ("predict", 0)])
def test_the_middle_batch_is_run_before_the_clock_starts(clock, stage, warmed):
    module, monitor = Warms(clock), ThroughputMonitor()
    silent = {} if stage == "predict" else {"verbose": False}
    loader = WithMiddle([features(4), features(3), features(2)])
    torch.manual_seed(3)
    expected = torch.rand(3)[-1]
    torch.manual_seed(3)
    getattr(trainer_with(monitor), stage)(module, loader, **silent)
    assert module.seen == [("warm-up", 3)] * warmed + [(0, 4), (1, 3), (2, 2)]
    assert module.drawn_in_test == expected, "the warm-up has used up random numbers"
    assert monitor.facts()[f"cost/{stage}_samples_per_s"] == pytest.approx(9 / 1.5)
    assert monitor.facts()[f"cost/{stage}_s"] == pytest.approx(1.5)


def test_a_validation_of_a_fit_is_not_warmed_up(clock):
    module = Warms(clock)
    trainer_with(ThroughputMonitor(), num_sanity_val_steps=0).fit(
        module, Batches([features(1)]), WithMiddle([features(2)])
    )
    assert module.seen == [(0, 2)]


@pytest.mark.parametrize(("stage", "split"), [("validate", "val"), ("test", "test")])
def test_what_a_frozen_network_took_counts(clock, stage, split):
    class Head(Module):
        steps_on_cached_features = True

        def read_ahead(self, name):
            # the Trainer's limit leaves a part of what the network has read
            return ReadAhead(samples=40, tokens=400, seconds=10.0) if name == split else None

        def validation_step(self, batch, batch_idx):
            self.work(batch_idx)

    monitor = ThroughputMonitor()
    loader = Batches([features(4)] * 5)
    getattr(trainer_with(monitor), stage)(Head(clock, (1.0,)), loader, verbose=False)
    facts = monitor.facts()
    assert facts[f"cost/head_{stage}_samples_per_s"] == pytest.approx(4.0)
    # a text takes a quarter of a second in the network and another in the head
    assert facts[f"cost/{stage}_samples_per_s"] == pytest.approx(2.0)
    assert facts[f"cost/{stage}_tokens_per_s"] == pytest.approx(20.0)
    assert facts[f"cost/{stage}_s"] == pytest.approx(5.0)


def test_a_test_after_fit_leaves_the_values_of_fit(clock):
    monitor = ThroughputMonitor(warmup_steps=0)
    trainer = trainer_with(monitor)
    trainer.fit(Module(clock, (1.0,)), Batches([tokens(1, 4, 3)] * 2))
    fit = monitor.facts()
    for batches in (5, 2):  # the second test replaces the first
        trainer.test(Module(clock, (4.0,)), Batches([features(1)] * batches), verbose=False)
    facts = monitor.facts()
    assert facts["cost/test_s"] == pytest.approx(8.0)
    assert {key: facts[key] for key in fit} == fit
    assert facts["cost/padding_share"] == pytest.approx(0.25)


def test_head_steps_have_keys_of_their_own(clock):
    class Head(Module):
        steps_on_cached_features = True

    monitor = ThroughputMonitor(warmup_steps=0)
    trainer = trainer_with(monitor)
    trainer.fit(Head(clock), Batches([features(4)] * 2))
    trainer.test(Head(clock), Batches([features(4)] * 2), verbose=False)
    facts = monitor.facts()
    assert facts["cost/head_train_samples_per_s"] == pytest.approx(8.0)
    assert facts["cost/head_test_samples_per_s"] == pytest.approx(8.0)
    assert {"cost/fit_s", "cost/test_s"} <= facts.keys()
    assert not {"cost/train_samples_per_s", "cost/test_samples_per_s"} & facts.keys()
    assert not [key for key in facts if "tokens" in key or "padding" in key]


def test_wall_time_is_there_when_nothing_was_tested(clock):
    class Slow(Module):
        def on_test_start(self):
            self.clock.now += 2.0

    monitor = ThroughputMonitor()
    trainer_with(monitor).test(Slow(clock, (0.0,)), Batches([features(1)]), verbose=False)
    assert monitor.facts() == {"cost/test_s": pytest.approx(2.0)}


def test_resumed_fit_goes_on_from_the_checkpoint(clock, tmp_path):
    path = tmp_path / "last.ckpt"

    class Killed(Module):
        def on_train_batch_start(self, batch, batch_idx):
            if self.current_epoch == 1 and batch_idx == 3:
                self.trainer.save_checkpoint(path)
                self.clock.now += 1000.0  # lost with the kill
                raise RuntimeError("killed")

    batches = Batches([tokens(2, 4, 3)] * 8)
    with pytest.raises(RuntimeError, match="killed"):
        trainer_with(ThroughputMonitor(warmup_steps=4), max_epochs=2).fit(
            Killed(clock, (1.0,)), batches
        )
    state = torch.load(path, weights_only=True)["callbacks"]["ThroughputMonitor"]
    assert state["wall_s"] == pytest.approx(11.0)
    assert state["work"]["batches"] == 11 - 4
    assert state["step_times"]["kept_ms"] == pytest.approx([1000.0] * 7)

    clock.now += 5000.0
    monitor = ThroughputMonitor(warmup_steps=4)
    trainer_with(monitor, max_epochs=2).fit(
        Module(clock, (9.0, 9.0, 9.0, 3.0)), batches, ckpt_path=str(path), weights_only=True
    )
    # The remaining 5 batches (numbers 3 to 7) take 3 s each; 4 are warm-up of the new process.
    facts = monitor.facts()
    assert facts["cost/fit_s"] == pytest.approx(11.0 + 5 * 3.0)
    assert facts["cost/train_samples_per_s"] == pytest.approx(2 * 8 / (7 + 3.0))
    assert facts["cost/train_tokens_per_s"] == pytest.approx(6 * 8 / (7 + 3.0))
    assert facts["cost/train_step_ms_p50"] == pytest.approx(1000.0)


def test_resuming_a_finished_fit_repeats_its_values(clock, tmp_path):
    first = ThroughputMonitor()
    trainer = trainer_with(first)
    trainer.fit(Module(clock), Batches([tokens(2, 4, 3)] * 8))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second = ThroughputMonitor()
    trainer_with(second).fit(
        Module(clock),
        Batches([tokens(2, 4, 3)] * 8),
        ckpt_path=str(tmp_path / "last.ckpt"),
        weights_only=True,
    )
    assert second.facts() == first.facts()


def test_a_test_of_a_checkpoint_does_not_take_over_its_fit(clock, tmp_path):
    trainer = trainer_with(ThroughputMonitor())
    trainer.fit(Module(clock), Batches([features(1)] * 2))
    trainer.save_checkpoint(tmp_path / "best.ckpt")
    monitor = ThroughputMonitor()
    trainer_with(monitor).test(
        Module(clock),
        Batches([features(1)] * 2),
        ckpt_path=str(tmp_path / "best.ckpt"),
        verbose=False,
    )
    assert {key for key in monitor.facts() if "fit" in key or "train" in key} == set()


def test_an_error_stops_the_clock(clock):
    class Fails(Module):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise RuntimeError("broken")
            return super().training_step(batch, batch_idx)

    monitor = ThroughputMonitor(warmup_steps=0)
    with pytest.raises(RuntimeError, match="broken"):
        trainer_with(monitor).fit(Fails(clock, (1.0,)), Batches([features(2)] * 3))
    clock.now += 1000.0
    assert monitor.facts()["cost/fit_s"] == pytest.approx(2.0)
    assert monitor.facts()["cost/train_samples_per_s"] == pytest.approx(2.0)


def test_step_times_are_bounded_and_evenly_thinned(clock, monkeypatch):
    monkeypatch.setattr(throughput, "MAX_STEP_TIMES", 8)
    monitor = ThroughputMonitor(warmup_steps=0)
    step_s = [float(index) for index in range(1, 31)]
    trainer_with(monitor).fit(Module(clock, step_s), Batches([features(1)] * 30))
    state = monitor.state_dict()
    # Of 30, every 8th: halved at the 8th, the 15th and the 29th time.
    assert state["step_times"]["kept_ms"] == pytest.approx([1000.0, 9000.0, 17000.0, 25000.0])
    assert state["step_times"]["stride"] == 8
    assert state["step_times"]["seen"] == 30
    assert monitor.facts()["cost/train_samples_per_s"] == pytest.approx(30 / sum(step_s))


@pytest.fixture
def another_rank(monkeypatch):
    """A second rank: 10 s in all, 8 s of them in steps; 8 samples, 8 of 16 tokens."""

    class Strategy:
        root_device = torch.device("cpu")

        def reduce(self, tensor, reduce_op):
            other = {"max": [10.0, 1.0, 9000.0, 8.0], "sum": [1.0, 4.0, 8.0, 8.0, 16.0]}[reduce_op]
            other = torch.tensor(other, dtype=tensor.dtype)
            return torch.maximum(tensor, other) if reduce_op == "max" else tensor + other

    several = SimpleNamespace(world_size=2, strategy=Strategy())
    real = memory.reduce_over_ranks
    monkeypatch.setattr(
        throughput, "reduce_over_ranks", lambda trainer, *rest: real(several, *rest)
    )


def test_a_test_is_as_fast_as_its_slowest_rank(clock, another_rank):
    monitor = ThroughputMonitor()
    batches = Batches([tokens(2, 4, 2)] * 3)
    trainer_with(monitor).test(Module(clock, (2.0,)), batches, verbose=False)
    facts = monitor.facts()
    assert facts["cost/test_samples_per_s"] == pytest.approx((6 + 8) / 8)
    assert facts["cost/test_tokens_per_s"] == pytest.approx((12 + 8) / 8)
    assert facts["cost/test_s"] == pytest.approx(10.0)


def test_ranks_add_up_rates_and_take_the_slowest_time(clock, another_rank):
    monitor = ThroughputMonitor(warmup_steps=0)
    trainer_with(monitor).fit(Module(clock, (2.0,)), Batches([tokens(2, 4, 2)] * 3))
    assert monitor.facts() == {
        "cost/fit_s": pytest.approx(10.0),
        "cost/train_samples_per_s": pytest.approx(1.0 + 1.0),
        "cost/train_tokens_per_s": pytest.approx(2.0 + 4.0),
        "cost/padding_share": pytest.approx(1 - (12 + 8) / (24 + 16)),
        "cost/train_step_ms_p50": pytest.approx(2000.0),
        "cost/train_step_ms_p95": pytest.approx(9000.0),
    }


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_accelerators_are_awaited_once_per_window(clock, monkeypatch, device):
    awaited = []

    def synchronise(*args):
        awaited.append(clock.now)

    monkeypatch.setattr(torch.cuda, "synchronize", synchronise)
    monkeypatch.setattr(torch.mps, "synchronize", synchronise)
    meter = throughput._Meter(warmup_steps=2)
    meter.start(torch.device(device), "train")
    for index in range(2 + throughput.ASYNC_WINDOW + 4):
        meter.begin_batch()
        clock.now += 1.0 if index < 2 + throughput.ASYNC_WINDOW else 2.0
        meter.end_batch(tokens(1, 4, 3))
    assert len(awaited) == 1 + 2 + 1
    meter.interrupt()
    assert len(awaited) == 5
    summary = meter.summary()
    assert summary.samples_per_s == pytest.approx(20 / (16 + 8))
    assert summary.tokens == 60
    assert meter._times.kept_ms == pytest.approx([1000.0, 2000.0])


MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize(
    ("batch", "samples", "positions", "real"),
    [
        ({"x": torch.ones(5, 2)}, 5, 0, None),
        ((torch.ones(3, 2), torch.ones(3)), 3, 0, None),
        ([torch.tensor(1.0), torch.ones(4)], 4, 0, None),
        ({"text": ["a", "b"]}, 0, 0, None),
        ({"input_ids": torch.ones(2, 3), "attention_mask": MASK}, 2, 6, 3),
        ({"input_ids": torch.ones(2, 3), "attention_mask": MASK.bool()}, 2, 6, 3),
        (({"attention_mask": MASK}, torch.ones(2)), 2, 6, 3),
        ({"question": {"attention_mask": MASK}, "labels": torch.ones(2)}, 2, 6, 3),
        (UserDict({"attention_mask": MASK}), 2, 6, 3),
        ({"attention_mask": torch.ones(2, 1, 3, 3)}, 2, 0, None),
    ],
)
def test_what_counts_as_samples_and_tokens(batch, samples, positions, real):
    counted = throughput._count(batch)
    assert counted[:2] == (samples, positions)
    assert (None if counted[2] is None else int(counted[2])) == real


def test_negative_warmup_is_refused():
    with pytest.raises(SmolbenchError, match="warmup_steps=-1"):
        ThroughputMonitor(warmup_steps=-1)


def test_tokens_that_a_decoder_is_given_count():
    batch = {
        "input_ids": torch.ones(2, 5),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
        "decoder_attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
    }
    samples, positions, tokens = throughput._count(batch)
    assert (samples, positions, int(tokens)) == (2, 10 + 6, 7 + 5)
