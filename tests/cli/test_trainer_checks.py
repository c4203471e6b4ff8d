"""Options and callbacks of the Trainer that cannot work are refused; what works does."""

from __future__ import annotations

import csv
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from smolbench.cli import main
from smolbench.errors import SmolbenchError
from tests.helpers.command import results

FIT = ["fit", "--config=imdb_probe", "--config=tiny", "--trainer.accelerator=cpu", "--run_dir=run"]
FIT += ["--data.val_fraction=0.1", "--data.limit_train=120", "--trainer.max_epochs=1"]
FIT += ["--trainer.enable_progress_bar=false", "--latency.examples=0", "--model.warmup_steps=0"]


@pytest.fixture
def said(folder_here, capsys):
    """What a fit says that is refused, in one sentence and without a run."""

    def call(*options: str) -> str:
        assert main([*FIT, *options]) == 2
        err = capsys.readouterr().err
        assert "Traceback" not in err
        assert not (folder_here / "run" / "results.json").exists()
        return err.strip().splitlines()[-1]

    return call


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("trainer.accumulate_grad_batches=0", "must be 1 or more"),
        ("trainer.check_val_every_n_epoch=0", "must be 1 or more"),
        ("trainer.max_epochs=0", "must be 1 or more, or -1 for no limit"),
        ("trainer.max_steps=0", "must be 1 or more, or -1 for no limit"),
        ("trainer.val_check_interval=0", "a share of an epoch"),
        ("trainer.gradient_clip_val=-1", "must be 0 or more"),
        ("trainer.precision=bf16-true", "bf16-mixed"),
        ("trainer.precision=64-true", "32-true"),
        ("trainer.strategy=ddp_spawn", "take ddp"),
        (
            "trainer.plugins=lightning.pytorch.plugins.DoublePrecision",
            "of trainer.plugins is 64-true, but",
        ),
        ("trainer.plugins=[lightning.pytorch.plugins.HalfPrecision]", "stays in float32"),
        ("trainer.plugins=lightning.pytorch.plugins.AsyncCheckpointIO", "leave it out"),
        ("seed_everything=-5", "from 0 to 4,294,967,295"),
        ("seed_everything=4294967296", "from 0 to 4,294,967,295"),
        ("trainer.callbacks+=EMAWeightAveraging", "AveragedWeights"),
        ("trainer.callbacks+=smolbench.callbacks.RunCheckpoint", "checkpoint.monitor"),
        ("trainer.callbacks+=LearningRateFinder", "smolbench sweep"),
        ("trainer.callbacks+=BatchSizeFinder", "data.batch_size auto"),
        ("trainer.callbacks+=BackboneFinetuning", "model.method"),
        ("ckpt=last", "did you mean --ckpt_path?"),
        ("trainer.max_epo=2", "did you mean --trainer.max_epochs?"),
    ],
)
def test_what_cannot_work_is_refused(said, option, sentence):
    assert sentence in said(f"--{option}")


WATCH = "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/loss"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--trainer.val_check_interval=1000", "to the number of the training batches"),
        (f"--data.val_fraction=0 {WATCH}", "EarlyStopping.monitor is 'val/loss', but there is no"),
        (
            "--data.val_fraction=0 --checkpoint.monitor=val/loss",
            "Raise it, or leave out checkpoint",
        ),
        ("--model.layer=99", "There is no layer 99"),
        ("--data.limit_train=1", "raise data.limit_train"),
    ],
)
def test_what_is_refused_before_the_training_leaves_no_run(said, options, sentence):
    """Also where data and model are there already: it would be the newest run."""
    assert sentence in said(*options.split())
    assert not Path("run").exists()


def test_a_refusal_of_our_own_before_the_training_leaves_no_run(folder_here, monkeypatch, capsys):
    def refuse(*_: object) -> None:
        raise SmolbenchError("not like this")

    monkeypatch.setattr("smolbench.callbacks.MetricsCSV.on_train_start", refuse)
    assert main(FIT) == 2
    assert "not like this" in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_fault_before_the_training_leaves_a_run_that_goes_on(folder_here, monkeypatch):
    """By the paths that it has decided on, and with the rows that it has drawn."""

    def fail(*_: object) -> None:
        raise RuntimeError("before the first step")

    with monkeypatch.context() as patch:
        patch.setattr("smolbench.callbacks.MetricsCSV.on_train_start", fail)
        with pytest.raises(RuntimeError, match="before the first step"):
            main(FIT)
    assert results(Path("run"))["status"] == "failed"
    assert main([*FIT, "--ckpt_path=last"]) == 0


def test_a_strategy_that_spawns_by_its_class_is_refused(said):
    named = "--trainer.strategy=lightning.pytorch.strategies.DDPStrategy"
    assert "take ddp" in said(named, "--trainer.strategy.start_method=spawn")


@pytest.mark.parametrize("name", ["ModelCheckpoint", "OnExceptionCheckpoint"])
def test_checkpoints_among_the_runs_files_are_refused(said, name):
    """The second removes its file when all went well, and it may be named last."""
    own = [f"--trainer.callbacks+={name}", "--trainer.callbacks.dirpath=run/checkpoints"]
    assert "give another folder" in said(*own)


