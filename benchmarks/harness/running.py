"""Sides in turn, each in a fresh process that is measured from outside."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.starting import BenchmarkError, say

ROOT = Path(__file__).resolve().parents[2]
LINES_SHOWN = 15
"""Last lines of a failed side's output that are shown."""


@dataclass(frozen=True)
class Measured:
    """One run of one side.

    Attributes:
        seconds: Wall time of the process, from its start to its end.
        cpu_seconds: Its processor time, user and system, with that of the processes it waited for.
        peak_rss_mib: Its largest resident memory; of it and its children, the largest one's.
        facts: What the side says about itself.
    """

    seconds: float
    cpu_seconds: float
    peak_rss_mib: float
    facts: dict[str, Any] = field(default_factory=dict)


Side = Callable[[int], Mapping[str, Measured]]
"""Runs one side in one round; returns what was measured, under one name or several."""


def alternate(sides: Mapping[str, Side], rounds: int) -> dict[str, list[Measured]]:
    """Run all sides in turn, the other way round in every second round.

    A machine that gets slower over time slows the side that always comes second.

    Returns:
        For each name, what was measured in each round.
    """
    found: dict[str, list[Measured]] = {}
    order = list(sides)
    for number in range(rounds):
        for name in order if number % 2 == 0 else reversed(order):
            say(f"round {number + 1} of {rounds}: {name} ...")
            for what, measured in sides[name](number).items():
                found.setdefault(what, []).append(measured)
                say(f"    {what}: {measured.seconds:.1f} s, {measured.peak_rss_mib:,.0f} MiB")
    return found


def measure(
    command: Sequence[str | Path], env: Mapping[str, str] | None = None, report: Path | None = None
) -> Measured:
    """Run a command in a process of its own and measure it from outside.

    Args:
        command: Program and arguments.
        env: Environment variables to change.
        report: Where the command writes facts about itself, as a JSON object.

    Raises:
        BenchmarkError: If the command fails; with the end of what it printed.
    """
    arguments = [str(part) for part in command]
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": _import_path(), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            output.seek(0)
            said = output.read().decode(errors="replace").strip().splitlines()
            raise BenchmarkError(
                f"`{shlex.join(arguments)}` ended with status {process.returncode}:\n"
                + "\n".join(said[-LINES_SHOWN:])
            )
    facts = json.loads(report.read_text(encoding="utf-8")) if report is not None else {}
    return Measured(
        seconds, usage.ru_utime + usage.ru_stime, _mib(usage.ru_maxrss, platform.system()), facts
    )


def _import_path() -> str:
    """This checkout's smolbench first, whichever one is installed."""
    before = os.environ.get("PYTHONPATH")
    return str(ROOT) if not before else f"{ROOT}{os.pathsep}{before}"


def _mib(max_rss: int, system: str) -> float:
    """``ru_maxrss`` in MiB: macOS counts bytes, Linux KiB."""
    return max_rss / 1024**2 if system == "Darwin" else max_rss / 1024
