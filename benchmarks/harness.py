"""What all benchmarks share: sides in turn, each in a fresh process, ratios with their spread.

Plain Python and small on purpose: Linux counts the memory of the process that starts another one
into the peak of the one started, so nothing large may be imported here.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "torch",
    "lightning",
    "transformers",
    "accelerate",
    "lm_eval",
    "tokenizers",
    "datasets",
    "pyarrow",
)
HUB_TIMEOUT_S = 10.0
LINES_SHOWN = 15
"""Last lines of a failed side's output that are shown."""


class BenchmarkError(Exception):
    """Why there is nothing to measure, as a sentence."""


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


@dataclass(frozen=True)
class Spread:
    """The median of some values, and their smallest and largest."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up values, of which there must be one at least."""
        if not values:
            raise ValueError("There are no values to sum up.")
        return cls(statistics.median(values), min(values), max(values), len(values))

    def shown(self, digits: int = 2, unit: str = "") -> str:
        """As it stands in a table: ``12.30x (11.90 to 12.80)``."""
        median = f"{self.median:,.{digits}f}{unit}"
        if self.n == 1:
            return f"{median} (one round)"
        return f"{median} ({self.low:,.{digits}f} to {self.high:,.{digits}f})"


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """The ratio of two sides, round by round, so that what slows a whole round cancels out.

    Raises:
        ValueError: If the sides have another number of rounds, or something took no time.
    """
    _check_rounds(above, below)
    if min(below) <= 0:
        raise ValueError("A ratio to nothing is not defined.")
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


def difference(left: Sequence[float], right: Sequence[float]) -> Spread:
    """The difference of two sides, round by round.

    Raises:
        ValueError: If the sides have another number of rounds.
    """
    _check_rounds(left, right)
    return Spread.of([a - b for a, b in zip(left, right, strict=True)])


def _check_rounds(left: Sequence[float], right: Sequence[float]) -> None:
    if len(left) != len(right) or not left:
        raise ValueError(f"Sides of {len(left)} and {len(right)} rounds cannot be compared.")


Verdict = Literal["", "reached", "reached by the median only", "missed"]


@dataclass(frozen=True)
class Finding:
    """One line of the result: what was found and, if there is one, its target.

    Attributes:
        what: What is compared, in words.
        value: Ratio, difference or size.
        target: What is to be reached, such as ``at least 12x``; empty if nothing is.
        verdict: Whether it was; empty without a target.
    """

    what: str
    value: str
    target: str = ""
    verdict: Verdict = ""


def at_least(what: str, spread: Spread, bound: float, *, digits: int = 1) -> Finding:
    """A ratio that must not be smaller; reached if no round misses it."""
    verdict: Verdict = "missed"
    if spread.median >= bound:
        verdict = "reached" if spread.low >= bound else "reached by the median only"
    return Finding(what, spread.shown(digits, "x"), f"at least {bound:g}x", verdict)


def at_most(
    what: str, spread: Spread, bound: float, *, digits: int = 2, unit: str = "x"
) -> Finding:
    """A ratio, or another number, that must not be larger; reached if no round misses it."""
    verdict: Verdict = "missed"
    if spread.median <= bound:
        verdict = "reached" if spread.high <= bound else "reached by the median only"
    return Finding(what, spread.shown(digits, unit), f"at most {bound:g}{unit}", verdict)


# -- running --------------------------------------------------------------------------------------

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


