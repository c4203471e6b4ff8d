"""The command line: ``smolbench fit | validate | test | predict | sweep | report | ...``.

Only routing happens here; what a subcommand needs is imported when it is called, so that ``--help``
and ``--version`` answer at once.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import select
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TextIO

from smolbench import __version__
from smolbench.cli.command_line import SUBCOMMANDS
from smolbench.errors import SmolbenchError

_HANDLER = logging.StreamHandler()
_OTHERS = {
    "sweep": ("smolbench.cli.sweep.command", "sweep"),
    "runs": ("smolbench.cli.report", "list_runs"),
    "report": ("smolbench.cli.report", "report"),
    "footprint": ("smolbench.cli.footprint", "footprint"),
    "export": ("smolbench.cli.export", "export"),
    "recipes": ("smolbench.runs.recipes", "list_recipes"),
}
"""Subcommands that LightningCLI has no part in: module and function that carry them out."""

USAGE = f"""\
smolbench {__version__}: probe and score small language models, and say what it costs.

  smolbench fit      --config RECIPE [--config OVERLAY] [--model.lr 3e-4 ...]   train
  smolbench fit      --config RECIPE --ckpt_path last                           go on with a run
  smolbench fit      --config RECIPE --estimate                                 what it would cost
  smolbench test     [--config RECIPE] [--ckpt_path best|last|none|PATH]        score a run
  smolbench validate [--config RECIPE] [--ckpt_path best|last|none|PATH]        score on validation
  smolbench predict  --text "..." | --input FILE [--output FILE] [--before none|RUN]
                                                                                label your own texts
  smolbench sweep    --config RECIPE --grid KEY=VALUE,VALUE [...]               try settings
  smolbench runs     [--runs_dir DIR] [--json]                                  list the runs
  smolbench report   [RUNS...] [--output FILE] [--price_per_hour X] [...]       compare runs
  smolbench footprint MODEL... [--batch_size B] [--length T] [--json]           what a model takes
  smolbench export   RUN DIR [--adapter] [--push REPO_ID]                       a model for others
  smolbench recipes                                                             list the recipes

RECIPE is a file or the name of a shipped recipe, such as imdb_probe. Overrides go last: a --config
behind them would win. `smolbench fit --help` lists all options,
`smolbench fit --config RECIPE --print_config` the settings of a recipe.
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments without the program's name; ``sys.argv`` if not given.

    Returns:
        The exit status: 0, 1 if runs cannot be read or trials of a sweep failed, 2 for a user's
        mistake, 130 or 143 for what a signal ended.
    """
    whole_process = args is None
    arguments = list(sys.argv[1:] if args is None else args)
    _set_up_logging()
    try:
        status = _status(arguments, whole_process=whole_process)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if not _unread(sys.stdout):
            raise
        # `| head` has seen enough; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _status(arguments: list[str], *, whole_process: bool) -> int:
    """Carry out a command; its exit status, also where it ends in a sentence."""
    try:
        return _dispatch(arguments, whole_process=whole_process)
    except SmolbenchError as error:
        sys.stderr.write(f"smolbench: error: {error}\n")
        return 2
    except SystemExit as end:  # the option parser has said why
        return end.code if isinstance(end.code, int) else 2 if end.code else 0
    except KeyboardInterrupt:
        sys.stderr.write("smolbench: stopped by Ctrl-C.\n")
        return 130


def _dispatch(arguments: list[str], *, whole_process: bool) -> int:
    command = arguments[0] if arguments else "--help"
    if command in {"-h", "--help", "help"}:
        sys.stdout.write(USAGE)
        return 0
    if command == "--version":
        sys.stdout.write(f"smolbench {__version__}\n")
        return 0
    for subcommand in SUBCOMMANDS:
        if command == subcommand:
            with _without_collections(frozen=whole_process):
                from smolbench.cli.train import run  # lazy: lightning takes seconds
            return run(subcommand, arguments[1:])
    if command in _OTHERS:
        module, function = _OTHERS[command]
        act: Callable[[list[str]], int] = getattr(import_module(module), function)
        return act(arguments[1:])
    if command.startswith("-"):
        raise SmolbenchError(
            f"Options stand behind the subcommand: smolbench fit {command} ..., not smolbench "
            f"{command} ... fit."
        )
    raise SmolbenchError(
        f"There is no subcommand {command!r}; there are {', '.join([*SUBCOMMANDS, *_OTHERS])}."
    )


def _unread(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # Windows has no poll, a test no file
        return False


@contextmanager
def _without_collections(*, frozen: bool) -> Generator[None, None, None]:
    """Imports make a million objects that all stay; to look for garbage among them takes long.

    Args:
        frozen: Whether no later collection looks at them either: the last one, at the exit, would
            take longer than smolbench's own start. Only where the process is this command's alone:
            what its caller has dropped and not yet collected would stay, too.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if frozen:
            gc.freeze()
        if collects:
            gc.enable()


def _is_utf8(encoding: str) -> bool:
    return encoding.lower().replace("-", "").replace("_", "") == "utf8"


def _set_up_logging() -> None:
    """Set what must stand before the heavy imports: messages to stderr, libraries quiet."""
    for stream in (sys.stdout, sys.stderr):
        # a terminal may lack characters of a table, which must not end a command
        if isinstance(stream, io.TextIOWrapper) and not _is_utf8(stream.encoding):
            with suppress(OSError):  # some files that are no terminals cannot change
                stream.reconfigure(errors="replace")
    logger = logging.getLogger("smolbench")
    _HANDLER.setFormatter(logging.Formatter("smolbench: %(message)s"))
    _HANDLER.stream = sys.stderr  # another one than before, where it is called in process
    logger.addHandler(_HANDLER)
    logger.propagate = False
    # ranks other than the first repeat what the first says
    ranks = ("LOCAL_RANK", "RANK", "NODE_RANK", "SLURM_PROCID")
    others = any(os.environ.get(name, "0") != "0" for name in ranks)
    logger.setLevel(logging.ERROR if others else logging.INFO)
    # lightning 2.6 calls functions that jsonargparse 4.49 and later deprecate
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    # the tokenizers library warns when a loader's worker is forked after it was used
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
