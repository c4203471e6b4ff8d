"""What a sweep is, and stays, whoever goes on with it: its ``sweep.json``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from smolbench.cli.command_line import BACKBONE
from smolbench.cli.sweep.check import Checked, check
from smolbench.cli.sweep.ledger import check_definition
from smolbench.cli.sweep.space import Space
from smolbench.errors import SmolbenchError
from smolbench.metrics.table import mode_of
from smolbench.utils.digest import file_digest, folder_content
from smolbench.utils.files import write_atomically

FILE_NAME = "sweep.json"


def define(
    options: argparse.Namespace,
    fit: list[str],
    configs: Sequence[Path],
    space: Space,
    name: str,
    folder: Path,
) -> dict[str, Any]:
    """The definition of a sweep that begins, or goes on if it is the one in the folder.

    Args:
        options: The options of the sweep.
        fit: Those of its trials.
        configs: The configurations among them.
        space: What is swept.
        name: The sweep's name.
        folder: Its folder, which is made.

    Raises:
        SmolbenchError: If the folder holds another sweep or cannot be written, or settings are
            refused.
    """
    known = _known(folder)
    definition: dict[str, Any] = {
        "arguments": fit if known.get("arguments") == fit else _by_content(fit),
        "configurations_digest": file_digest(configs),
        "grid": options.grid,
        "range": options.range,
        "sampler": options.sampler,
        "sampler_seed": options.sampler_seed,
        "metric": options.metric,
        "mode": options.mode,
        "prune": options.prune,
    }
    if known:
        definition["compared_by"] = known.get("compared_by")
        check_definition(name, known, definition)
    else:
        definition["compared_by"] = list(_compared_by(options, fit, space))
        _make(folder, definition)
    return definition


def _by_content(arguments: Sequence[str]) -> list[str]:
    """Arguments in which a folder with a model is named by what it holds: it may be moved."""
    found: list[str] = []
    for argument, before in zip(arguments, ["", *arguments], strict=False):
        name, equals, value = argument.partition("=")
        given = value if equals and name in BACKBONE else argument if before in BACKBONE else ""
        folder = Path(given).expanduser()
        if given and folder.is_dir():
            argument = f"{name}={folder_content(folder)}" if equals else folder_content(folder)
        found.append(argument)
    return found


def _known(folder: Path) -> dict[str, Any]:
    """The definition of the sweep that a folder holds; empty if it holds none."""
    path = folder / FILE_NAME
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SmolbenchError(f"{path} cannot be read ({error}).") from None
    if not isinstance(known, dict):
        raise SmolbenchError(f"{path} does not hold a sweep's definition.")
    return known


def _make(folder: Path, definition: Mapping[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not (folder / FILE_NAME).is_file():
                text = json.dumps(definition, indent=2, ensure_ascii=False) + "\n"
                write_atomically(folder / FILE_NAME, text)
    except OSError as error:
        raise SmolbenchError(
            f"The sweep's folder {folder} cannot be written ({error.strerror}); name another place "
            "with --runs_dir."
        ) from error


def _compared_by(options: argparse.Namespace, fit: list[str], space: Space) -> tuple[str, str]:
    """The metric that trials are compared by, and its mode.

    Raises:
        SmolbenchError: If a key or value is refused, or there is nothing to compare by.
    """
    checked = _checked([*fit, f"--runs_dir={options.runs_dir}"], space)
    metric = options.metric or checked.monitor
    if metric is None:
        raise SmolbenchError("This task monitors nothing: say with --metric what to compare by.")
    if not metric.startswith("val/"):
        raise SmolbenchError(
            f"Trials are compared on validation rows, by a metric such as val/accuracy, not by "
            f"{metric!r}."
        )
    if checked.metrics and metric not in checked.metrics:
        raise SmolbenchError(
            f"A validation of this task does not measure {metric}, but "
            f"{', '.join(checked.metrics)}: name one of these with --metric."
        )
    if metric.startswith("val/rouge") and any(k.endswith(".rouge_tokenizer") for k in space.keys):
        raise SmolbenchError(
            f"Trials cannot be compared by {metric} where model.rouge_tokenizer is swept: each "
            "tokenizer counts other words. Take one, or compare them by val/loss."
        )
    mode = options.mode or (checked.mode if metric == checked.monitor else None)
    return metric, mode_of("--mode", metric, mode)


def _checked(fit: list[str], space: Space) -> Checked:
    """Try every value of every key."""
    probes = space.probes()
    found = check([[*fit, *(f"--{k}={v}" for k, v in point.items())] for _, point in probes])
    for (option, _), one in zip(probes, found, strict=False):
        if isinstance(one, str):
            # what the recipe is refused for without any of them is not their fault
            alone = check([fit])[0] if one is found[0] else None
            culprit = option if alone != one else "This recipe"
            raise SmolbenchError(f"{culprit} is refused by `smolbench fit`: {_sentence(one)}")
        if not one.validates:
            raise SmolbenchError(
                "There are no validation rows to compare trials by: data.val_fraction is 0 and "
                "the dataset has none of its own. Add --data.val_fraction 0.1."
            )
    checked = found[0]
    assert isinstance(checked, Checked), "refusals are raised above"
    return checked


def _sentence(said_: str) -> str:
    return said_ if said_.endswith(".") else f"{said_}."
