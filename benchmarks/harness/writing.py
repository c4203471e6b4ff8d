"""The files of a result: what was measured, where, and of which versions."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.comparing import Finding, Spread
from harness.running import ROOT, Measured

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
