"""Calling the command line in process, on the tiny model and a few sample rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch
import yaml

QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
# the same rows everywhere, so that the frozen pass runs once per session
FEW = [
    "--config=imdb_probe",
    "--config=tiny",
    "--data.limit_train=64",
    "--data.limit_val=30",
    "--data.limit_test=40",
    "--data.val_fraction=0.2",
    "--model.warmup_steps=0",
    "--trainer.log_every_n_steps=1",
    *QUIET,
]
ONE_EPOCH = "--trainer.max_epochs=1"


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def config(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    file = run / "checkpoints" / f"{name}.ckpt"
    return torch.load(file, weights_only=True)["state_dict"]


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def runs(folder: Path) -> list[Path]:
    """Run folders below ``folder``, in the order they were made."""
    found = [path.parent for path in folder.rglob("results.json")]
    return sorted(found, key=lambda run: (run / "config.yaml").stat().st_mtime_ns)


def assert_equal_runs(expected: Path, found: Path) -> None:
    for name in ("last", "best"):
        before, after = weights(expected, name), weights(found, name)
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert torch.equal(value, after[key]), f"{name}: {key}"
    assert rows(expected) == rows(found)
