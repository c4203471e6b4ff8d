"""Lightning's loggers beside the files that every run has."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning_utilities.core.imports import RequirementCache

from smolbench.cli import main
from smolbench.tasks import ProbeTask
from tests.helpers.command import FEW, ONE_EPOCH, assert_equal_runs, config, results, rows
from tests.helpers.kill import die
from tests.helpers.recorder import Recorder, Tracker

TRACKER = "--trainer.logger=tests.helpers.recorder.Tracker"
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
        ([TRACKER, "--trainer.logger.fails=building"], "trainer.logger Tracker: no server"),
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


@pytest.fixture
def tracked(monkeypatch):
    monkeypatch.setattr(Tracker, "runs", {})
    return Tracker.runs


def points(run: Path) -> list[tuple[str, int, float]]:
    """What a logger is to have of a run's training."""
    return [
        (name, int(row["step"]), float(cell))
        for row in rows(run)
        for name, cell in row.items()
        if name != "step" and cell
    ]


def test_kill_resume_and_test_are_one_run_of_a_tracker(folder_here, tracked):
    fit = ["fit", *FEW, "--trainer.max_epochs=3", TRACKER, "--run_dir=a/run"]
    # behind the rows of a step that no checkpoint has, and that is done again
    die(fit, "on_train_batch_start", 4)
    assert main([*fit, "--ckpt_path=last"]) == 0
    (one,) = tracked.values()
    run = folder_here / "a" / "run"
    assert one["points"] == points(run)
    settings = one["settings"]
    assert settings["data.limit_train"] == 64
    assert settings["seed_everything"] == results(run)["seed"] == settings["seed"]
    assert settings["recipe"] == "imdb_probe+tiny"
    assert settings["packages/torch"] == results(run)["packages/torch"]
    for _ in range(2):  # the second test says nothing new
        assert main(["test", "--run_dir=a/run"]) == 0
    (one,) = tracked.values()
    found = one["points"][len(points(run)) :]
    assert len(found) == len({name for name, _, _ in found})
    assert {step for _, step, _ in found} == {results(run)["best/step"]}
    scores = {name: value for name, _, value in found}
    assert scores["test/accuracy"] == results(run)["test/accuracy"]
    assert one["ends"][-3:] == ["success"] * 3
    # what it goes on with is no setting of the run
    assert config(run)["trainer"]["logger"]["init_args"]["run_id"] is None
    # another run has another name, although its seed is the same; longer trained it is the same run
    other = ["fit", *FEW, ONE_EPOCH, TRACKER, "--run_dir=b/run"]
    assert main(other) == 0
    more = [*other[:-3], "--trainer.max_epochs=2", *other[-2:], "--ckpt_path=last", "--extend"]
    assert main(more) == 0
    names = [run["name"] for run in tracked.values()]
    assert names == ["imdb_probe+tiny/a/run", "imdb_probe+tiny/b/run"]
    assert tracked["run-1"]["points"] == points(folder_here / "b" / "run")
    assert tracked["run-1"]["settings"]["trainer.max_epochs"] == 2


def test_a_logger_that_joins_a_run_is_given_all_of_it(folder_here, tracked):
    fit = ["fit", *FEW, ONE_EPOCH, "--run_dir=run"]
    assert main(fit) == 0
    more = ["--trainer.enable_autolog_hparams=false", TRACKER]
    assert main(["test", "--run_dir=run", *more]) == 0
    (one,) = tracked.values()
    run = folder_here / "run"
    assert one["points"][: len(points(run))] == points(run)
    assert one["points"][-1][1] == results(run)["best/step"]
    assert one["settings"] == {}, "they were not asked for"


def test_tensorboard_has_one_version_of_a_run(folder_here):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit = ["fit", *FEW, "--trainer.max_epochs=2", "--trainer.logger=true", "--run_dir=run"]
    die(fit, "on_train_batch_start", 4)
    assert main([*fit, "--ckpt_path=last"]) == 0
    assert main(["test", "--run_dir=run"]) == 0
    (version,) = Path("run/lightning_logs").iterdir()
    read = EventAccumulator(str(version), purge_orphaned_data=False).Reload()
    for name in ("train/loss", "val/accuracy"):
        found = [(event.step, event.value) for event in read.Scalars(name)]
        expected = [(step, value) for key, step, value in points(Path("run")) if key == name]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [v for _, v in found] == pytest.approx([value for _, value in expected])
    assert [one.step for one in read.Scalars("test/accuracy")] == [
        results(Path("run"))["best/step"]
    ]


class OwnNames(ProbeTask):
    """Logs under names of its own."""

    def training_step(self, batch, batch_idx):
        self.log("hidden", 1.0, logger=False)
        self.log("steps", float(self.trainer.global_step))
        self.log("whole", float(batch_idx), on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self):
        self.log("ended", float(self.trainer.current_epoch))

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        self.log("val_loss", 3.0)
        if self.trainer.current_epoch == 0:
            self.log("once", 1.0)

    def on_test_epoch_end(self):
        super().on_test_epoch_end()
        self.log_dict({"own": 2.0, "test_own": 4.0})


def test_metrics_of_any_name_are_in_the_files_and_loggers(folder_here, tracked):
    fit = ["fit", *FEW, f"--model={__name__}.OwnNames", "--trainer.max_epochs=2", TRACKER]
    fit += ["--checkpoint.monitor=val_loss", "--checkpoint.mode=min", "--run_dir=run"]
    assert main(fit) == 0
    assert main(["test", "--run_dir=run"]) == 0
    run = folder_here / "run"
    found = rows(run)
    per_step = [row for row in found if row["train/loss"]]
    assert [row["steps"] for row in per_step] == [f"{n}.0" for n in range(len(per_step))]
    assert not any(row["whole"] or row["ended"] or row["val_loss"] for row in per_step)
    epochs = [(row["epoch"], row["ended"], row["whole"] != "") for row in found if row["ended"]]
    assert epochs == [("0", "0.0", True), ("1", "1.0", True)]
    assert [row["val_loss"] for row in found if row["val/accuracy"]] == ["3.0", "3.0"]
    assert [row["once"] for row in found if row["val/accuracy"]] == ["1.0", ""]
    (one,) = tracked.values()
    assert [p for p in one["points"] if p[0].startswith("test")]
    sent = [p for p in points(run) if p[0] != "hidden"]
    assert sorted(one["points"][: len(sent)]) == sorted(sent)
    said = results(run)
    assert (said["val/val_loss"], said["test/own"], said["test/test_own"]) == (3.0, 2.0, 4.0)


@pytest.mark.parametrize("where", ["log_hyperparams", "log_metrics", "finalize"])
def test_a_logger_that_fails_is_a_sentence(folder_here, capsys, tracked, where):
    assert main(["fit", *FEW, ONE_EPOCH, TRACKER, f"--trainer.logger.fails={where}"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert "trainer.logger Tracker has failed ([Errno 111] no connection)" in last
    assert "--trainer.logger false" in last


def test_an_upload_of_no_checkpoint_is_refused(folder_here, capsys, tracked):
    upload = [TRACKER, "--trainer.logger.log_model=true"]
    assert main(["fit", *FEW, ONE_EPOCH, *upload]) == 2
    assert "which uploads what a ModelCheckpoint writes" in capsys.readouterr().err
    assert not Path("runs").exists()
    assert main(["fit", *FEW, ONE_EPOCH, *upload, "--trainer.callbacks+=ModelCheckpoint"]) == 0
