from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet
import pytest
import torch
import yaml

import smolbench
from smolbench.cli import main
from smolbench.data import IMDbDataModule
from smolbench.errors import SmolbenchError
from tests.helpers.command import (
    FEW,
    ONE_EPOCH,
    QUIET,
    assert_equal_runs,
    config,
    results,
    rows,
    runs,
    weights,
)
from tests.helpers.kill import Killed
from tests.helpers.processes import Process
from tests.helpers.written_runs import write_run

ROOT = Path(__file__).parents[2]
TWO_EPOCHS = "--trainer.max_epochs=2"


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def cli(capfd):
    """Call the command line; a traceback fails the test."""

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        return Outcome(status, *capfd.readouterr())

    return call


@pytest.fixture
def refused(cli):
    """Call the command line, which must refuse with a sentence."""

    def call(*arguments: object) -> str:
        outcome = cli(*arguments)
        assert outcome.status == 2, outcome
        assert "Traceback" not in outcome.err
        last = outcome.err.strip().splitlines()[-1]
        assert last.startswith("smolbench: error: "), outcome.err
        return last

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with one run of two epochs, trained and not yet tested."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", *FEW, TWO_EPOCHS]) == 0
    return folder


@pytest.fixture
def run(trained, folder_here):
    """The trained run, copied into this test's working directory."""
    shutil.copytree(trained / "runs", folder_here / "runs")
    return runs(folder_here)[0]


@pytest.fixture
def tested(run, cli):
    assert cli("test").status == 0
    return run


# -- before anything heavy ------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], []])
def test_help(cli, arguments):
    outcome = cli(*arguments)
    assert outcome.status == 0
    for said in ("fit", "validate", "test", "predict", "recipes", "--config RECIPE"):
        assert said in outcome.out


def test_version(cli):
    assert cli("--version") == (0, f"smolbench {smolbench.__version__}\n", "")


def test_recipes_are_listed(cli):
    outcome = cli("recipes")
    assert outcome.status == 0
    lines = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    assert "IMDb" in lines["imdb_probe"]
    assert "trainer/cpu" in lines


def test_none_of_it_imports_anything_heavy():
    code = """
import sys
from smolbench.cli import main
for arguments in ("--help", "--version", "recipes", "no", "runs --no", "report --no"):
    main(arguments.split())
heavy = {"torch", "lightning", "transformers", "datasets", "numpy", "rich"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""
    done = Process("-c", code, fresh=True).result()
    assert done.returncode == 0, done.stderr


def test_settings_are_printed_before_libraries_of_data_and_models_are_imported():
    """The option parser runs `if TYPE_CHECKING:` blocks of the modules of models and data."""
    code = """
import sys
from smolbench.cli import main
import lightning.pytorch.cli  # with transformers 5.20 it brings some of them itself
heavy = {"accelerate", "bitsandbytes", "datasets", "pandas", "peft", "psutil", "pyarrow"}
heavy -= set(sys.modules)
for recipe in ("imdb_probe", "sentiment140_probe", "imdb_gpt2"):
    if status := main(["fit", f"--config={recipe}", "--print_config"]):
        sys.exit(status)
    if imported := heavy & set(sys.modules):
        sys.exit(f"imported for {recipe}: {imported}")
