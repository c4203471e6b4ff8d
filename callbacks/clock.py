"""The time, once a device has done what it was given."""

from __future__ import annotations

from time import perf_counter

import torch


def synchronised_s(device: torch.device) -> float:
    """Seconds on the clock of :func:`time.perf_counter`, after waiting for a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return perf_counter()
