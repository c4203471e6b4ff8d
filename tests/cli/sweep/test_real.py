"""A sweep of real trainings."""

from __future__ import annotations

import csv
import os
import signal
import time
from pathlib import Path

import pytest

from smolbench.cli import main
from tests.helpers.command import FEW, assert_equal_runs, config, results
from tests.helpers.processes import Process

# the settings are checked by a process that imports all; the trials are forked
SWEEP = """
import os, sys
import smolbench.cli.sweep.process
from smolbench.cli import main
from tests.helpers.fork_server import ADDRESS, PYTHON
if ADDRESS in os.environ:
    smolbench.cli.sweep.process.SMOLBENCH = [*PYTHON, "-m", "smolbench"]
sys.exit(main(["sweep", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_killed_and_gone_on_it_ends_as_if_it_never_was(folder_here):
    slow = [*FEW, "--trainer.max_epochs=2", "--trainer.callbacks=tests.helpers.signals.Slow"]
    sweep = [*slow, "--grid=model.lr=1e-3,3e-3", "--metric=val/f1_macro"]
    command = ["-c", SWEEP, *sweep]
    first = Process(*command, env={**os.environ, "SLOW_S": "2"})
    begun = time.monotonic()
    while not Path("step").exists():
        assert time.monotonic() - begun < 120
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    assert first.result().returncode == -signal.SIGKILL
    folder = Path("runs/sweeps/imdb_probe+tiny")
    done = Process(*command).result()
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
    done = Process("-m", "smolbench", *alone, "--run_dir=alone").result()
    assert done.returncode == 0, done.stderr
    assert_equal_runs(Path("alone"), trials[0])
    assert main(["report"]) == 0
    assert main(["runs"]) == 0
