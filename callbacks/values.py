"""Numbers as they are written to files."""

from __future__ import annotations

import numpy as np
import torch


def plain(value: torch.Tensor | float) -> float:
    """A logged value as the shortest number that is it.

    Lightning keeps what is logged in float32; 0.52 would otherwise be written as
    0.5199999809265137.
    """
    if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
        return float(str(np.float32(value.item())))
    return float(value)


def counted(name: str, value: float) -> float | int:
    """A metric's value; numbers of examples (``.../n``, ``.../n_truncated``) are whole."""
    last = name.rpartition("/")[2]
    counts = last == "n" or last.startswith("n_")
    return int(value) if counts and value.is_integer() else value  # means over seeds need not be
