"""A run and its rows through the command line: tested, resumed, taught, exported."""

from __future__ import annotations

import csv
import json
import random
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from smolbench.cli import main
from smolbench.data.kept_rows import FILE_NAME, read_kept_rows
from tests.helpers.command import QUIET, assert_equal_runs, results
from tests.helpers.kill import die

WORDS = [f"w{number}" for number in range(200)]
CLASSICAL = [
    "--config=text_files_probe",
    "--model=ClassicalTask",
    "--model.classifier=random_forest",
    "--trainer.max_epochs=1",
    "--data.train_file=data.csv",
    "--run_dir=run",
    "--latency.examples=0",
    *QUIET,
]
PROBE = [
    "fit",
    "--config=text_files_probe",
    "--model.backbone=tiny",
    "--model.warmup_steps=0",
    "--trainer.max_epochs=2",
    "--checkpoint.every_minutes=1e-6",
    "--data.train_file=data.csv",
    "--run_dir=run",
    *QUIET,
]


def read():
    with Path("data.csv").open() as file:
        return list(csv.reader(file))[1:]


def write(rows, name="data.csv"):
    with Path(name).open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *rows])


@pytest.fixture
def data(folder_here):
    """A file of labels at random, of which a forest learns what it has seen by heart."""
    draw = random.Random(0)
    write([[" ".join(draw.sample(WORDS, 8)), draw.choice(["neg", "pos"])] for _ in range(150)])
    return folder_here


@pytest.fixture
def run(data):
    assert main(["fit", *CLASSICAL]) == 0
    return data / "run"


def scored(run):
    found = results(run)
    return {key: found[key] for key in ("test/accuracy", "test/n", "data/test_digest")}


def test_a_run_is_tested_on_its_own_rows_wherever_they_stand(run, capsys):
    assert main(["test", "--run_dir=run"]) == 0
    before, revision = scored(run), results(run)["data/revision"]
    rows = read()
    random.Random(1).shuffle(rows)
    write(rows)
    assert main(["test", "--run_dir=run"]) == 0
    assert scored(run) == before
    write([["a new row", "pos"], *rows])
    assert main(["test", "--run_dir=run"]) == 0
    assert scored(run) == before
    assert results(run)["data/revision"] == revision
    assert results(run)["data/overlap"] == 0
    (line,) = results(run)["warnings"]
    assert line.endswith("30 test rows 30 are still there and used; not used: 1 new.")
    assert f"warning: {line}" in capsys.readouterr().err
    write(rows)
    assert main(["test", "--run_dir=run"]) == 0
    assert results(run)["warnings"] == []


@pytest.mark.parametrize(
    "option", ["split_seed=1", "val_fraction=0.3", "test_fraction=0.4", "test_fraction=0.1"]
)
@pytest.mark.parametrize("command", ["test", "validate"])
def test_another_split_is_refused(run, capsys, option, command):
    before = results(run)
    assert main([command, "--run_dir=run", f"--data.{option}"]) == 2
    name, _, value = option.partition("=")
    said = " ".join(capsys.readouterr().err.split())
    assert f"data.{name} was " in said
    assert f", is {value}. Under the new one it would be scored on rows that it was" in said
    assert results(run) == before
    assert [path.name for path in run.parent.iterdir() if path.is_dir()] == ["run"]


def test_untrained_models_have_no_split_of_their_own(data):
    given = [arg for arg in CLASSICAL if not arg.startswith("--run_dir")]
    assert main(["test", *given, "--ckpt_path=none", "--data.split_seed=1"]) == 0


@pytest.mark.parametrize("killed", [("on_train_batch_end", 3), ("on_train_start", 1)])
def test_a_training_goes_on_with_its_own_data_only(data, capsys, killed):
    die(PROBE, *killed)
    before, rows = results(data / "run"), read()
    write([[text, {"neg": "pos", "pos": "neg"}[label]] for text, label in rows])
    capsys.readouterr()
    assert main([*PROBE, "--ckpt_path=last"]) == 2
    assert "is not what this run has been trained on so far" in capsys.readouterr().err
    assert results(data / "run") == before
    # one that has kept its rows reads them in its own order
    write(rows[::-1] if killed[0] == "on_train_batch_end" else rows)
    assert main([*PROBE, "--ckpt_path=last"]) == 0
    assert results(data / "run")["data/revision"] == before["data/revision"]
    write(rows)
    assert main([arg.replace("dir=run", "dir=whole") for arg in PROBE]) == 0
    assert_equal_runs(data / "whole", data / "run")


