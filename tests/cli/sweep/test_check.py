"""What a sweep refuses before its first trial, by the settings that ``smolbench fit`` takes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from smolbench.cli import main
from smolbench.cli.sweep.check import Checked, _check_here, _checked, check
from tests.helpers.command import FEW, QUIET, results


@pytest.fixture
def in_process(folder_here, monkeypatch):
    """Torch is here already: no process is needed to import it."""

    def here(settings):
        return [x if isinstance(x, str) else _checked(x) for x in _check_here(settings)]

    monkeypatch.setattr("smolbench.cli.sweep.definition.check", here)


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        (
            "model.nope=1",
            "model.nope=1 is refused by `smolbench fit`: There is no option model.nope",
        ),
        ("nope.x=1", "nope.x=1 is refused by `smolbench fit`: There is no option"),
        (
            "model.lr=1e-3,abc",
            "model.lr=abc is refused by `smolbench fit`: model.lr must be a number, but is abc",
        ),
        ("trainer.max_epochs=x", "trainer.max_epochs=x is refused"),
        ("seed_everything=0,a", "seed_everything=a is refused"),
        ("model.pooling=anchor,odd", "model.pooling=odd is refused"),
        ("data.batch_size=8,-3", "data.batch_size=-3 is refused by `smolbench fit`: data.batch_s"),
    ],
)
def test_a_key_or_value_that_does_not_exist(in_process, capsys, grid, sentence):
    assert main(["sweep", *FEW, "--grid", grid]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence.lower() in said.lower()
    assert not Path("runs").exists(), "nothing was made"


def test_what_the_recipe_is_refused_for_is_no_fault_of_a_value(in_process, capsys):
    assert main(["sweep", *FEW, "--model.nope=1", "--grid", "model.lr=1e-3,1e-4"]) == 2
    assert (
        "This recipe is refused by `smolbench fit`: There is no option model.nope"
        in capsys.readouterr().err
    )


def test_there_must_be_rows_to_compare_by(in_process, capsys):
    assert main(["sweep", "--config=imdb_probe", "--config=tiny", "--grid=model.lr=1e-3"]) == 2
    assert "data.val_fraction is 0" in capsys.readouterr().err


def test_the_datasets_own_validation_rows_will_do(in_process, tmp_path):
    for name in ("train", "val"):
        rows = [f"text {name} {n},{'good' if n % 2 else 'bad'}\n" for n in range(20)]
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(rows))
    files = [f"--data.{name}_file={tmp_path / name}.csv" for name in ("train", "val")]
    recipe = ["--config=text_files_probe", "--config=tiny", "--data.source=files", *files]
    recipe += ["--data.val_fraction=0", f"--data.cache_dir={tmp_path}", *QUIET]
    (found,) = (_checked(one) for one in _check_here([recipe]))
    assert found.validates


def test_a_metric_that_no_validation_measures(in_process, capsys):
    sweep = ["sweep", *FEW, "--grid=model.lr=1e-3", "--metric=val/acuracy"]
    assert main(sweep) == 2
    said = capsys.readouterr().err
    assert "does not measure val/acuracy, but val/accuracy, val/f1_macro, val/loss" in said
    assert not Path("runs").exists()


def test_rouge_of_different_words_is_not_compared(in_process, capsys):
    recipe = ["--config=samsum_flan-t5-base", "--config=tiny"]
    grid = "--grid=model.rouge_tokenizer=rouge_score,unicode"
    assert main(["sweep", *recipe, grid, "--metric=val/rouge1"]) == 2
    assert "each tokenizer counts other words" in capsys.readouterr().err


@pytest.mark.parametrize(
    "recipe", ["imdb_probe", "samsum_flan-t5-base", "hellaswag_lora_smollm2-135m"]
)
def test_the_names_are_those_that_a_validation_logs(in_process, folder_here, recipe):
    few = [f"--data.limit_{split}=12" for split in ("train", "val", "test")]
    share = [] if "samsum" in recipe else ["--data.val_fraction=0.2"]
    arguments = [f"--config={recipe}", "--config=tiny", *share, *few, *QUIET]
    (found,) = (_checked(one) for one in _check_here([arguments]))
    assert main(["fit", *arguments, "--trainer.max_epochs=1", "--run_dir=run"]) == 0
    logged = {name for name in results(Path("run")) if name.startswith("val/")}
    assert set(found.metrics) <= logged
    assert found.monitor in found.metrics


def test_what_cannot_be_trained_is_not_swept(in_process, capsys):
    recipe = "--config=imdb_zero_shot_smollm2-135m"
    assert main(["sweep", recipe, "--config=tiny", "--grid=model.max_length=64,128"]) == 2
    assert "PromptTask has nothing to train" in capsys.readouterr().err


@pytest.mark.slow
def test_in_a_process_of_its_own(folder_here, monkeypatch):
    found = check([FEW, [*FEW, "--model.lr=abc"]])
    metrics = ("val/accuracy", "val/f1_macro", "val/loss")
    assert found == [Checked("val/accuracy", "max", True, metrics), found[1]]
    assert "abc" in found[1]

    def broken(*args, **kwargs):
        return subprocess.CompletedProcess(args, 1, "", "Traceback ...\nImportError: no torch\n")

    monkeypatch.setattr(subprocess, "run", broken)
    with pytest.raises(Exception, match="cannot be checked: ImportError: no torch"):
        check([FEW])


@pytest.mark.parametrize(
    ("option", "metric"), [([], "val/f1_macro"), (["--data.positive_label=bad"], "val/f1")]
)
def test_own_files_are_compared_by_f1(in_process, tmp_path, option, metric):
    rows = [f"text {n},{'good' if n % 2 else 'bad'}\n" for n in range(40)]
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(rows))
    recipe = ["--config=text_files_probe", "--config=tiny", "--data.source=files", *QUIET]
    recipe += [f"--data.train_file={tmp_path}/train.csv", f"--data.cache_dir={tmp_path}", *option]
    (found,) = [_checked(one) for one in _check_here([recipe])]
    assert (found.monitor, found.mode) == (metric, "max")
    assert metric in found.metrics