def require_hub() -> None:
    """Stop with a sentence where the Hub cannot be reached.

    Raises:
        BenchmarkError: If it does not answer.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(f"{endpoint}/api/models?limit=1", timeout=HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # it answers
    except (OSError, ValueError) as error:
        raise BenchmarkError(
            f"The Hugging Face Hub ({endpoint}) cannot be reached, and this benchmark takes its"
            f" model and data from there: run it where there is a network ({error})."
        ) from error


def require_packages(*names: str) -> None:
    """Stop with a sentence where a peer is not installed.

    Raises:
        BenchmarkError: With what to install.
    """
    missing = []
    for name in names:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise BenchmarkError(
            f"{' and '.join(missing)} must be installed for this benchmark: run"
            ' `pip install -e ".[bench]"`.'
        )


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """Say why a benchmark could not be run, without a traceback; exit status 2."""
    try:
        yield
    except BenchmarkError as error:
        _stop(f"benchmark: error: {error}", 2)
    except KeyboardInterrupt:
        _stop("benchmark: stopped by Ctrl-C.", 130)


def _stop(sentence: str, status: int) -> NoReturn:
    sys.stderr.write(sentence + "\n")
    raise SystemExit(status)


def say(line: str) -> None:
    """Tell the user how far it is; results go to files."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def positive(text: str) -> int:
    """An option's value that counts something.

    Raises:
        argparse.ArgumentTypeError: If it is no whole number above 0.
    """
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


# -- writing --------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Where it was measured, and how busy that was before."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of what does the work."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit() -> str:
    """Commit of this checkout, marked if it has changes."""
    # what a benchmark writes does not change what it measures
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*"]
    try:
        name = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--", ".", ":!benchmarks/results"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.strip() + ("-dirty" if changes.strip() else "")


def write_results(
    name: str,
    *,
    title: str,
    setting: Mapping[str, Any],
    findings: Sequence[Finding],
    rounds: Mapping[str, Sequence[Measured]],
    where: Mapping[str, Any],
    notes: Sequence[str] = (),
    folder: Path = RESULTS,
) -> Path:
    """Write ``<name>.md``, for readers, and ``<name>.json``, with every single measurement.

    Args:
        name: The benchmark's name.
        title: What was measured, in one sentence.
        setting: What was run: model, data, options.
        findings: Ratios and other results.
        rounds: Everything that was measured.
        where: What :func:`machine` said before the first round.
        notes: Sentences that a reader needs.
        folder: Where to write; made where missing.

    Returns:
        The Markdown file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "name": name,
        "title": title,
        "command": shlex.join(["python", f"benchmarks/{name}.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "machine": dict(where),
        "versions": versions(),
        "setting": dict(setting),
        "notes": list(notes),
        "findings": [asdict(finding) for finding in findings],
        "rounds": {side: [asdict(one) for one in all_] for side, all_ in rounds.items()},
    }
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path = folder / f"{name}.md"
    path.write_text(_markdown(record, rounds), encoding="utf-8")
    return path


def _markdown(record: Mapping[str, Any], rounds: Mapping[str, Sequence[Measured]]) -> str:
    where = record["machine"]
    lines = [f"# {record['title']}", ""]
    lines += [
        f"`{record['command']}`, {record['date']}, commit {record['commit']}.",
        "",
        f"{where['processor']}, {where['cores']} cores ({where['threads']} threads),"
        f" {where['memory_gib']} GiB, {where['system']}; load before: {where['load_before']}.",
        ", ".join(f"{name} {version}" for name, version in record["versions"].items()) + ".",
        "",
        *table(["setting", ""], [[k, str(v)] for k, v in record["setting"].items()]),
        "",
        "Medians over the rounds, smallest and largest in brackets; ratios are taken within a"
        " round.",
        "",
    ]
    lines += table(
        ["what", "measured", "to reach", ""],
        [[f[key] for key in ("what", "value", "target", "verdict")] for f in record["findings"]],
    )
    lines += [""]
    lines += table(
        ["side", "wall time, s", "processor time, s", "peak resident memory, MiB", "rounds"],
        [
            [
                side,
                Spread.of([one.seconds for one in all_]).shown(),
                Spread.of([one.cpu_seconds for one in all_]).shown(),
                Spread.of([one.peak_rss_mib for one in all_]).shown(0),
                str(len(all_)),
            ]
            for side, all_ in rounds.items()
        ],
    )
    if record["notes"]:
        lines += ["", *(f"- {note}" for note in record["notes"])]
    return "\n".join(lines) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    cells = [[cell.replace("|", r"\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|" + " --- |" * len(head), *lines[1:]]
