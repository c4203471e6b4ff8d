"""One trial: ``smolbench fit`` in a process of its own, gone on with as often as it is killed."""

from __future__ import annotations

import csv
import logging
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smolbench.cli.sweep.ledger import BEAT_S, Claim, Ledger, Outcome
from smolbench.cli.sweep.process import Stop, end, is_alive, last_words, run, size_of
from smolbench.cli.sweep.space import slug
from smolbench.errors import SmolbenchError
from smolbench.runs.record import RunRecord, finite
from smolbench.runs.results import FILE_NAME, Results, read_results

log = logging.getLogger("smolbench")

MOST_KILLS = 3
"""Kills by anybody else after which a trial has failed; memory that is too small kills always."""
LOOK_S = 2.0
_KEPT = ("val/", "best/", "test/", "cost/", "data/n_", "model/")


class Trials:
    """Runs what a worker claims.

    Args:
        ledger: The sweep's storage.
        folder: The sweep's folder; runs go to ``trials/`` in it.
        arguments: Everything behind ``smolbench fit`` that all trials have.
        metric: What trials are compared by.
        stop: The signals that end the sweep.
        prunes: Whether trials that are worse than the median are stopped.
    """

    def __init__(
        self,
        ledger: Ledger,
        folder: Path,
        arguments: Sequence[str],
        metric: str,
        stop: Stop,
        *,
        prunes: bool,
    ) -> None:
        self.ledger = ledger
        self.folder = folder
        self.arguments = list(arguments)
        self.metric = metric
        self.stop = stop
        self.prunes = prunes

    def run(self, claim: Claim) -> Outcome | None:
        """Run a trial to its end.

        Returns:
            How it ended; ``None`` if the sweep is to stop, or another worker has taken the trial.
        """
        run_dir = self.folder / "trials" / f"{claim.number:03}_{slug(claim.point)}"
        if not self._wait_for_earlier(claim):
            self.ledger.give_back(claim)
            return None
        watch = _Watch(self, claim, run_dir)
        for _ in range(MOST_KILLS):
            if (done := self._finished(run_dir)) is not None:
                return self._enter(claim, done)
            words = log_of(run_dir)
            start = size_of(words)
            status = run(
                self._command(claim, run_dir),
                words,
                self.stop,
                started=lambda process: self.ledger.note_process(claim, process),
                meanwhile=watch,
            )
            if watch.lost:
                log.warning("Trial %03d was taken over by another worker.", claim.number)
                return None
            done = self._finished(run_dir)
            if done is None and watch.pruned:
                done = self._outcome("pruned", run_dir)
            if done is None and self.stop.received is not None:
                self.ledger.give_back(claim)
                return None
            if done is None and not _was_killed(status):
                done = self._outcome("failed", run_dir, last_words(words, start))
            if done is not None:
                return self._enter(claim, done)
            log.warning("Trial %03d was killed (exit status %d).", claim.number, status)
        sentence = f"It was killed {MOST_KILLS} times; perhaps there is not enough memory."
        return self._enter(claim, self._outcome("failed", run_dir, sentence))

    def _enter(self, claim: Claim, outcome: Outcome) -> Outcome | None:
        return outcome if self.ledger.finish(claim, outcome) else None

    def _wait_for_earlier(self, claim: Claim) -> bool:
        """Wait for the process of a worker that was killed; it stops by itself, or ends its run.

        Returns:
            Whether it has ended; ``False`` if the sweep is to stop before.
        """
        said = False
        while any(is_alive(process) for process in claim.before):
            if not said:
                log.info("Trial %03d still runs without its sweep: waiting for it.", claim.number)
            said = True
            self.ledger.beat(claim)
            self.stop.wait(LOOK_S)
            if self.stop.received is not None:
                return False
        return True

    def _command(self, claim: Claim, run_dir: Path) -> list[str]:
        swept = [f"--{name}={text}" for name, text in claim.point.items()]
        if results_of(run_dir).get("resumable") is False:  # fitted in one step
            shutil.rmtree(run_dir)
        begun = (run_dir / FILE_NAME).is_file()
        on = ["--ckpt_path=last"] if begun else []
        return ["fit", *self.arguments, *swept, f"--run_dir={run_dir}", *on]

    def _finished(self, run_dir: Path) -> Outcome | None:
        """The outcome of a run that has finished, else ``None``."""
        results = results_of(run_dir)
        if results.get("status") != "finished":
            return None
        if finite(results.get(self.metric)) is not None:
            return self._outcome("finished", run_dir)
        known = sorted(k for k in results if k.startswith("val/") and finite(results[k]))
        sentence = f"Its results have no {self.metric}, but {', '.join(known) or 'no val/ metric'}."
        return self._outcome("failed", run_dir, sentence)

    def _outcome(self, status: Any, run_dir: Path, error: str | None = None) -> Outcome:  # noqa: ANN401
        results = results_of(run_dir)
        facts = {key: value for key, value in results.items() if key.startswith(_KEPT)}
        short = {key: value for key, value in facts.items() if not isinstance(value, list | dict)}
        value = finite(results.get(self.metric)) if status != "failed" else None
        return Outcome(status, value, str(run_dir.relative_to(self.folder)), short, error)


class _Watch:
    """What a worker does while a trial trains: it gives signs of life and may prune."""

    def __init__(self, trials: Trials, claim: Claim, run_dir: Path) -> None:
        self._trials = trials
        self._claim = claim
        self._metrics = run_dir / "metrics.csv"
        self._next_beat = 0.0
        self._next_look = time.monotonic() + LOOK_S
        self._reported = 0
        self.lost = False
        self.pruned = False

    def __call__(self, process: subprocess.Popen[bytes]) -> None:
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + BEAT_S
            if not self.lost and not self._alive():
                self.lost = True
                end(process)
        if self._trials.prunes and now >= self._next_look and not (self.pruned or self.lost):
            self._next_look = now + LOOK_S
            self._look(process)

    def _alive(self) -> bool:
        try:
            return self._trials.ledger.beat(self._claim)
        except Exception as error:  # of a database that is away for a while, of any kind
            log.warning("No sign of life could be given (%s).", " ".join(str(error).split())[:200])
            return True

    def _look(self, process: subprocess.Popen[bytes]) -> None:
        values = validations(self._metrics, self._trials.metric)
        for step in range(self._reported, len(values)):
            self._claim.trial.report(values[step], step)
        self._reported = max(self._reported, len(values))
        if values and self._claim.trial.should_prune():
            self.pruned = True
            end(process)


def validations(metrics: Path, metric: str) -> list[float]:
    """A metric's values after each validation of a run that may be going on."""
    try:
        with metrics.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError:
        return []
    found = []
    for row in rows:
        try:
            found.append(float(row.get(metric) or ""))
        except ValueError:  # a row of training, or one that is being written
            continue
    return found


def log_of(run_dir: Path) -> Path:
    """The file beside a trial's run folder that its output goes to."""
    return run_dir.with_name(f"{run_dir.name}.log")


def results_of(run_dir: Path) -> Results:
    """What a run's results say; nothing if it has none."""
    try:
        return read_results(run_dir)
    except SmolbenchError:
        return {}


def record_of(folder: Path, outcome: Outcome) -> RunRecord:
    """A trial as reports see it: its run folder, or what was entered of it elsewhere."""
    run_dir = folder / outcome.run
    return RunRecord(run_dir, results_of(run_dir) or dict(outcome.facts))


def _was_killed(status: int) -> bool:
    """Whether a signal ended a command, be it that it had time to save."""
    return status < 0 or status in (128 + signal.SIGINT, 128 + signal.SIGTERM)
