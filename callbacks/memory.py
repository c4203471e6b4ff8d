"""Peak memory of a run by kind and stage, on CPU, CUDA and MPS."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

Method = Literal["high-water mark", "sampled"]

MIB = 2**20
SAMPLE_SECONDS = 0.05
RESET_SLACK_MIB = 16.0
CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
_reached_mib = 0.0
"""Peak of this process when the kernel's mark was last reset."""


class MemoryReader(Protocol):
    """Reads the peak memory of one device since `start`."""

    kind: str
    """The kind whose key says how it was measured: ``rss`` or ``allocated``."""
    method: Method

    def start(self) -> None:
        """Forget all earlier peaks."""

    def sample(self) -> None:
        """Look at the memory in use now; needed only where nothing keeps a high-water mark."""

    def peaks(self) -> dict[str, float]:
        """Peaks since `start`, in MiB, by kind (``rss``, ``allocated``, ``reserved``)."""

    def stop(self) -> None:
        """Free what `start` took."""


class ResidentReader:
    """Resident memory of this process, without its dataloader workers.

    Touched pages of memory-mapped files count as resident. On Linux the kernel's high-water mark is
    reset at the start and read at the end, so no peak is missed. Elsewhere, or where the reset is
    not permitted, a thread samples every 50 ms; a peak above all earlier ones of the process is
    still exact, since `getrusage` keeps it.
    """

    kind = "rss"

    def __init__(self) -> None:
        """Measure nothing yet."""
        self.method: Method = "sampled"
        self._sampled_mib = 0.0
        self._lifetime_mib_at_start = 0.0
        self._stopped: threading.Event | None = None

    def start(self) -> None:
        """Reset the high-water mark, or start to sample."""
        self.stop()
        if _reset_high_water_mark():
            self.method = "high-water mark"
            return
        self.method = "sampled"
        self._sampled_mib = resident_mib()
        self._lifetime_mib_at_start = _lifetime_peak_mib()
        self._stopped = threading.Event()
        threading.Thread(target=self._run, args=(self._stopped,), daemon=True).start()

    def _run(self, stopped: threading.Event) -> None:
        while not stopped.wait(SAMPLE_SECONDS):
            self.sample()

    def sample(self) -> None:
        """Look at the resident memory, unless the kernel does."""
        if self.method == "sampled":
            self._sampled_mib = max(self._sampled_mib, resident_mib())

    def peaks(self) -> dict[str, float]:
        """Peak resident memory since `start`, in MiB."""
        if self.method == "high-water mark":
            return {"rss": _status_mib("VmHWM")}
        self.sample()
        lifetime = _lifetime_peak_mib()
        return {"rss": lifetime if lifetime > self._lifetime_mib_at_start else self._sampled_mib}

    def stop(self) -> None:
        """End the sampling thread."""
        if self._stopped is not None:
            self._stopped.set()
            self._stopped = None


class CudaReader:
    """Allocated and reserved memory of PyTorch's CUDA allocator, by its own high-water marks."""

    kind = "allocated"
    method: Method = "high-water mark"

    def __init__(self, device: torch.device) -> None:
        """Read `device`."""
        self._device = device

    def start(self) -> None:
        """Reset the allocator's peaks."""
        # Stages start before the model is moved, perhaps before anything initialised CUDA.
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats(self._device)

    def sample(self) -> None:
        """Nothing: the allocator keeps its peaks."""

    def peaks(self) -> dict[str, float]:
        """Peaks since `start`, in MiB."""
        return {
            "allocated": torch.cuda.max_memory_allocated(self._device) / MIB,
            "reserved": torch.cuda.max_memory_reserved(self._device) / MIB,
        }

    def stop(self) -> None:
        """Nothing to free."""


class MpsReader:
    """Memory of PyTorch's MPS allocator, sampled: MPS keeps no peaks.

    ``reserved`` is what the Metal driver holds for the process, which is larger than ``allocated``.
    """

    kind = "allocated"
    method: Method = "sampled"

    def __init__(self) -> None:
        """Measure nothing yet."""
        self._allocated_mib = 0.0
        self._reserved_mib = 0.0

    def start(self) -> None:
        """Forget earlier samples."""
        self._allocated_mib = self._reserved_mib = 0.0
        self.sample()

    def sample(self) -> None:
        """Look at the allocator and the driver."""
        allocated = torch.mps.current_allocated_memory() / MIB
        reserved = torch.mps.driver_allocated_memory() / MIB
        self._allocated_mib = max(self._allocated_mib, allocated)
        self._reserved_mib = max(self._reserved_mib, reserved)

    def peaks(self) -> dict[str, float]:
        """Highest samples since `start`, in MiB."""
        self.sample()
        return {"allocated": self._allocated_mib, "reserved": self._reserved_mib}

    def stop(self) -> None:
        """Nothing to free."""


