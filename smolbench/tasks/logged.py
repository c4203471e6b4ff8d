"""What a LightningModule logs, by the stage it is logged in, whatever its names are."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule

from smolbench.callbacks.metrics_csv import MetricsCSV


class LogsByStage(LightningModule):
    """Keeps the names of what is logged, for ``metrics.csv``, results and loggers.

    Attributes:
        logged_names: Names by stage: ``train`` (of a step), ``train_epoch`` (means over an epoch),
            ``val``, ``test``; and those that ``no_logger`` is to have. Whoever writes metrics down
            removes the names of the time before.
    """

    def __init__(self) -> None:
        super().__init__()
        stages = ("train", "train_epoch", "val", "test", "no_logger")
        self.logged_names: dict[str, set[str]] = {stage: set() for stage in stages}

    def log(
        self,
        name: str,
        value: Any,  # noqa: ANN401 - as Lightning types it
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        *args: Any,  # noqa: ANN401
        **options: Any,  # noqa: ANN401
    ) -> None:
        """See Lightning's; where loggers are given the rows of ``metrics.csv``, only these."""
        trainer = self._trainer
        if trainer is not None:
            if logger is False:
                self.logged_names["no_logger"].add(name)
            feeding = (isinstance(one, MetricsCSV) and one.loggers for one in trainer.callbacks)  # type: ignore[attr-defined]
            if any(feeding):
                logger = False
            if not trainer.training:
                self.logged_names["test" if trainer.testing else "val"].add(name)
            else:
                if on_step is not False:
                    self.logged_names["train"].add(name)
                if on_epoch:
                    self.logged_names["train_epoch"].add(name)
        super().log(name, value, prog_bar, logger, on_step, on_epoch, *args, **options)
