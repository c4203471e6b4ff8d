"""``fit``, ``validate``, ``test`` and ``predict`` from their start to their exit status.

What goes wrong becomes a sentence, and the process leaves its job without harm to the others.
"""

from __future__ import annotations

import errno
import gc
import logging
import sys
import threading
import warnings
from contextlib import redirect_stdout

import lightning.pytorch.cli  # noqa: F401 - --help lists callbacks as imported: Lightning's first
import torch
import torch.distributed
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.fabric.utilities.exceptions import MisconfigurationException

from smolbench.callbacks import BatchWatch, GracefulStop, RunInterrupted
from smolbench.cli.command_line import Invocation, Subcommand, read_invocation
from smolbench.cli.lightning_cli import SmolCLI
from smolbench.cli.loggers import loggers_in_a_sentence
from smolbench.cli.predict import predict
from smolbench.cli.run_folder import remove_empty
from smolbench.errors import SmolbenchError
from smolbench.runs.results import FILE_NAME, read_results
from smolbench.utils.notices import begin
from smolbench.utils.versions import untried

log = logging.getLogger("smolbench")
_FULL_OR_FORBIDDEN = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
}


def run(subcommand: Subcommand, arguments: list[str]) -> int:
    """Carry out one subcommand.

    Returns:
        The exit status: 0, or 130 or 143 if a signal ended the run.

    Raises:
        SmolbenchError: For a user's mistake.
    """
    _quieten_libraries()
    begin()
    call = read_invocation(subcommand, arguments)
    if not call.only_shown and (newer := untried()):
        log.warning(newer)
    stop, watch = GracefulStop(), BatchWatch()
    stop.take_over()
    try:
        if call.subcommand == "predict" and not call.only_shown:
            predict(call, stop, watch)
        elif call.estimate and not call.only_shown:
            from smolbench.cli.estimate.command import (
                estimate,  # lazy: other commands need none of it
            )

            estimate(call, stop, watch)
        elif call.only_shown:
            SmolCLI(call, stop, watch)
        else:
            # bars and tables, whoever draws them, are for whoever watches; stdout is for data
            with redirect_stdout(sys.stderr), loggers_in_a_sentence(lambda: _what_next(call)):
                done = SmolCLI(call, stop, watch)
            if done.summarised:
                sys.stdout.write(f"Run folder: {done.folder}\n")
    except RunInterrupted as interruption:
        if call.estimate:
            log.warning("Stopped; nothing is left behind.")
            return interruption.status
        log.warning("%s%s", interruption, _what_next(call))
        return interruption.status
    except MisconfigurationException as error:
        raise SmolbenchError(" ".join(str(error).split())) from error
    except OSError as error:
        if error.errno not in _FULL_OR_FORBIDDEN:
            raise
        raise SmolbenchError(
            f"{error.filename or 'A file'} cannot be written ({error.strerror}); free some space "
            "or name another folder."
        ) from error
    except (RuntimeError, MemoryError) as error:
        if (sentence := watch.sentence(error)) is not None:
            raise SmolbenchError(sentence) from error
        if not _lost_another_rank(error):
            raise
        raise SmolbenchError(
            "Another process of this job has ended; why stands in its own message."
        ) from error
    finally:
        stop.give_back()
        _leave_job()
        remove_empty(call)
    return 0


def _what_next(call: Invocation) -> str:
    """What to do about a training that was stopped; nothing if it has left nothing."""
    if call.subcommand != "fit":
        return ""
    if not call.resumes:
        if call.made is None or not (call.made / FILE_NAME).is_file():
            return ""
        if read_results(call.made).get("resumable") is False:
            return " It is fitted in one step and cannot be gone on with: repeat the command."
    return " Go on with the same command and --ckpt_path last."


def _quieten_libraries() -> None:
    """Hide what libraries print on every start and what says nothing about this run."""
    import transformers  # lazy: keeps this module's import cheap for --help of other commands

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # the devices found, the seed, tips for other products; warnings still come through
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # but what was asked for by `verbose` or as a profile is said
    for name in ("callbacks.early_stopping", "profilers"):
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.INFO)
    everyone = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    everyone.setLevel(logging.INFO)
    everyone.addFilter(_is_warned_or_verbose)
    # on some processors it asks for a package that fetches other kernels from the Hub at import
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    for harmless in (
        ".*treespec, LeafSpec.*",  # lightning 2.6 with torch 2.13
        ".*It is recommended to use `self.log.*sync_dist.*",  # metrics are of all ranks' rows
        "Total length of `list` across ranks is zero.*",  # no validation was asked for
    ):
        warnings.filterwarnings("ignore", message=harmless)
    # recipe names in sys.argv have become paths in the arguments handed on
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")


def _is_warned_or_verbose(record: logging.LogRecord) -> bool:
    """Whether a line that Lightning writes says more than what it does on every start."""
    verbose = record.getMessage().startswith("Epoch ")  # of a ModelCheckpoint that is to speak
    return record.levelno > logging.INFO or verbose


def _leave_job() -> None:
    """Leave the process group while Python is whole, and the other processes to themselves.

    Lightning's observer would kill this process if it saw one of the others end first, with the
    status that says why.

    The group's worker threads live as long as anything refers to it; one that drops a tensor while
    the interpreter shuts down aborts the process (torch 2.13), and with it the job's exit status.
    """
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._child_processes = []
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()  # the trainer and its parts refer to each other, and to the group
        torch.distributed.destroy_process_group()


def _lost_another_rank(error: BaseException) -> bool:
    """Whether a collective call failed because another process is gone."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    gone = ("closed by peer", "reset by peer", "Broken pipe")  # gloo has no type of its own
    return distributed and (
        isinstance(error, torch.distributed.DistError) or any(text in str(error) for text in gone)
    )
