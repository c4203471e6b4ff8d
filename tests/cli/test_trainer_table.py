"""docs/trainer.md: each of its lines holds, and it has all that Lightning has."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import lightning.pytorch.callbacks
import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from smolbench.cli import main
from tests.helpers.command import results, weights

TABLE = Path(__file__).parents[2] / "docs" / "trainer.md"
FIT = ["fit", "--config=imdb_probe", "--config=tiny", "--trainer.accelerator=cpu"]
FIT += ["--data.val_fraction=0.1", "--data.limit_train=60", "--data.limit_val=20"]
FIT += ["--trainer.enable_progress_bar=false", "--latency.examples=0", "--model.warmup_steps=0"]
TUNE = ["fit", "--config=imdb_lora_smollm2-135m", *FIT[2:], "--model.max_length=24"]
TUNE += ["--data.batch_size=20"]
STOP = "trainer: {callbacks: [{class_path: EarlyStopping, init_args: "
STOP += "{monitor: val/loss, stopping_threshold: 100}}]}"
WITH = {  # beside the option: what it is about
    **{name: [f"--config={STOP}"] for name in ("min_epochs", "min_steps")},
    **{name: ["--trainer.max_epochs=100000"] for name in ("max_time", "Timer")},
    "EarlyStopping": ["--trainer.max_epochs=3"],
}


def lines(title: str) -> list[tuple[str, str, str]]:
    """The rows of a table: name, what becomes of it, what is tried."""
    text = TABLE.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    found = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [(name.strip("`"), here, tried) for name, here, tried in found[2:]]


def options(title: str, name: str, tried: str) -> list[str]:
    """What is typed to try a line."""
    values = re.findall(r"`([^`]+)`", tried)
    more = [word for value in values if value.startswith("--") for word in value.split()]
    values = [value for value in values if not value.startswith("--")]
    if title == "Options":
        return [f"--trainer.{name}={values[0]}", *more]
    init = yaml.safe_load("{" + values[0] + "}") if values else {}
    one = {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": init}
    Path("callback.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [one]}}))
    return ["--config=callback.yaml", *more]


CASES = [
    pytest.param(title, *line, id=f"{line[0]}-{line[2].replace('`', '')}")
    for title in ("Options", "Callbacks")
    for line in lines(title)
    if line[0] != "callbacks"
]


def test_all_that_lightning_has_is_there():
    signature = list(inspect.signature(Trainer.__init__).parameters)[1:]
    assert {name for name, *_ in lines("Options")} == set(signature)
    assert {n for n, *_ in lines("Callbacks")} == set(lightning.pytorch.callbacks.__all__)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The weights of a fit that has none of the options but those that one is about."""
    known: dict[tuple[str, ...], dict[str, torch.Tensor]] = {}

    def trained(fit: list[str], *more: str) -> dict[str, torch.Tensor]:
        if (key := (*fit, *more)) not in known:
            folder = tmp_path_factory.mktemp("plain") / "run"
            assert main([*fit, "--trainer.max_epochs=2", *more, f"--run_dir={folder}"]) == 0
            known[key] = weights(folder)
        return known[key]

    return trained


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


@pytest.mark.parametrize(("title", "name", "here", "tried"), CASES)
def test_a_line_holds(folder_here, capsys, monkeypatch, plain, title, name, here, tried):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    about = WITH.get(name, []) if not here.startswith("refused") else []
    for config in (x for x in about if x.startswith("--config=trainer")):
        Path("about.yaml").write_text(config.partition("=")[2])
    about = ["--config=about.yaml" if x.startswith("--config=trainer") else x for x in about]
    typed = options(title, name, tried)
    status = main([*FIT, "--trainer.max_epochs=2", *about, *typed, "--run_dir=run"])
    said = capsys.readouterr()
    if here.startswith("refused, because "):
        assert status == 2
        last = said.err.strip().splitlines()[-1]
        assert last.startswith("smolbench: error: ")
        assert last.endswith(".")
        assert name in last
        assert not Path("run/results.json").exists(), "nothing was begun"
        return
    assert status == 0, said.err
    if name == "fast_dev_run":
        assert not Path("run").exists()
        return
    assert results(Path("run"))["status"] == "finished"
    beside = about if name.startswith("min_") else []
    if name == "EarlyStopping":
        beside = about
    before = plain(FIT, *(x for x in beside if not x.startswith("--trainer.max_time")))
    if here.startswith("no effect on the weights"):
        assert same(before, weights(Path("run")))
    else:
        assert here.startswith("works")
        assert not same(before, weights(Path("run"))), "it has an effect"


def test_a_fine_tuning_is_not_touched_either(folder_here, plain):
    """By all options and callbacks at once that have no effect on the weights."""
    typed, callbacks = [], []
    for title in ("Options", "Callbacks"):
        for name, here, tried in lines(title):
            if not here.startswith("no effect on the weights") or name.endswith("ProgressBar"):
                continue
            given = options(title, name, tried)
            typed += [x for x in given if not x.startswith("--config")]
            if title == "Callbacks":
                one = yaml.safe_load(Path("callback.yaml").read_text())
                callbacks += one["trainer"]["callbacks"]
    Path("all.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    more = [*typed, "--trainer.max_epochs=2", "--config=all.yaml", "--run_dir=run"]
    assert main([*TUNE, *more]) == 0
    assert same(plain(TUNE), weights(Path("run")))
