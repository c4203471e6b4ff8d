"""What an export consists of, as its model card and its check tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from smolbench.models.export.check import Check

Framework = Literal["transformers", "peft", "sklearn", "smolbench"]
HERE = "FOLDER"
"""Stands in :attr:`Exported.usage` for the place the export is loaded from."""


@dataclass(frozen=True)
class Exported:
    """What was written into a folder.

    Attributes:
        framework: What loads it, as the Hub names libraries.
        what: What it is, to be read behind "This is".
        usage: Python code that loads it and uses it, with :data:`HERE` for its place.
        reads: How texts become what the model reads.
        limits: What has to be known before it is used.
        check: What the comparison with the run's own model has shown.
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
    check: Check
    pipeline: str | None = None
    base: tuple[str, str | None] | None = None
    base_is_local: bool = False
