"""What an export consists of, as its model card and its check tell it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from smolbench.errors import SmolbenchError

Framework = Literal["transformers", "peft", "sklearn", "smolbench"]
HERE = "FOLDER"
"""Stands in :attr:`Exported.usage` for the place the export is loaded from."""
SAMPLES = (
    "A warm, funny film; I would see it again and again.",
    "Dull.",
    "The plot is thin, the acting wooden, and the ending comes two hours too late for anyone.",
)
"""Texts of several lengths that an export is compared on with what it was made from."""
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Exported:
    """What was written into a folder.

    Attributes:
        framework: What loads it, as the Hub names libraries.
        what: What it is, to be read behind "This is".
        usage: Python code that loads it and uses it, with :data:`HERE` for its place.
        reads: How texts become what the model reads.
        limits: What has to be known before it is used.
        pipeline: The kind of use, as the Hub names it; ``None`` if transformers' ``pipeline`` does
            not take it.
        base: Id or folder of the pretrained model, and its commit; ``None`` if there is none.
        base_is_local: Whether that is a folder on this machine, which nobody else has.
    """

    framework: Framework
    what: str
    usage: str
    reads: Sequence[str]
    limits: Sequence[str]
    pipeline: str | None = None
    base: tuple[str, str | None] | None = None
    base_is_local: bool = False


def check_equal(expected: torch.Tensor, folder: Path, load: Callable[[Path], torch.Tensor]) -> None:
    """Refuse an export that does not say what the run's own model says.

    Args:
        expected: What that model says, float32, of any shape.
        folder: What was written.
        load: Loads it as anybody would, and says what it says; the same shape.

    Raises:
        SmolbenchError: If it cannot be loaded, or differs by more than rounding.
    """
    try:
        found = load(folder).float()
    except Exception as error:  # whatever other libraries make of it
        reason = " ".join(str(error).split())[:300]
        raise SmolbenchError(
            "What was exported cannot be loaded again, so it is not kept "
            f"({type(error).__name__}: {reason})."
        ) from error
    gap = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
    if not gap <= _TOLERANCE * max(1.0, float(expected.abs().max())):
        raise SmolbenchError(
            "What was exported says something else than the run's model (logits differ by up to "
            f"{gap:.2g}), so it is not kept: this architecture or tokenizer cannot be exported yet."
        )
