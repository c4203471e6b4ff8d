"""``smolbench export``: a run's model as a folder that others load, with its model card."""

from __future__ import annotations

import argparse
import contextlib
import glob
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolbench import __version__
from smolbench.errors import SmolbenchError
from smolbench.runs.results import FILE_NAME
from smolbench.runs.run_dir import Run, run_of
from smolbench.utils.versions import untried

if TYPE_CHECKING:
    from smolbench.models.export.exported import Exported
    from smolbench.tasks.base import BaseTask
    from smolbench.tasks.trained_run import TrainedRun

log = logging.getLogger("smolbench")
MARK = "smolbench.json"
"""File in every export that says where it comes from."""
SCHEMA = 1


@dataclass(frozen=True)
class Request:
    """What is to be exported, and where to.

    Attributes:
        run: The run.
        checkpoint: One of its checkpoints.
        folder: The folder to make.
        adapter: Whether only the adapters are exported.
        overwrite: Whether an earlier export may be replaced.
        push: Id of a repository of the Hub that gets the folder's content.
        private: Whether a repository that has to be made is private.
        backbone: Where the run's pretrained network lies now, if its folder was moved.
    """

    run: Run
    checkpoint: Path
    folder: Path
    adapter: bool
    overwrite: bool
    push: str | None
    private: bool
    backbone: str | None


def export(arguments: Sequence[str]) -> int:
    """Run ``smolbench export``.

    Returns:
        The exit status, 0.

    Raises:
        SmolbenchError: If there is nothing to export, or the target exists or cannot be written.
    """
    request = _read(arguments)
    if newer := untried():
        log.warning(newer)
    earlier = _check_target(request)
    replaced: list[str] = []
    if request.push is not None:
        replaced = _check_repository(request.push, overwrite=request.overwrite)
    with _new_folder(request.folder, earlier) as unfinished:
        _write(request, unfinished)
    log.info("Written: %s", request.folder)
    if request.push is not None:
        _push(request, replaced)
    return 0


def _read(arguments: Sequence[str]) -> Request:
    parser = argparse.ArgumentParser(
        "smolbench export",
        description="Write a run's model as a folder that transformers, peft or scikit-learn "
        "loads without smolbench, with a model card.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or a checkpoint")
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder to make")
    parser.add_argument(
        "--ckpt_path", metavar="best|last|PATH", help="which checkpoint of the run (best)"
    )
    parser.add_argument(
        "--adapter", action="store_true", help="only the adapters, as peft loads them (lora, qlora)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument(
        "--push", metavar="REPO_ID", help="also upload the folder to this repository of the Hub"
    )
    parser.add_argument(
        "--private", action="store_true", help="make the repository, if it is new, a private one"
    )
    parser.add_argument(
        "--model.backbone",
        dest="backbone",
        metavar="MODEL_DIR",
        help="where the run's pretrained network lies now, if its folder was moved",
    )
    options = parser.parse_args(arguments)
    if options.private and options.push is None:
        raise SmolbenchError("--private is for a repository of the Hub: add --push REPO_ID.")
    run, checkpoint = _find(options.run.expanduser(), options.ckpt_path)
    return Request(
        run=run,
        checkpoint=checkpoint,
        folder=options.folder.expanduser().absolute(),
        adapter=options.adapter,
        overwrite=options.overwrite,
        push=options.push,
        private=options.private,
        backbone=options.backbone,
    )


def _find(place: Path, asked: str | None) -> tuple[Run, Path]:
    """The run and the checkpoint that are meant."""
    if place.is_file():
        if asked is not None:
            raise SmolbenchError(
                f"{place} is a checkpoint itself: leave out --ckpt_path {asked}, or name the run's "
                "folder."
            )
        run = run_of(place)
        if run is None:
            raise SmolbenchError(
                f"{place} does not lie in the folder `checkpoints` of a run, whose settings an "
                "export needs: name a run's folder."
            )
        return run, place.absolute()
    if not (place / FILE_NAME).is_file():
        raise SmolbenchError(
            f"There is no run {place}: name a run's folder (`smolbench runs` lists them) or one of "
            "its checkpoints."
        )
    run = Run(place.absolute())
    if asked in (None, "best"):
        return run, run.checkpoint("best")
    if asked == "last":
        return run, run.checkpoint("last")
    checkpoint = Path(str(asked)).expanduser().absolute()
    if not checkpoint.is_file():
        raise SmolbenchError(f"There is no checkpoint {checkpoint}.")
    return run, checkpoint