def readers_for(device: torch.device) -> list[MemoryReader]:
    """The readers of a run on `device`: the host's resident memory always, and the device's own."""
    readers: list[MemoryReader] = [ResidentReader()]
    if device.type == "cuda":
        readers.append(CudaReader(device))
    elif device.type == "mps":
        readers.append(MpsReader())
    return readers


class MemoryMonitor(pl.Callback):
    """Measures peak memory in MiB per stage: fit, validate, test and predict.

    A stage is measured from its `setup` hook, so building the model, loading its weights and passes
    inside a dataloader hook count; what the data module does in `prepare_data` and `setup` comes
    before any callback is called and counts only as far as it stays resident.

    Beside the stages stands what the operating system saw of the whole process, from its start on:
    reading, cleaning and encoding the data, the caches' first pass, everything. Other processes
    (dataloader workers) are not in it.

    Facts: ``cost/peak_rss_process_mib``; ``cost/peak_rss_mib``, and on CUDA and MPS
    ``cost/peak_allocated_mib`` and ``cost/peak_reserved_mib``, each also per stage
    (``cost/peak_rss_mib_fit``), the plain key being the maximum over the stages;
    ``cost/rss_delta_mib``, resident memory at the end of training minus at the start of fit,
    without what frozen passes have left, so that it does not matter whether they had been kept; it
    may be negative; ``cost/rss_method`` and ``cost/allocated_method``, "high-water mark" or
    "sampled".

    Fit values and the process's are maxima over attempts: a checkpoint carries them, and a resumed
    fit goes on from there (of an attempt that was killed, only rank 0's are in the checkpoint).
    Other stages are those of the latest call. At the end of a stage values become maxima over
    ranks.
    """

    def __init__(self) -> None:
        """Measure nothing yet."""
        _monitors.add(self)
        self._peaks_mib: dict[str, dict[str, float]] = {}
        self._methods: dict[str, str] = {}
        self._process_mib = 0.0
        self._earlier_delta_mib: float | None = None
        self._delta_mib: float | None = None
        self._start_mib: float | None = None
        self._readers: list[MemoryReader] = []
        self._stage: str | None = None
        self._open = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start to measure a stage."""
        self._stop_readers()
        self._stage = TrainerFn(stage).value  # Lightning hands over the enum, not its text
        if self._stage == "fit":
            self._earlier_delta_mib = self._best_delta_mib()
            self._delta_mib = None
            self._start_mib = resident_mib()
        else:
            self._peaks_mib.pop(self._stage, None)
        self._readers = readers_for(trainer.strategy.root_device)
        for reader in self._readers:
            reader.start()
            # One sampled stage makes the maximum a sampled one.
            if self._methods.get(reader.kind) != "sampled":
                self._methods[reader.kind] = reader.method
        self._open = True

    def on_train_batch_end(self, *args: object, **kwargs: object) -> None:
        """Sample the devices that keep no peak."""
        for reader in self._readers:
            reader.sample()

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = on_train_batch_end

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the delta here: afterwards the strategy moves the model back to the host."""
        self._update()
        self._start_mib = None

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish the stage; the last checkpoint's write is in the peak."""
        self._finish(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish the stage, unless this is the validation of a fit."""
        if self._stage == "validate":
            self._finish(trainer)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish the stage."""
        self._finish(trainer)

    on_predict_end = on_test_end

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Keep this rank's values: after an error the other ranks may not answer."""
        self._update()
        self._stop_readers()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Finish a stage whose loop had nothing to run, and so called no end hook."""
        self._finish(trainer)

    def facts(self) -> dict[str, int | float | str | bool | None]:
        """The measured values, in MiB; in a running stage, those of this rank so far."""
        self._update()
        facts: dict[str, int | float | str | bool | None] = {}
        for stage, peaks in self._peaks_mib.items():
            for kind, peak in peaks.items():
                facts[f"cost/peak_{kind}_mib_{stage}"] = peak
        for kind in sorted({kind for peaks in self._peaks_mib.values() for kind in peaks}):
            every = [peaks[kind] for peaks in self._peaks_mib.values() if kind in peaks]
            facts[f"cost/peak_{kind}_mib"] = max(every)
        delta = self._best_delta_mib()
        if delta is not None:
            facts["cost/rss_delta_mib"] = delta
        facts |= {f"cost/{kind}_method": method for kind, method in self._methods.items()}
        if self._process_mib:
            facts["cost/peak_rss_process_mib"] = self._process_mib
        return facts

    def state_dict(self) -> dict[str, Any]:
        """Plain values of the fit so far, for a later attempt."""
        self._update()
        if "fit" not in self._peaks_mib:
            return {}
        return {
            "peaks_mib": dict(self._peaks_mib["fit"]),
            "process_mib": self._process_mib,
            "rss_delta_mib": self._best_delta_mib(),
            "methods": dict(self._methods),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from an earlier attempt's fit.

        A test of that checkpoint ignores it: the checkpoint knows the fit only until it was saved.
        """
        if self._stage not in (None, "fit"):
            return
        self._merge("fit", state_dict["peaks_mib"])
        # checkpoints of earlier versions do not have it
        self._process_mib = max(self._process_mib, state_dict.get("process_mib", 0.0))
        self._earlier_delta_mib = state_dict["rss_delta_mib"]
        for kind, method in state_dict["methods"].items():
            if self._methods.get(kind) != "sampled":
                self._methods[kind] = method

    def _update(self) -> None:
        if not self._open or self._stage is None:
            return
        for reader in self._readers:
            self._merge(self._stage, reader.peaks())
        self._process_mib = max(self._process_mib, process_peak_mib())
        if self._stage == "fit" and self._start_mib is not None:
            self._delta_mib = resident_mib() - self._start_mib

    def _leave_out(self, mib: float) -> None:
        if self._start_mib is not None:
            self._start_mib += mib

    def _merge(self, stage: str, peaks_mib: dict[str, float]) -> None:
        known = self._peaks_mib.setdefault(stage, {})
        for kind, peak in peaks_mib.items():
            known[kind] = max(peak, known.get(kind, 0.0))

    def _best_delta_mib(self) -> float | None:
        known = [mib for mib in (self._earlier_delta_mib, self._delta_mib) if mib is not None]
        return max(known, default=None)

    def _finish(self, trainer: pl.Trainer) -> None:
        if not self._open or self._stage is None:
            return
        self._update()
        self._stop_readers()
        peaks = self._peaks_mib[self._stage]
        kinds = sorted(peaks)
        values = [peaks[kind] for kind in kinds]
        delta = self._delta_mib if self._stage == "fit" else None
        more = [self._process_mib, 0.0 if delta is None else delta]
        *reduced, self._process_mib, largest = reduce_over_ranks(trainer, [*values, *more], "max")
        peaks.update(zip(kinds, reduced, strict=True))
        if delta is not None:
            self._delta_mib = largest

    def _stop_readers(self) -> None:
        for reader in self._readers:
            reader.stop()
        self._readers = []
        self._open = False


_monitors: weakref.WeakSet[MemoryMonitor] = weakref.WeakSet()


@contextmanager
def peaks_within(device: torch.device) -> Generator[Callable[[], dict[str, float]]]:
    """Measure a part of a stage: peaks since the start of the block, in MiB, by kind.

    What the stage has reached before is kept by its monitor. What the block leaves resident is not
    in the stage's delta: a run that finds what the block computes has none of it.
    """
    for monitor in _monitors:
        monitor._update()
    before = resident_mib()
    readers = readers_for(device)
    for reader in readers:
        reader.start()

    def peaks() -> dict[str, float]:
        return {kind: mib for reader in readers for kind, mib in reader.peaks().items()}

    try:
        yield peaks
    finally:
        left = resident_mib() - before
        for monitor in _monitors:
            monitor._leave_out(left)
        for reader in readers:
            reader.stop()


def reduce_over_ranks(
    trainer: pl.Trainer, values: Sequence[float], operation: Literal["max", "sum"]
) -> list[float]:
    """Reduce numbers over all ranks; every rank must call it with as many. No-op on one process."""
    if trainer.world_size == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=trainer.strategy.root_device)
    reduced = trainer.strategy.reduce(tensor, reduce_op=operation)
    assert isinstance(reduced, torch.Tensor)
    return [float(value) for value in reduced.tolist()]


