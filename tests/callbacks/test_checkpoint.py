from __future__ import annotations

import math
import resource
import tracemalloc
from contextlib import contextmanager
from datetime import timedelta

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from smolbench.callbacks import MetricsCSV, RunCheckpoint
from smolbench.callbacks import checkpoint as checkpoint_file
from smolbench.callbacks.checkpoint import read_checkpoint
from smolbench.errors import SmolbenchError
from tests.helpers.disk import Disk
from tests.helpers.plain import PlainModule, loader, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


class Written(RunCheckpoint):
    """Remembers what it writes, and at which step."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.written: list[tuple[str, int]] = []

    def _write(self, trainer, name, *, weights_only):
        super()._write(trainer, name, weights_only=weights_only)
        self.written.append((name, trainer.global_step))

    def steps(self, name: str) -> list[int]:
        return [step for written, step in self.written if written == name]


class Minutes(pl.Callback):
    """A batch takes a minute."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, *args):
        self.clock.now += 60


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(checkpoint_file, "time", clock)
    return clock


def load(path):
    return torch.load(path, weights_only=True)


# -- when -----------------------------------------------------------------------------------------


def test_a_plain_project_without_validation(tmp_path):
    callback = Written()
    trainer(tmp_path, callback, max_epochs=2).fit(PlainModule(), loader())
    assert callback.written == [("last", 4), ("last", 8), ("best", 8)]
    last, best = (load(tmp_path / "checkpoints" / f"{name}.ckpt") for name in ("last", "best"))
    assert last["global_step"] == best["global_step"] == 8
    assert last["optimizer_states"]
    assert "optimizer_states" not in best
    for name, value in last["state_dict"].items():
        assert torch.equal(value, best["state_dict"][name])


def test_at_least_every_so_many_minutes(tmp_path, clock):
    callback = Written(every_minutes=2.5)
    trainer(tmp_path, callback, Minutes(clock)).fit(PlainModule(), loader(10))
    assert callback.steps("last") == [3, 6, 9, 10]


def test_never_between_micro_batches(tmp_path, clock):
    callback = Written(every_minutes=0.5)
    fit = trainer(tmp_path, callback, Minutes(clock), accumulate_grad_batches=4)
    fit.fit(PlainModule(), loader(10))
    assert callback.steps("last") == [1, 2, 3]
    progress = load(tmp_path / "checkpoints" / "last.ckpt")["loops"]["fit_loop"]
    assert progress["epoch_loop.batch_progress"]["current"]["ready"] == 10


def test_a_validation_between_micro_batches_is_saved_after_their_step(tmp_path, clock):
    module = PlainModule(scores=(0.1, 0.2))
    callback = Written(every_minutes=1e9, monitor="val/score", mode="max")
    fit = trainer(tmp_path, callback, accumulate_grad_batches=4, val_check_interval=2, max_steps=2)
    fit.fit(module, loader(8), loader(1))
    # validated after batches 2 and 4 and 6 and 8; steps end with batches 4 and 8
    assert callback.steps("last") == [1, 2]


class Order(Written):
    """Remembers validations among what it writes."""

    def on_validation_end(self, trainer, pl_module):
        self.written.append(("validated", trainer.global_step))
        super().on_validation_end(trainer, pl_module)


def test_never_before_a_validation_at_the_same_step(tmp_path, clock):
    callback = Order(every_minutes=0.5)
    fit = trainer(tmp_path, Minutes(clock), callback, val_check_interval=2)
    fit.fit(PlainModule(), loader(5), loader(1))
    assert callback.steps("validated") == [2, 4, 5], "and the last state"
    assert callback.steps("last") == [1, 2, 3, 4, 5]
    for step in (2, 4):
        assert callback.written.index(("validated", step)) < callback.written.index(("last", step))


