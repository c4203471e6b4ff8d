"""Run folders: ``runs/<recipe>/<start time>/``, one folder per run.

Inside: ``config.yaml``, ``environment.json``, ``rows.npz``, ``metrics.csv``, ``results.json``,
``predictions.parquet`` and ``checkpoints/{best,last}.ckpt``.
"""

from __future__ import annotations

import datetime
import glob
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smolbench.errors import SmolbenchError
from smolbench.runs.results import FILE_NAME, Results, read_results

CheckpointName = Literal["best", "last"]
log = logging.getLogger("smolbench")


@dataclass(frozen=True)
class Run:
    """A run folder that exists."""

    path: Path

    @property
    def config(self) -> Path:
        """The settings that the run was started with."""
        return self.path / "config.yaml"

    def checkpoint(self, name: CheckpointName) -> Path:
        """Where the run's ``best`` or ``last`` checkpoint lies, whether or not it exists yet."""
        return self.path / "checkpoints" / f"{name}.ckpt"

    def results(self) -> Results:
        """Contents of ``results.json``.

        Raises:
            SmolbenchError: If the file is damaged or from another schema.
        """
        return read_results(self.path)


def run_of(checkpoint: Path) -> Run | None:
    """The run that a checkpoint file belongs to, or ``None`` for a file from elsewhere."""
    folder = checkpoint.absolute().parent
    if folder.name == "checkpoints" and (folder.parent / FILE_NAME).is_file():
        return Run(folder.parent)
    return None


def run_of_config(config: Path) -> Run | None:
    """The run whose own ``config.yaml`` a file is, or ``None`` for any other configuration."""
    folder = config.absolute().parent
    if config.name == "config.yaml" and (folder / FILE_NAME).is_file():
        return Run(folder.resolve())
    return None


def recipe_name(configs: Sequence[Path]) -> str:
    """Name of what is run: the stems of all configurations outside ``trainer/``, joined by ``+``.

    A configuration that is a run's own ``config.yaml`` stands for that run's recipe.
    """
    names = []
    for config in configs:
        if config.parent.name == "trainer":
            continue
        run = run_of_config(config)
        names.append(str(run.results().get("recipe", "custom")) if run else config.stem)
    return "+".join(names) or "custom"


def new_run_dir(runs_dir: Path, recipe: str) -> Path:
    """Make the folder of a run that starts now.

    Of two runs that start at the same moment each gets its own.

    Raises:
        SmolbenchError: If it cannot be made.
    """
    start = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    candidate = runs_dir / recipe / start
    number = 1
    while not make_folder(candidate):
        number += 1
        candidate = runs_dir / recipe / f"{start}-{number}"
    return candidate


def make_folder(folder: Path) -> bool:
    """Make a run's folder.

    Returns:
        Whether it is new.

    Raises:
        SmolbenchError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if folder.is_dir():
            return False
        raise SmolbenchError(f"{folder} is a file, where a run's folder should be.") from None
    except OSError as error:
        raise SmolbenchError(
            f"The run's folder {folder} cannot be made ({error.strerror}); name another place with "
            "--runs_dir or --run_dir."
        ) from error
    return True


def find_runs(runs_dir: Path, recipe: str | None = None) -> list[Run]:
    """Runs below a folder, newest start first.

    Args:
        runs_dir: The folder of all runs.
        recipe: Only runs of this recipe; all runs if not given.
    """
    started: list[tuple[str, str, Path]] = []
    pattern = "*" if recipe is None else glob.escape(recipe)
    for path in runs_dir.glob(f"{pattern}/*/{FILE_NAME}"):
        try:
            start = str(read_results(path.parent).get("started_at"))
        except SmolbenchError as error:
            # it cannot be resumed or tested by name, but must not vanish without a word
            log.warning("%s This run is passed over.", error)
            continue
        started.append((start, path.parent.name, path.parent))
    return [Run(path) for _, _, path in sorted(started, reverse=True)]