def resident_mib() -> float:
    """Resident memory of this process now, in MiB."""
    import psutil  # lazy: commands that only show something measure nothing

    return float(psutil.Process().memory_info().rss) / MIB


def process_peak_mib() -> float:
    """Peak resident memory of this process since its start, without its children, in MiB.

    Linux resets its own mark for the stages' sake, and ``getrusage`` with it; what the mark had
    reached before is kept here. ``getrusage`` is not asked there: it begins with the peak of the
    process that started this one.
    """
    try:
        return max(_reached_mib, _status_mib("VmHWM"))
    except (OSError, KeyError):
        import psutil  # lazy: commands that only show something measure nothing

        # Windows keeps it under a name of its own
        own = getattr(psutil.Process().memory_info(), "peak_wset", 0) / MIB
        return max(_reached_mib, own, _lifetime_peak_mib(), resident_mib())


def _lifetime_peak_mib() -> float:
    if resource is None:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def _reset_high_water_mark() -> bool:
    """Reset the kernel's mark of peak resident memory; False where that does not work."""
    global _reached_mib
    _reached_mib = process_peak_mib()
    try:
        CLEAR_REFS.write_text("5")
        # Sandboxed kernels take the write and do nothing.
        return _status_mib("VmHWM") <= _status_mib("VmRSS") + RESET_SLACK_MIB
    except (OSError, KeyError):
        return False


def _status_mib(field: str) -> float:
    for line in STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) / 1024
    raise KeyError(field)
