"""A sweep of real trainings."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smolbench.cli import main
from tests.helpers.command import FEW, assert_equal_runs, config, results

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_killed_and_gone_on_it_ends_as_if_it_never_was(folder_here, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    slow = [*FEW, "--trainer.max_epochs=2", "--trainer.callbacks=tests.helpers.signals.Slow"]
    sweep = [*slow, "--grid=model.lr=1e-3,3e-3", "--metric=val/f1_macro"]
    command = [sys.executable, "-m", "smolbench", "sweep", *sweep]
    first = subprocess.Popen(command, env={**os.environ, "SLOW_S": "2"})
    begun = time.monotonic()
    while not Path("step").exists():
        assert time.monotonic() - begun < 120
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    folder = Path("runs/sweeps/imdb_probe+tiny")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    trials = sorted(path for path in (folder / "trials").iterdir() if path.is_dir())
    assert [path.name for path in trials] == ["000_lr=1e-3", "001_lr=3e-3"]
    assert results(trials[0])["attempts"] == 2
    assert [config(trial)["model"]["init_args"]["lr"] for trial in trials] == [1e-3, 3e-3]
    assert config(trials[0])["checkpoint"]["monitor"] == "val/f1_macro"

    with (folder / "results.csv").open(newline="") as file:
        rows = {row["model.lr"]: row for row in csv.DictReader(file)}
    for lr, trial in zip(("1e-3", "3e-3"), trials, strict=True):
        said = results(trial)
        assert said["status"] == "finished"
        for key in ("val/f1_macro", "val/accuracy", "cost/rss_delta_mib"):
            assert float(rows[lr][key]) == said[key]
    tested = [row for row in rows.values() if row["test/accuracy"]]
    assert len(tested) == 1
    assert float(tested[0]["val/f1_macro"]) == max(float(r["val/f1_macro"]) for r in rows.values())

    alone = ["fit", *slow, "--checkpoint.monitor=val/f1_macro", "--model.lr=1e-3"]
    # a process with as many threads
    subprocess.run([*command[:3], *alone, "--run_dir=alone"], check=True, capture_output=True)
    assert_equal_runs(Path("alone"), trials[0])
    assert main(["report"]) == 0
    assert main(["runs"]) == 0
