"""What options are read as, and the one sentence that says what is wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Union, get_args

import pytest
from lightning.pytorch import Trainer

from smolbench.cli import main
from smolbench.cli.option_parser import OptionParser, tell_counts_from_shares

OPTIONS = ("limit_val_batches", "overfit_batches", "val_check_interval")


@pytest.mark.parametrize("first", [int, float])
def test_one_is_a_batch_and_one_point_nought_is_all(monkeypatch, first):
    """Whichever of the two equal types was made first in this process."""
    (second,) = {int, float} - {first}
    annotations = Trainer.__init__.__annotations__
    for name in OPTIONS:
        rest = [part for part in get_args(annotations[name]) if part not in (int, float)]
        monkeypatch.setitem(annotations, name, Union[(first, second, *rest)])
    before = dict(annotations)
    tell_counts_from_shares()
    assert annotations == before  # types of other order are equal
    parser = OptionParser()
    parser.add_class_arguments(Trainer, "trainer")
    for name in OPTIONS:
        for typed, meant in (("1", 1), ("1.0", 1.0), ("0.5", 0.5), ("20", 20)):
            found = getattr(parser.parse_args([f"--trainer.{name}={typed}"]).trainer, name)
            assert (found, type(found)) == (meant, type(meant)), (name, typed)


STOP = "--trainer.callbacks+=EarlyStopping"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--seed_everything=abc", "seed_everything must be true, false or a whole number, but is"),
        (
            "--trainer.max_epochs=",
            "trainer.max_epochs must be a whole number or null, but is empty",
        ),
        ("--trainer.num_nodes=x", "trainer.num_nodes must be a whole number, but is x"),
        ("--trainer.gradient_clip_val=x", "must be a number or null, but is x"),
        ("--trainer.precision=foo", "bf16-mixed, 32-true, 64-true, bf16 or null, but is foo"),
        ("--trainer.devices=abc", "should be an int > 0"),
        ("--trainer=abc", "trainer is abc, but holds options"),
        ("--checkpoint.every_minutes=", "every_minutes must be a number, but is empty"),
        ("--latency=3", "latency is 3, but holds options"),
        ("--extend=abc", "--extend takes no value, but was given abc"),
        ("--run_dir=", "--run_dir needs a value"),
        ("--trainer.max_epochs", "--trainer.max_epochs needs a value"),
        ("abc", "abc stands by itself"),
        ("--batch_size=3", "did you mean --data.batch_size?"),
        ("--data.limit_train=abc", "data.limit_train must be a whole number or null, but is abc"),
        ("--data.batch_size=null", "data.batch_size is null, which it cannot be"),
        ("--model.lr=null", "model.lr is null, which it cannot be"),
        ("--model.lrr=1", "There is no option model.lrr (did you mean model.lr?)"),
        ("--model=PrbeTask", "There is no class PrbeTask for model (did you mean ProbeTask"),
        ("--data=json.JSONDecoder", "data is json.JSONDecoder, which is no LightningDataModule"),
        ("--data=nomodule.Foo", "data is nomodule.Foo: No module named 'nomodule'"),
        (STOP, "trainer.callbacks.monitor must be given"),
        (f"{STOP} --trainer.callbacks.monitor=x --trainer.callbacks.patience=y", "patience must"),
        ("--trainer.logger=true --trainer.logger.name=3", "trainer.logger is a class: name that"),
        ("trainer: 7", "must hold options below trainer, but there is 7"),
        ("model:", "must hold options below model, but there is nothing"),
        ("data: {init_args: }", "must hold options below data.init_args, but there is nothing"),
        ("model: {init_args: {lr: abc}}", "model.lr must be a number, but is abc"),
        ("trainer: {callbacks: 3}", "trainer.callbacks must be a list, a Callback class or null"),
    ],
)
def test_what_is_wrong_with_an_option_is_one_sentence(folder_here, capsys, options, sentence):
    if not options.startswith("-") and ":" in options:
        Path("own.yaml").write_text(options)
        options = "--config=own.yaml"
    assert main(["fit", "--config=imdb_probe", "--config=tiny", *options.split()]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("smolbench: error: ")
    assert sentence in line
    assert "class '" not in line
    assert not Path("runs").exists()
