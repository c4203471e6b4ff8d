"""Run folders: ``runs/<recipe>/<start time>/``, one folder per run.

Inside: ``config.yaml``, ``environment.json``, ``metrics.csv``, ``results.json``,
``predictions.parquet`` and ``checkpoints/{best,last}.ckpt``.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smolbench.errors import SmolbenchError
from smolbench.runs.results import FILE_NAME, Results, read_results

CheckpointName = Literal["best", "last"]


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


def recipe_name(configs: Sequence[Path]) -> str:
    """Name of what is run: the stems of all configurations outside ``trainer/``, joined by ``+``.

    A configuration that is a run's own ``config.yaml`` stands for that run's recipe.
    """
    names = []
    for config in configs:
        if config.parent.name == "trainer":
            continue
        if config.name == "config.yaml" and (config.parent / FILE_NAME).is_file():
            names.append(str(read_results(config.parent)["recipe"]))
        else:
            names.append(config.stem)
    return "+".join(names) or "custom"


def new_run_dir(runs_dir: Path, recipe: str) -> Path:
    """A folder name for a run that starts now; the folder itself is not made yet."""
    start = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    candidate = runs_dir / recipe / start
    number = 1
    while candidate.exists():
        number += 1
        candidate = runs_dir / recipe / f"{start}-{number}"
    return candidate


def find_runs(runs_dir: Path, recipe: str | None = None) -> list[Run]:
    """Runs below a folder, newest start first.

    Args:
        runs_dir: The folder of all runs.
        recipe: Only runs of this recipe; all runs if not given.
    """
    started: list[tuple[str, str, Path]] = []
    for path in runs_dir.glob(f"{recipe or '*'}/*/{FILE_NAME}"):
        try:
            start = str(read_results(path.parent).get("started_at"))
        except SmolbenchError:
            continue  # a damaged results file cannot be resumed or tested by name
        started.append((start, path.parent.name, path.parent))
    return [Run(path) for _, _, path in sorted(started, reverse=True)]