def _write(request: Request, folder: Path) -> None:
    """Write the model and its card into an empty folder."""
    from smolbench.cli.model_card import Origin, model_card  # lazy: these import torch
    from smolbench.runs.record import RunRecord
    from smolbench.tasks.export import trial_of_run
    from smolbench.tasks.trained_run import TrainedRun

    _quieten_libraries()
    trained = TrainedRun(request.run, request.checkpoint)
    # rounded as it was scored
    dtype = trained.results.get("model/dtype")
    options = {} if dtype not in ("float32", "bfloat16") else {"dtype": dtype}
    task = trained.task(backbone=request.backbone, **options)
    _refuse_own_code(task)
    trial = trial_of_run(trained)
    exported = task.export(folder, adapter=request.adapter, trial=trial)
    log.info("%s", " ".join(exported.check.lines()))
    if request.push is not None and exported.base_is_local and exported.framework != "transformers":
        raise SmolbenchError(
            f"What is exported needs its base model {exported.base and exported.base[0]}, a folder "
            "that nobody else has: leave out --push, or push the whole model, without --adapter."
        )
    labels = list(getattr(task, "label_names", []))
    record = RunRecord(request.run.path, trained.results)
    scored = request.checkpoint == request.run.checkpoint("best")
    origin = Origin(record, trained.settings, labels, request.checkpoint.name, scored, __version__)
    name = request.push or request.folder.name
    card = model_card(name, exported, origin, on_the_hub=request.push is not None)
    (folder / "README.md").write_text(card, encoding="utf-8")
    _mark(folder, trained, exported, labels)


def _refuse_own_code(task: BaseTask) -> None:
    backbone = getattr(task, "backbone", None)
    if backbone is not None and backbone.runs_own_code:
        raise SmolbenchError(
            f"{backbone.name} runs Python code of its own, which an export would have to hand on "
            "to others: only models that transformers loads by itself can be exported."
        )


def _mark(folder: Path, trained: TrainedRun, exported: Exported, labels: Sequence[str]) -> None:
    model = (trained.settings.get("model") or {}).get("init_args") or {}
    known: dict[str, Any] = {
        "schema": SCHEMA,
        "smolbench": __version__,
        "library": exported.framework,
        "recipe": trained.results.get("recipe"),
        "config_digest": trained.results.get("config_digest"),
        "checkpoint": trained.checkpoint.name,
        "base_model": exported.base[0] if exported.base else None,
        "base_revision": exported.base[1] if exported.base else None,
        "template": model.get("template"),
        "max_length": model.get("max_length"),
        "labels": list(labels) or None,
        "check": exported.check.facts(),
    }
    # what --overwrite may replace; all else in the folder is somebody's own
    known["files"] = sorted([*_files(folder), MARK])
    text = json.dumps(known, indent=2, ensure_ascii=False)
    (folder / MARK).write_text(text + "\n", encoding="utf-8")


def _quieten_libraries() -> None:
    import transformers  # lazy: import cost

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


# -- the folder -----------------------------------------------------------------------------------


