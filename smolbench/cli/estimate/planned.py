"""How much of everything a recipe asks for: steps, validations, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smolbench.errors import SmolbenchError

_USUAL_EPOCHS = 1000
"""What Lightning trains for if nothing else is said."""


@dataclass(frozen=True)
class Planned:
    """A training as the Trainer's options plan it.

    Attributes:
        max_epochs: Epochs; ``None`` for no end.
        max_steps: Optimiser steps; ``None`` for no end.
        max_time: Whether time ends it, too.
        val_every_epochs: Epochs from one that validates to the next; ``None`` if epochs do not
            matter.
        val_interval: Share of an epoch (a float) or batches (an integer) between validations;
            ``None`` if the clock decides.
        log_every: Optimiser steps between two rows of ``metrics.csv``.
    """

    max_epochs: int | None
    max_steps: int | None
    max_time: bool
    val_every_epochs: int | None
    val_interval: float | int | None
    log_every: int

    @classmethod
    def of(cls, trainer: Mapping[str, Any]) -> Planned:
        """Read the Trainer's options.

        Raises:
            SmolbenchError: If they plan no end, or are those of a trial.
        """
        for name in ("fast_dev_run", "overfit_batches"):
            if trainer.get(name):
                raise SmolbenchError(
                    f"trainer.{name} is for trying things out; --estimate is of a whole run: leave "
                    "out one of them."
                )
        epochs, steps = trainer["max_epochs"], trainer["max_steps"]
        timed = trainer["max_time"] is not None
        if epochs is None and steps == -1 and not timed:
            epochs = _USUAL_EPOCHS
        planned = cls(
            max_epochs=None if epochs in (None, -1) else epochs,
            max_steps=None if steps == -1 else steps,
            max_time=timed,
            val_every_epochs=trainer["check_val_every_n_epoch"],
            val_interval=_interval(trainer["val_check_interval"]),
            log_every=trainer["log_every_n_steps"] or 0,
        )
        if planned.max_epochs is None and planned.max_steps is None:
            raise SmolbenchError(
                "The training has no planned end to be estimated: give trainer.max_epochs or "
                "trainer.max_steps."
            )
        return planned

    def steps(self, batches: int, accumulate: int) -> int:
        """Optimiser steps of the whole training.

        Args:
            batches: Of an epoch.
            accumulate: Batches of a step.
        """
        each = -(-batches // accumulate)
        planned = [] if self.max_epochs is None else [self.max_epochs * each]
        return min([*planned, *([] if self.max_steps is None else [self.max_steps])])

    def batches(self, batches: int, accumulate: int) -> int:
        """Batches of the whole training; the last step of an epoch may have fewer."""
        each = -(-batches // accumulate)
        epochs, rest = divmod(self.steps(batches, accumulate), each)
        return epochs * batches + min(rest * accumulate, batches)

    def validations(self, batches: int, accumulate: int) -> int | None:
        """Validations of the whole training; ``None`` if the clock decides."""
        done = self.batches(batches, accumulate)
        if self.val_interval is None:
            return None
        if isinstance(self.val_interval, int):
            every = self.val_interval
            if self.val_every_epochs is None:
                return done // every
        else:
            every = max(1, int(batches * self.val_interval))
        epochs, rest = divmod(done, batches)
        among = self.val_every_epochs or 1
        count = epochs // among * (batches // every)
        return count + (rest // every if (epochs + 1) % among == 0 else 0)


def _interval(given: Any) -> float | int | None:  # noqa: ANN401 - as the Trainer takes it
    """The option ``val_check_interval``: a share, batches, or a time."""
    if given is None:
        return 1.0
    return given if isinstance(given, (int, float)) else None
