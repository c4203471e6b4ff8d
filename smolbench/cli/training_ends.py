"""What a command shows when its Trainer has ended: what was profiled."""

from __future__ import annotations

import sys
from pathlib import Path

from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

_PROFILERS: dict[str, type[Profiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}
_NAME = "profile"


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
