"""Where a run's pretrained network lies: known by its content, wherever its folder is moved to."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from smolbench.callbacks.checkpoint import read_checkpoint
from smolbench.cli.command_line import Invocation
from smolbench.errors import SmolbenchError
from smolbench.identity import compare
from smolbench.models.pretrained.language_model import LanguageModel
from smolbench.runs.run_dir import Run
from smolbench.runs.settings import Settings
from smolbench.tasks.distillation.find_teacher import whole_name
from smolbench.tasks.trained_run import BUILT_IN, refuse_missing, signature_of
from smolbench.utils.digest import is_digest


def name_places(model: MutableMapping[str, Any], call: Invocation) -> None:
    """Name the folders among a model's options by their whole paths, for any working directory.

    Args:
        model: Its options; changed in place.
        call: The call that they are of. Where a folder is known that its run's network may have
            been moved to, and it holds that network, it is the one that is named.
    """
    for option in ("backbone", "teacher_backbone"):
        if isinstance(given := model.get(option), str):
            model[option] = _whole_path(given)
    if isinstance(teacher := model.get("teacher"), str):
        model["teacher"] = whole_name(teacher)
    if call.elsewhere is not None and call.run is not None and "backbone" in model:
        moved = {**model, "backbone": _whole_path(call.elsewhere)}
        content = content_of(moved)
        if content is not None and content == _trained_on(call.run, call.checkpoint):
            model["backbone"] = moved["backbone"]


def _whole_path(given: str) -> str:
    path = Path(given).expanduser()
    return str(path.resolve()) if path.is_dir() and given not in BUILT_IN else given


def content_of(model: Mapping[str, Any]) -> str | None:
    """Digest of the folder that a model's options name; ``None`` if they name no folder."""
    name = model.get("backbone")
    if not isinstance(name, str) or name in BUILT_IN or not Path(name).is_dir():
        return None
    trusted = bool(model.get("trust_remote_code"))
    return LanguageModel(name, model.get("revision"), "auto", trust_remote_code=trusted).revision


def by_content(settings: Settings) -> Settings:
    """Settings in which a folder with a model is named by what it holds."""
    content = content_of(model_options(settings))
    return settings if content is None else _with(settings, backbone=content)


def as_named_now(before: Settings, now: Settings, call: Invocation) -> Settings:
    """A run's settings with its model and its teacher named as they are now, if they are the same.

    Args:
        before: What the run was started with.
        now: What this command was given.
        call: The command; it has a run.

    Raises:
        SmolbenchError: If the model's folder is gone, or another folder holds another model.
    """
    assert call.run is not None, "the caller has asked"
    old, new = model_options(before), model_options(now)
    renamed: dict[str, Any] = {}
    place, content = new.get("backbone"), content_of(new)
    if place != old.get("backbone") and content is not None:
        trained_on = _trained_on(call.run, call.checkpoint) or content_of(old)
        if content == trained_on:
            renamed["backbone"] = place
        elif is_digest(trained_on):
            raise SmolbenchError(
                f"model.backbone is {place}, which holds another model than {old.get('backbone')}, "
                f"on which the run {call.run.path} was trained: name the folder where that one "
                "lies now, or train anew."
            )
    elif content is not None:
        then = _trained_on(call.run, call.checkpoint)
        differs = compare("score", {"model/revision": then}, {"model/revision": content}).refused
        if is_digest(then) and differs:
            raise SmolbenchError(
                f"The files of the model in {place} have changed since the run {call.run.path} was "
                "trained on it: put them back as they were, or train anew."
            )
    elif _one_path(place, old.get("backbone")):
        trained_on = _trained_on(call.run, call.checkpoint)
        refuse_missing(str(place), trained_on, f"The run {call.run.path}", "--model.backbone")
    teacher = new.get("teacher")
    if _one_path(teacher, old.get("teacher")):
        renamed["teacher"] = teacher  # it may be gone, once it has taught
    elif call.checkpoint is not None and isinstance(teacher, str) and Path(teacher).exists():
        renamed["teacher"] = teacher  # which one it is, the checkpoint tells when it is loaded
    return _with(before, **{name: value for name, value in renamed.items() if name in old})


def _one_path(one: object, other: object) -> bool:
    """Whether two names mean one file or folder, which need not exist."""
    if not isinstance(one, str) or not isinstance(other, str):
        return False
    return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def _trained_on(run: Run, checkpoint: Path | None) -> str | None:
    """What a run says of the weights that it started from; ``None`` if nothing yet."""
    found = run.results().get("model/revision")
    if found is None and checkpoint is not None:
        found = signature_of(read_checkpoint(checkpoint), checkpoint).get("revision")
    return found if isinstance(found, str) else None


def model_options(settings: Settings) -> dict[str, Any]:
    """The options of a run's model."""
    model = settings.get("model")
    return dict((model.get("init_args") or {}) if isinstance(model, dict) else {})


def _with(settings: Settings, **options: Any) -> Settings:  # noqa: ANN401 - values from YAML
    if not options:
        return settings
    model = {**settings["model"], "init_args": {**model_options(settings), **options}}
    return {**settings, "model": model}
