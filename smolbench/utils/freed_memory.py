"""Memory that was freed and that the process keeps."""

from __future__ import annotations

import ctypes


def return_freed_memory() -> None:
    """Give freed memory back to the system; does nothing where the C library is not glibc.

    glibc keeps what it frees below what still lives, in holes that later, larger tensors do not fit
    into: after a network was loaded in float32 and put into bfloat16 weight by weight, the process
    keeps most of the float32 weights' size for good.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)
