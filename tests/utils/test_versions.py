"""What is installed, what may be, and what was tried."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from smolbench.cli import main
from smolbench.utils import versions
from smolbench.utils.versions import NEWEST_TRIED, untried

ROOT = Path(__file__).parents[2]
LINES = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINS = [Requirement(line) for line in LINES if not line.startswith("#")]
LOCK = {pin.name: Version(str(pin.specifier).removeprefix("==")) for pin in PINS}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DIRECT = [
    Requirement(one)
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for one in group
]


@pytest.fixture
def installed(monkeypatch):
    """Say which versions are installed; others are not."""

    def install(**packages: str) -> None:
        def version(name: str) -> str:
            if name not in packages:
                raise PackageNotFoundError(name)
            return packages[name]

        monkeypatch.setattr(versions, "version", version)

    return install


def test_the_lock_is_for_every_machine():
    assert len(LOCK) == len(PINS), "one version of each, whatever the system and the interpreter"
    # `2.13.0+cpu` would be a build for one kind of machine; pip refuses extras in constraints
    assert [str(pin) for pin in PINS if not re.fullmatch(r"==[\w.]+", str(pin.specifier))] == []
    assert [str(pin) for pin in PINS if pin.extras or pin.url] == []


def test_the_lock_keeps_to_what_is_published():
    """Else pyproject.toml has changed since: `make lock`."""
    locked = {str(one): LOCK.get(canonicalize_name(one.name)) for one in DIRECT}
    assert None not in locked.values(), locked
    assert [one for one in DIRECT if locked[str(one)] not in one.specifier] == []


def test_every_lowest_version_is_named():
    """`make test-oldest` installs them."""
    done = subprocess.run(
        [sys.executable, ".ci/oldest.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lowest = [Requirement(line) for line in done.stdout.splitlines()]
    assert {one.name for one in lowest} == {one.name for one in DIRECT}
    for one in lowest:
        (version,) = {str(spec.version) for spec in one.specifier}
        assert all(version in other.specifier for other in DIRECT if other.name == one.name)


@pytest.mark.parametrize("name", NEWEST_TRIED)
def test_the_lock_is_no_newer_than_what_counts_as_tried(name):
    assert LOCK[name].release[:2] <= NEWEST_TRIED[name]


def test_what_was_tried_is_taken_without_a_word(installed):
    installed(**{name: f"{major}.{minor}.9" for name, (major, minor) in NEWEST_TRIED.items()})
    assert untried() is None
    installed(transformers="5.9.0", datasets="5.2.0.dev0")
    assert untried() is None, "numbers are compared, not letters"
    installed(transformers="unknown")
    assert untried() is None


def test_what_is_newer_is_told_in_one_line(installed, monkeypatch):
    monkeypatch.setattr(versions, "NEWEST_TRIED", {"transformers": (5, 24), "datasets": (5, 2)})
    installed(transformers="5.25.0rc1", datasets="5.2.7")
    said = untried()
    assert "transformers 5.25.0rc1 (tried: up to 5.24)" in said
    assert said.endswith('pip install "transformers<5.25"')
    installed(transformers="6.0", datasets="5.10")
    said = untried()
    assert "6.0 (tried: up to 5.24), datasets 5.10 (" in said
    assert said.endswith('pip install "transformers<5.25" "datasets<5.3"')
    assert "\n" not in said


@pytest.mark.parametrize(
    ("command", "count"),
    [
        ("fit --config imdb_probe --config tiny --trainer.no_such 1", 1),
        ("test --config imdb_probe --ckpt_path none --model.no_such 1", 1),
        ("fit --config imdb_probe --print_config", 0),  # nothing would be run
        ("export run taken", 1),
        ("runs", 0),
    ],
)
def test_commands_tell_it_once(command, count, folder_here, installed, capsys):
    for file in ("run/results.json", "run/checkpoints/best.ckpt", "taken/file"):
        (folder_here / file).parent.mkdir(parents=True, exist_ok=True)
        (folder_here / file).write_text("{}")
    installed(transformers="999.0")
    main(command.split())
    assert capsys.readouterr().err.count("transformers 999.0") == count