"""
    done = Process("-c", code, fresh=True).result()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("class_path: smolbench.tasks.") == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config", "imdb_probe", "fit"], "Options stand behind the subcommand"),
        (["--model.lr=1", "fit"], "Options stand behind the subcommand"),
        (["train"], "There is no subcommand 'train'"),
        (["recipes", "x"], "takes no arguments"),
        (["fit", "--config", "nope"], "There is no configuration 'nope'"),
        (["fit", "--config"], "--config needs a value"),
        (["fit"], "needs --config RECIPE"),
        (["test"], "There is no run with a best checkpoint"),
        (["test", *FEW], "There is no run with a best checkpoint of imdb_probe+tiny"),
        (["validate", *FEW], "There is no run with a best checkpoint"),
        (["predict", *FEW, "--text=x"], "There is no run with a best checkpoint"),
        (["fit", *FEW, "--ckpt_path=last"], "There is no run of imdb_probe+tiny"),
        (["test", *FEW, "--ckpt_path=no.ckpt"], "There is no checkpoint"),
        (["test", "--run_dir=missing"], "There is no run"),
    ],
)
def test_mistakes_seen_at_once(refused, folder_here, arguments, said):
    assert said in refused(*arguments)
    assert list(folder_here.iterdir()) == []


def test_imports_are_frozen_only_where_the_process_is_the_commands_own(monkeypatch, folder_here):
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    monkeypatch.setattr(sys, "argv", ["smolbench", "fit"])
    assert main(["fit"]) == 2
    assert not frozen  # it would keep what the caller has dropped and not yet collected
    assert main() == 2
    assert frozen
    assert gc.isenabled()


def test_print_config(cli, folder_here):
    outcome = cli("fit", *FEW, "--print_config")
    assert outcome.status == 0
    printed = yaml.safe_load(outcome.out)
    assert printed["model"]["init_args"]["backbone"] == "tiny"
    assert printed["trainer"]["logger"] is False  # from defaults.yaml
    assert list(folder_here.iterdir()) == []


def test_help_of_a_subcommand(cli, folder_here):
    outcome = cli("predict", "--help")
    assert outcome.status == 0
    for option in ("--config", "--run_dir", "--runs_dir", "--text", "--input", "--output"):
        assert option in outcome.out
    assert "--extend" in cli("fit", "--help").out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model.lrr=3"], "lrr"),
        (["--modle.lr=3"], "modle"),
        (["--model=Nope"], "Nope"),
        (["--data=Nope"], "Nope"),
        (["--model.lr=abc"], "lr"),
        (["--trainer.max_epochs=x"], "max_epochs"),
        (["--model.pooling=middle"], "middle"),
        (["--text=x"], "--text"),
        (["--config=extra.yaml"], "unknown_key"),
    ],
)
def test_mistakes_seen_by_the_parser(cli, folder_here, arguments, named):
    Path("extra.yaml").write_text("unknown_key: 1\n")
    outcome = cli("fit", *FEW, *arguments)
    assert outcome.status == 2
    assert named in outcome.err
    assert "Traceback" not in outcome.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model.lr=-1"], "model.lr must be positive"),
        (["--model.dropout=2"], "dropout must be in"),
        (["--data.batch_size=0"], "data.batch_size must be at least 1"),
        (["--data.val_fraction=1"], "val_fraction must be in"),
        (["--checkpoint.every_minutes=0"], "every_minutes must be positive"),
        (["--trainer.strategy=nope"], "strategy"),
        (["--trainer.accelerator=nope"], "accelerator"),
        (["--trainer.devices=0"], "devices"),
        (["--trainer.enable_checkpointing=false"], "enable_checkpointing"),
        (["--trainer.default_root_dir=x"], "--run_dir"),
        (["--extend"], "--ckpt_path last"),
        (["--config=ckpt.yaml"], "--ckpt_path"),
        (["--config=folder.yaml"], "--run_dir"),
        (["--run_dir=file"], "is a file"),
        (["--run_dir=file/x"], "cannot be made"),
        (["--runs_dir=file"], "cannot be made"),
    ],
)
def test_mistakes_seen_before_training(refused, folder_here, arguments, said):
    Path("ckpt.yaml").write_text("ckpt_path: last\n")
    Path("folder.yaml").write_text("run_dir: x\n")
    Path("file").touch()
    assert said in refused("fit", *FEW, *arguments)
    assert not list(folder_here.rglob("results.json"))
    assert not list(folder_here.glob("runs/*/*"))  # nor an empty folder


def test_a_warm_up_longer_than_the_training_is_refused_before_the_first_step(
    refused, cli, folder_here
):
    """By an estimate, too; a share of the same run will do."""
    long = [*FEW, ONE_EPOCH, "--model.warmup_steps=120", "--run_dir=run"]
    for command in (long, [*long[:-1], "--estimate"]):
        said = refused("fit", *command)
        assert "model.warmup_steps is 120, but only 2 optimiser steps are planned" in said
        assert "--model.warmup_steps 0.1" in said
    assert not list(folder_here.rglob("*.ckpt"))
    share = [*FEW, ONE_EPOCH, "--model.warmup_steps=0.5", "--run_dir=share"]
    assert cli("fit", *share).status == 0
    assert config(Path("share"))["model"]["init_args"]["warmup_steps"] == 0.5


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["--model.backbone=HuggingFaceTB/SmolLM2-135M"], "hf download HuggingFaceTB/SmolLM2"),
        (["--data.source=hub"], "hf download --repo-type dataset stanfordnlp/imdb"),
    ],
)
def test_what_cannot_be_reached_is_named(refused, folder_here, overrides, said):
    assert said in refused("fit", *FEW, *overrides)


# -- what a run leaves ----------------------------------------------------------------------------

AFTER_FIT = {
    "schema": int,
    "recipe": str,
    "config_digest": str,
    "series_digest": str,
    "git_revision": (str, type(None)),
    "status": str,
    "seed": int,
    "started_at": str,
    "attempts": int,
    "parent_run": type(None),
    "checkpoint": type(None),
    "task": str,
    "method": str,
    "model/id": str,
    "model/revision": str,
    "model/total_params": int,
    "model/trainable_params": int,
    "data/id": str,
    "data/revision": (str, type(None)),
    "data/n_train": int,
    "data/n_val": int,
    "data/limit_train": int,
    "data/limit_val": int,
    "data/limit_test": int,
    "data/split_seed": int,
    "data/duplicates": int,
    "data/overlap": int,
    "data/two_labels": int,
    "data/train_rows": str,
    "data/val_rows": str,
    "data/test_rows": str,
    "hardware/device": str,
    "hardware/name": str,
    "hardware/threads": int,
    "hardware/world_size": int,
    "precision": str,
    "strategy": str,
    "packages/torch": str,
    "packages/lightning": str,
    "cost/fit_s": float,
    "cost/cache_s": float,
    "cost/cache_reused": bool,
    "cost/head_train_samples_per_s": float,
    "cost/peak_rss_mib": float,
    "cost/peak_rss_mib_fit": float,
    "cost/peak_rss_process_mib": float,
    "cost/rss_delta_mib": float,
    "cost/checkpoint_mib": float,
    "val/accuracy": float,
    "val/loss": float,
    "val/n": int,
    "warnings": list,
}
AFTER_TEST = {
    "data/n_test": int,
    "data/test_digest": str,
    "test/accuracy": float,
    "test/accuracy_stderr": float,
    "test/f1_macro": float,
    "test/loss": float,
    "test/n": int,
    "cost/test_s": float,
    "cost/test_samples_per_s": float,
    "cost/test_latency_ms_p50": float,
    "cost/test_latency_ms_p95": float,
    "cost/test_latency_n": int,
    "cost/peak_rss_mib_test": float,
}
POSITIVE = ("cost/fit_s", "cost/cache_s", "cost/peak_", "cost/checkpoint_mib", "cost/test_s")


_PER_CLASS = ("class_precision", "class_recall", "class_f1", "class_n", "predicted_share")
LISTS = {"warnings", *(f"test/{name}" for name in ("labels", "confusion", *_PER_CLASS))}


def check_contract(found, expected):
    for key, kind in expected.items():
        assert isinstance(found[key], kind), (key, found.get(key))
    for key, value in found.items():
        # one level of values; only what is said class by class is a list
        assert value is None or isinstance(value, str | int | float) or key in LISTS, key
        if key.startswith(POSITIVE):
            assert value > 0, key


def test_a_fit(run):
    found = results(run)
    check_contract(found, AFTER_FIT)
    assert found["status"] == "finished"
    assert found["attempts"] == 1
    assert found["seed"] == 0
    assert found["recipe"] == "imdb_probe+tiny" == run.parent.name
    assert (found["data/n_train"], found["data/n_val"], found["val/n"]) == (64, 30, 30)
    assert found["data/limit_test"] == 40
    assert found["cost/peak_rss_mib"] >= found["cost/peak_rss_mib_fit"]
    assert not [key for key in found if key.startswith("test/")]
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "environment.json",
        "metrics.csv",
        "results.json",
        "rows.npz",
    ]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
    ]


def test_the_best_validation_is_what_stands_in_the_results(run):
    scores = {int(row["step"]): float(row["val/accuracy"]) for row in rows(run) if row["val/n"]}
    found = results(run)
    assert found["val/accuracy"] == max(scores.values()) == scores[found["best/step"]]


def test_metrics(run):
    written = rows(run)
    assert [row["step"] for row in written] == ["1", "2", "2", "3", "4", "4"]
    assert [row["epoch"] for row in written] == ["0", "0", "0", "1", "1", "1"]
    assert all(float(row["train/loss"]) > 0 for row in written if not row["val/n"])
    assert [row["val/n"] for row in written] == ["", "", "30", "", "", "30"]


def test_the_saved_config_repeats_the_run(run, cli, folder_here):
    again = cli("fit", "--config", run / "config.yaml", "--run_dir=again")
    assert again.status == 0
    assert_equal_runs(run, folder_here / "again")
    assert results(folder_here / "again")["recipe"] == "imdb_probe+tiny"
    assert results(folder_here / "again")["config_digest"] == results(run)["config_digest"]


def test_checkpoints_hold_plain_values_and_no_backbone(run):
    for name in ("best", "last"):
        saved = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert all(key.startswith("head.") for key in saved["state_dict"])
        assert saved["smolbench"]["signature"]["backbone"] == "tiny"


def test_the_environment(run):
    known = json.loads((run / "environment.json").read_text())
    assert known["packages"]["torch"] == results(run)["packages/torch"]
    assert known["python"]


def test_where_a_run_goes(cli, folder_here):
    assert cli("fit", *FEW, ONE_EPOCH, "--runs_dir=elsewhere").status == 0
    (run,) = runs(folder_here)
    assert run.parent == folder_here / "elsewhere" / "imdb_probe+tiny"
    overlay = cli("fit", *FEW, "--config=trainer/cpu", ONE_EPOCH, "--run_dir", "my/run")
    assert overlay.status == 0
    assert results(folder_here / "my" / "run")["recipe"] == "imdb_probe+tiny"
    assert overlay.out == f"Run folder: {folder_here / 'my' / 'run'}\n"


def test_a_run_folder_is_one_run(run, refused):
    before = results(run)
    assert "holds a run already" in refused("fit", *FEW, "--run_dir", run)
    assert "holds a run already" in refused("test", *FEW, "--ckpt_path=none", "--run_dir", run)
    assert results(run) == before


def test_without_validation_the_last_state_is_the_best(cli, folder_here):
    fit = cli("fit", *FEW, ONE_EPOCH, "--data.val_fraction=0", "--run_dir=run")
    assert fit.status == 0
    run = folder_here / "run"
    assert weights(run, "best").keys() == weights(run).keys()
    for key, value in weights(run).items():
        assert torch.equal(value, weights(run, "best")[key])
    assert not [key for key in results(run) if key.startswith(("val/", "best/"))]
    assert not any("val/" in column for column in rows(run)[0])


def test_validate_without_a_validation_split(cli, refused, folder_here):
    assert cli("fit", *FEW, ONE_EPOCH, "--data.val_fraction=0").status == 0
    before = results(runs(folder_here)[0])
    assert "val_fraction is 0" in refused("validate")
    assert "val_fraction is 0" in refused("validate", *FEW, "--data.val_fraction=0")
    assert len(runs(folder_here)) == 1
    assert results(runs(folder_here)[0]) == before


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.log_every_n_steps=0"],
        ["--trainer.max_time=00:00:10:00"],
        ["--trainer.callbacks=lightning.pytorch.callbacks.LambdaCallback"],
        ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=log"],
        ["--trainer.val_check_interval=0.5", "--trainer.check_val_every_n_epoch=2"],
    ],
)
def test_lightnings_own_options_work(cli, folder_here, options):
    assert cli("fit", *FEW, ONE_EPOCH, *options, "--run_dir=run").status == 0
    assert results(folder_here / "run")["status"] == "finished"
    assert (folder_here / "run" / "checkpoints" / "best.ckpt").exists()


@pytest.mark.parametrize(
    ("subcommand", "option", "instead"),
    [
        ("fit", "limit_train_batches=0.5", "data.limit_train"),
        ("fit", "limit_train_batches=0", "data.limit_train"),
        ("fit", "limit_val_batches=1", "data.limit_val"),
        ("fit", "overfit_batches=1", "data.limit_train and data.limit_val"),
        ("validate", "limit_val_batches=2", "data.limit_val"),
        ("test", "limit_test_batches=1", "data.limit_test"),
        ("predict", "limit_predict_batches=1", "fewer texts"),
    ],
)
def test_a_part_by_batches_is_no_sample(run, refused, folder_here, subcommand, option, instead):
    before = sorted(folder_here.rglob("*"))
    texts = ["--text=good"] if subcommand == "predict" else FEW if subcommand == "fit" else []
    assert instead in refused(subcommand, *texts, f"--trainer.{option}")
    assert sorted(folder_here.rglob("*")) == before


def test_fast_dev_run_leaves_no_trace(run, cli):
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*") if path.is_file()}
    for subcommand in ("fit", "test", "validate"):
        outcome = cli(subcommand, *FEW, TWO_EPOCHS, "--trainer.fast_dev_run=true")
        assert outcome.status == 0
        assert "nothing was written" in outcome.err
    assert before == {
        path: path.stat().st_mtime_ns for path in Path("runs").rglob("*") if path.is_file()
    }
    assert len(list(run.parent.iterdir())) == 1


# -- scoring --------------------------------------------------------------------------------------


def test_a_test_adds_to_its_run(run, cli):
    before = results(run)
    outcome = cli("test")
    assert outcome.status == 0
    assert len(runs(run.parents[1])) == 1
    found = results(run)
    check_contract(found, AFTER_FIT | AFTER_TEST)
    assert found["test/n"] == found["data/n_test"] == 40
    changed = {key for key, value in before.items() if found[key] != value}
    assert changed <= {"cost/peak_rss_mib", "cost/peak_rss_process_mib"}
    assert all(found[key] > before[key] for key in changed), "peaks are the highest of all commands"
    assert found["cost/peak_rss_mib"] >= found["cost/peak_rss_mib_test"]
    assert f"{found['test/accuracy']:.4f}" in outcome.err
    assert outcome.out == f"Run folder: {run}\n"


def test_predictions_agree_with_the_accuracy(tested):
    found = results(tested)
    table = pyarrow.parquet.read_table(tested / "predictions.parquet").to_pydict()
    assert table["index"] == list(range(found["test/n"]))
    right = [a == b for a, b in zip(table["label"], table["prediction"], strict=True)]
    assert sum(right) / len(right) == pytest.approx(found["test/accuracy"])
    for negative, positive, predicted in zip(
        table["score_neg"], table["score_pos"], table["prediction"], strict=True
    ):
        assert negative + positive == pytest.approx(1)
        assert predicted == (positive > negative)


def test_a_test_twice_says_the_same(tested, cli):
    before = results(tested)
    assert cli("test").status == 0
    after = results(tested)
    assert {key for key in after if after[key] != before[key]} <= {
        key for key in after if key.startswith("cost/")
    }


def test_validate_finds_the_best_score_again(run, cli):
    before = results(run)
    assert cli("validate").status == 0
    after = results(run)
    assert {k: v for k, v in after.items() if k.startswith("val/")} == {
        k: v for k, v in before.items() if k.startswith("val/")
    }
    assert after["cost/fit_s"] == before["cost/fit_s"]
    assert after["status"] == "finished"


@pytest.mark.parametrize(
    ("subcommand", "options"),
    [
        ("test", ["--data.limit_test=20"]),
        ("test", ["--data.limit_train=20"]),
        ("test", ["--seed_everything=5"]),
        ("test", ["--model.dropout=0.5"]),
        ("test", ["--ckpt_path=last"]),
        ("test", ["--ckpt_path=LAST"]),
        ("validate", ["--data.limit_val=20"]),
    ],
)
def test_another_score_has_a_folder_of_its_own(tested, cli, subcommand, options):
    before = {path: path.read_bytes() for path in tested.rglob("*") if path.is_file()}
    last = tested / "checkpoints" / "last.ckpt"
    options = [option.replace("LAST", str(last)) for option in options]
    assert cli(subcommand, *options).status == 0
    assert before == {path: path.read_bytes() for path in tested.rglob("*") if path.is_file()}
    _, other = runs(tested.parents[1])
    found = results(other)
    assert found["parent_run"] == str(tested)
    name = "last" if "last" in options[0] else "best"
    assert found["checkpoint"] == str(tested / "checkpoints" / f"{name}.ckpt")
    assert found["status"] == "finished"
    assert found["recipe"] == "imdb_probe+tiny"
    assert "attempts" not in found
    assert "cost/fit_s" not in found
    assert (other / "config.yaml").exists()
    # and is no run that anything is found in
    assert cli("test").status == 0
    assert len(runs(tested.parents[1])) == 2


def test_the_best_checkpoint_by_its_path_is_the_runs_own(tested, cli):
    best = tested / "checkpoints" / "best.ckpt"
    assert cli("test", "--ckpt_path", best).status == 0
    assert cli("test", "--ckpt_path", best, "--run_dir", tested).status == 0
    assert cli("test", "--data.num_workers=1").status == 0
    assert len(runs(tested.parents[1])) == 1


@pytest.mark.parametrize("options", [["--ckpt_path=last"], ["--data.limit_test=20"]])
def test_naming_the_run_does_not_write_another_score_into_it(tested, cli, options):
    before = results(tested), config(tested)
    assert cli("test", "--run_dir", tested, *options).status == 0
    assert before == (results(tested), config(tested))
    assert len(runs(tested.parents[1])) == 2


def test_another_score_goes_where_it_is_told(tested, cli, folder_here):
    best = tested / "checkpoints" / "best.ckpt"
    assert cli("test", "--ckpt_path", best, "--run_dir=mine").status == 0
    assert results(folder_here / "mine")["parent_run"] == str(tested)
    assert results(folder_here / "mine")["test/accuracy"] == results(tested)["test/accuracy"]


def test_the_untrained_model(run, cli, refused):
    before = results(run)
    outcome = cli("test", *FEW, "--ckpt_path=none")
    assert outcome.status == 0
    assert results(run) == before
    _, other = runs(run.parents[1])
    found = results(other)
    assert found["parent_run"] is None
    assert found["checkpoint"] is None
    assert 0 <= found["test/accuracy"] <= 1
    assert "needs --config" in refused("test", "--ckpt_path=none")


def test_a_recipe_means_its_newest_run(run, cli, folder_here):
    assert cli("fit", *FEW, ONE_EPOCH, "--model.schedule=constant").status == 0
    newest = runs(folder_here)[-1]
    Path("other.yaml").write_text("trainer:\n  max_epochs: 1\n")
    assert cli("fit", *FEW, "--config=other.yaml").status == 0
    other = runs(folder_here)[-1]
    assert other.parent.name == "imdb_probe+tiny+other"
    assert cli("test", *FEW, ONE_EPOCH, "--model.schedule=constant").status == 0
    assert "test/accuracy" in results(newest)
    assert "test/accuracy" not in results(other)
    assert cli("test", "--config", run / "config.yaml").status == 0
    assert "test/accuracy" in results(run)
    assert cli("test").status == 0
    assert "test/accuracy" in results(other)


def damaged(run, kind):
    best = run / "checkpoints" / "best.ckpt"
    good = best.read_bytes()
    if kind == "empty":
        best.write_bytes(b"")
    elif kind == "truncated":
        best.write_bytes(good[: len(good) // 2])
    elif kind == "tensor":
        torch.save({"weight": torch.ones(1)}, best)
    else:
        saved = torch.load(best, weights_only=True)
        if kind == "foreign":
            del saved["smolbench"]
        elif kind == "half signed":
            saved["smolbench"] = {}
        elif kind == "revision":
            saved["smolbench"]["signature"]["revision"] = "old"
        elif kind == "labels":
            saved["smolbench"]["signature"]["labels"] = ["a", "b"]
        elif kind == "lacking":
            saved["state_dict"].popitem()
        torch.save(saved, best)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("empty", "damaged or not a checkpoint"),
        ("truncated", "damaged or not a checkpoint"),
        ("tensor", "not a Lightning checkpoint"),
        ("foreign", "not written by smolbench"),
        ("half signed", "is of a None, not of a ProbeTask"),
        ("labels", "labels was ['a', 'b'], is ['neg', 'pos']"),
        ("revision", "revision was 'old', is "),
        ("lacking", "does not fit: missing are"),
    ],
)
def test_a_checkpoint_that_cannot_be_scored(run, refused, kind, said):
    before = results(run)
    damaged(run, kind)
    assert said in refused("test")
    assert results(run) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.max_length=128"], "max_length was 256, is 128"),
        (["--model.head=linear"], "head was 'mlp', is 'linear'"),
        (["--model.pooling=mean", "--model.anchor=null"], "pooling was 'anchor', is 'mean'"),
        (["--model.backbone=HuggingFaceTB/SmolLM2-135M"], "hf download"),
    ],
)
def test_a_checkpoint_of_another_model(run, refused, options, said):
    before = results(run)
    assert said in refused("test", *options)
    assert results(run) == before


def test_a_run_without_its_config(run, refused):
    (run / "config.yaml").write_text("model: [")
    assert "config.yaml" in refused("test")
    assert "config.yaml" in refused("test", *FEW)
    (run / "config.yaml").write_text("- 1")
    assert "config.yaml" in refused("test", *FEW)
    (run / "config.yaml").unlink()
    assert "no config.yaml" in refused("test")
    assert "config.yaml" in refused("test", *FEW)


def test_a_run_without_readable_results(run, refused):
    (run / "results.json").write_text("{")
    assert "There is no run" in refused("test")
    assert "cannot be read as JSON" in refused("test", "--run_dir", run)
    last = run / "checkpoints" / "last.ckpt"
    assert "cannot be read as JSON" in refused("fit", *FEW, TWO_EPOCHS, "--ckpt_path", last)


def test_latency_is_of_the_whole_network_and_can_be_switched_off(run, cli):
    assert cli("test", "--latency.examples=0").status == 0
    assert not [key for key in results(run) if "latency" in key]
    assert cli("test", "--latency.examples=9").status == 0
    found = results(run)
    assert found["cost/test_latency_n"] == 9
    assert 0 < found["cost/test_latency_ms_p50"] <= found["cost/test_latency_ms_p95"]
    # a head on cached features would answer hundreds of times faster than the network reads
    assert found["cost/test_latency_ms_p50"] > 0.2 * 1000 / found["cost/test_samples_per_s"]


# -- predicting -----------------------------------------------------------------------------------


def test_predict(run, cli, folder_here):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    texts = ["a wonderful film", "a terrible film, " * 40, "so so"]
    outcome = cli("predict", *(f"--text={text}" for text in texts))
    assert outcome.status == 0
    lines = [line.split("\t") for line in outcome.out.splitlines()]
    assert [text for _, _, text in lines] == texts
    assert {label for label, _, _ in lines} <= {"neg", "pos"}
    assert all(0.5 <= float(score) <= 1 for _, score, _ in lines)

    Path("texts.txt").write_text("\n".join(texts) + "\n")
    assert cli("predict", "--input=texts.txt", "--output", "labels.csv").status == 0
    written = Path("labels.csv").read_text().splitlines()
    assert len(written) == 4
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_predict_labels_a_table_and_keeps_its_columns(run, cli):
    Path("in.csv").write_text('id,review,label\n7,"good, really",pos\n8,bad,neg\n')
    options = ["--input=in.csv", "--text_column=review", "--output=out.jsonl"]
    assert cli("predict", *options).status == 0
    found = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    kept = [(row["id"], row["review"], row["input_label"]) for row in found]
    assert kept == [("7", "good, really", "pos"), ("8", "bad", "neg")]
    assert {row["label"] for row in found} <= {"neg", "pos"}


def read_jsonl(name):
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def test_predict_puts_the_untrained_model_beside_the_trained_one(run, cli):
    texts = ["--text=a wonderful film", "--text=a terrible film"]
    assert cli("predict", *texts, "--output=after.jsonl").status == 0
    untrained = ["--ckpt_path=none", *FEW]
    assert cli("predict", *texts, "--output=before.jsonl", *untrained).status == 0
    both = ["--before=none", "--output=both.jsonl"]
    # the labels are the checkpoint's, the data are not needed
    assert cli("predict", *texts, *both, "--data.source=hub").status == 0
    for row, before, after in zip(
        *map(read_jsonl, ("both.jsonl", "before.jsonl", "after.jsonl")), strict=True
    ):
        assert row["label"] == after["label"]
        assert row["score_pos"] == after["score_pos"]
        assert row["label_before"] == before["label"]
        assert row["score_pos_before"] == before["score_pos"]
    assert before["score_pos"] != after["score_pos"]


def test_predict_puts_two_runs_side_by_side(run, cli):
    other = ["--model.head=linear", "--model.dropout=0.0", ONE_EPOCH, "--run_dir=other"]
    assert cli("fit", *FEW, *other).status == 0
    text = "--text=a wonderful film"
    trainer = ["--trainer.accelerator", "cpu"]
    assert cli("predict", text, "--ckpt_path", run / "checkpoints" / "best.ckpt",
               "--before", "other", "--output=both.jsonl", *trainer).status == 0  # fmt: skip
    assert cli("predict", text, "--run_dir=other", "--output=other.jsonl").status == 0
    (both,), (alone,) = read_jsonl("both.jsonl"), read_jsonl("other.jsonl")
    assert both["score_pos_before"] == alone["score_pos"]
    assert both["score_pos"] != alone["score_pos"]
    file = Path("other/checkpoints/best.ckpt")
    assert cli("predict", text, "--before", file).out.count("\t") == 4


def test_predict_compares_models_of_the_same_labels_only(run, refused):
    checkpoint = run / "checkpoints" / "best.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["smolbench"]["signature"]["labels"] = ["bad", "good"]
    other = shutil.copytree(run, run.parent / "other")
    torch.save(content, other / "checkpoints" / "best.ckpt")
    said = refused("predict", "--text=x", "--ckpt_path", checkpoint, "--before", other)
    assert "bad, good apart and the model after neg, pos" in said


def test_predict_needs_no_data(run, cli):
    """The names of the labels stand in the checkpoint."""
    assert cli("predict", "--text=fine", "--data.source=hub").status == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--text="], "no text to predict"),
        (["--input=missing.csv"], "there is no file"),
        (["--text=x", "--text_column=y"], "--text_column y is for a table"),
        (["--text=x", "--before=nowhere"], "--before nowhere must be none, the folder of a run"),
        (["--text=x", "--before=none", "--ckpt_path=none", *FEW], "the same, untrained model"),
        (["--input=missing"], "--input missing cannot be read"),
        (["--text=x", "--output=x.txt"], "--output must end in"),
        (["--text"], "--text needs a value"),
    ],
)
def test_predict_mistakes(run, refused, options, said):
    assert said in refused("predict", *options)


# -- going on -------------------------------------------------------------------------------------

CONSTANT = "--model.schedule=constant"


@pytest.fixture(scope="module")
def constant(tmp_path_factory):
    """Runs of two and of three epochs with a constant learning rate."""
    folder = tmp_path_factory.mktemp("constant")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for epochs in (2, 3):
            options = [CONSTANT, f"--trainer.max_epochs={epochs}", f"--run_dir=epochs{epochs}"]
            assert main(["fit", *FEW, *options]) == 0
    return folder


def test_a_finished_run_ends_at_once(tested, cli):
    before = results(tested)
    saved, table = weights(tested), rows(tested)
    outcome = cli("fit", *FEW, TWO_EPOCHS, "--ckpt_path=last")
    assert outcome.status == 0
    after = results(tested)
    check_contract(after, AFTER_FIT | AFTER_TEST)
    assert after["attempts"] == 2
    assert after["status"] == "finished"
    assert after["started_at"] == before["started_at"]
    assert after["cost/fit_s"] == pytest.approx(before["cost/fit_s"], rel=0.9)
    assert after["test/accuracy"] == before["test/accuracy"]
    for key in ("val/accuracy", "best/step", "cost/cache_s", "cost/checkpoint_mib"):
        assert after[key] == before[key]
    assert rows(tested) == table
    for key, value in weights(tested).items():
        assert torch.equal(value, saved[key])


def test_more_epochs_equal_a_longer_run(constant, cli, folder_here):
    shutil.copytree(constant / "epochs2", folder_here / "run")
    assert cli("test", "--run_dir=run").status == 0
    longer = ["--run_dir=run", "--ckpt_path=last", "--trainer.max_epochs=3"]
    assert cli("fit", *FEW, CONSTANT, *longer).status == 0
    assert_equal_runs(constant / "epochs3", folder_here / "run")
    found = results(folder_here / "run")
    assert found["attempts"] == 2
    assert found["cost/fit_s"] > results(constant / "epochs2")["cost/fit_s"]
    assert not [key for key in found if key.startswith("test/")]
    assert config(folder_here / "run")["trainer"]["max_epochs"] == 3
    # with its own settings, which are the longer run's now
    assert cli("fit", "--run_dir=run", "--ckpt_path=last").status == 0
    assert_equal_runs(constant / "epochs3", folder_here / "run")


def test_a_falling_learning_rate_is_stretched_only_on_demand(run, cli, refused):
    longer = ["--trainer.max_epochs=3", "--ckpt_path=last"]
    assert "With --extend the schedule is stretched over 3 epochs" in refused("fit", *longer)
    assert len(rows(run)) == 6
    assert cli("fit", *longer, "--extend").status == 0
    assert len(rows(run)) == 9
    assert results(run)["status"] == "finished"
    assert cli("fit", "--ckpt_path=last").status == 0  # it is that long now


def test_other_settings_are_refused_with_a_list(run, refused, cli):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said = refused(
        "fit",
        *FEW,
        TWO_EPOCHS,
        "--ckpt_path=last",
        "--model.lr=0.5",
        "--data.batch_size=16",
        "--seed_everything=1",
        "--data.num_workers=1",
    )
    assert "model.lr was 0.001, is 0.5" in said
    assert "data.batch_size was 32, is 16" in said
    assert "seed_everything was 0, is 1" in said
    assert "num_workers" not in said
    assert "max_epochs was 2, is 1" in refused("fit", *FEW, ONE_EPOCH, "--ckpt_path=last")
    assert "weights only" in refused("fit", *FEW, TWO_EPOCHS, "--ckpt_path=best")
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    free = ["--data.num_workers=1", "--data.limit_test=5", "--checkpoint.every_minutes=1"]
    assert cli("fit", *FEW, TWO_EPOCHS, "--ckpt_path=last", *free).status == 0


def test_another_recipes_newer_run_is_not_meant(run, cli, folder_here):
    Path("other.yaml").write_text("model:\n  init_args:\n    dropout: 0.2\n")
    assert cli("fit", *FEW, ONE_EPOCH, "--config=other.yaml").status == 0
    other = runs(folder_here)[-1]
    assert cli("fit", *FEW, TWO_EPOCHS, "--ckpt_path=last").status == 0
    assert results(run)["attempts"] == 2
    assert results(other)["attempts"] == 1
    assert cli("fit", "--ckpt_path=last").status == 0  # without a recipe the newest of all
    assert results(other)["attempts"] == 2


def dying(hook, n):
    kill = "tests.helpers.kill.KillAt"
    return [
        f"--trainer.callbacks+={kill}",
        f"--trainer.callbacks.hook={hook}",
        f"--trainer.callbacks.n={n}",
    ]


@pytest.mark.parametrize(
    ("fraction", "hook", "n"),
    [
        ("0", "on_train_batch_end", 1),
        ("0", "on_train_batch_start", 5),
        ("0.2", "on_train_batch_start", 4),
    ],
)
def test_max_steps_resumes_exactly(cli, folder_here, fraction, hook, n):
    options = [
        *FEW,
        f"--data.val_fraction={fraction}",
        "--trainer.max_steps=5",
        "--trainer.max_epochs=-1",
        "--checkpoint.every_minutes=1e-6",
    ]
    assert cli("fit", *options, "--run_dir=whole").status == 0
    with pytest.raises(Killed):
        main(["fit", *options, *dying(hook, n), "--run_dir=parts"])
    if n == 1:
        assert not Path("parts/checkpoints/last.ckpt").exists()
    killed = config(folder_here / "parts")
    killed["trainer"]["callbacks"] = None
    Path("parts/config.yaml").write_text(yaml.safe_dump(killed))
    resumed = cli("fit", *options, "--run_dir=parts", "--ckpt_path=last")
    assert resumed.status == 0
    assert_equal_runs(folder_here / "whole", folder_here / "parts")
    assert results(folder_here / "parts")["attempts"] == 2
    assert ("starts from the beginning" in resumed.err) == (n == 1)
    assert cli("fit", *options, "--run_dir=parts", "--ckpt_path=last").status == 0
    assert_equal_runs(folder_here / "whole", folder_here / "parts")


def test_a_kill_before_the_training_begins_leaves_a_run_that_goes_on(cli, folder_here, monkeypatch):
    def kill(self):
        # what a kill would leave; an error leaves nothing
        shutil.copytree("runs", "killed")
        raise SmolbenchError("The disk is full.")

    with monkeypatch.context() as patched:
        patched.setattr(IMDbDataModule, "prepare_data", kill)
        assert cli("fit", *FEW, ONE_EPOCH).status == 2
    assert not Path("runs").exists()
    (killed,) = runs(Path("killed"))
    assert results(killed)["status"] == "running"
    assert cli("fit", *FEW, ONE_EPOCH, "--runs_dir=killed", "--ckpt_path=last").status == 0
    assert runs(Path("killed")) == [killed]
    assert (results(killed)["status"], results(killed)["attempts"]) == ("finished", 1)


def test_a_kill_leaves_running_and_a_test_does_not_hide_it(cli, folder_here):
    with pytest.raises(Killed):
        main(["fit", *FEW, TWO_EPOCHS, *dying("on_train_epoch_start", 2), "--run_dir=run"])
    # the exception of this kill is seen, as a real one would not be
    known = results(folder_here / "run") | {"status": "running"}
    Path("run/results.json").write_text(json.dumps(known))
    settings = config(folder_here / "run")
    settings["trainer"]["callbacks"] = None
    Path("run/config.yaml").write_text(yaml.safe_dump(settings))
    assert cli("test", "--run_dir=run").status == 0
    assert results(folder_here / "run")["status"] == "running"
    assert cli("fit", "--run_dir=run", "--ckpt_path=last").status == 0
    assert results(folder_here / "run")["status"] == "finished"
    assert "test/accuracy" not in results(folder_here / "run")


# -- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2])
def test_ctrl_c_finishes_the_step_and_the_run_goes_on(constant, cli, folder_here, batch):
    stop = ["--trainer.callbacks+=tests.helpers.signals.SignalAt"]
    stop.append(f"--trainer.callbacks.batch={batch}")
    options = [*FEW, CONSTANT, "--trainer.max_epochs=3", "--run_dir=run", *stop]
    outcome = cli("fit", *options)
    assert outcome.status == 130
    assert "finishing the current step" in outcome.err
    assert outcome.err.rstrip().endswith("Go on with the same command and --ckpt_path last.")
    found = results(folder_here / "run")
    assert found["status"] == "interrupted"
    assert found["cost/fit_s"] > 0
    assert cli("fit", *options, "--ckpt_path=last").status == 0
    assert results(folder_here / "run")["status"] == "finished"
    assert_equal_runs(constant / "epochs3", folder_here / "run")


def test_ctrl_c_while_data_is_prepared(monkeypatch, cli, folder_here):
    def interrupt(self):
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)  # a job in the background ignores Ctrl-C
    monkeypatch.setattr("smolbench.data.datamodule.BaseDataModule.prepare_data", interrupt)
    outcome = cli("fit", *FEW, ONE_EPOCH)
    assert outcome.status == 130
    assert "--ckpt_path last" not in outcome.err  # there is no run yet
    assert "Traceback" not in outcome.err
    assert not runs(folder_here)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_full_disk_is_a_sentence(monkeypatch, refused, folder_here):
    write = Path.write_text

    def full(self, *arguments, **options):
        if "results.json" in self.name:
            raise OSError(28, "No space left on device")
        return write(self, *arguments, **options)

    monkeypatch.setattr("pathlib.Path.write_text", full)
    said = refused("fit", *FEW, ONE_EPOCH, "--run_dir=run")
    assert "cannot be written (No space left on device)" in said
    assert "/run/" in said


@pytest.mark.slow
def test_signals_to_real_processes(constant, cli, folder_here):
    """SIGTERM to the group as a scheduler sends it; Ctrl-C twice within one step."""
    options = [*FEW, CONSTANT, "--trainer.max_epochs=3"]
    options.append("--trainer.callbacks+=tests.helpers.signals.Slow")
    # as many threads as this process has: sums depend on their number
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    processes = {}
    for name, seconds, workers in (("term", "0.3", 2), ("twice", "60", 2)):
        (folder_here / name).mkdir()
        processes[name] = Process(
            *("-m", "smolbench", "fit", *options, "--run_dir=run"),
            f"--data.num_workers={workers}",
            cwd=folder_here / name,
            env=environment | {"SLOW_S": seconds},
        )
    try:
        for name, process in processes.items():
            wait(lambda name=name: (folder_here / name / "step").exists(), process)
            os.killpg(process.pid, signal.SIGTERM if name == "term" else signal.SIGINT)
        twice = processes["twice"]  # its step takes a minute
        wait(lambda: "finishing the current step" in twice.stderr, twice)
        os.killpg(twice.pid, signal.SIGINT)
        ended = {name: process.result(timeout=50) for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
    errors = {name: done.stderr for name, done in ended.items()}
    assert ended["term"].returncode == 143, errors["term"]
    assert ended["twice"].returncode == 130, errors["twice"]
    for name in processes:
        assert errors[name].count("finishing the current step") == 1, errors[name]
        assert "Traceback" not in errors[name]
        assert results(folder_here / name / "run")["status"] == "interrupted"
    assert (folder_here / "term" / "run" / "checkpoints" / "last.ckpt").exists()
    for name in processes:
        assert cli("fit", *options, f"--run_dir={name}/run", "--ckpt_path=last").status == 0
        assert_equal_runs(constant / "epochs3", folder_here / name / "run")


def wait(condition, process, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.result().stderr
        assert time.monotonic() < end
        time.sleep(0.05)


def test_quiet_options_are_the_tests_own():
    """The helper's options are real ones: a typo in them would be found by the parser."""
    assert set(QUIET) < set(FEW)


@pytest.mark.parametrize(
    "command", [["recipes"], ["--help"], ["runs", "--json"], ["footprint", "-h"]]
)
def test_a_closed_pipe_ends_a_command_quietly(tmp_path, command):
    write_run(tmp_path / "runs" / "one")
    with subprocess.Popen(
        [sys.executable, "-m", "smolbench", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    ) as process:
        process.stdout.close()  # as `| head` does
        said = process.stderr.read()
    assert (said, process.returncode) == (b"", 0)


def test_an_error_of_a_pipe_that_is_not_ours_is_no_quiet_end(monkeypatch):
    def broken(arguments):
        raise BrokenPipeError

    monkeypatch.setattr("smolbench.runs.recipes.list_recipes", broken)
    with pytest.raises(BrokenPipeError):
        main(["recipes"])
