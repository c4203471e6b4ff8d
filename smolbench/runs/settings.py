"""Comparing the settings of commands: what may differ, what makes another run, what a series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from smolbench.digest import digest
from smolbench.errors import SmolbenchError

Settings = dict[str, Any]
_MISSING = object()

_FREE_DATA = {"num_workers", "cache_dir"}
"""Data options that change how fast something is done, not what comes out."""
_FREE_TRAINER = {
    "logger",
    "enable_progress_bar",
    "enable_model_summary",
    "profiler",
    "default_root_dir",
    "max_time",
}
_FREE = {"model.teacher_backbone"}
"""Where something lies that is known by its content."""
_ADDED: dict[str, Any] = {
    "model.trust_remote_code": False,
    "model.rouge_tokenizer": "rouge_score",
    "data.similar_labels": "refuse",
    "data.positive_label": None,
    "model.tokens": "auto",
    "data.quoting": "auto",
    "model.teacher_labels": None,
}
"""Options that settings of earlier versions lack, and the value that these runs have had."""
_SCORING_TRAINER = {
    "precision",
    "fast_dev_run",
    "limit_val_batches",
    "limit_test_batches",
    "limit_predict_batches",
    "overfit_batches",
}
"""Trainer options that change a score."""
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


def differences(before: Settings, now: Settings) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, with the value before and the value now."""
    old, new = ({**_ADDED, **flatten(settings)} for settings in (before, now))
    return {
        name: (old.get(name), new.get(name))
        for name in sorted({*old, *new})
        if old.get(name, _MISSING) != new.get(name, _MISSING)
    }


def check_same_run(before: Settings, now: Settings, *, extend: bool) -> None:
    """Refuse to go on with a run under settings that would change its result.

    Free to differ are: ``num_workers``, ``cache_dir``, ``limit_test``, loggers and progress bars,
    how often a checkpoint is written, how latency is measured, and ``trainer.max_epochs`` upward
    (if the learning rate falls to 0 over the planned steps, only with ``extend``).

    Raises:
        SmolbenchError: Listing every difference that matters.
    """
    refused = []
    for name, (old, new) in differences(before, now).items():
        section, option = _parts(name)
        if _is_measuring(section, option) or name in _FREE:
            continue
        if section == "data" and option in _FREE_DATA | {"limit_test"}:
            continue
        if section == "trainer" and option.split(".")[0] in _FREE_TRAINER:
            continue
        if name == "trainer.max_epochs" and _longer(old, new):
            _check_extension(now, extend=extend, old=old, new=new)
            continue
        refused.append(f"{name} was {old!r}, is {new!r}")
    if refused:
        raise SmolbenchError(
            f"This is not the run that was started: {'; '.join(refused)}. Give the settings it was "
            "started with, or leave out --config to take them from the run folder, or start a new "
            "run without --ckpt_path."
        )


def changed_for_scoring(before: Settings, now: Settings) -> list[str]:
    """Options that differ and change a score, so that it is not the run's own."""
    changed = set(differences(before, now)) - _FREE
    return sorted(name for name in changed if _changes_score(*_parts(name)))


def series_digest(settings: Settings) -> str:
    """What runs have in common that differ in their seed, and in nothing else that matters.

    A report takes them for one configuration. Left out are the seed and what may differ when a run
    goes on: workers, cache folders, loggers, how latency is measured, how often is saved.
    """
    kept = {}
    for name, value in flatten(settings).items():
        section, option = _parts(name)
        free = (
            name in {"seed_everything", *_FREE}
            or _is_measuring(section, option)
            or (section == "data" and option in _FREE_DATA)
            or (section == "trainer" and option.split(".")[0] in _FREE_TRAINER)
            or (name in _ADDED and value == _ADDED[name])
        )
        if not free:
            kept[name] = value
    return digest(kept)


def _is_measuring(section: str, option: str) -> bool:
    return section == "latency" or (section == "checkpoint" and option == "every_minutes")


def _parts(name: str) -> tuple[str, str]:
    section, _, option = name.partition(".")
    return section, option


def _changes_score(section: str, option: str) -> bool:
    if section == "trainer":
        return option in _SCORING_TRAINER
    if section == "data":
        return option not in _FREE_DATA
    return section in {"model", "seed_everything"}


def _longer(old: Any, new: Any) -> bool:  # noqa: ANN401 - values from YAML
    if not isinstance(old, int) or not isinstance(new, int):
        return False
    return new == -1 or (old != -1 and new > old)


def _check_extension(now: Settings, *, extend: bool, old: int, new: int) -> None:
    flat = flatten(now)
    schedule, warmup = flat.get("model.schedule"), flat.get("model.warmup_steps")
    if isinstance(warmup, float) and warmup and not extend:
        raise SmolbenchError(
            f"trainer.max_epochs was {old}, is {new}, but model.warmup_steps {warmup} is a share "
            "of the planned steps. With --extend the learning rate warms up over that share of "
            f"{new} epochs, and goes on from where it stands then."
        )
    if schedule in _DECAYING and not extend:
        raise SmolbenchError(
            f"trainer.max_epochs was {old}, is {new}, but the {schedule} schedule let the learning "
            f"rate fall to 0 by the end of epoch {old}. With --extend the schedule is stretched "
            f"over {new} epochs: the learning rate jumps up to where it stands on the longer curve."
        )