def test_validation_counted_over_epochs(tmp_path, clock):
    """With check_val_every_n_epoch=None the interval goes on over the end of an epoch."""
    callback = Order(every_minutes=0.5)
    options = {"val_check_interval": 3, "check_val_every_n_epoch": None, "max_epochs": 2}
    fit = trainer(tmp_path, Minutes(clock), callback, **options)
    fit.fit(PlainModule(), loader(4), loader(1))
    assert callback.steps("validated") == [3, 6, 8], "and the last state"
    assert callback.steps("last") == [1, 2, 3, 4, 5, 6, 7, 8]
    for step in (3, 6):
        assert callback.written.index(("validated", step)) < callback.written.index(("last", step))


@pytest.mark.parametrize("seconds", [3600, 1e-9])
def test_validations_by_the_clock_do_not_hold_it_up(tmp_path, seconds):
    callback = Written(every_minutes=1e-9)
    fit = trainer(tmp_path, callback, val_check_interval=timedelta(seconds=seconds))
    fit.fit(PlainModule(), loader(6), loader(1))
    assert callback.steps("last") == [1, 2, 3, 4, 5, 6]


def test_epochs_without_validation_are_saved_too(tmp_path):
    callback = Written()
    fit = trainer(tmp_path, callback, max_epochs=3, check_val_every_n_epoch=2)
    fit.fit(PlainModule(), loader(), loader(1))
    assert callback.steps("last") == [4, 8, 12]


def test_fast_dev_run_leaves_no_trace(tmp_path):
    fit = trainer(tmp_path, RunCheckpoint(), MetricsCSV(), fast_dev_run=True)
    fit.fit(PlainModule(), loader(), loader(1))
    assert list(tmp_path.iterdir()) == []


