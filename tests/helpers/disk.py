"""What reaches the disk, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


class Disk:
    """Remembers which file was brought to the disk, as long as it was then, and what was renamed.

    Args:
        monkeypatch: Undoes it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[object, ...]] = []
        fsync, replace = os.fsync, Path.replace

        def synced(descriptor: int) -> None:
            fsync(descriptor)
            state = os.fstat(descriptor)
            self.events.append(("on disk", state.st_ino, state.st_size))

        def renamed(path: Path, target: Path) -> Path:
            self.events.append(("renamed", Path(target).name))
            return replace(path, target)

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(Path, "replace", renamed)
