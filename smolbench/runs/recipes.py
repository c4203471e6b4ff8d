"""The shipped recipes: found by name from any folder, in a checkout and in an installed wheel."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from smolbench.errors import SmolbenchError

CONFIGS = Path(__file__).parents[1] / "configs"
DEFAULTS = Path(__file__).parents[1] / "defaults.yaml"
_CLASSES = ("model", "data")
_SECTIONS = (*_CLASSES, "trainer", "checkpoint", "latency")
_SUBCOMMANDS = ("fit", "validate", "test", "predict")


def recipe_names() -> list[str]:
    """Names of all shipped recipes and overlays, such as ``imdb_probe`` or ``trainer/cpu``."""
    return sorted(
        p.relative_to(CONFIGS).with_suffix("").as_posix()
        for p in CONFIGS.rglob("*.yaml")
        if not p.parent.with_suffix(".yaml").is_file()  # see in_place_of
    )


def resolve_config(given: str) -> Path:
    """Find a configuration file: a path, or the name of a shipped recipe.

    Raises:
        SmolbenchError: If neither a file nor a shipped recipe has this name, or the file is no
            YAML mapping.
    """
    path = Path(given).expanduser()
    if path.is_file():
        _check_mapping(path)
        return path
    # `configs/imdb_probe.yaml` means the shipped recipe also where there is no such folder
    name = given.removesuffix(".yaml").removeprefix("configs/")
    shipped = CONFIGS / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    alike = get_close_matches(name, recipe_names(), n=3)
    if (here := path.with_name(f"{path.name}.yaml")).is_file():
        alike.insert(0, str(here))
    raise SmolbenchError(
        f"There is no configuration {given!r}: it is neither a file nor a shipped recipe. "
        + (f"Meant may be {' or '.join(alike)}; " if alike else "")
        + "`smolbench recipes` lists all."
    )


def in_place_of(overlay: Path, before: Sequence[Path]) -> Path:
    """What stands in for an overlay where the recipe's task needs another one.

    Options differ between tasks: beside ``tiny.yaml`` there may be a folder ``tiny`` with a
    ``PromptTask.yaml``, which is then taken for recipes of that task.

    Args:
        overlay: A configuration.
        before: The configurations it is put onto.
    """
    folder = overlay.with_suffix("")
    if not before or not folder.is_dir():
        return overlay
    import yaml  # lazy: see below

    model: dict[str, Any] = {}
    for path in before:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        found = settings.get("model") if isinstance(settings, dict) else None
        model |= {"class_path": found} if isinstance(found, str) else found or {}
    task = str(model.get("class_path")).rpartition(".")[2]
    special = folder / f"{task}.yaml"
    return special if special.is_file() else overlay


def _check_mapping(path: Path) -> None:
    """Say which file cannot be read, and where; the parser behind says only what it missed."""
    import yaml  # lazy: `recipes` and `--help` need none

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SmolbenchError(
            f"The configuration {path} is no readable YAML: {' '.join(str(error).split())}."
        ) from error
    if not isinstance(settings, dict):
        raise SmolbenchError(
            f"The configuration {path} must hold settings such as `model:` and `data:`, but it is "
            f"{'empty' if settings is None else 'a ' + type(settings).__name__}."
        )
    nested = [settings[name] for name in _SUBCOMMANDS if isinstance(settings.get(name), dict)]
    for one in (settings, *nested):
        for section in _SECTIONS:
            _check_section(path, section, one.get(section, {}))


def _check_section(path: Path, section: str, given: object) -> None:
    """Say what stands where options should; a class or a file of them may be named alone."""
    name = section
    if isinstance(given, dict) and section in _CLASSES:
        name, given = f"{section}.init_args", given.get("init_args", {})
    if isinstance(given, dict) or (isinstance(given, str) and given and name == section):
        return
    raise SmolbenchError(
        f"The configuration {path} must hold options below {name}, but there is "
        f"{'nothing' if given in (None, '') else given}: give some, or leave out {name}."
    )


def describe(name: str) -> str:
    """First line of a recipe's header comment."""
    first = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[:1]
    return first[0].lstrip("# ") if first and first[0].startswith("#") else ""


def list_recipes(arguments: Sequence[str]) -> int:
    """``smolbench recipes``: all shipped recipes and overlays, a line each.

    Returns:
        The exit status.

    Raises:
        SmolbenchError: If there are arguments.
    """
    if arguments:
        raise SmolbenchError(f"smolbench recipes takes no arguments, but got {arguments[0]!r}.")
    names = recipe_names()
    width = max(map(len, names))
    for name in names:
        sys.stdout.write(f"{name:<{width}}  {describe(name)}\n")
    return 0
