"""What a command line asks for, settled before anything heavy is imported.

Recipes are found by name, and ``--ckpt_path last|best|none|PATH`` becomes a run and a file. All of
it works in any later process: only the run folders are looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

from smolbench.errors import SmolbenchError
from smolbench.runs.recipes import in_place_of, resolve_config
from smolbench.runs.results import FILE_NAME
from smolbench.runs.run_dir import (
    CheckpointName,
    Run,
    find_runs,
    recipe_name,
    run_of,
    run_of_config,
)

log = logging.getLogger("smolbench")
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
        missing: Why there is no checkpoint, for tasks that need one, where none was asked for.
        extend: Whether a resumed run may go on for longer than its schedule was made for.
        estimate: Whether only a part of a run is run, to say what the whole would cost.
        texts: Texts to predict, from ``--text``.
        input: File of texts to predict; ``-`` is standard input.
        text_column: Column of the texts in that file, if it is a table.
        encoding: Encoding of that file.
        quoting: What double quotes mean in it.
        output: File that predictions are written to.
        before: The call for the model whose predictions stand beside this one's.
        elsewhere: Folder that the pretrained network of the call's run may have been moved to.
        only_shown: Whether the command only prints help or its configuration.
        made: Folder that was made for this command.
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
    estimate: bool = False
    texts: list[str] = field(default_factory=list)
    input: str | None = None
    text_column: str | None = None
    encoding: str | None = None
    quoting: str | None = None
    output: Path | None = None
    before: Invocation | None = None
    elsewhere: str | None = None
    only_shown: bool = False
    made: Path | None = None

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
        SmolbenchError: If an option lacks its value, or a recipe, run or checkpoint does not exist.
    """
    given, argv = _split(subcommand, arguments)
    call = Invocation(
        subcommand,
        argv=argv,
        runs_dir=_absolute(_last(given["--runs_dir"]) or "runs"),
        run_dir=_absolute(folder) if (folder := _last(given["--run_dir"])) else None,
        extend=bool(given["--extend"]),
        estimate=bool(given["--estimate"]),
        texts=given["--text"],
        input=_last(given["--input"]),
        text_column=_last(given["--text_column"]),
        encoding=_last(given["--encoding"]),
        quoting=_last(given["--quoting"]),
        only_shown=_only_shown(arguments),
        output=Path(file).expanduser() if (file := _last(given["--output"])) else None,
    )
    if call.run_dir is not None and call.run_dir.exists() and not call.run_dir.is_dir():
        raise SmolbenchError(f"--run_dir {call.run_dir} is a file; name a folder.")
    configs = [Path(config) for config in given["--config"]]
    if configs:
        call.recipe = recipe_name(configs)
    if call.estimate and (chosen := [name for name in _ONE_RUN if given[name]]):
        raise SmolbenchError(
            f"--estimate is of a whole, new run and leaves none behind: leave out {chosen[0]}."
        )
    if not call.only_shown:
        _settle_checkpoint(call, _last(given["--ckpt_path"]), configs)
        if call.extend and not call.resumes:
            raise SmolbenchError("--extend is for a run that goes on: add --ckpt_path last.")
        if not configs and call.run is not None:
            _check_own_config(call.run)
            call.recipe = recipe_name([call.run.config])
            call.argv = ["--config", str(resolve_config(str(call.run.config))), *call.argv]
        elif not configs and not any(a.partition("=")[0] == "--model" for a in arguments):
            raise SmolbenchError(
                call.missing
                or f"smolbench {subcommand} needs --config RECIPE; `smolbench recipes` lists them."
            )
    if (before := _last(given["--before"])) is not None and not call.only_shown:
        call.before = _call_before(call, before)
    return _completed(call)


def _completed(call: Invocation) -> Invocation:
    """With the arguments as LightningCLI takes them."""
    checkpoint = [] if call.checkpoint is None else ["--ckpt_path", str(call.checkpoint)]
    call.argv = [call.subcommand, *call.argv, *checkpoint]
    return call


_SETTLED = ("--ckpt_path", "--run_dir", "--runs_dir")
BACKBONE = ("--model.backbone", "--model.init_args.backbone")
"""Names of the option that says which network a model is made from."""
_ONE_RUN = ("--ckpt_path", "--run_dir", "--extend")
"""Options that are about one run's folder."""
_FLAGS_OF_FIT = ("--extend", "--estimate")
_SETTLED_OF_PREDICT = (
    "--text",
    "--input",
    "--text_column",
    "--encoding",
    "--quoting",
    "--output",
    "--before",
)


