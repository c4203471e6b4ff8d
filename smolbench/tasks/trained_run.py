"""A finished run's model, rebuilt from the settings and a checkpoint in the run's folder."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smolbench.callbacks.checkpoint import read_checkpoint
from smolbench.data.kept_rows import FILE_NAME, KeptRows, read_kept_rows
from smolbench.errors import SmolbenchError
from smolbench.models.pretrained.backbone import TINY, TINY_T5
from smolbench.runs.run_dir import Run
from smolbench.runs.settings import Settings, read_settings
from smolbench.tasks.base import CHECKPOINT_KEY, ROWS, BaseTask
from smolbench.tasks.classification import ClassificationTask
from smolbench.utils.digest import is_digest

log = logging.getLogger("smolbench")
BUILT_IN = (TINY, TINY_T5)
"""Names of models that are no folders of anybody's, and no ids."""


class TrainedRun:
    """A finished training and one of its checkpoints.

    Args:
        run: Its folder.
        checkpoint: A checkpoint of it.

    Raises:
        SmolbenchError: If the run is no finished training, has no such checkpoint or settings, or
            is of a task that does not exist here.
    """

    def __init__(self, run: Run, checkpoint: Path) -> None:
        self.run = run
        self.checkpoint = checkpoint
        self.results = run.results()
        if "attempts" not in self.results:
            raise SmolbenchError(
                f"The run {run.path} is no training, it has only scored a model: name the run that "
                "trained it."
            )
        if (status := self.results.get("status")) != "finished":
            raise SmolbenchError(
                f"The run {run.path} is not finished (it is {status}): go on with it by `smolbench "
                f"fit --run_dir {run.path} --ckpt_path last`, or name another."
            )
        if not checkpoint.is_file():
            raise SmolbenchError(
                f"The run {run.path} has no checkpoint {checkpoint.name}: train it anew, or name "
                "another."
            )
        self.settings = read_settings(run.config)
        found = task_class_of(self.settings, run.path)
        if not issubclass(found, BaseTask):
            raise SmolbenchError(f"The run {run.path} is of a {found.__name__}, no task here.")
        self.task_class: type[BaseTask] = found

    def task(
        self,
        *,
        backbone: str | None = None,
        **options: Any,  # noqa: ANN401 - as the task types them
    ) -> BaseTask:
        """The model as it was trained, on the CPU.

        Args:
            backbone: Where its pretrained network lies now, if its folder was moved.
            **options: Settings of the model that stand in for the run's own, where it has them.

        Raises:
            SmolbenchError: If it cannot be rebuilt.
        """
        state = read_checkpoint(self.checkpoint)
        signature = signature_of(state, self.checkpoint)
        given = pinned_options(
            self.settings, signature, f"The run {self.run.path}", backbone=backbone
        )
        say_own_code(given)
        given |= {name: value for name, value in options.items() if name in given}
        try:
            task = self.task_class(**given)
            if isinstance(task, ClassificationTask):
                task.label_names = list(signature.get("labels") or [])
            if task.paths is not None:
                task.before_data(state)
            task.configure_model()
            task.on_load_checkpoint(state)
        except (SmolbenchError, TypeError) as error:  # TypeError: options of another version
            raise SmolbenchError(
                f"The model of the run {self.run.path} cannot be rebuilt. {error}"
            ) from error
        task.load_state_dict(state["state_dict"], strict=False)
        task.eval()
        return task


def task_class_of(settings: Settings, run: Path) -> type[Any]:
    """The class that a run's settings name as its model's.

    Raises:
        SmolbenchError: If there is none.
    """
    model = settings.get("model")
    path = str(model.get("class_path") if isinstance(model, dict) else model)
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SmolbenchError(f"The task {path} of the run {run} cannot be found.") from error
    if not isinstance(found, type):
        raise SmolbenchError(f"The task {path} of the run {run} is no class.")
    return found


def signature_of(state: Mapping[str, Any], checkpoint: Path) -> Mapping[str, Any]:
    """Settings that a checkpoint's state is only valid with.

    Raises:
        SmolbenchError: If it is from another program.
    """
    origin = state.get(CHECKPOINT_KEY)
    if not isinstance(origin, Mapping):
        raise SmolbenchError(f"{checkpoint} was not written by smolbench.")
    signature: Mapping[str, Any] = origin.get("signature", {})
    return signature


def kept_by(run: Run, checkpoint: Path | None) -> KeptRows | None:
    """The rows of a run; ``None`` if it is of a version that did not keep them.

    Args:
        run: The run.
        checkpoint: Its checkpoint, which knows them by their digest.

    Raises:
        SmolbenchError: If they are missing, damaged, or not those of the checkpoint.
    """
    kept = read_kept_rows(run.path)
    origin = {} if checkpoint is None else read_checkpoint(checkpoint).get(CHECKPOINT_KEY)
    digest = origin.get(ROWS) if isinstance(origin, dict) else None
    if digest is not None and (kept is None or kept.digest != digest):
        what = "is missing" if kept is None else "is not that of its checkpoint"
        raise SmolbenchError(
            f"{run.path / FILE_NAME}, which says what the run was trained on, {what}: put it back, "
            "or train anew."
        )
    return kept


def pinned_options(
    settings: Settings,
    signature: Mapping[str, Any],
    who: str,
    *,
    backbone: str | None = None,
    option: str = "--model.backbone",
) -> dict[str, Any]:
    """A run's options of its model, with the commit of the pretrained weights it started from.

    Args:
        settings: The run's.
        signature: What its checkpoint's state is valid with.
        who: The run, to be read in front of "was trained on".
        backbone: Where its pretrained network lies now, if its folder was moved.
        option: How that is given.

    Raises:
        SmolbenchError: If the network's folder is gone, or one is given for a run without any.
    """
    options = dict((settings.get("model") or {}).get("init_args") or {})
    if options.get("backbone") is None:
        if backbone is not None:
            raise SmolbenchError(f"{who} has no pretrained network: leave out {option} {backbone}.")
        return options
    options["backbone"] = name = str(backbone or options["backbone"])
    refuse_missing(name, signature.get("revision"), who, option)
    if name not in BUILT_IN and not Path(name).is_dir():
        options["revision"] = signature.get("revision")
    return options


def refuse_missing(name: str, revision: object, who: str, option: str) -> None:
    """Refuse the name of a model that was a folder once and is none now.

    Args:
        name: As the run's settings have it.
        revision: What the run says of its weights; a folder's are known by a digest.
        who: The run, to be read in front of "was trained on".
        option: How the folder's new place is given.

    Raises:
        SmolbenchError: Saying how.
    """
    if name not in BUILT_IN and is_digest(revision) and not Path(name).is_dir():
        raise SmolbenchError(
            f"{who} was trained on the model in the folder {name}, which is not there now: if it "
            f"was moved or renamed, name its new place with {option} DIR."
        )


def say_own_code(model: Mapping[str, Any]) -> None:
    """Say in one line that a model's own code may run, where its options allow it."""
    if model.get("trust_remote_code"):
        log.warning(
            "Python code among the files of %s may run on this machine (model.trust_remote_code).",
            model.get("backbone"),
        )
