"""``ReduceLROnPlateau`` schedulers, stepped where a checkpoint holds the outcome."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import LRSchedulerConfig

from smolbench.callbacks.metric_names import not_logged
from smolbench.callbacks.values import plain
from smolbench.errors import SmolbenchError

_VALIDATED = "val/"


class PlateauSteps:
    """Step the schedulers of a training that watch a validation metric, once an epoch.

    Lightning 2.6 steps them when an epoch's checkpoint is written already, and not at all in an
    epoch that a resume began in: a reduction is lost, or comes too late. Here it happens before the
    checkpoint, from values that the checkpoint holds as well, and Lightning's own step is off.
    """

    def __init__(self) -> None:
        self._plateaus: list[tuple[LRSchedulerConfig, int]] = []
        self._values: dict[str, float] = {}
        self._epoch = -1

    def take_over(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find them, and keep Lightning from stepping them.

        Raises:
            SmolbenchError: If one is stepped by what no checkpoint can hold.
        """
        self._plateaus = []
        if not pl_module.automatic_optimization:
            return
        for config in trainer.lr_scheduler_configs:
            if not config.reduce_on_plateau:
                continue
            if config.interval != "epoch" or not str(config.monitor).startswith(_VALIDATED):
                raise SmolbenchError(
                    f"{type(config.scheduler).__name__} of {type(pl_module).__name__} has the "
                    f"monitor {config.monitor!r} and the interval {config.interval!r}, by which a "
                    "resumed training would lose its steps: let it watch a metric of the "
                    f"validation ({_VALIDATED}...) with the interval 'epoch'."
                )
            self._plateaus.append((config, config.frequency))
            config.frequency = sys.maxsize

    def remember(self, trainer: Trainer) -> None:
        """Keep what a validation has logged: an epoch may end without one."""
        for config, _ in self._plateaus:
            if (value := trainer.callback_metrics.get(str(config.monitor))) is not None:
                self._values[str(config.monitor)] = plain(value)

    def end_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Step them if this is the end of an epoch, and they have not been stepped.

        Raises:
            SmolbenchError: If the metric is not logged, and a scheduler is not told to do without.
        """
        epoch = trainer.current_epoch
        if not trainer.is_last_batch or self._epoch == epoch:
            return
        self._epoch = epoch
        for config, frequency in self._plateaus:
            name = str(config.monitor)
            if (epoch + 1) % frequency:
                continue
            if name in self._values:
                pl_module.lr_scheduler_step(config.scheduler, self._values[name])
            elif config.strict:
                option = f"The monitor of {type(config.scheduler).__name__}"
                there = sorted(trainer.callback_metrics)
                raise SmolbenchError(not_logged(option, name, pl_module, there))

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on, as plain values."""
        return {"epoch": self._epoch, "values": dict(self._values)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where an earlier attempt stood."""
        self._epoch = int(state_dict["epoch"])
        self._values = dict(state_dict["values"])
