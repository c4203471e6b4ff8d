"""Comparing the settings of commands: what may differ, what makes another run, what a series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from smolbench.errors import SmolbenchError
from smolbench.identity import compare, key, said

Settings = dict[str, Any]
_ADDED: dict[str, Any] = {
    "model.trust_remote_code": False,
    "model.rouge_tokenizer": "rouge_score",
    "data.similar_labels": "refuse",
    "data.positive_label": None,
    "model.tokens": "auto",
    "data.quoting": "auto",
    "model.teacher_labels": None,
    "trainer.max_time": None,  # was no part of a series
}
"""Options that settings of earlier versions lack, and the value that these runs have had."""
_DECAYING = {"linear", "cosine"}


def read_settings(path: Path) -> Settings:
    """Read a run's ``config.yaml``.

    Raises:
        SmolbenchError: If it is missing, damaged, or no mapping.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise SmolbenchError(f"The run's settings {path} cannot be read: {said}.") from error
    if not isinstance(settings, dict):
        raise SmolbenchError(f"The run's settings {path} are not a mapping.")
    return settings


def flatten(settings: Settings, prefix: str = "") -> Settings:
    """Nested settings as one level of dotted names, without ``init_args`` among them."""
    flat: Settings = {}
    for name, value in settings.items():
        if name == "init_args":
            flat |= flatten(value or {}, prefix)
        elif isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def check_same_run(before: Settings, now: Settings, *, extend: bool) -> None:
    """Refuse to go on with a run under settings that would change its result.

    ``trainer.max_epochs`` and ``trainer.max_steps`` may rise (if the learning rate falls to 0 over
    the planned steps, only with ``extend``); see :mod:`smolbench.identity` for what else is free to
    differ.

    Raises:
        SmolbenchError: Listing every difference that matters.
    """
    refused = compare("resume", _record(before), _record(now)).refused
    for unit in ("epochs", "steps"):
        option = f"trainer.max_{unit}"
        old, new = refused.get(option, (None, None))
        if _longer(old, new):
            _check_extension(now, extend=extend, unit=unit, old=old, new=new)
            del refused[option]
    if refused:
        raise SmolbenchError(
            f"This is not the run that was started: {said(refused)}. Give the settings it was "
            "started with, or leave out --config to take them from the run folder, or start a new "
            "run without --ckpt_path."
        )


def changed_for_scoring(before: Settings, now: Settings) -> list[str]:
    """Options that differ and change a score, so that it is not the run's own.

    Raises:
        SmolbenchError: If rows would be scored that the run was trained on.
    """
    found = compare("score", _record(before), _record(now))
    if "data.class_path" in found.told:  # other data, split by options of its own
        found.told.update(found.refused)
    elif found.refused:
        raise SmolbenchError(
            f"The run was trained with another split of its rows: {said(found.refused)}. Under the "
            "new one it would be scored on rows that it was trained on: leave the option out, or "
            "train anew with it."
        )
    return sorted(found.told)


def series_digest(settings: Settings) -> str:
    """What runs have in common that differ in their seed, and in nothing else that matters.

    A report takes them for one configuration if the rest of what they were made of is the same.
    """
    kept = {k: v for k, v in flatten(settings).items() if k not in _ADDED or v != _ADDED[k]}
    return key("average", kept)


def _record(settings: Settings) -> Settings:
    return {**_ADDED, **flatten(settings)}


def _longer(old: Any, new: Any) -> bool:  # noqa: ANN401 - values from YAML
    if not isinstance(old, int) or not isinstance(new, int):
        return False
    return new == -1 or (old != -1 and new > old)


def _check_extension(now: Settings, *, extend: bool, unit: str, old: int, new: int) -> None:
    flat = flatten(now)
    schedule, warmup = flat.get("model.schedule"), flat.get("model.warmup_steps")
    if extend:
        return
    changed = f"trainer.max_{unit} was {old}, is {new}, but"
    longer = f"{new} {unit}" if new != -1 else f"a training without a limit of {unit}"
    if isinstance(warmup, float) and warmup:
        raise SmolbenchError(
            f"{changed} model.warmup_steps {warmup} is a share of the planned steps. With --extend "
            f"the learning rate warms up over that share of {longer}, and goes on from where it "
            "stands then."
        )
    if schedule in _DECAYING:
        raise SmolbenchError(
            f"{changed} the {schedule} schedule let the learning rate fall to 0 by the end of "
            f"{unit.removesuffix('s')} {old}. With --extend the schedule is stretched over "
            f"{longer}: the learning rate jumps up to where it stands on the longer curve."
        )