def _check_target(request: Request) -> list[str] | None:
    """Refuse a target before anything is loaded.

    Returns:
        The files of the export that is there and may be replaced; ``None`` if there is none.
    """
    folder = request.folder
    if folder.exists() and not folder.is_dir():
        raise SmolbenchError(f"{folder} is a file; name a folder.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    if not (folder / MARK).is_file():
        raise SmolbenchError(
            f"{folder} is not empty and holds no export of smolbench: name another folder."
        )
    if not request.overwrite:
        raise SmolbenchError(
            f"{folder} holds an export already: name another folder, or replace it with "
            "--overwrite."
        )
    return _files_of_export(folder / MARK, str(folder))


def _files_of_export(mark: Path, where: str) -> list[str]:
    """What an export has written.

    Raises:
        SmolbenchError: If it does not say so.
    """
    try:
        known = json.loads(mark.read_text(encoding="utf-8"))
        files = known["files"]
        if all(isinstance(name, str) for name in files):
            return list(files)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise SmolbenchError(
        f"{where} holds an export whose {MARK} does not list its files, so what is somebody's own "
        "there cannot be told: name another place, or empty this one."
    )


def _files(folder: Path) -> list[str]:
    """All files and links below a folder, by their paths from it."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _keep_others(before: Path, exported: list[str], now: Path) -> None:
    """Link what others have put into an export's folder into the one that takes its place.

    Raises:
        SmolbenchError: If a file of the new export has the name of one of theirs.
    """
    written = set(_files(now))
    for name in _files(before):
        if name in exported:
            continue
        # a folder where there is a file now, or the other way round, clashes as well
        if (
            name in written
            or not written.isdisjoint(map(str, Path(name).parents))
            or (now / name).exists()
        ):
            raise SmolbenchError(
                f"{before / name} is no file of the export that is there, and this one would "
                "replace it: move it away."
            )
        target = now / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(before / name, target, follow_symlinks=False)
        except OSError:  # a disk without links, or something that is no file
            shutil.copy2(before / name, target, follow_symlinks=False)


@contextmanager
def _new_folder(folder: Path, earlier: list[str] | None) -> Iterator[Path]:
    """An empty folder that gets its name when all is written into it; else nothing stays.

    Args:
        folder: The folder.
        earlier: Files of the export that it replaces; others stay in the folder.
    """
    unfinished = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    replaced = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        try:
            if earlier is not None:
                _keep_others(folder, earlier, unfinished)
                folder.rename(replaced)
            unfinished.rename(folder)
        except BaseException:
            if replaced.is_dir() and not folder.is_dir():
                replaced.rename(folder)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise SmolbenchError(
            f"{folder} cannot be written ({error.strerror or error}); free some space or name "
            "another folder."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        for parent in new_parents:  # those that hold the export stay
            with contextlib.suppress(OSError):
                parent.rmdir()


# -- the Hub --------------------------------------------------------------------------------------


def _check_repository(repo_id: str, *, overwrite: bool) -> list[str]:
    """Refuse a repository before anything is loaded.

    Returns:
        The files of the export in it, which may be replaced; none if it is new or empty.
    """
    from huggingface_hub import HfApi, hf_hub_download  # lazy: import cost

    with _readable_errors(repo_id):
        exists = HfApi().repo_exists(repo_id)
    if exists and not overwrite:
        raise SmolbenchError(
            f"The repository {repo_id} exists already: name another, or replace what it holds with "
            "--overwrite."
        )
    if not exists:
        return []
    with _readable_errors(repo_id):
        if not HfApi().file_exists(repo_id, MARK):
            return []
        mark = hf_hub_download(repo_id, MARK)
    return _files_of_export(Path(mark), f"The repository {repo_id}")


def _push(request: Request, replaced: list[str]) -> None:
    """Upload what the export has written, in place of an earlier one.

    Args:
        request: What was exported.
        replaced: Files of the earlier one in the repository; all else there stays.
    """
    from huggingface_hub import HfApi  # lazy: import cost

    assert request.push is not None, "the caller has asked"
    api = HfApi()
    written = [glob.escape(name) for name in _files_of_export(request.folder / MARK, "It")]
    with _readable_errors(request.push, f"{request.folder} is written, but "):
        made = api.create_repo(request.push, private=request.private, exist_ok=request.overwrite)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=request.folder,
            commit_message=f"Export of {request.run.path.name} by smolbench {__version__}",
            # no file of somebody's own beside it is uploaded, and none there removed
            allow_patterns=written,
            delete_patterns=[glob.escape(name) for name in replaced],
        )
    log.info("Pushed: %s", made)


@contextmanager
def _readable_errors(repo_id: str, before: str = "") -> Iterator[None]:
    """Say in a sentence what the Hub, or the way to it, objects to."""
    try:
        yield
    except Exception as error:  # the network fails in many ways
        reason = " ".join(str(error).split())[:300]
        raise SmolbenchError(
            f"{before}the repository {repo_id} cannot be written: check its name, the network, and "
            f"who you are (`hf auth login`). ({type(error).__name__}: {reason})"
        ) from error
