"""Change one thing at a time in modules that numbers come from, and see whether a test fails.

    python -m tests.mutants                       all modules; the table goes to the terminal
    python -m tests.mutants scoring --most 20     one of them, few mutants

The mutants are cosmic-ray's. Each runs in a fork of this process, which has imported the libraries,
against its own module's tests alone. What survives must stand in ``survivors.txt`` with a reason.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SURVIVORS = Path(__file__).with_name("survivors.txt")
LEAST = 0.85
"""Share of each module's mutants that must not survive."""
TESTS = {
    "smolbench.metrics.classification": ["tests/metrics/test_classification.py"],
    "smolbench.metrics.table": ["tests/metrics/test_table.py"],
    "smolbench.metrics.multiple_choice": ["tests/metrics/test_multiple_choice.py"],
    "smolbench.metrics.rouge": ["tests/metrics/test_rouge.py"],
    "smolbench.metrics.rouge_tokens": ["tests/metrics/test_rouge_tokens.py"],
    "smolbench.metrics.uncertainty": ["tests/metrics/test_uncertainty.py"],
    "smolbench.runs.report.significance": ["tests/runs/report/test_significance.py"],
    "smolbench.models.choice.scoring": ["tests/models/choice/test_scoring.py"],
    "smolbench.data.batching": [
        "tests/data/test_batching.py",
        # its processes are started anew, without the mutant
        "--deselect=tests/data/test_batching.py::test_a_process_ends_although_its_loader_is_still_in_use",
    ],
    "smolbench.models.pretrained.adaptation": ["tests/models/pretrained/test_adaptation.py"],
}
_LIBRARIES = [
    "torch",
    "lightning.pytorch",
    "transformers",
    "datasets",
    "pandas",
    "pyarrow",
    "scipy.stats",
    "sklearn.metrics",
    "peft",
    "rouge_score.rouge_scorer",
    "transformers.models.llama.modeling_llama",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.bert.modeling_bert",
    "pytest",
]
_SLACK_S = 60.0
_PATIENCE = 10.0
"""A mutant that takes so many times as long as the module itself, and a minute, is killed."""


@dataclass(frozen=True)
class Mutant:
    """A module with one change.

    Attributes:
        module: Its name.
        change: Its changed lines, as they were and as they are: what it is known by.
        line: Where that is, counted from 1.
        source: The whole text.
    """

    module: str
    change: str
    line: int
    source: str


@dataclass
class Outcome:
    """What became of a module's mutants."""

    made: int = 0
    tried: int = 0
    survivors: list[Mutant] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def killed(self) -> float:
        """Share of those tried."""
        return 1 - len(self.survivors) / max(self.tried, 1)


def mutants_of(module: str) -> Iterator[Mutant]:
    """All mutants that differ in what is run, each once.

    Annotations are not run here (``from __future__ import annotations``), docstrings say nothing.
    """
    from cosmic_ray.mutating import mutate_code  # the extra dev
    from cosmic_ray.plugins import get_operator, operator_names

    source = _path(module).read_text(encoding="utf-8")
    seen = {_run_part(source)}
    for name in sorted(operator_names()):
        operator = get_operator(name)
        if operator.arguments():
            continue  # those that take options replace names by made-up ones
        for occurrence in range(10**6):
            changed = mutate_code(source, operator(), occurrence)
            if changed is None:
                break
            try:
                part = _run_part(changed)
            except SyntaxError:
                continue
            if part in seen:
                continue
            seen.add(part)
            yield Mutant(module, *_change(source, changed), changed)


