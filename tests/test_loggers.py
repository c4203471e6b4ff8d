"""Lightning's loggers beside the files that every run has."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning_utilities.core.imports import RequirementCache

from smolbench.cli import main
from tests.helpers.command import FEW, ONE_EPOCH, assert_equal_runs, results, rows
from tests.helpers.recorder import Recorder

TENSORBOARD = ["--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=logs"]


def test_a_logger_gets_what_the_files_hold_and_changes_nothing(folder_here, monkeypatch):
    monkeypatch.setattr(Recorder, "logged", [])
    assert main(["fit", *FEW, ONE_EPOCH, "--run_dir=without"]) == 0
    logger = "--trainer.logger=tests.helpers.recorder.Recorder"
    assert main(["fit", *FEW, ONE_EPOCH, logger, "--run_dir=run"]) == 0
    assert_equal_runs(folder_here / "without", folder_here / "run")
    for name in ("train/loss", "val/accuracy", "val/loss"):
        written = [float(row[name]) for row in rows(folder_here / "run") if row[name]]
        assert [one[name] for one in Recorder.logged if name in one] == pytest.approx(written)
    assert main(["test", "--run_dir=run"]) == 0
    (tested,) = [one for one in Recorder.logged if "test/accuracy" in one]
    assert tested["test/accuracy"] == pytest.approx(results(Path("run"))["test/accuracy"])
    before = len(Recorder.logged)
    assert main(["predict", "--run_dir=run", "--text=A gem."]) == 0
    assert len(Recorder.logged) == before, "nothing is measured"
    # a run is gone on with under any logger
    more = ["--trainer.max_epochs=2", "--extend", "--trainer.logger=false"]
    assert main(["fit", *FEW, *more, "--run_dir=run", "--ckpt_path=last"]) == 0


def test_tensorboard_reads_it(folder_here):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(["fit", *FEW, ONE_EPOCH, *TENSORBOARD, "--run_dir=run"]) == 0
    (events,) = Path("logs").rglob("events.*")
    read = EventAccumulator(str(events.parent)).Reload()
    found = [event.value for event in read.Scalars("val/accuracy")]
    assert found == pytest.approx([float(r["val/accuracy"]) for r in rows(Path("run"))[-1:]])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--trainer.logger=WandbLogger"], "no-such-wandb"),
        (TENSORBOARD, "Neither `tensorboard` nor"),
        (
            ["--trainer.logger=[{class_path: TensorBoardLogger, init_args: {save_dir: logs}}]"],
            "Neither `tensorboard` nor",
        ),
        (
            [
                "--trainer.callbacks=EarlyStopping",
                "--trainer.callbacks.monitor=val/loss",
                "--trainer.callbacks.mode=up",
            ],
            "`mode` can be min, max, got up",
        ),
    ],
)
def test_what_a_class_of_lightning_lacks_is_a_sentence(
    folder_here, capsys, monkeypatch, options, said
):
    for name, module in (
        ("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", "no-such-wandb"),
        ("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", "no-such-board"),
        ("lightning.fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", "no-such-boardx"),
    ):
        monkeypatch.setattr(name, RequirementCache(module))
    assert main(["fit", *FEW, *options]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("smolbench: error: ")
    assert said in last
    assert not Path("runs").exists()
