"""How long the command line takes to start, beside the import of Lightning that it cannot avoid.

python benchmarks/startup.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from harness import (
    Side,
    alternate,
    at_most,
    difference,
    machine,
    measure,
    option_parser,
    readable_errors,
    say,
    write_results,
)

ADDED_S = 0.3
"""Seconds that smolbench may add to the import of Lightning."""
INSTANT_S = 0.3
"""Seconds in which what needs no Lightning must have answered."""

LIGHTNING = "import lightning.pytorch"
SMOLBENCH = (sys.executable, "-m", "smolbench")
COMMANDS: dict[str, tuple[str, ...]] = {
    LIGHTNING: (sys.executable, "-c", LIGHTNING),
    "fit --print_config": (*SMOLBENCH, "fit", "--config", "imdb_probe", "--print_config"),
    "--help": (*SMOLBENCH, "--help"),
    "--version": (*SMOLBENCH, "--version"),
    "recipes": (*SMOLBENCH, "recipes"),
}
BYTECODE_KEPT = {"PYTHONDONTWRITEBYTECODE": ""}
"""As installed: where the variable is set, a checkout, unlike Lightning, would be compiled anew."""


def main() -> None:
    """Measure and write the result."""
    parser = option_parser(__doc__, rounds=9, downloads=False)
    options = parser.parse_args()
    where = machine()
    for command in COMMANDS.values():  # files read once, bytecode compiled
        measure(command, BYTECODE_KEPT)
    rounds = alternate({name: _side(name) for name in COMMANDS}, options.rounds)
    wall = {name: [one.seconds for one in all_] for name, all_ in rounds.items()}
    cpu = {name: [one.cpu_seconds for one in all_] for name, all_ in rounds.items()}
    fit = "fit --print_config"
    findings = [
        at_most(
            f"`{fit}` minus `{LIGHTNING}`, wall time",
            difference(wall[fit], wall[LIGHTNING]),
            ADDED_S,
            unit=" s",
        ),
        at_most(
            f"`{fit}` minus `{LIGHTNING}`, processor time",
            difference(cpu[fit], cpu[LIGHTNING]),
            ADDED_S,
            unit=" s",
        ),
    ]
    findings += [
        at_most(
            f"`{name}`, wall time",
            difference(wall[name], [0.0] * options.rounds),
            INSTANT_S,
            unit=" s",
        )
        for name in ("--help", "--version", "recipes")
    ]
    path = write_results(
        "startup",
        title="Start of the command line",
        setting={"recipe": "imdb_probe", "rounds": options.rounds},
        findings=findings,
        rounds=rounds,
        where=where,
        notes=["On a busy machine, processor time says more than wall time."],
    )
    say(f"Written: {path}")


def _side(name: str) -> Side:
    command: Sequence[str] = COMMANDS[name]
    return lambda _: {name: measure(command, BYTECODE_KEPT)}


if __name__ == "__main__":
    with readable_errors():
        main()
