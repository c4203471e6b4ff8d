"""Where the callbacks of one job write."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer


def run_folder(trainer: Trainer) -> Path:
    """The job's folder: ``default_root_dir`` of rank 0, on every rank.

    A collective call: all ranks must make it together (in ``setup``).
    """
    return Path(trainer.strategy.broadcast(trainer.default_root_dir))
