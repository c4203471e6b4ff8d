from __future__ import annotations

import os
import signal
import threading

import lightning.pytorch as pl
import pytest
import torch

from smolbench.callbacks import GracefulStop, RunCheckpoint, RunInterrupted
from tests.helpers.plain import PlainModule, loader, trainer
from tests.helpers.signals import SignalAt

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
]
BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _handlers_are_given_back():
    before = [signal.getsignal(signum) for signum in BOTH]
    yield
    assert [signal.getsignal(signum) for signum in BOTH] == before


def step_of(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_step_ends_and_is_saved(tmp_path, capsys, signum, status):
    fit = trainer(tmp_path, SignalAt(2, signum), GracefulStop(), RunCheckpoint())
    with pytest.raises(RunInterrupted, match="which is saved") as caught:
        fit.fit(PlainModule(), loader(6))
    assert caught.value.status == status
    assert step_of(tmp_path) == 3
    assert f"{signum.name}: finishing the current step" in capsys.readouterr().err


@pytest.mark.parametrize("signum", BOTH)
def test_the_optimiser_step_ends_not_the_micro_batch(tmp_path, signum):
    fit = trainer(
        tmp_path, SignalAt(4, signum), GracefulStop(), RunCheckpoint(), accumulate_grad_batches=4
    )
    with pytest.raises(RunInterrupted):
        fit.fit(PlainModule(), loader(12))
    assert step_of(tmp_path) == 2
    assert fit.fit_loop.epoch_loop.batch_progress.current.ready == 8


@pytest.mark.parametrize("signum", BOTH)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_validation_that_is_due_comes_first(tmp_path, batch, signum):
    validated = []

    class Watch(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            validated.append(trainer.global_step)

    fit = trainer(
        tmp_path,
        Watch(),
        SignalAt(batch, signum),
        GracefulStop(),
        RunCheckpoint(),
        val_check_interval=2,
    )
    with pytest.raises(RunInterrupted):
        fit.fit(PlainModule(), loader(6), loader(1))
    assert validated[-1] == step_of(tmp_path) == batch + 1


@pytest.mark.parametrize("signum", BOTH)
def test_a_signal_during_validation_is_granted_after_it(tmp_path, signum):
    class Interrupt(pl.Callback):
        def on_validation_batch_start(self, *args):
            os.kill(os.getpid(), signum)

    fit = trainer(tmp_path, Interrupt(), GracefulStop(), RunCheckpoint(), max_epochs=2)
    with pytest.raises(RunInterrupted):
        fit.fit(PlainModule(), loader(), loader(1))
    assert step_of(tmp_path) == 4


def test_the_second_signal_stops_at_once(tmp_path):
    class Twice(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 1:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGTERM)
                pytest.fail("went on")

    with pytest.raises(RunInterrupted, match=r"Stopped by SIGTERM\.") as caught:
        trainer(tmp_path, Twice(), GracefulStop(), RunCheckpoint()).fit(PlainModule(), loader())
    assert caught.value.status == 143
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("stage", ["test", "validate"])
def test_outside_of_training_it_stops_at_once(tmp_path, stage):
    class Interrupt(pl.Callback):
        def on_test_batch_start(self, *args):
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("went on")

        on_validation_batch_start = on_test_batch_start

    scoring = trainer(tmp_path, Interrupt(), GracefulStop())
    with pytest.raises(RunInterrupted):
        getattr(scoring, stage)(PlainModule(), loader(), verbose=False)


def test_the_sanity_check_stops_at_once(tmp_path):
    class Interrupt(pl.Callback):
        def on_sanity_check_start(self, *args):
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("went on")

    fit = trainer(tmp_path, Interrupt(), GracefulStop(), num_sanity_val_steps=1)
    with pytest.raises(RunInterrupted):
        fit.fit(PlainModule(), loader(), loader(1))


@pytest.mark.parametrize("others", [[], [RunCheckpoint()]])
def test_without_a_checkpoint_callback_it_stops_all_the_same(tmp_path, others):
    fit = trainer(tmp_path, SignalAt(1), GracefulStop(), *others)
    with pytest.raises(RunInterrupted):
        fit.fit(PlainModule(), loader(6))
    assert fit.global_step == 2


def test_a_second_fit_starts_with_a_clean_slate(tmp_path):
    stop = GracefulStop()
    with pytest.raises(RunInterrupted):
        trainer(tmp_path, SignalAt(1), stop, RunCheckpoint()).fit(PlainModule(), loader())
    fit = trainer(tmp_path, stop, RunCheckpoint())
    fit.fit(PlainModule(), loader())
    assert fit.global_step == 4


def test_no_library_takes_it_for_an_error():
    assert not issubclass(RunInterrupted, Exception)


def test_taken_over_before_any_hook():
    stop = GracefulStop()
    stop.take_over()
    try:
        with pytest.raises(RunInterrupted):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        stop.give_back()


def test_a_forked_worker_leaves_it_to_its_parent(capsys):
    stop = GracefulStop()
    stop.take_over()
    stop._process -= 1
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        stop.give_back()
    assert capsys.readouterr().err == ""


def test_other_threads_cannot_and_do_not(tmp_path):
    errors = []

    def work():
        try:
            trainer(tmp_path, GracefulStop(), RunCheckpoint()).fit(PlainModule(), loader())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []


def test_several_ranks_agree(monkeypatch):
    """The wish of any rank is everybody's."""

    class Ranks:
        world_size = 2
        strategy = type("Strategy", (), {"root_device": torch.device("cpu")})

    def reduce(flag, op):
        flag.fill_(max(int(flag), 15))

    monkeypatch.setattr("torch.distributed.all_reduce", reduce)
    assert GracefulStop().requested(Ranks()) == 15
    monkeypatch.setattr("torch.distributed.all_reduce", lambda flag, op: None)
    assert GracefulStop().requested(Ranks()) is None


def test_a_training_that_ends_by_itself_gives_the_signals_back(tmp_path):
    trainer(tmp_path, GracefulStop(), RunCheckpoint()).fit(PlainModule(), loader())