# -- what is best ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "scores", "losses", "best"),
    [
        ("max", (0.1, 0.5, 0.3, 0.4), (), 8),
        ("min", (0.3, 0.2, 0.5, 0.4), (), 8),
        ("max", (0.5, 0.4, 0.3, 0.2), (), 4),
        ("max", (math.nan, 0.1, math.nan, 0.05), (), 8),
        ("min", (math.nan, 0.1, math.nan, 0.2), (), 8),
        # of equal scores the one with the lower loss, then the later one
        ("max", (0.5, 0.5, 0.5, 0.5), (0.4, 0.2, 0.3, 0.5), 8),
        ("min", (0.5, 0.5, 0.5, 0.9), (0.4, 0.2, 0.2, 0.1), 12),
        ("max", (0.5, 0.6, 0.6, 0.5), (0.1, 0.2, 0.3, 0.0), 8),
        ("max", (0.5, 0.5, 0.4, 0.5), (), 16),
        ("max", (0.5, 0.5, 0.5, 0.5), (math.nan, 0.3, math.nan, 0.4), 8),
    ],
)
def test_the_best_score_is_kept(tmp_path, mode, scores, losses, best):
    callback = Written(monitor="val/score", mode=mode)
    fit = trainer(tmp_path, callback, max_epochs=4)
    fit.fit(PlainModule(scores, losses), loader(), loader(1))
    assert callback.steps("best")[-1] == best
    assert load(tmp_path / "checkpoints" / "best.ckpt")["global_step"] == best
    facts = callback.facts()
    assert facts["best/step"] == best
    assert facts["val/score"] == pytest.approx(scores[best // 4 - 1])
    assert facts["cost/checkpoint_mib"] > 0
    assert facts["cost/resume_checkpoint_mib"] > 0


def test_without_any_number_the_last_state_is_the_best(tmp_path):
    callback = Written(monitor="val/score", mode="max")
    trainer(tmp_path, callback, max_epochs=2).fit(
        PlainModule((math.nan, math.nan)), loader(), loader(1)
    )
    assert callback.steps("best") == [8]


def test_a_metric_that_is_never_logged_is_refused(tmp_path):
    callback = Written(monitor="val/scores", mode="max")
    with pytest.raises(SmolbenchError, match="did you mean 'val/score'"):
        trainer(tmp_path, callback).fit(PlainModule((0.1,)), loader(), loader(1))


def test_a_metric_of_later_validations(tmp_path):
    module = PlainModule((0.1,))
    module.validated = lambda: ("later",)
    callback = Written(monitor="val/later", mode="max")
    trainer(tmp_path, callback).fit(module, loader(), loader(1))
    assert callback.steps("best") == [4]


@pytest.mark.parametrize("monitor", ["val_loss", None, 3])
def test_what_others_call_monitor_is_not_asked(tmp_path, monitor):
    module = PlainModule()
    module.monitor = monitor
    callback = Written()
    trainer(tmp_path, callback).fit(module, loader())
    assert callback.monitor is None


def test_the_modules_own_monitor(tmp_path):
    module = PlainModule((0.2, 0.1))
    module.monitor = ("val/score", "min")
    callback = Written()
    trainer(tmp_path, callback, max_epochs=2).fit(module, loader(), loader(1))
    assert callback.steps("best") == [4, 8]


def test_the_best_score_survives_a_resume(tmp_path):
    first = Written(monitor="val/score", mode="max")
    trainer(tmp_path, first).fit(PlainModule((0.9,)), loader(), loader(1))
    last = tmp_path / "checkpoints" / "last.ckpt"
    second = Written(monitor="val/score", mode="max")
    fit = trainer(tmp_path, second, max_epochs=3)
    fit.fit(PlainModule((0.1, 0.2)), loader(), loader(1), ckpt_path=last)
    assert second.steps("best") == []
    assert second.facts()["best/step"] == 4
    assert load(tmp_path / "checkpoints" / "best.ckpt")["global_step"] == 4


@pytest.mark.parametrize(("loss", "best"), [(0.3, 4), (0.1, 8), (0.2, 8)])
def test_the_loss_that_ties_are_broken_by_survives_a_resume(tmp_path, loss, best):
    trainer(tmp_path, Written(monitor="val/score", mode="max")).fit(
        PlainModule((0.9,), (0.2,)), loader(), loader(1)
    )
    again = Written(monitor="val/score", mode="max")
    last = tmp_path / "checkpoints" / "last.ckpt"
    trainer(tmp_path, again, max_epochs=2).fit(
        PlainModule((0.9,), (loss,)), loader(), loader(1), ckpt_path=last
    )
    assert again.facts()["best/step"] == best
    assert load(tmp_path / "checkpoints" / "best.ckpt")["global_step"] == best


def test_the_module_names_the_loss_that_ties_are_broken_by(tmp_path):
    module = PlainModule((0.5, 0.5), (0.1, 0.2))
    module.tie_breaker = "val/other"  # never logged, so that the later one is kept
    callback = Written(monitor="val/score", mode="max")
    trainer(tmp_path, callback, max_epochs=2).fit(module, loader(), loader(1))
    assert callback.facts()["best/step"] == 8


def test_a_test_of_the_last_checkpoint_says_nothing_of_the_best(tmp_path):
    trainer(tmp_path, Written(monitor="val/score", mode="max")).fit(
        PlainModule((0.9,)), loader(), loader(1)
    )
    callback = Written(monitor="val/score", mode="max")
    trainer(tmp_path / "test", callback).test(
        PlainModule(), loader(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt", verbose=False
    )
    assert callback.facts() == {}


# -- how ------------------------------------------------------------------------------------------


def test_leftovers_of_a_kill_are_swept(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("last.partial", "best.partial"):
        (folder / name).write_bytes(b"half")
    seen = []

    class Look(pl.Callback):
        def on_train_start(self, *args):
            seen.extend(folder.iterdir())

    trainer(tmp_path, Look(), RunCheckpoint()).fit(PlainModule(), loader())
    assert seen == []
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_test_sweeps_nothing(tmp_path):
    """It may be the write of a training that is still going on."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "last.partial").write_bytes(b"half")
    trainer(tmp_path, RunCheckpoint()).test(PlainModule(), loader(), verbose=False)
    assert (folder / "last.partial").exists()


class Limit(pl.Callback):
    """From some step on no file may grow beyond `size` bytes, as on a full disk."""

    def __init__(self, step: int, size: int) -> None:
        self.step, self.size = step, size

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, hard))


@contextmanager
def limit_lifted():
    """Lift it before the test is over: pytest's own output may go to a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path):
    fit = trainer(tmp_path, Limit(step=4, size=100), RunCheckpoint(), max_epochs=2)
    told = r"last\.ckpt cannot be written .*--ckpt_path last"
    with limit_lifted(), pytest.raises(SmolbenchError, match=told):
        fit.fit(PlainModule(), loader())
    folder = tmp_path / "checkpoints"
    assert load(folder / "last.ckpt")["global_step"] == 4
    assert not list(folder.glob("*.partial"))


def test_a_checkpoint_is_not_put_together_in_memory(tmp_path):
    class Large(PlainModule):
        def __init__(self):
            super().__init__()
            self.register_buffer("large", torch.ones(40 << 18))  # 40 MiB

    module = Large()
    tracemalloc.start()  # it sees Python's buffers, not tensors
    try:
        trainer(tmp_path, RunCheckpoint()).fit(module, loader())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "checkpoints" / "last.ckpt").stat().st_size > 40 << 20
    assert peak < 30 << 20
    assert torch.equal(
        load(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]["large"], module.large
    )


def test_a_way_of_its_own_to_write_is_kept(tmp_path):
    class Own(TorchCheckpointIO):
        pass

    own = Own()
    fit = trainer(tmp_path, RunCheckpoint(), plugins=[own])
    fit.fit(PlainModule(), loader())
    assert fit.strategy.checkpoint_io is own


def test_a_failing_rename_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    replace = checkpoint_file.Path.replace
    calls = []

    def fail(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(checkpoint_file.Path, "replace", fail)
    with pytest.raises(SmolbenchError, match="No space left on device"):
        trainer(tmp_path, RunCheckpoint(), max_epochs=2).fit(PlainModule(), loader())
    assert load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 4


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    trainer(tmp_path, RunCheckpoint()).fit(PlainModule(), loader())
    expected = []
    for name in ("last.ckpt", "best.ckpt"):
        state = (tmp_path / "checkpoints" / name).stat()
        expected += [("on disk", state.st_ino, state.st_size), ("renamed", name)]
    assert disk.events == expected


def test_a_kill_in_the_middle_of_a_write_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    trainer(tmp_path, RunCheckpoint()).fit(PlainModule(), loader())
    last = tmp_path / "checkpoints" / "last.ckpt"
    before = last.read_bytes()

    class Killed(BaseException):
        pass

    def die(self, path, weights_only):
        path.write_bytes(b"half")
        raise Killed

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", die)
    with pytest.raises(Killed):
        trainer(tmp_path, RunCheckpoint(), max_epochs=2).fit(
            PlainModule(), loader(), ckpt_path=last
        )
    assert last.read_bytes() == before


@pytest.mark.parametrize("minutes", [0, -1])
def test_minutes_must_be_positive(minutes):
    with pytest.raises(SmolbenchError, match="every_minutes must be positive"):
        RunCheckpoint(every_minutes=minutes)


# -- ends that are no end of an epoch -------------------------------------------------------------


class StopAt(pl.Callback):
    """What `max_time` does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            trainer.should_stop = True


def test_an_early_stop_validates_before_it_saves(tmp_path, clock):
    callback = Order(every_minutes=0.5)
    fit = trainer(tmp_path, Minutes(clock), StopAt(2), callback)
    fit.fit(PlainModule(), loader(), loader(1))
    assert callback.written[:3] == [("last", 1), ("validated", 2), ("last", 2)]


@pytest.mark.parametrize("options", [{}, {"check_val_every_n_epoch": 3}, {"val_check_interval": 2}])
@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_training_that_stopped_early_goes_on_in_its_epoch(tmp_path, options, step):
    validation = [loader(1)] if options else []
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = {"max_epochs": 3, **options}
    # the plain loader knows no position, but its batches are all the same
    trainer(whole, RunCheckpoint(), **common).fit(PlainModule(), loader(), *validation)
    trainer(parts, StopAt(step), RunCheckpoint(), **common).fit(
        PlainModule(), loader(), *validation
    )
    last = parts / "checkpoints" / "last.ckpt"
    assert load(last)["global_step"] == step
    trainer(parts, RunCheckpoint(), **common).fit(
        PlainModule(), loader(), *validation, ckpt_path=last
    )
    steps = [load(run / "checkpoints" / "last.ckpt")["global_step"] for run in (whole, parts)]
    epochs = [load(run / "checkpoints" / "last.ckpt")["epoch"] for run in (whole, parts)]
    assert steps == [12, 12]
    assert epochs[0] == epochs[1]


@pytest.mark.parametrize(
    ("validation", "options"),
    [
        ([], {}),
        ([loader(1)], {}),
        ([loader(1)], {"val_check_interval": 3}),
        ([loader(1)], {"val_check_interval": 3, "check_val_every_n_epoch": None}),
        ([loader(1)], {"check_val_every_n_epoch": 2}),
    ],
)
@pytest.mark.parametrize("max_steps", [3, 4, 6, 8])
def test_a_finished_run_of_max_steps_ends_at_once(tmp_path, validation, options, max_steps):
    common = {"max_epochs": -1, "max_steps": max_steps, **options}
    trainer(tmp_path, RunCheckpoint(), **common).fit(PlainModule(), loader(), *validation)
    last = tmp_path / "checkpoints" / "last.ckpt"
    before = load(last)
    trainer(tmp_path, RunCheckpoint(), **common).fit(
        PlainModule(), loader(), *validation, ckpt_path=last
    )
    after = load(last)
    assert after["global_step"] == before["global_step"] == max_steps
    assert after["epoch"] == before["epoch"]
    for name, value in before["state_dict"].items():
        assert torch.equal(value, after["state_dict"][name])


# -- reading --------------------------------------------------------------------------------------


class Custom:
    """Something that weights_only refuses."""


@pytest.fixture
def files(tmp_path):
    trainer(tmp_path / "run", RunCheckpoint()).fit(PlainModule(), loader())
    good = (tmp_path / "run" / "checkpoints" / "best.ckpt").read_bytes()
    for name, content in {
        "good": good,
        "empty": b"",
        "text": b"hello world",
        "half": good[: len(good) // 2],
        "short": good[:-1],
    }.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"weight": torch.ones(2)}, tmp_path / "torch")
    torch.save(torch.ones(2), tmp_path / "tensor")
    torch.save({"state_dict": {}}, tmp_path / "other")
    torch.save({"state_dict": {}, "hparams": Custom()}, tmp_path / "pickled")
    torch.save({"state_dict": {}}, tmp_path / "old", _use_new_zipfile_serialization=False)
    return tmp_path


def test_a_good_checkpoint_is_read(files):
    assert read_checkpoint(files / "good")["global_step"] == 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("empty", "damaged or not a checkpoint"),
        ("text", "damaged or not a checkpoint"),
        ("half", "damaged or not a checkpoint"),
        ("short", "damaged or not a checkpoint"),
        ("old", "damaged or not a checkpoint"),
        ("pickled", "damaged or not a checkpoint"),
        ("run", "damaged or not a checkpoint"),
        ("torch", "not a Lightning checkpoint"),
        ("tensor", "not a Lightning checkpoint"),
        ("other", "not a Lightning checkpoint"),
        ("missing", "There is no checkpoint"),
    ],
)
def test_what_is_no_checkpoint(files, name, said):
    with pytest.raises(SmolbenchError, match=said) as caught:
        read_checkpoint(files / name)
    assert str(files / name) in str(caught.value)
