"""A sweep whose trials are scripts: they take no time, and do what their settings say.

``python -m tests.helpers.fake_sweep --grid fake.lr=1,2 ...`` is ``smolbench sweep`` with them.
Every start of a trial adds a line to ``starts.txt``. ``--fake.do`` is ``fail``, ``die`` (killed on
its first attempt), ``die_always``, ``die_anew`` (like ``die``, of a task that cannot be gone on
with), ``slow`` (10 s unless it was begun before) or ``no_metric``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import smolbench.cli.sweep.definition
import smolbench.cli.sweep.process
from smolbench.cli import main
from smolbench.cli.sweep.check import Checked
from smolbench.runs.results import write_results

CURVE = [0.3, 0.4, 0.5]


def stand_in() -> None:
    """Let sweeps of this process run scripts, and take any settings."""
    smolbench.cli.sweep.process.SMOLBENCH = [sys.executable, "-m", "tests.helpers.fake_sweep"]
    smolbench.cli.sweep.definition.check = lambda settings: [
        Checked("val/accuracy", "max", validates=True) for _ in settings
    ]


def _trial(subcommand: str, options: dict[str, str]) -> int:
    run_dir = Path(options["run_dir"])
    value = float(options.get("fake.lr", "0")) / 10
    facts = {"status": "finished", "val/accuracy": value, "attempts": 1}
    if subcommand == "test":
        facts = json.loads((run_dir / "results.json").read_text())
        write_results(run_dir, {**facts, "test/accuracy": facts["val/accuracy"], "test/n": 10})
        return 0
    resumes = options.get("ckpt_path") == "last"
    with Path("starts.txt").open("a") as file:
        file.write(f"{run_dir.name} {'again' if resumes else 'new'} {os.getpid()}\n")
    if resumes != (run_dir / "results.json").is_file():
        return 2
    what = options.get("fake.do", "")
    if what == "fail":
        sys.stderr.write("usage: ...\nsmolbench: error: There is no such thing.\n")
        return 2

    def stop(*_: object) -> None:
        write_results(run_dir, {"status": "interrupted"})
        sys.exit(143)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    write_results(run_dir, {"status": "running", "resumable": what != "die_anew"})
    if what == "die_anew" and Path("starts.txt").read_text().count(run_dir.name) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "die_always" or (what == "die" and not resumes):
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "slow" and not resumes:
        time.sleep(10)
    for step in range(len(CURVE)):
        rows = "".join(f"{i},{value * point}\n" for i, point in enumerate(CURVE[: step + 1]))
        (run_dir / "metrics.csv").write_text(f"step,val/accuracy\n{rows}")
        time.sleep(float(options.get("fake.seconds", "0")))
    facts |= {"cost/fit_s": 2.0, "cost/rss_delta_mib": 1.5, "val/f1_macro": value}
    if what == "no_metric":
        del facts["val/accuracy"]
    write_results(run_dir, facts)
    return 0


if __name__ == "__main__":
    if sys.argv[1] in ("fit", "test"):
        given = (argument.removeprefix("--").partition("=") for argument in sys.argv[2:])
        sys.exit(_trial(sys.argv[1], {name: value for name, _, value in given}))
    stand_in()
    sys.exit(main(["sweep", "--config=imdb_probe", *sys.argv[1:]]))
