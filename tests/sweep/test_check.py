"""What a sweep refuses before its first trial, by the settings that ``smolbench fit`` takes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from smolbench.cli import main
from smolbench.sweep.check import Checked, _check_here, check
from tests.helpers.command import FEW


@pytest.fixture
def in_process(folder_here, monkeypatch):
    """Torch is here already: no process is needed to import it."""

    def here(settings):
        return [x if isinstance(x, str) else Checked(**x) for x in _check_here(settings)]

    monkeypatch.setattr("smolbench.sweep.definition.check", here)


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ("model.nope=1", "model.nope=1 is refused by `smolbench fit`: Option 'nope' is not"),
        ("nope.x=1", "nope.x=1 is refused by `smolbench fit`: Unrecognized arguments"),
        ("model.lr=1e-3,abc", "model.lr=abc is refused by `smolbench fit`: Expected a <class 'fl"),
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
    assert "This recipe is refused by `smolbench fit`: Option 'nope'" in capsys.readouterr().err


def test_there_must_be_rows_to_compare_by(in_process, capsys):
    assert main(["sweep", "--config=imdb_probe", "--config=tiny", "--grid=model.lr=1e-3"]) == 2
    assert "data.val_fraction is 0" in capsys.readouterr().err


def test_what_cannot_be_trained_is_not_swept(in_process, capsys):
    recipe = "--config=imdb_zero_shot_smollm2-135m"
    assert main(["sweep", recipe, "--config=tiny", "--grid=model.max_length=64,128"]) == 2
    assert "PromptTask has nothing to train" in capsys.readouterr().err


@pytest.mark.slow
def test_in_a_process_of_its_own(folder_here, monkeypatch):
    found = check([FEW, [*FEW, "--model.lr=abc"]])
    assert found == [Checked("val/accuracy", "max", validates=True), found[1]]
    assert "abc" in found[1]

    def broken(*args, **kwargs):
        return subprocess.CompletedProcess(args, 1, "", "Traceback ...\nImportError: no torch\n")

    monkeypatch.setattr(subprocess, "run", broken)
    with pytest.raises(Exception, match="cannot be checked: ImportError: no torch"):
        check([FEW])
