"""Whether ``smolbench fit`` would take some settings; called in a process of its own.

It imports what training imports, which the sweep itself keeps out of its memory and of its start.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from smolbench.cli.sweep.process import last_words_of
from smolbench.errors import SmolbenchError


@dataclass(frozen=True)
class Checked:
    """What is known of settings that ``smolbench fit`` takes.

    Attributes:
        monitor: Metric that decides about a run's best checkpoint.
        mode: Whether it should rise (``max``) or fall (``min``), where that is said.
        validates: Whether there is a validation split.
        metrics: Names of the metrics of a validation, such as ``val/accuracy``; empty if not known.
    """

    monitor: str | None
    mode: str | None
    validates: bool
    metrics: tuple[str, ...] = ()


def check(settings: Sequence[Sequence[str]]) -> list[Checked | str]:
    """Try settings.

    Args:
        settings: For each of them the arguments behind ``smolbench fit``.

    Returns:
        For each of them what is known, or the sentence that it is refused with; ends at the first
        that is refused.

    Raises:
        SmolbenchError: If they cannot be tried.
    """
    done = subprocess.run(
        [sys.executable, "-m", "smolbench.cli.sweep.check"],
        input=json.dumps([list(arguments) for arguments in settings]),
        capture_output=True,
        text=True,
    )
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise SmolbenchError(
            f"The settings of the sweep cannot be checked: {last_words_of(done.stderr)}"
        ) from None
    return [one if isinstance(one, str) else _checked(one) for one in found]


def _checked(facts: dict[str, Any]) -> Checked:
    """From what a process has said; JSON knows lists only."""
    return Checked(**{**facts, "metrics": tuple(facts["metrics"])})


def _check_here(settings: Sequence[Sequence[str]]) -> list[dict[str, Any] | str]:
    from smolbench.callbacks import BatchWatch, GracefulStop  # lazy: torch, and what it brings
    from smolbench.cli.command_line import read_invocation
    from smolbench.cli.lightning_cli import SmolCLI, has_validation
    from smolbench.tasks.base import BaseTask

    class Settings(SmolCLI):
        """Reads settings, builds model and data of them, and stops there."""

        def before_instantiate_classes(self) -> None:
            self._refuse_misplaced()

        def instantiate_classes(self) -> None:
            super().instantiate_classes()
            self.check_training()

        def instantiate_trainer(self, **kwargs: Any) -> Any:  # noqa: ANN401 - as Lightning has it
            return None

        def _run_subcommand(self, subcommand: str) -> None:
            pass

    found: list[dict[str, Any] | str] = []
    for arguments in settings:
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                call = read_invocation("fit", list(arguments))
                cli = Settings(call, GracefulStop(), BatchWatch())
                validates = has_validation(cli.datamodule)
        except SmolbenchError as error:
            found.append(str(error))
            break
        except SystemExit:
            found.append(" ".join(said.getvalue().split()))
            break
        model: BaseTask = cli.model
        chosen = cli.config["fit"]["checkpoint"]
        monitor, mode = None, None
        if not chosen["monitor"] and hasattr(model, "monitor"):
            monitor, mode = model.monitor_on(cli.datamodule)
        found.append(
            {
                "monitor": chosen["monitor"] or monitor,
                # the task's is that of its own monitor
                "mode": chosen["mode"] or (None if chosen["monitor"] else mode),
                "validates": validates,
                "metrics": [f"val/{name}" for name in model.validated()],
            }
        )
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_check_here(json.load(sys.stdin))) + "\n")
