"""What a command tells the data of the run that it goes on with or scores."""

from __future__ import annotations

from collections.abc import Sequence

from smolbench.cli.command_line import Invocation
from smolbench.data.datamodule import BaseDataModule
from smolbench.data.hub import COMMIT
from smolbench.data.run_rows import OfRun
from smolbench.runs.settings import Settings, flatten, read_settings
from smolbench.tasks.trained_run import kept_by

_TEST_SETS = (
    "class_path", "source", "dataset_id", "dataset_config", "test_file", "test_split", "test_set",
)  # fmt: skip
"""Options of the data that name another test set where they differ from the run's."""
_DATASETS = ("class_path", "source", "dataset_id", "revision")
"""Options of the data that name what is read from the Hub."""


def rows_of_run(data: BaseDataModule, call: Invocation, settings: Settings) -> None:
    """Let data read the rows of the run that a command is about.

    Args:
        data: The command's.
        call: The command.
        settings: Its settings.

    Raises:
        SmolbenchError: If the run's own list of its rows is missing or another one.
    """
    run = call.run
    if run is None or not run.config.is_file():
        return
    before, now = flatten(read_settings(run.config)), flatten(settings)

    def differs(names: Sequence[str]) -> bool:
        return any(before.get(f"data.{n}") != now.get(f"data.{n}") for n in names)

    results = run.results()
    commit = results.get("data/revision")
    pinned = isinstance(commit, str) and COMMIT.fullmatch(commit) and not differs(_DATASETS)
    data.of_run(
        OfRun(
            kept=kept_by(run, call.checkpoint),
            results=results,
            goes_on=call.resumes,
            other_test=not call.resumes and differs(_TEST_SETS),
            commit=commit if pinned else None,
        )
    )