def _path(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def _run_part(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Name("object")
    return ast.dump(tree)


def _change(before: str, after: str) -> tuple[str, int]:
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm=""))
    line = int(lines[2].split()[1].lstrip("-").split(",")[0])
    parts = {
        sign: " ".join(one[1:].strip() for one in lines[3:] if one[0] == sign) for sign in "-+"
    }
    return f"{parts['-']}  ->  {parts['+']}", line


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a given text in place of the file's."""

    def __init__(self, mutant: Mutant) -> None:
        super().__init__(mutant.module, str(_path(mutant.module)))
        self.mutant = mutant

    def get_code(self, fullname: str) -> object:
        return compile(self.mutant.source, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self.loader = _Loader(mutant)

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name != self.loader.mutant.module:
            return None
        return importlib.util.spec_from_file_location(name, self.loader.path, loader=self.loader)


def _start(mutant: Mutant | None, tests: Sequence[str]) -> int:
    """Fork, and run tests on a mutant, or on the module as it is; returns the process's id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setpgid(0, 0)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        import pytest

        if mutant is not None:
            sys.meta_path.insert(0, _Finder(mutant))
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly"]
        status = int(pytest.main([*options, *tests]))
    finally:
        os._exit(status)  # a mutant that cannot be imported is killed, too
    return 0


def _ended(pid: int, deadline: float) -> bool | None:
    """Whether the tests have passed; ``None`` while they run."""
    found, status = os.waitpid(pid, os.WNOHANG)
    if found:
        return os.waitstatus_to_exitcode(status) == 0
    if time.monotonic() < deadline:
        return None
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def _run(mutants: Sequence[Mutant], tests: Sequence[str], jobs: int, most_s: float) -> list[Mutant]:
    """Those that survive."""
    waiting, survivors = list(mutants), []
    running: dict[int, tuple[Mutant, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop(0)
            running[_start(mutant, tests)] = (mutant, time.monotonic() + most_s)
        for pid, (mutant, deadline) in list(running.items()):
            passed = _ended(pid, deadline)
            if passed is not None:
                del running[pid]
                if passed:
                    survivors.append(mutant)
        time.sleep(0.02)
    return sorted(survivors, key=lambda one: one.line)


def try_module(module: str, most: int, jobs: int) -> Outcome:
    """Try a module's mutants; of too many, those that come first by a digest of their change."""
    began = time.monotonic()
    (survived,) = _run([Mutant(module, "", 0, _path(module).read_text())], TESTS[module], 1, 600.0)
    alone = time.monotonic() - began
    assert survived, "the tests must pass"
    made = list(mutants_of(module))
    chosen = sorted(made, key=lambda one: hashlib.sha256(one.source.encode()).digest())[:most]
    chosen.sort(key=lambda one: one.line)
    survivors = _run(chosen, TESTS[module], jobs, _SLACK_S + _PATIENCE * alone)
    return Outcome(len(made), len(chosen), survivors, time.monotonic() - began)


def reasons() -> dict[tuple[str, str], str]:
    """Why mutants may survive, by module and change."""
    known = {}
    module = ""
    lines = SURVIVORS.read_text(encoding="utf-8").splitlines()
    for line in lines:
        if line.startswith("["):
            module = line.strip("[]")
        elif "  ->  " in line:
            change, _, reason = line.partition("  #  ")
            known[module, change.strip()] = reason.strip()
    return known


def main() -> int:
    """Run, print the table and what has no reason to survive."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("modules", nargs="*", help="ends of their names; all if none is given")
    options.add_argument("--most", type=int, default=150, help="mutants of a module")
    options.add_argument("--jobs", type=int, default=2)
    asked = options.parse_args()
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in _LIBRARIES:
        importlib.import_module(name)
    loaded = [name for name in sys.modules if name.split(".")[0] == "smolbench"]
    assert not loaded, "a mutant would not be imported"
    known, wrong = reasons(), 0
    print("| module | mutants | tried | killed | minutes |\n| --- | --- | --- | --- | --- |")
    for module in TESTS:
        if asked.modules and not any(module.endswith(name) for name in asked.modules):
            continue
        found = try_module(module, asked.most, asked.jobs)
        print(
            f"| `{module}` | {found.made} | {found.tried} | {found.killed:.1%} | "
            f"{found.seconds / 60:.1f} |",
            flush=True,
        )
        bare = [one for one in found.survivors if (module, one.change) not in known]
        for one in bare:
            print(f"    line {one.line}:  {one.change}", flush=True)
        wrong += bool(bare) or found.killed < LEAST
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
