"""Options that hold text take what was typed, whatever YAML would make of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import smolbench.data
import smolbench.tasks  # noqa: F401 - their options are looked at
from smolbench.cli import main
from smolbench.cli.text_options import as_given, marked, read_yaml, text_options

SPECIAL = [
    "no", "yes", "on", "off", "y", "n", "true", "False", "1", "0", "-1.5", "1e-4", "0x1f", "1_000",
    ".5", ".inf", ".nan", "2020-01-01", "12:30", "a: b", "a:", "{text}", "[a, b]", "- a", "# a",
    "a # b", "&a", "*a", "!a", "|", ">", "%a", "@a", "\"a\"", "'a'", "a\nb: c", " a ", "?", ": a",
]  # fmt: skip
NULL = ["null", "~", ""]


def typed(name: str, value: str, section: str = "model") -> object:
    """What the option parser reads of an option."""
    (argument,) = marked([f"--{section}.{name}={value}"])
    return as_given(read_yaml(argument.partition("=")[2]))


@pytest.mark.parametrize("value", SPECIAL)
def test_every_option_of_text_takes_what_was_typed(value):
    for name, kind in text_options().items():
        if kind != "dict[str, str] | None":
            assert typed(name, value) == value, name
            assert marked([f"--data.{name}", value]) == [
                f"--data.{name}",
                marked([f"--data.{name}={value}"])[0].partition("=")[2],
            ]


@pytest.mark.parametrize("value", NULL)
def test_null_is_text_only_where_there_must_be_one(value):
    assert typed("text_column", value, "data") == value
    assert typed("positive_label", value, "data") in (None, "")


@pytest.mark.parametrize("value", [one for one in SPECIAL if ":" not in one and "\n" not in one])
def test_in_a_configuration_as_well(value):
    if value[0] not in "{[-#&*!|>%@\"' ?" and " #" not in value:
        text = f"data:\n  init_args:\n    text_column: {value}\n    batch_size: 8\n"
        assert read_yaml(text)["data"]["init_args"] == {"text_column": value, "batch_size": 8}


def test_words_of_labels():
    expected = {"neg": "no", "pos": "yes", "0": "1"}
    assert typed("label_words", "{neg: no, pos: yes, 0: 1}") == expected
    config = "fit:\n  model:\n    label_words:\n      neg: no\n      pos: yes\n      0: 1\n"
    assert read_yaml(config)["fit"]["model"]["label_words"] == expected


def test_all_other_options_are_yaml():
    config = {"trainer": {"max_epochs": 3, "logger": False}, "model": {"lr": 1e-4, "dropout": 0.5}}
    assert read_yaml(yaml.safe_dump(config)) == config
    assert marked(["--model.lr", "1e-4", "--trainer.logger=false"]) == [
        "--model.lr",
        "1e-4",
        "--trainer.logger=false",
    ]
    assert read_yaml("1e-4") == 1e-4
    assert read_yaml("") is None
    assert read_yaml("setup: null\nteardown: null\n") == {"setup": None, "teardown": None}
    assert [read_yaml(one) for one in ("{text}", "a:", "{a, b}")] == ["{text}", "a:", "{a, b}"]


FEW = ["--config=imdb_probe", "--config=tiny", "--model.pooling=mean", "--model.anchor=null"]
FEW += ["--trainer.max_epochs=1", "--data.limit_train=40", "--data.limit_val=8", "--run_dir=run"]
FEW += ["--latency.examples=0", "--model.warmup_steps=0", "--trainer.enable_progress_bar=false"]


@pytest.mark.parametrize("template", ["Review: {text}", "Answer yes or no: {text}\nLabel:"])
def test_a_template_with_a_colon(folder_here, template):
    assert main(["fit", *FEW, "--model.template", template]) == 0
    settings = yaml.safe_load(Path("run/config.yaml").read_text())
    assert settings["model"]["init_args"]["template"] == template
    assert main(["test", "--run_dir=run"]) == 0, "the run's own configuration is read alike"


def test_no_template_is_a_sentence(folder_here, capsys):
    assert main(["fit", *FEW, "--model.template", "null"]) == 2
    assert "model.template is null, which it cannot be" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["typed", "configured"])
def test_a_class_of_the_users_that_is_not_imported_yet(folder_here, monkeypatch, how):
    """The second option's name is no option of any class of smolbench's."""
    module = f"own_text_{how}"
    Path(f"{module}.py").write_text(
        "from smolbench.tasks import ProbeTask\n\n\nclass Noted(ProbeTask):\n"
        f"    def __init__(self, {module}: str = '', **options):\n"
        "        super().__init__(**options)\n"
    )
    monkeypatch.syspath_prepend(".")
    Path("own.yaml").write_text(f"model:\n  class_path: {module}.Noted\n")
    named = ["--config=own.yaml"] if how == "configured" else ["--model", f"{module}.Noted"]
    *_, option = marked([*named, f"--model.{module}=1e3"])
    assert as_given(read_yaml(option.partition("=")[2])) == "1e3"
    text = f"model:\n  class_path: {module}.Noted\n  init_args:\n    {module}: 1e3\n"
    assert read_yaml(text)["model"]["init_args"] == {module: "1e3"}


def test_what_cannot_be_imported_is_left_to_the_option_parser(folder_here):
    Path("damaged.yaml").write_bytes(b"class_path: \xff")
    given = ["--config", "damaged.yaml", "--config=absent.yaml", "--model=no.such.Class", "--data"]
    assert marked(given) == given
