"""``data.batch_size: auto``: the largest batch whose training step fits into memory."""

from __future__ import annotations

import logging
import math
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from smolbench.callbacks.memory import MIB, resident_mib
from smolbench.callbacks.out_of_memory import is_out_of_memory
from smolbench.data.batching import Rows
from smolbench.errors import SmolbenchError

if TYPE_CHECKING:
    from smolbench.tasks.base import BaseTask

log = logging.getLogger("smolbench")
CGROUPS = Path("/sys/fs/cgroup")
SAMPLE_S = 0.002
SHARE = 0.9
"""Share of the free memory that a step may fill; fragments and the evaluation need the rest."""


def largest_batch(
    task: BaseTask, rows: Rows, effective: int, limit_mib: float | None = None
) -> int:
    """Find the largest divisor of the effective batch size whose training step fits.

    A trial is a forward and a backward pass over the longest rows (rows of two texts say themselves
    by ``heaviest(n)`` what that is) with the memory of the
    optimiser's state beside it. Trials go upwards, so that a batch is tried only if the growth so
    far says that it fits: where memory is not limited by an allocator but by the machine (CPU),
    the system would end the process. Weights, gradients, buffers and random numbers are left as
    they were.

    Args:
        task: On its device, with ``checked_loss(batch)``.
        rows: The training rows.
        effective: Examples per optimiser step and process.
        limit_mib: Memory that the step may add; what the device has free if not given.

    Raises:
        SmolbenchError: If not even one example fits.
    """
    device = task.device
    sizes = [size for size in range(1, effective + 1) if effective % size == 0]
    sizes = [size for size in sizes if size <= len(rows)]
    # BatchNorm cannot train on one row
    sizes = [size for size in sizes if size > 1] or sizes
    free = limit_mib if limit_mib is not None else _free_mib(device, task.trainer.num_devices)
    budget = free * SHARE
    used: dict[int, float] = {}
    for size in sizes:
        predicted = _predict(used, size)
        if predicted is not None and predicted > budget:
            break
        try:
            used[size] = _trial_mib(task, _heaviest(rows, size))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()
        if used[size] > budget:
            del used[size]
            break
    if not used:
        raise SmolbenchError(
            f"data.batch_size auto: a step over {sizes[0]} of the longest examples does not fit "
            f"into the {free:,.0f} MiB that are free: shorten model.max_length, or choose a "
            "smaller model or another method."
        )
    found = max(used)
    log.info(
        "data.batch_size auto: %d examples per step (%.0f of %.0f MiB), %d steps per update.",
        found,
        used[found],
        free,
        effective // found,
    )
    return found


def _predict(used: dict[int, float], size: int) -> float | None:
    """Memory of a larger batch, on the line through the last two trials."""
    if not used:
        return None
    last = max(used)
    if len(used) == 1:
        return used[last] * size / last
    before = sorted(used)[-2]
    slope = max(0.0, (used[last] - used[before]) / (last - before))
    return used[last] + slope * (size - last)


def _heaviest(rows: Rows, size: int) -> dict[str, torch.Tensor]:
    """A batch that needs as much memory as any of its size."""
    if callable(heaviest := getattr(rows, "heaviest", None)):
        batch: dict[str, torch.Tensor] = heaviest(size)
        return batch
    lengths = rows.lengths
    longest = np.arange(len(rows)) if lengths is None else np.argsort(-lengths, kind="stable")
    return rows.batch(np.sort(longest[:size]))


def _trial_mib(task: BaseTask, batch: dict[str, torch.Tensor]) -> float:
    """What one training step over a batch adds to the memory at its peak."""
    device = task.device
    trained = [p for p in task.parameters() if p.requires_grad]
    gradients = [p.grad for p in trained]
    buffers = {name: buffer.clone() for name, buffer in task.named_buffers()}
    batch = {name: value.to(device) for name, value in batch.items()}
    generators = [device] if device.type == "cuda" else []
    try:
        with (
            _Peak(device) as peak,
            torch.random.fork_rng(devices=generators),
            torch.enable_grad(),
        ):
            # AdamW's two moments per trained weight, written to so that they are really there
            moments = [torch.ones_like(p) for p in trained for _ in range(2)]
            with task.trainer.precision_plugin.forward_context():
                loss = task.checked_loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            del loss, moments
    finally:
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
        for name, buffer in task.named_buffers():
            buffer.data.copy_(buffers[name])
    return peak.added_mib


class _Peak:
    """The most memory that a block adds; the high-water marks of the run are left alone."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.added_mib = 0.0

    def __enter__(self) -> _Peak:
        self._before = self._in_use_mib()
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._sampler.join()
        if self.device.type == "cuda":  # nothing is missed; an earlier, higher peak counts too
            peak = torch.cuda.max_memory_allocated(self.device) / MIB
            self.added_mib = max(self.added_mib, peak - self._before)

    def _sample(self) -> None:
        while True:
            self.added_mib = max(self.added_mib, self._in_use_mib() - self._before)
            if self._ended.wait(SAMPLE_S):
                return

    def _in_use_mib(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device) / MIB
        if self.device.type == "mps":
            return torch.mps.current_allocated_memory() / MIB
        return resident_mib()


def _free_mib(device: torch.device, processes: int) -> float:
    """Memory that is free for this process; those on one machine's CPU share it."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (free + cached) / MIB
    if device.type == "mps":
        most = torch.mps.recommended_max_memory()
        return (most - torch.mps.driver_allocated_memory()) / MIB
    import psutil  # lazy: commands that only show something measure nothing

    return min(psutil.virtual_memory().available, _free_of_group()) / MIB / processes


def _free_of_group() -> float:
    """Bytes that a container or a scheduler's job may still take (Linux, cgroup v2)."""
    try:
        group = Path("/proc/self/cgroup").read_text(encoding="utf-8").rsplit(":", 1)[1].strip()
        folder = CGROUPS / group.lstrip("/")
        folder = folder if (folder / "memory.max").is_file() else CGROUPS
        most = (folder / "memory.max").read_text(encoding="utf-8").strip()
        current = int((folder / "memory.current").read_text(encoding="utf-8"))
    except (OSError, ValueError, IndexError):
        return math.inf
    return math.inf if most == "max" else int(most) - current
