"""Which folder a command writes to, and what its results say of where they come from."""

from __future__ import annotations

import contextlib
import datetime
import logging
import subprocess
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only

from smolbench.cli.command_line import Invocation
from smolbench.cli.model_places import as_named_now, by_content, content_of, model_options
from smolbench.errors import SmolbenchError
from smolbench.runs.results import FILE_NAME
from smolbench.runs.run_dir import Run, make_folder, new_run_dir
from smolbench.runs.settings import (
    Settings,
    changed_for_scoring,
    check_same_run,
    read_settings,
    series_digest,
)
from smolbench.utils.digest import digest

log = logging.getLogger("smolbench")


def choose_folder(call: Invocation, settings: Settings) -> tuple[Path, bool]:
    """Decide which folder is written to, and refuse what would not be the same run.

    Args:
        call: What the command line asks for; takes note of a folder that is made.
        settings: The run's, as they are written to its ``config.yaml``.

    Returns:
        The folder, and whether what is written there begins with this command.

    Raises:
        SmolbenchError: If a run would go on with other settings, or the folder holds another run.
    """
    parent = call.run
    before: Settings = {}
    if parent is not None and parent.config.is_file():
        before = as_named_now(read_settings(parent.config), settings, call)
    if call.resumes:
        assert parent is not None
        before = before or read_settings(parent.config)  # a missing file is a sentence
        before = _on_the_device(before, settings, parent)
        check_same_run(before, settings, extend=call.extend)
        if call.checkpoint is None:
            log.info("%s has no checkpoint yet: it starts from the beginning.", parent.path)
        return parent.path, False
    if call.subcommand == "predict":
        return call.run_dir or (parent.path if parent else Path.cwd()), True
    if parent is not None and call.subcommand != "fit":
        changed = changed_for_scoring(before or read_settings(parent.config), settings)
        own = call.run_dir not in (None, parent.path) or bool(changed)
        own = own or call.checkpoint != parent.checkpoint("best")
        return (_new_folder(call), True) if own else (parent.path, False)
    return _new_folder(call), True


def _on_the_device(before: Settings, now: Settings, run: Run) -> Settings:
    """A run's settings with the accelerator named as now, if that is the device it ran on."""
    old, new = before.get("trainer", {}), now["trainer"]
    device = _device(new["accelerator"])
    if device != run.results().get("hardware/device", _device(old.get("accelerator"))):
        return before
    same = {"accelerator": new["accelerator"]}
    one = ("auto", "1", 1)  # by default a CPU has one process
    if device == "cpu" and old.get("devices") in one and new["devices"] in one:
        same["devices"] = new["devices"]
    return {**before, "trainer": {**old, **same}}


def _device(accelerator: object) -> str:
    """The type of device that an accelerator's name stands for here."""
    from lightning.pytorch.accelerators import (  # lazy: import cost
        CUDAAccelerator,
        MPSAccelerator,
    )

    there = {"cuda": CUDAAccelerator.is_available(), "mps": MPSAccelerator.is_available()}
    first = next((name for name, found in there.items() if found), "cpu")
    return first if accelerator in ("auto", "gpu", None) else str(accelerator)


def _new_folder(call: Invocation) -> Path:
    """The folder of a new run; rank 0 makes it, and tells the others later."""
    resumed = call.run.path if call.run is not None else None
    chosen = call.run_dir if call.run_dir != resumed else None
    if getattr(rank_zero_only, "rank", 0) != 0:
        return chosen or call.runs_dir
    if chosen is None:
        call.made = new_run_dir(call.runs_dir, call.recipe)
        return call.made
    if (chosen / FILE_NAME).exists():
        raise SmolbenchError(
            f"{chosen} holds a run already: name another --run_dir"
            + (", or go on with it by --ckpt_path last." if call.subcommand == "fit" else ".")
        )
    call.made = chosen if make_folder(chosen) else None
    return chosen


def remove_empty(call: Invocation) -> None:
    """Remove the folder that was made for a command if nothing came into it."""
    with contextlib.suppress(OSError):
        if call.made is not None:
            call.made.rmdir()
        if call.made is not None and call.made.parents[1] == call.runs_dir:
            call.made.parent.rmdir()
            call.runs_dir.rmdir()


def identity_of(call: Invocation, settings: Settings, *, fresh: bool) -> dict[str, Any]:
    """What ``results.json`` says of where it comes from.

    Args:
        call: What the command line asks for.
        settings: The run's, as they are written to its ``config.yaml``.
        fresh: Whether the folder's content begins with this command. A test with the run's own
            settings adds to what the run says of itself.
    """
    if not fresh and call.subcommand != "fit":
        return {}
    scored = call.subcommand != "fit"
    # a run that is stopped before it has built its model can go on wherever the folder lies then
    content = content_of(model_options(settings))
    return {
        **({} if content is None else {"model/revision": content}),
        "recipe": call.recipe,
        "config_digest": digest(settings),
        "series_digest": series_digest(by_content(settings)),
        "git_revision": _git_revision(),
        "seed": settings["seed_everything"],
        "started_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "parent_run": str(call.run.path) if scored and call.run else None,
        "checkpoint": str(call.checkpoint) if scored and call.checkpoint else None,
    }


def _git_revision() -> str | None:
    """Commit of the checkout that smolbench runs from, marked if it has changes; else ``None``."""
    try:
        # installed into an environment within somebody's project, it is not of that project
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    return done.stdout.strip()