def test_other_checkpoints_have_a_folder_of_their_own(folder_here):
    own = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_last=true"]
    own += ["--trainer.callbacks.save_weights_only=true"]
    assert main([*FIT, *own]) == 0
    assert (folder_here / "run/callback_checkpoints/last.ckpt").is_file()
    assert main([*FIT, *own, "--ckpt_path=last"]) == 0, "the run's own holds the optimiser"


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.callbacks+=Timer", "--trainer.callbacks.duration=00:01:00:00"],
        ["--trainer.callbacks+=TQDMProgressBar", "--trainer.enable_progress_bar=true"],
        ["--trainer.callbacks+=TrainingGuard"],
    ],
)
def test_what_works(folder_here, options):
    assert main([*FIT, *options]) == 0
    assert results(folder_here / "run")["status"] == "finished"


def test_a_terminal_that_lacks_characters_gets_others(folder_here):
    command = [sys.executable, "-m", "smolbench", *FIT, "--run_dir=[bold]x[/bold]"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONIOENCODING": "iso-8859-1"}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert b"[bold]x[/bold]" in done.stdout + done.stderr
    assert b" ? " in done.stdout + done.stderr or "±".encode("latin-1") in done.stdout + done.stderr


def test_a_seed_is_drawn_said_and_kept(folder_here, caplog):
    with caplog.at_level("INFO", logger="smolbench"):
        assert main([*FIT, "--seed_everything=false"]) == 0
    seed = json.loads(Path("run/results.json").read_text())["seed"]
    assert f"seed_everything {seed}" in caplog.text
    assert yaml.safe_load(Path("run/config.yaml").read_text())["seed_everything"] == seed
    assert main([*FIT, "--seed_everything=false", "--ckpt_path=last"]) == 0
    assert results(folder_here / "run")["seed"] == seed


def test_a_schedule_is_that_of_all_epochs_where_the_accumulation_changes(folder_here):
    trainer = {
        "callbacks": [
            {
                "class_path": "GradientAccumulationScheduler",
                "init_args": {"scheduling": {0: 1, 2: 4}},
            }
        ],
        "log_every_n_steps": 1,
    }
    Path("own.yaml").write_text(yaml.safe_dump({"trainer": trainer}))
    fit = [*FIT, "--config=own.yaml", "--trainer.max_epochs=4", "--model.schedule=linear"]
    assert main([*fit, "--data.batch_size=10"]) == 0
    with Path("run/metrics.csv").open() as file:
        rates = [float(row["train/lr"]) for row in csv.DictReader(file) if row["train/lr"]]
    # 11 batches: two epochs of 11 steps and two of 3, and the rate falls along one line to 0
    steps = sorted({round(rate / rates[0] * 28) for rate in rates}, reverse=True)
    assert steps == list(range(28, 0, -1))


@pytest.mark.parametrize("profiler", ["simple", "advanced", "pytorch"])
def test_a_profile_is_shown_and_lies_in_the_run_folder(folder_here, capsys, profiler):
    assert main([*FIT, f"--trainer.profiler={profiler}"]) == 0
    report = (folder_here / "run" / "fit-profile.txt").read_text()
    assert "Profiler Report" in report
    assert report.strip() in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "trainer.max_epochs 1 was reached"),
        (["--trainer.max_steps=2"], "trainer.max_steps 2 was reached"),
        (["--trainer.max_epochs=9999", "--trainer.max_time=00:00:00:01"], "its time was up"),
        (["--trainer.max_epochs=9", "--config=stop.yaml"], "EarlyStopping asked for it: Monitored"),
    ],
)
def test_the_last_line_says_why_the_training_ended(folder_here, caplog, options, reason):
    watch = {"monitor": "val/loss", "min_delta": 100, "patience": 1, "verbose": True}
    keep = {"class_path": "ModelCheckpoint", "init_args": {"verbose": True}}
    keep["init_args"] |= {"monitor": "val/loss"}
    stop = {"class_path": "EarlyStopping", "init_args": watch}
    Path("stop.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [stop, keep]}}))
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    names = ["lightning.pytorch", "lightning.fabric", "smolbench"]
    for name in names:
        logging.getLogger(name).addHandler(handler)
    level = logging.getLogger("smolbench").level
    logging.getLogger("smolbench").setLevel(logging.INFO)
    try:
        assert main([*FIT, *options]) == 0
    finally:
        logging.getLogger("smolbench").setLevel(level)
        for name in names:
            logging.getLogger(name).removeHandler(handler)
    assert said[-1].startswith(f"The training ended because {reason}")
    found = json.loads(Path("run/results.json").read_text())
    assert said[-1] == f"The training ended because {found['training/ended']}."
    assert found.get("training/out_of_time", False) is ("time was up" in reason)
    spoken = [line for line in said if "Monitored metric val/loss" in line or "top 1" in line]
    assert len(spoken) >= 2 if "--config=stop.yaml" in options else not spoken
    assert not [line for line in said if "GPU available" in line or "`Trainer.fit` stopped" in line]
