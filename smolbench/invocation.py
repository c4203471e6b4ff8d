"""What a command line asks for, settled before anything heavy is imported.

Recipes are found by name, and ``--ckpt_path last|best|none|PATH`` becomes a run and a file. All of
it works in any later process: only the run folders are looked at.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from smolbench.errors import SmolbenchError
from smolbench.recipes import resolve_config
from smolbench.runs.run_dir import CheckpointName, Run, find_runs, recipe_name, run_of

Subcommand = Literal["fit", "validate", "test", "predict"]
SUBCOMMANDS: tuple[Subcommand, ...] = ("fit", "validate", "test", "predict")


@dataclass
class Invocation:
    """One call of ``smolbench fit | validate | test | predict``.

    Attributes:
        subcommand: Which of them.
        argv: Arguments for LightningCLI: recipes as paths, the checkpoint as a path.
        recipe: Name of what is run.
        runs_dir: Folder of all runs.
        run_dir: Folder that this command was told to write to.
        run: The run that is resumed or scored, if there is one.
        checkpoint: Its checkpoint; ``None`` for a fresh start or an untrained model.
        untrained: Whether the untrained model was asked for.
        missing: Why there is no checkpoint, for tasks that need one.
        extend: Whether a resumed run may go on for longer than its schedule was made for.
        texts: Texts to predict, from ``--text``.
        input: File of texts to predict, one per line; ``-`` is standard input.
        output: File that predictions are written to.
    """

    subcommand: Subcommand
    argv: list[str]
    recipe: str = "custom"
    runs_dir: Path = Path("runs")
    run_dir: Path | None = None
    run: Run | None = None
    checkpoint: Path | None = None
    untrained: bool = False
    missing: str | None = None
    extend: bool = False
    texts: list[str] = field(default_factory=list)
    input: str | None = None
    output: Path | None = None

    @property
    def resumes(self) -> bool:
        """Whether a training run goes on."""
        return self.subcommand == "fit" and self.run is not None


def read_invocation(subcommand: Subcommand, arguments: list[str]) -> Invocation:
    """Understand a command line.

    Args:
        subcommand: What to do.
        arguments: Everything behind the subcommand.

    Raises:
        SmolbenchError: If a recipe, run or checkpoint does not exist.
    """
    known, _ = _own_parser().parse_known_args(arguments)
    call = Invocation(
        subcommand,
        argv=_rewritten(arguments),
        runs_dir=Path(known.runs_dir).expanduser().absolute(),
        run_dir=Path(known.run_dir).expanduser().absolute() if known.run_dir else None,
        extend=known.extend,
        texts=known.text,
        input=known.input,
        output=known.output,
    )
    configs = [resolve_config(given) for given in known.config]
    if configs:
        call.recipe = recipe_name(configs)
    if not _only_shown(arguments):
        _settle_checkpoint(call, known.ckpt_path, named=bool(configs))
        if not configs and call.run is not None:
            _check_own_config(call.run)
            call.recipe = recipe_name([call.run.config])
            call.argv = ["--config", str(call.run.config), *call.argv]
        elif not configs and "--model" not in " ".join(arguments):
            raise SmolbenchError(
                call.missing
                or f"smolbench {subcommand} needs --config RECIPE; `smolbench recipes` lists them."
            )
    if call.checkpoint is not None:
        call.argv += ["--ckpt_path", str(call.checkpoint)]
    call.argv = [subcommand, *call.argv]
    return call


def _own_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    parser.add_argument("--ckpt_path")
    parser.add_argument("--run_dir")
    parser.add_argument("--runs_dir", default="runs")
    parser.add_argument("--extend", action="store_true")
    parser.add_argument("--text", action="append", default=[])
    parser.add_argument("--input")
    parser.add_argument("--output", type=Path)
    return parser


_SETTLED = {"--ckpt_path", "--run_dir", "--runs_dir", "--text", "--input", "--output"}


def _rewritten(arguments: list[str]) -> list[str]:
    """The arguments with recipes as paths, in their order, less the options settled here."""
    kept: list[str] = []
    position = 0
    while position < len(arguments):
        name, _, value = arguments[position].partition("=")
        takes_next = name in _SETTLED | {"-c", "--config"} and "=" not in arguments[position]
        if takes_next:
            if position + 1 >= len(arguments):
                raise SmolbenchError(f"{name} needs a value.")
            value = arguments[position + 1]
        if name in {"-c", "--config"}:
            kept += ["--config", str(resolve_config(value))]
        elif name not in _SETTLED and name != "--extend":
            kept.append(arguments[position])
        position += 2 if takes_next else 1
    return kept


def _only_shown(arguments: list[str]) -> bool:
    """Whether the command only prints help or its configuration."""
    shown = ("--help", "-h", "--print_config", "--model.help", "--data.help")
    return any(argument.startswith(shown) for argument in arguments)


def _settle_checkpoint(call: Invocation, asked: str | None, *, named: bool) -> None:
    """Find the run and the file that ``--ckpt_path`` stands for."""
    training = call.subcommand == "fit"
    if asked == "none" or (asked is None and training):
        call.untrained = not training
        if training and call.run_dir is not None and (call.run_dir / "results.json").exists():
            raise SmolbenchError(
                f"{call.run_dir} holds a run already: go on with it by --ckpt_path last, or name "
                "another --run_dir."
            )
        return
    if asked not in (None, "last", "best"):
        call.checkpoint = Path(cast("str", asked)).expanduser().absolute()
        if not call.checkpoint.is_file():
            raise SmolbenchError(f"There is no checkpoint {call.checkpoint}.")
        call.run = run_of(call.checkpoint)
        if training and call.run is None:
            raise SmolbenchError(
                f"{call.checkpoint} does not lie in a run folder; training goes on in the folder "
                "of the run that wrote it."
            )
    else:
        name: CheckpointName = "last" if asked == "last" else "best"
        call.run = _find_run(call, name, named=named)
        if call.run is not None:
            call.checkpoint = call.run.checkpoint(name)
    if training:
        _check_resumable(call)


def _find_run(call: Invocation, name: CheckpointName, *, named: bool) -> Run | None:
    """The run that is meant: the one in ``--run_dir``, else the newest that will do."""
    training = call.subcommand == "fit"
    if call.run_dir is not None:
        found = [Run(call.run_dir)] if (call.run_dir / "results.json").is_file() else []
        where = f"in {call.run_dir}"
    else:
        # folders of tests with other settings hold no training, and so no attempts
        found = [
            run
            for run in find_runs(call.runs_dir, call.recipe if named else None)
            if "attempts" in run.results()
        ]
        where = f"of {call.recipe} below {call.runs_dir}" if named else f"below {call.runs_dir}"
    if not training:
        found = [run for run in found if run.checkpoint(name).is_file()]
    if found:
        return found[0]
    what = "run" if training else f"run with a {name} checkpoint"
    call.missing = (
        f"There is no {what} {where}. Train first (`smolbench fit --config RECIPE`), give another "
        "folder with --runs_dir or --run_dir"
        + ("." if training else ", or score the untrained model with --ckpt_path none.")
    )
    if training:
        raise SmolbenchError(call.missing)
    return None


def _check_resumable(call: Invocation) -> None:
    assert call.run is not None
    assert call.checkpoint is not None
    if call.checkpoint.name == "best.ckpt":
        raise SmolbenchError(
            f"{call.checkpoint} holds weights only and no optimiser state, so training cannot go "
            "on from it; use --ckpt_path last."
        )
    if not call.checkpoint.is_file():
        # killed before its first checkpoint: the same run starts over in the same folder
        call.checkpoint = None


def _check_own_config(run: Run) -> None:
    if not run.config.is_file():
        raise SmolbenchError(f"{run.path} has no config.yaml; name its recipe with --config.")
