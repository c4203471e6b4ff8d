"""``smolbench sweep``, the command itself; it needs no torch."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from smolbench.cli.sweep.definition import define
from smolbench.cli.sweep.ledger import Ledger
from smolbench.cli.sweep.options import check_options, configurations, read_options
from smolbench.cli.sweep.process import Stop, last_words, run, size_of
from smolbench.cli.sweep.space import read_space, said
from smolbench.cli.sweep.table import Result, best_of, collect, write_tables
from smolbench.cli.sweep.trial import LOOK_S, Trials, log_of, results_of
from smolbench.errors import SmolbenchError
from smolbench.runs.run_dir import recipe_name

log = logging.getLogger("smolbench")


def sweep(arguments: Sequence[str]) -> int:
    """Run ``smolbench sweep``.

    Returns:
        The exit status: 0; 1 if trials failed or could not be tested; 130 or 143 after a signal.

    Raises:
        SmolbenchError: If an option is refused, or the sweep is not the one of its name.
    """
    options, fit = read_options(arguments)
    space = read_space(options.grid, options.range)
    check_options(options, space, fit)
    configs = configurations(fit)
    _require_optuna()
    name = options.name or recipe_name(configs)
    folder = (options.runs_dir / "sweeps" / name).resolve()
    definition = define(options, fit, configs, space, name, folder)
    metric, mode = definition["compared_by"]
    ledger = Ledger(
        folder,
        name,
        space,
        definition,
        sampler=options.sampler,
        trials=options.trials,
        seed=options.sampler_seed,
        mode=mode,
        storage=options.storage,
        prunes=options.prune,
    )
    if options.retry_failed:
        ledger.retry_failed()
    log.info("Sweep: %s, %d trials", folder, ledger.limit)
    shared = [*fit, f"--runs_dir={options.runs_dir}"]
    if options.metric is not None or options.mode is not None:  # else they are the run's own
        shared += [f"--checkpoint.monitor={metric}", f"--checkpoint.mode={mode}"]
    with Stop() as stop, ledger.usable(options.storage):

        def write() -> str:
            with ledger.locked():
                results = collect(ledger, folder)
                return write_tables(folder, name, space, results, metric, mode)

        trials = Trials(ledger, folder, shared, metric, stop, prunes=options.prune)
        _work(ledger, trials, stop, write)
        results = collect(ledger, folder)
        untested = False
        if stop.received is None and options.test != "none":
            chosen = results if options.test == "all" else best_of(results, mode)
            for result in chosen:
                untested |= not _tested(result, folder, stop)
        text = write()
    sys.stdout.write(text)
    sys.stdout.flush()
    if stop.received is not None:
        log.warning("Stopped. Go on with the same command.")
        return 128 + stop.received
    return 1 if untested or any(result.status == "failed" for result in results) else 0


def _work(ledger: Ledger, trials: Trials, stop: Stop, write: Callable[[], object]) -> None:
    """Run trials until all have an outcome, by whomever, and write the tables after each."""
    waits = False
    while stop.received is None:
        claim = ledger.claim()
        if claim is None:
            if ledger.is_done():
                return
            if not waits:
                log.info("All trials are taken: waiting for those of other workers.")
            waits = True
            stop.wait(LOOK_S)
            continue
        waits = False
        log.info("Trial %03d: %s", claim.number, said(claim.point))
        outcome = trials.run(claim)
        if outcome is None:
            continue
        write()
        if outcome.error is not None:
            log.warning("Trial %03d failed: %s", claim.number, outcome.error)
        else:
            value = "nothing" if outcome.value is None else f"{outcome.value:.4f}"
            log.info("Trial %03d %s: %s %s", claim.number, outcome.status, trials.metric, value)


def _tested(result: Result, folder: Path, stop: Stop) -> bool:
    """Score a trial's best state on test, unless that is done.

    Returns:
        Whether it is scored, or cannot be here.
    """
    if result.status != "finished" or stop.received is not None:
        return True
    run_dir = result.record.path
    if not results_of(run_dir):
        log.warning("Trial %03d ran on another machine, where it can be tested.", result.number)
        return True
    lock = FileLock(folder / ".test.lock")
    while not lock.is_locked:
        with contextlib.suppress(Timeout):  # another worker tests
            lock.acquire(timeout=LOOK_S)
        if stop.received is not None:
            lock.release()
            return True
    try:
        if "test/n" in results_of(run_dir):
            return True
        log.info("Test of trial %03d: %s", result.number, said(result.point))
        words = log_of(run_dir)
        start = size_of(words)
        status = run(["test", f"--run_dir={run_dir}"], words, stop)
        if status != 0 and stop.received is None:
            log.warning("It cannot be tested: %s", last_words(words, start))
        return status == 0
    finally:
        lock.release()


def _require_optuna() -> None:
    try:
        import optuna  # noqa: F401 # lazy: an extra
    except ImportError as error:
        raise SmolbenchError(
            f"A sweep needs Optuna ({error}): `pip install optuna` (the extra `sweep`)."
        ) from None
