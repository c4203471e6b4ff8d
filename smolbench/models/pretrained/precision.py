"""Which number formats a device computes natively, not by emulation."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch

_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""x86 and Arm names, as Linux lists them, of instructions that multiply bfloat16."""


@functools.cache
def native_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware.

    ``torch.cuda.is_bf16_supported()`` alone also says yes where it is emulated and slow (GTX 1080
    Ti, T4). On Apple Silicon the answer is no: mixed precision there is still unreliable.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or platform.system() != "Linux":
        return False
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not _CPU_FLAGS.isdisjoint(flags.split())
