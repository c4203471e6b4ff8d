"""A plain Lightning trainer that leaves nothing behind."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


def plain_trainer(root: object, **options: Any) -> Trainer:
    """On the CPU, without logger, bar and automatic checkpoints."""
    return Trainer(
        default_root_dir=str(root),
        accelerator="cpu",
        **{
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            **options,
        },
    )
