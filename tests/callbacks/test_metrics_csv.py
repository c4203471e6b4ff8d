from __future__ import annotations

import csv
import math
from datetime import timedelta

import lightning.pytorch as pl
import pytest
import torch

from smolbench.callbacks import MetricsCSV, RunCheckpoint
from tests.helpers.kill import Killed
from tests.helpers.plain import PlainModule, loader, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
]


class Module(PlainModule):
    """Logs numbers that depend on the step only."""

    def training_step(self, batch, batch_idx):
        self.log("train/step", float(self.trainer.global_step))
        self.log("train/tenth", 0.1)
        return super().training_step(batch, batch_idx)

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.log("val/n", 40)
            self.log("val/third", torch.tensor(1 / 3))


def read(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def fit(folder, *callbacks, ckpt_path=None, batches=4, validate=True, **options):
    validation = [loader(1)] if validate else []
    done = trainer(folder, *callbacks, MetricsCSV(), RunCheckpoint(), **options)
    done.fit(Module(), loader(batches), *validation, ckpt_path=ckpt_path)
    return done


def test_a_row_per_logging_step_and_per_validation(tmp_path):
    fit(tmp_path, max_epochs=2, log_every_n_steps=2)
    rows = read(tmp_path)
    assert [(row["step"], row["epoch"]) for row in rows] == [
        ("2", "0"),
        ("4", "0"),
        ("4", "0"),
        ("6", "1"),
        ("8", "1"),
        ("8", "1"),
    ]
    assert [row["train/step"] for row in rows] == ["1.0", "3.0", "", "5.0", "7.0", ""]
    assert [row["val/n"] for row in rows] == ["", "", "40", "", "", "40"]


def test_numbers_are_the_shortest_that_they_are(tmp_path):
    fit(tmp_path)
    rows = read(tmp_path)
    assert rows[0]["train/tenth"] == "0.1"
    assert rows[-1]["val/third"] == "0.33333334"


def test_a_row_per_optimiser_step_not_per_batch(tmp_path):
    fit(tmp_path, validate=False, batches=6, accumulate_grad_batches=3)
    assert [row["step"] for row in read(tmp_path)] == ["1", "2"]


def test_a_run_too_short_for_a_row_has_a_header(tmp_path):
    fit(tmp_path, validate=False, log_every_n_steps=50)
    assert (tmp_path / "metrics.csv").read_text() == "step,epoch\n"


def test_logging_can_be_switched_off(tmp_path):
    fit(tmp_path, log_every_n_steps=0)
    assert [row["val/n"] for row in read(tmp_path)] == ["40"]


def test_a_new_fit_in_an_old_folder_starts_anew(tmp_path):
    fit(tmp_path)
    before = (tmp_path / "metrics.csv").read_text()
    fit(tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == before


def test_a_test_leaves_it_alone(tmp_path):
    fit(tmp_path)
    before = (tmp_path / "metrics.csv").read_text()
    trainer(tmp_path, MetricsCSV()).test(Module(), loader(), verbose=False)
    trainer(tmp_path, MetricsCSV()).validate(Module(), loader(), verbose=False)
    assert (tmp_path / "metrics.csv").read_text() == before


def test_the_sanity_check_is_no_validation(tmp_path):
    fit(tmp_path, num_sanity_val_steps=1)
    assert len(read(tmp_path)) == 5


class DieAt(pl.Callback):
    """Dies after the row of a step is written and before its checkpoint is."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise Killed


@pytest.mark.parametrize("step", [1, 4, 7, 8, 11])
@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 3},
        {"max_epochs": 3, "val_check_interval": 2},
        {"max_epochs": -1, "max_steps": 12, "check_val_every_n_epoch": 2},
        {"max_epochs": -1, "max_steps": 12, "val_check_interval": 3},
        # by the clock: after each batch
        {"max_epochs": 3, "val_check_interval": timedelta(microseconds=1)},
    ],
)
def test_a_resumed_run_has_every_row_once(tmp_path, step, options):
    fit(tmp_path / "whole", **options)
    with pytest.raises(Killed):
        fit(tmp_path / "parts", DieAt(step), **options)
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    fit(tmp_path / "parts", ckpt_path=last if last.exists() else None, **options)
    text = (tmp_path / "whole" / "metrics.csv").read_text()
    assert (tmp_path / "parts" / "metrics.csv").read_text() == text


class ClockAt(pl.Callback):
    """Lets the time of a validation come at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            trainer._last_val_time = -math.inf


def test_a_validation_by_the_clock_at_an_epochs_end(tmp_path):
    """It is not repeated by a resume, nor is the epoch."""
    options = {"max_epochs": 3, "val_check_interval": timedelta(hours=1)}
    fit(tmp_path / "whole", ClockAt(4), **options)
    with pytest.raises(Killed):
        fit(tmp_path / "parts", ClockAt(4), DieAt(4), **options)
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    fit(tmp_path / "parts", ckpt_path=last, **options)
    text = (tmp_path / "whole" / "metrics.csv").read_text()
    assert (tmp_path / "parts" / "metrics.csv").read_text() == text


def test_half_a_line_is_cut_off(tmp_path):
    fit(tmp_path, max_epochs=1)
    path = tmp_path / "metrics.csv"
    before = path.read_text()
    path.write_text(before + "5,1,0.")
    fit(tmp_path, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", max_epochs=2)
    assert path.read_text().startswith(before)
    assert [row["step"] for row in read(tmp_path)] == ["1", "2", "3", "4", "4", *"567", "8", "8"]


def test_a_finished_run_adds_nothing(tmp_path):
    fit(tmp_path, max_epochs=1)
    before = (tmp_path / "metrics.csv").read_text()
    fit(tmp_path, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", max_epochs=1)
    assert (tmp_path / "metrics.csv").read_text() == before


def test_nothing_logged_nothing_lost(tmp_path):
    """A module that logs under other names trains as ever."""

    class Other(PlainModule):
        def training_step(self, batch, batch_idx):
            self.log("my_loss", 1.0)
            return self.layer(batch[0]).mean()

    trainer(tmp_path, MetricsCSV()).fit(Other(), loader())
    assert read(tmp_path) == []