def _split(subcommand: Subcommand, arguments: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Values of the options settled here, and the other arguments with recipes as paths."""
    given: dict[str, list[str]] = {
        name: [] for name in ("--config", *_FLAGS_OF_FIT, *_SETTLED, *_SETTLED_OF_PREDICT)
    }
    settled = _SETTLED + (_SETTLED_OF_PREDICT if subcommand == "predict" else ())
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        name = "--config" if name == "-c" else name
        if argument in _FLAGS_OF_FIT and subcommand == "fit":
            given[name].append("true")
        elif name != "--config" and name not in settled:
            kept.append(argument)
        else:
            # a text may start like an option; nothing else does
            found = value if equals else next(rest, None)
            lacks = not found or (not equals and found.startswith("--"))
            if found is None or (lacks and name != "--text"):
                raise SmolbenchError(f"{name} needs a value.")
            if name == "--config":
                found = str(resolve_config(found))
                before = [Path(config) for config in given[name]]
                kept += [name, str(in_place_of(Path(found), before))]
            given[name].append(found)
    return given, kept


def _call_before(call: Invocation, asked: str) -> Invocation:
    """The call for the model that ``--before`` names, on the same hardware.

    Args:
        call: The call for the model after; its arguments are not complete yet.
        asked: ``none`` for the untrained one of the same settings, a run's folder, or a checkpoint.
    """
    if asked == "none":
        if call.untrained:
            raise SmolbenchError(
                "--before none and --ckpt_path none are the same, untrained model: leave one out."
            )
        return _completed(replace(call, run=None, checkpoint=None, untrained=True))
    path = Path(asked).expanduser().resolve()
    checkpoint = Run(path).checkpoint("best") if path.is_dir() else path
    run = run_of(checkpoint)
    if run is None or not checkpoint.is_file():
        raise SmolbenchError(
            f"--before {asked} must be none, the folder of a run with a best checkpoint, or a "
            f"checkpoint in a run's folder; there is no such checkpoint {checkpoint}."
        )
    _check_own_config(run)
    config = str(resolve_config(str(run.config)))
    argv = ["--config", config, *_options_of("--trainer", call.argv)]
    return _completed(
        replace(
            call,
            argv=argv,
            recipe=recipe_name([run.config]),
            run=run,
            checkpoint=checkpoint,
            elsewhere=_value_of(BACKBONE, call.argv),
        )
    )


def _value_of(names: Sequence[str], argv: Sequence[str]) -> str | None:
    """The value that an option has in the end, under any of its names; ``None`` if not given."""
    found = None
    for argument, behind in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in names:
            found = value if equals else behind
    return found


def _options_of(section: str, argv: list[str]) -> list[str]:
    """The arguments that set one section, with their values."""
    kept: list[str] = []
    ours = False
    for argument in argv:
        if argument.startswith("--"):
            ours = argument.startswith((f"{section}.", f"{section}="))
        if ours:
            kept.append(argument)
    return kept


def _last(values: list[str]) -> str | None:
    return values[-1] if values else None


def _absolute(path: str) -> Path:
    """One spelling for every way to name a folder."""
    return Path(path).expanduser().resolve()


def _only_shown(arguments: list[str]) -> bool:
    """Whether the command only prints help or its configuration."""
    names = {argument.partition("=")[0] for argument in arguments}
    return not names.isdisjoint({"--help", "-h", "--print_config"}) or any(
        name.startswith("--") and name.endswith(".help") for name in names
    )


def _settle_checkpoint(call: Invocation, asked: str | None, configs: list[Path]) -> None:
    """Find the run and the file that ``--ckpt_path`` stands for."""
    training = call.subcommand == "fit"
    if asked == "none" or (asked is None and training):
        call.untrained = not training
        return
    if asked not in (None, "last", "best"):
        file = Path(asked).expanduser()
        call.checkpoint = file.parent.resolve() / file.name
        if not call.checkpoint.is_file():
            raise SmolbenchError(f"There is no checkpoint {call.checkpoint}.")
        call.run = run_of(call.checkpoint)
        if training and call.run is None:
            raise SmolbenchError(
                f"{call.checkpoint} does not lie in a run folder; training goes on in the folder "
                "of the run that wrote it."
            )
        if training and call.run_dir not in (None, cast("Run", call.run).path):
            raise SmolbenchError(
                f"Training goes on in the folder of the run, {cast('Run', call.run).path}; leave "
                "out --run_dir."
            )
    else:
        name: CheckpointName = "last" if asked == "last" else "best"
        # a task whose weights all come pretrained needs no checkpoint, if none is asked for
        call.run = _find_run(call, name, configs, needed=asked is not None)
        if call.run is not None:
            call.checkpoint = call.run.checkpoint(name)
    if training:
        _check_resumable(call)


def _find_run(
    call: Invocation, name: CheckpointName, configs: list[Path], *, needed: bool
) -> Run | None:
    """The run that is meant; an error if there is none but one is ``needed``.

    It is the one in ``--run_dir``, else the one whose own ``config.yaml`` is given, else the newest
    that will do.
    """
    training = call.subcommand == "fit"
    if call.run_dir is not None:
        found = [Run(call.run_dir)] if (call.run_dir / FILE_NAME).is_file() else []
        where = f"in {call.run_dir}"
    elif own := [run for run in map(run_of_config, configs) if run is not None]:
        found = own[-1:]
        where = f"in {found[0].path}"
    else:
        found = find_runs(call.runs_dir, call.recipe if configs else None)
        where = f"of {call.recipe} below {call.runs_dir}" if configs else f"below {call.runs_dir}"
    # folders of tests with other settings hold no training, and so no attempts
    trained = [run for run in found if "attempts" in run.results()]
    found = trained if training else [run for run in trained if run.checkpoint(name).is_file()]
    if found and found[0] != trained[0]:
        log.warning(
            "The newest run, %s, has no %s checkpoint: an older one is taken, %s.",
            trained[0].path,
            name,
            found[0].path,
        )
    if found:
        return found[0]
    what = "run" if training else f"run with a {name} checkpoint"
    call.missing = (
        f"There is no {what} {where}. Train first (`smolbench fit --config RECIPE`), give another "
        "folder with --runs_dir or --run_dir"
        + ("." if training else ", or score the untrained model with --ckpt_path none.")
    )
    if needed:
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
