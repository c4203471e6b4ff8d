"""Why a training came to its end."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

from smolbench.callbacks.plateau import TrainingPlateau

OUT_OF_TIME = "its time was up (trainer.max_time, or a Timer)"


def why_ended(trainer: Trainer) -> str:
    """Why a training came to its end, to be read behind "because"."""
    if -1 < trainer.max_steps <= trainer.global_step:
        return f"trainer.max_steps {trainer.max_steps} was reached"
    epochs = trainer.max_epochs
    if epochs is not None and -1 < epochs <= trainer.current_epoch:
        return f"trainer.max_epochs {epochs} was reached"
    for one in trainer.callbacks:  # type: ignore[attr-defined]
        remaining = one.time_remaining() if isinstance(one, Timer) else None
        if remaining is not None and remaining <= 0:
            return OUT_OF_TIME
        if isinstance(one, TrainingPlateau) and one.reached:
            return f"{one.metric} had stopped falling"
        if isinstance(one, EarlyStopping) and one.stopping_reason_message is not None:
            said = one.stopping_reason_message.replace(" Signaling Trainer to stop.", "")
            return f"EarlyStopping asked for it: {said.rstrip('.')}"
    return "a callback asked for it"
