"""A logger that remembers."""

from __future__ import annotations

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