def test_rows_of_another_run_are_no_record(run, capsys):
    shutil.copytree(run, "other")
    kept = read_kept_rows(run)
    shutil.copy(run / FILE_NAME, "kept")
    (run / FILE_NAME).unlink()
    assert main(["test", "--run_dir=run"]) == 2
    assert "rows.npz, which says what the run was trained on, is missing" in capsys.readouterr().err
    type(kept)(kept.val, kept.train, kept.test, kept.drawn, kept.n_all).write(run)
    assert main(["test", "--run_dir=run"]) == 2
    assert "is not that of its checkpoint" in capsys.readouterr().err
    shutil.copy("kept", run / FILE_NAME)
    assert main(["test", "--run_dir=run"]) == 0


def without_rows(run):
    """Make a run one of a version that did not keep its rows."""
    (run / FILE_NAME).unlink()
    for path in (run / "checkpoints").iterdir():
        checkpoint = torch.load(path, weights_only=True)
        del checkpoint["smolbench"]["rows"]
        torch.save(checkpoint, path)
    found = results(run)
    kept = {k: v for k, v in found.items() if not k.endswith("_rows") and k != "warnings"}
    (run / "results.json").write_text(json.dumps(kept))


def test_runs_of_earlier_versions_are_tested_and_go_on(data, capsys):
    assert main(PROBE) == 0
    assert main(["test", "--run_dir=run"]) == 0
    before = scored(data / "run")
    without_rows(data / "run")
    capsys.readouterr()
    assert main(["test", "--run_dir=run"]) == 0
    assert "did not keep its rows; its data has the revision that" in capsys.readouterr().err
    assert scored(data / "run") == before
    longer = ["--trainer.max_epochs=3", "--ckpt_path=last", "--extend"]
    rows = read()
    write([*rows, ["a new row", "pos"]])
    assert main([*PROBE, *longer]) == 2
    assert main(["test", "--run_dir=run"]) == 0
    assert "cannot be verified" in results(data / "run")["warnings"][0]
    write(rows)
    assert main([*PROBE, *longer]) == 0
    assert (data / "run" / FILE_NAME).is_file()


def test_what_stands_twice_is_said_at_fit_and_at_test(data, capsys):
    rows = read()
    write([*rows, *rows[:50], [rows[60][0], "neg"], [rows[60][0], "pos"]], "train.csv")
    write([*rows[:19], ["w1 in a row that is new", "pos"]], "test.csv")
    given = ["--data.train_file=train.csv", "--data.test_file=test.csv"]
    assert main(["fit", *CLASSICAL, *given]) == 0
    (line,) = results(data / "run")["warnings"]
    assert line == (
        "19 of 20 test rows have a text that also stands in the training rows; 52 of 202 training "
        "rows are duplicates of an earlier text; 1 training texts stand there with several labels."
    )
    captured = capsys.readouterr()
    assert line in captured.err
    assert line in captured.err
    assert main(["test", "--run_dir=run"]) == 0
    assert results(data / "run")["warnings"] == [line]
    assert line in capsys.readouterr().err
    assert [results(data / "run")[f"data/{name}"] for name in ("overlap", "duplicates")] == [19, 52]


def test_other_versions_of_libraries_are_told(run):
    found = results(run)
    (run / "results.json").write_text(json.dumps({**found, "packages/torch": "1.2.3"}))
    assert main(["test", "--run_dir=run"]) == 0
    (line,) = results(run)["warnings"]
    assert line == (
        "test: The run was trained with other versions of libraries than it is scored with: "
        f"torch was '1.2.3', is '{version('torch')}'."
    )


def test_another_test_file_is_scored_without_what_was_trained_on(run):
    rows = read()
    kept = read_kept_rows(run)
    write([["never seen", "pos"], ["nor this one", "neg"], *rows], "other.csv")
    given = [arg for arg in CLASSICAL if not arg.startswith("--run_dir")]
    best = "--ckpt_path=run/checkpoints/best.ckpt"
    assert main(["test", *given, best, "--run_dir=own", "--data.test_file=other.csv"]) == 0
    own = results(run.parent / "own")
    assert own["test/n"] == 32
    assert own["data/train_rows"] == kept.digests["data/train_rows"]
    assert "120 of 152 rows of the test set are left out" in own["warnings"][0]
