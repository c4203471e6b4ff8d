"""What a command says when its Trainer has ended: why it did, and what was profiled."""

from __future__ import annotations

import sys
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from smolbench.callbacks import TrainingPlateau

_PROFILERS: dict[str, type[Profiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}
_NAME = "profile"


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
            return "its time was up (trainer.max_time, or a Timer)"
        if isinstance(one, TrainingPlateau) and one.reached:
            return f"{one.metric} had stopped falling"
        if isinstance(one, EarlyStopping) and one.stopping_reason_message is not None:
            said = one.stopping_reason_message.replace(" Signaling Trainer to stop.", "")
            return f"EarlyStopping asked for it: {said.rstrip('.')}"
    return "a callback asked for it"


class Profiled:
    """A profile that is asked for by its name: it is written into the run folder, and shown.

    Lightning either prints it or writes it to a file.

    Args:
        folder: The run folder.
        given: The option of the Trainer; a profiler of one's own writes where it was told to.
        stage: What is profiled.
    """

    def __init__(self, folder: Path, given: object, stage: str) -> None:
        self.kind = _PROFILERS.get(given.lower()) if isinstance(given, str) else None
        self.folder = folder
        self.path = folder / f"{stage}-{_NAME}.txt"
        self._known = self._size()

    def profiler(self) -> Profiler | None:
        """One that writes into the run folder."""
        return None if self.kind is None else self.kind(dirpath=self.folder, filename=_NAME)

    def show(self) -> None:
        """Print what this command has added to the file."""
        if self.kind is not None and self.path.is_file():
            with self.path.open(encoding="utf-8") as file:
                file.seek(self._known)
                sys.stderr.write(f"{file.read().strip()}\n")

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0
