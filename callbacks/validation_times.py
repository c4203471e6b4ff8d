"""When a training validates, and when it ends, as far as Lightning's loops are to be asked."""

from __future__ import annotations

import math
import time

from lightning.pytorch import Trainer


class ValidationTimes:
    """How often a training is validated; changed for a moment where Lightning must be told more."""

    def __init__(self) -> None:
        self._asked: tuple[int | None, int | float | None] = (1, None)
        self._clock_to_start = False

    def take_over(self, trainer: Trainer) -> None:
        """Keep what was asked for."""
        self._asked = trainer.check_val_every_n_epoch, trainer.val_check_batch

    def end_epoch_that_is_over(self, trainer: Trainer) -> None:
        """Let a training end the epoch that its checkpoint has ended.

        Lightning 2.6 goes on within it, unless it takes it for one that has just been validated.
        """
        trainer.check_val_every_n_epoch = trainer.val_check_batch = 1
        if self._asked[1] is None:  # validations by the clock
            trainer._last_val_time = -math.inf  # type: ignore[attr-defined]
            self._clock_to_start = True

    def validate_now(self, trainer: Trainer) -> None:
        """Let a training end with a validation, whichever epoch it is."""
        trainer.should_stop = True
        trainer.check_val_every_n_epoch = 1

    def give_back(self, trainer: Trainer) -> None:
        """Validate as often as it was asked for."""
        trainer.check_val_every_n_epoch, trainer.val_check_batch = self._asked
        if self._clock_to_start:
            trainer._last_val_time = time.monotonic()  # type: ignore[attr-defined]
            self._clock_to_start = False


def validation_may_follow(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a validation may come behind a training batch.

    Args:
        trainer: At the end of the batch.
        batch_idx: Number of the batch in its epoch.
    """
    # the loaders are built right before the first validation, which a resumed run has not had
    known = trainer.val_dataloaders is not None
    if not trainer.enable_validation or (known and not sum(trainer.num_val_batches)):
        return False
    epochs = trainer.check_val_every_n_epoch
    if epochs is not None and (trainer.current_epoch + 1) % epochs:
        return False
    if ends_early(trainer):
        return True
    if trainer.val_check_batch is None:  # validations by the clock
        interval: float = trainer._val_check_time_interval  # type: ignore[attr-defined]
        since: float = trainer._last_val_time  # type: ignore[attr-defined]
        return time.monotonic() - since >= interval
    if trainer.val_check_batch == float("inf"):
        return trainer.is_last_batch
    if epochs is None:
        batch_idx = trainer.fit_loop.epoch_loop.total_batch_idx
    return (batch_idx + 1) % trainer.val_check_batch == 0


def ends_early(trainer: Trainer) -> bool:
    """Whether a training is asked to end, and may."""
    return trainer.should_stop and trainer.fit_loop._can_stop_early


def is_last_step(trainer: Trainer) -> bool:
    """Whether the training ends after this optimiser step, as far as is known."""
    epochs = trainer.max_epochs
    last_epoch = epochs not in (None, -1) and trainer.current_epoch + 1 >= epochs
    return (
        (trainer.is_last_batch and last_epoch)
        or -1 < trainer.max_steps <= trainer.global_step
        or ends_early(trainer)
    )
