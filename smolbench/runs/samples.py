"""A few documents of a run with their summaries: ``samples.json``, for people to read.

A list of objects: ``document``; ``reference``, the summary by a person; ``before`` and ``after``,
what the model wrote without and with its training, ``null`` where it has not. Where ``before`` was
written in another way than ``after`` (other lengths or beams), ``before_convention`` names it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smolbench.utils.files import write_atomically

FILE_NAME = "samples.json"
SAMPLE_LABELS = (
    ("document", "document"),
    ("before", "before training"),
    ("after", "after training"),
    ("reference", "reference"),
)
"""Keys of a sample in the order in which they are shown, and how they are called."""


def labelled(sample: Mapping[str, str]) -> list[tuple[str, str]]:
    """The texts of a sample, each behind what it is called."""
    shown = []
    for key, label in SAMPLE_LABELS:
        if (text := sample.get(key)) is None:
            continue
        if key == "before" and "before_convention" in sample:
            label += f" (written as: {sample['before_convention']})"
        shown.append((label, text))
    return shown


def write_samples(folder: Path, samples: Sequence[Mapping[str, Any]]) -> None:
    """Write a run's samples into its folder."""
    text = json.dumps([dict(sample) for sample in samples], indent=2, ensure_ascii=False)
    write_atomically(folder / FILE_NAME, text + "\n")


def read_samples(folder: Path) -> list[dict[str, str]]:
    """A run's samples, those of their entries that are texts; none if there is no such file."""
    try:
        found = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(found, list):
        return []
    return [
        {key: text for key, text in sample.items() if isinstance(text, str)}
        for sample in found
        if isinstance(sample, dict)
    ]
