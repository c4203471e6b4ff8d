"""A logger that remembers."""

from __future__ import annotations

import random
from typing import Any, ClassVar

from lightning.pytorch.loggers import Logger


class Recorder(Logger):
    """Keeps what it is given, for all of the process."""

    logged: ClassVar[list[dict[str, Any]]] = []
    """Metrics with their ``step``, in the order they came."""

    @property
    def name(self) -> str:
        return "recorder"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.logged.append({"step": step, **metrics})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        self.logged.append({"step": None, "hyperparameters": args})


class Tracker(Logger):
    """Keeps runs in the process, as a tracking server does: by an id, with a name.

    It draws a name by chance if it is given none. What it is told to fail at, it fails at.
    """

    runs: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(
        self,
        run_name: str | None = None,
        run_id: str | None = None,
        log_model: bool = False,
        fails: str | None = None,
    ) -> None:
        super().__init__()
        self.fails = fails
        self._run_id = run_id or f"run-{len(self.runs)}"
        drawn = run_name or f"bold-{random.random()}"
        new = {"name": drawn, "points": [], "settings": {}, "ends": []}
        self.runs.setdefault(self._run_id, new)

    @property
    def run(self) -> dict[str, Any]:
        return self.runs[self._run_id]

    @property
    def name(self) -> str:
        return "tracker"

    @property
    def version(self) -> str:
        return self._run_id

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._fail("log_metrics")
        self.run["points"] += [(name, step, value) for name, value in metrics.items()]

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self._fail("log_hyperparams")
        self.run["settings"].update(params)

    def finalize(self, status: str) -> None:
        self._fail("finalize")
        self.run["ends"].append(status)

    def _fail(self, here: str) -> None:
        if self.fails == here:
            raise OSError(111, "no connection")
