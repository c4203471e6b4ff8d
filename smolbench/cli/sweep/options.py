"""The options of ``smolbench sweep``; all others are those of ``smolbench fit``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from smolbench.cli.sweep.space import Space
from smolbench.errors import SmolbenchError
from smolbench.runs.recipes import in_place_of, resolve_config

_SETTLED = ("--ckpt_path", "--run_dir", "--extend", "--estimate", "--print_config")
_DESCRIPTION = """\
Run one recipe under many settings and compare what comes out. Every trial is `smolbench fit` in a
process and a run folder of its own. All options that are not listed here are those of `smolbench
fit`, such as --config RECIPE, and the same for all trials.

  smolbench sweep --config RECIPE --grid model.lr=5e-5,1e-4 --grid data.batch_size=8,16
  smolbench sweep --config RECIPE --grid seed_everything=0,1,2 --grid data.limit_train=100,1000
  smolbench sweep --config RECIPE --range model.lr=1e-5:1e-3:log --sampler tpe --trials 20

The same command goes on with a sweep that was stopped or killed; called several times at once, also
on several machines that share the folder of all runs, its workers share the trials.
"""


def read_options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of a sweep, and those of its trials."""
    parser = argparse.ArgumentParser(
        "smolbench sweep",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="smolbench sweep --config RECIPE --grid KEY=VALUE,VALUE [--grid ...] [options]",
    )
    add = parser.add_argument
    add("--grid", action="append", default=[], metavar="KEY=A,B", help="values of any option")
    add(
        "--range",
        action="append",
        default=[],
        metavar="KEY=LOW:HIGH[:log]",
        help="numbers between two, for the samplers random and tpe",
    )
    add(
        "--sampler",
        choices=("grid", "random", "tpe"),
        default="grid",
        help="grid: every combination; random: --trials of them; tpe: those that promise most in "
        "the light of all results so far (grid)",
    )
    add("--trials", type=_count, metavar="N", help="number of trials, for random and tpe")
    add("--sampler_seed", type=int, default=0, metavar="N", help="seed of random and tpe (0)")
    add("--metric", metavar="KEY", help="what to compare by, such as val/f1_macro; it also decides "
        "about each run's best checkpoint (the task's own)")  # fmt: skip
    add("--mode", choices=("max", "min"), help="whether it should rise (max; min for a loss)")
    add("--prune", action="store_true", help="stop trials that are worse than the median")
    add("--test", choices=("best", "all", "none"), default="best", help="which trials to score on "
        "test at the end; best: the best combination, under all its seeds (best)")  # fmt: skip
    add("--retry_failed", action="store_true", help="run failed trials once more")
    add("--name", help="name of the sweep (that of the recipe)")
    add("--storage", metavar="URL", help="Optuna's storage: a database, such as "
        "sqlite:///sweeps.db, or a journal file (journal.log in the sweep's folder)")  # fmt: skip
    add("--runs_dir", type=_path, default=Path("runs"), help="folder of all runs (runs)")
    return parser.parse_known_args(arguments)


def check_options(options: argparse.Namespace, space: Space, fit: list[str]) -> None:
    """Refuse what does not go together.

    Args:
        options: Those of the sweep.
        space: What is swept.
        fit: Those of its trials.

    Raises:
        SmolbenchError: Saying what.
    """
    sampler = options.sampler
    if sampler == "grid" and space.size is None:
        raise SmolbenchError(
            "A --range has no end of values: add --sampler random or tpe and --trials N, or give "
            "the values with --grid."
        )
    if sampler == "grid" and options.trials is not None:
        raise SmolbenchError("--trials is for --sampler random and tpe; a grid is run as a whole.")
    if sampler != "grid" and options.trials is None:
        raise SmolbenchError(f"--sampler {sampler} needs --trials N.")
    if options.name is not None and not re.fullmatch(r"[\w+-][\w.+-]*", options.name):
        raise SmolbenchError(
            f"--name {options.name} names a folder: use letters, digits, '.', '_', '+' and '-'."
        )
    given = {argument.partition("=")[0] for argument in fit}
    for name in _SETTLED:
        if name in given:
            raise SmolbenchError(f"{name} cannot be given to a sweep, which sees to it itself.")
    for key in space.keys:
        if f"--{key}" in _SETTLED or key in ("config", "runs_dir"):
            raise SmolbenchError(f"{key} cannot be swept.")
        if f"--{key}" in given:
            raise SmolbenchError(f"{key} is swept and given as --{key}, too: leave one out.")
    if "--config" not in given and "-c" not in given:
        raise SmolbenchError(
            "smolbench sweep needs --config RECIPE; `smolbench recipes` lists them."
        )


def configurations(arguments: list[str]) -> list[Path]:
    """The files that ``--config`` names.

    Raises:
        SmolbenchError: If there is no such file or recipe.
    """
    found: list[Path] = []
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if option in ("--config", "-c"):
            path = resolve_config(value if equals else next(rest, ""))
            found.append(in_place_of(path, found))
    return found


def _count(given: str) -> int:
    number = int(given) if given.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{given} is no number of trials: give 1 or more")
    return number


def _path(given: str) -> Path:
    return Path(given).expanduser()
