"""Samples and real tokens per second, step times and wall time of each stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from smolbench.callbacks.devices import wait_for
from smolbench.callbacks.memory import reduce_over_ranks
from smolbench.errors import SmolbenchError
from smolbench.protocols import (
    HasMiddle,
    ReadAhead,
    ReadsAhead,
    StepsOnFeatures,
    WarmsUp,
    offered,
)

ASYNC_WINDOW = 16
"""Batches between two synchronisations of a CUDA or MPS device, after warm-up."""

MAX_STEP_TIMES = 2048
_SPLITS = {"validate": "val"}
"""Splits whose name is not that of the stage that goes through them."""


@dataclass
class _Work:
    """What some batches took and held; `positions` are tokens with padding."""

    batches: int = 0
    seconds: float = 0.0
    samples: int = 0
    tokens: int = 0
    positions: int = 0

    def add(self, other: _Work) -> None:
        self.batches += other.batches
        self.seconds += other.seconds
        self.samples += other.samples
        self.tokens += other.tokens
        self.positions += other.positions

    @property
    def step_ms(self) -> float:
        return 1000 * self.seconds / self.batches


@dataclass
class _StepTimes:
    """Evenly thinned step times: of `seen` times, every `stride`-th is kept."""

    kept_ms: list[float] = field(default_factory=list)
    stride: int = 1
    seen: int = 0

    def add(self, ms: float) -> None:
        if self.seen % self.stride == 0:
            self.kept_ms.append(ms)
        self.seen += 1
        if len(self.kept_ms) == MAX_STEP_TIMES:
            self.kept_ms = self.kept_ms[::2]
            self.stride *= 2

    def quantile(self, q: float) -> float:
        if not self.kept_ms:
            return 0.0
        return float(torch.tensor(self.kept_ms, dtype=torch.float64).quantile(q))


@dataclass
class _Summary:
    """Finished numbers of one stage; 0 stands for not measured."""

    wall_s: float
    step_ms_p50: float
    step_ms_p95: float
    seconds: float
    samples_per_s: float
    tokens_per_s: float
    samples: float
    tokens: float
    positions: float
    ahead: ReadAhead | None = field(default=None, init=False)

    def over_ranks(self, trainer: pl.Trainer, *, evaluates: bool) -> _Summary:
        slowest = [self.wall_s, self.step_ms_p50, self.step_ms_p95, self.seconds]
        total = [self.samples_per_s, self.tokens_per_s, self.samples, self.tokens, self.positions]
        found = _Summary(
            *reduce_over_ranks(trainer, slowest, "max"), *reduce_over_ranks(trainer, total, "sum")
        )
        found.ahead = self.ahead
        if evaluates and found.seconds:
            # a split is whole when the slowest rank is done
            found.samples_per_s = found.samples / found.seconds
            found.tokens_per_s = found.tokens / found.seconds
        return found

    def facts(self, stage: str, scope: str) -> dict[str, float]:
        padding = "cost/padding_share" if stage == "fit" else f"cost/{scope}_padding_share"
        measured = {
            f"cost/{stage}_s": self.wall_s,
            f"cost/{scope}_samples_per_s": self.samples_per_s,
            f"cost/{scope}_tokens_per_s": self.tokens_per_s,
            f"cost/{scope}_step_ms_p50": self.step_ms_p50,
            f"cost/{scope}_step_ms_p95": self.step_ms_p95,
        }
        if self.ahead is not None and self.samples_per_s:
            each = self.ahead.seconds / self.ahead.samples + 1 / self.samples_per_s
            measured[f"cost/{stage}_samples_per_s"] = 1 / each
            measured[f"cost/{stage}_tokens_per_s"] = self.ahead.tokens / self.ahead.samples / each
        facts = {key: value for key, value in measured.items() if value > 0}
        if self.positions > 0:
            facts[padding] = 1 - self.tokens / self.positions
        return facts


class _Meter:
    """Times the batches of one stage in windows of consecutive batches.

    A window opens at the start of a batch and closes at the end of one, and the next opens at that
    very moment, so that waiting for data counts. `interrupt` drops the time until the next batch.
    Where batches are timed alone, a window is a batch, and what is between them does not count.
    """

    def __init__(self, warmup_steps: int, *, alone: bool = False) -> None:
        self.scope = ""
        self.ahead: ReadAhead | None = None
        self._alone = alone
        self._warmup_steps = warmup_steps
        self._warmup: list[_Work] = []
        self._work = _Work()
        self._times = _StepTimes()
        self._wall_s = 0.0
        self._started: float | None = None
        self._device = torch.device("cpu")
        self._opened: float | None = None
        self._window = _Work()
        self._window_tokens: list[Tensor] = []

    def start(self, device: torch.device, scope: str) -> None:
        self.scope = scope
        self._device = device
        self._started = perf_counter()

    def stop(self) -> None:
        self.interrupt()
        self._wall_s = self.wall_s
        self._started = None

    @property
    def running(self) -> bool:
        return self._started is not None

    @property
    def wall_s(self) -> float:
        return self._wall_s + (0.0 if self._started is None else perf_counter() - self._started)

    def begin_batch(self) -> None:
        if self._opened is None:
            self._opened = self._now()

    def end_batch(self, batch: object) -> None:
        if self._opened is None:
            return  # interrupted inside this batch: its time is not known
        samples, positions, tokens = _count(batch)
        self._window.batches += 1
        self._window.samples += samples
        self._window.positions += positions
        if tokens is not None:
            self._window_tokens.append(tokens)
        warm = len(self._warmup) >= self._warmup_steps
        single = self._alone or self._device.type == "cpu" or not warm
        if self._window.batches >= (1 if single else ASYNC_WINDOW):
            closed = self._close_window(self._opened)
            self._opened = None if self._alone else closed

    def interrupt(self) -> None:
        if self._opened is not None and self._window.batches:
            self._close_window(self._opened)
        self._opened = None

    def _close_window(self, opened: float) -> float:
        now = self._now()
        work, self._window = self._window, _Work()
        work.seconds = now - opened
        if self._window_tokens:
            work.tokens = int(torch.stack(self._window_tokens).sum())
            self._window_tokens = []
        if len(self._warmup) < self._warmup_steps:
            self._warmup.append(work)
        else:
            self._work.add(work)
            self._times.add(work.step_ms)
        return now

    def _now(self) -> float:
        wait_for(self._device)
        return perf_counter()

    def _settled(self) -> tuple[_Work, _StepTimes]:
        """Sums without warm-up, but with as much of it as few batches make necessary."""
        work, times = deepcopy(self._work), deepcopy(self._times)
        all_batches = work.batches + len(self._warmup)
        for batch in self._warmup[all_batches // 2 :]:
            work.add(batch)
            times.add(batch.step_ms)
        return work, times

    def summary(self) -> _Summary:
        work, times = self._settled()
        seconds = work.seconds or float("inf")
        found = _Summary(
            wall_s=self.wall_s,
            step_ms_p50=times.quantile(0.5),
            step_ms_p95=times.quantile(0.95),
            seconds=work.seconds,
            samples_per_s=work.samples / seconds,
            tokens_per_s=work.tokens / seconds,
            samples=work.samples,
            tokens=work.tokens,
            positions=work.positions,
        )
        found.ahead = self.ahead
        return found

    def state(self) -> dict[str, Any]:
        work, times = self._settled()
        return {
            "scope": self.scope,
            "wall_s": self.wall_s,
            "work": asdict(work),
            "step_times": asdict(times),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.scope = state["scope"]
        self._wall_s = state["wall_s"]
        self._work = _Work(**state["work"])
        self._times = _StepTimes(**state["step_times"])


class ThroughputMonitor(pl.Callback):
    """Measures throughput and wall time of fit, validate, test and predict.

    What is timed in training: consecutive batches, with the wait for their data and with other
    callbacks' batch hooks. What is not: the sanity check, validation during fit, the time from a
    batch's end over a checkpoint to the next batch's start, the time between epochs (so the first
    batch after each of these counts without its wait for data), and warm-up: the first
    `warmup_steps` batches of each attempt, but never more than half of the batches there are, so
    that a run of one batch still has a number. A checkpoint saved with ``save_weights_only`` calls
    no hook, and its write counts.

    What is timed in validate, test and predict: every batch from its start to its end, waiting for
    the device, so that the samples over the rate are the seconds that a stopwatch shows for the
    network's work on them. The wait for data is left out, and so is what comes behind the batches,
    such as metrics. Before a test or validate the batch in the middle is run once, where the module
    has ``warm_up(batch)`` and the loader ``middle()``, and leaves no trace, in random numbers
    neither. Where weights are spread over processes (FSDP), nothing is run before. If the module's
    steps run on what a frozen network has read before (``read_ahead(split)``), that network's
    seconds are added, as they were when it read: with several ranks, their mean.

    Rates are sums over sums (right for varying batch sizes). Those of training are added up over
    ranks; those of a test are all ranks' samples by the slowest rank's seconds. A batch's
    samples are the first dimension of the first tensor in it, its real tokens the non-zero entries
    of ``attention_mask`` [B, T] and, where an encoder-decoder model is given it, of
    ``decoder_attention_mask`` [B, S]; batches without such a mask give no token values. Tokens that
    a model writes are not counted.

    Step times are per batch, also under gradient accumulation. On CUDA and MPS, where waiting for
    the device in each step of a training would slow it, they are means over 16 of them. Of many,
    at most 2048 are kept, evenly thinned. With several ranks they are those of the slowest.

    Facts, where SCOPE is train, validate, test or predict, or ``head_train`` and so on if the
    module has a true attribute ``steps_on_cached_features`` (its steps do not run the backbone;
    with ``read_ahead`` there are also ``cost/test_samples_per_s`` and ``cost/test_tokens_per_s``,
    and those of validate, of both together):
    ``cost/SCOPE_samples_per_s``, ``cost/SCOPE_tokens_per_s``, ``cost/SCOPE_step_ms_p50``,
    ``cost/SCOPE_step_ms_p95``; ``cost/padding_share`` of training and ``cost/SCOPE_padding_share``
    of the others; ``cost/fit_s`` (the training loop with its validation, without the sanity check
    and the making of the loaders), ``cost/validate_s``, ``cost/test_s``, ``cost/predict_s`` (with
    loading and what comes behind the batches, without the warm-up).

    A checkpoint carries the values of fit, and a resumed fit goes on from there; with several ranks
    it carries rank 0's. Other stages are those of the latest call.

    Args:
        warmup_steps: Batches to leave out at the start of each attempt of a training.

    Raises:
        SmolbenchError: If `warmup_steps` is negative.
    """

    def __init__(self, warmup_steps: int = 5) -> None:
        """Check the arguments."""
        if warmup_steps < 0:
            raise SmolbenchError(
                f"ThroughputMonitor got warmup_steps={warmup_steps}, but it takes 0 or more; "
                "give 0 to measure every batch."
            )
        self._warmup_steps = warmup_steps
        self._meters: dict[str, _Meter] = {}
        self._finished: dict[str, _Summary] = {}
        self._stage = ""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Note the stage, which tells a resume from a test of a checkpoint."""
        self._stage = TrainerFn(stage).value  # Lightning hands over the enum, not its text

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of a stage; that of fit where an earlier attempt left it."""
        self._start(trainer, pl_module)

    on_test_start = on_predict_start = on_train_start

    def on_train_batch_start(self, *args: object, **kwargs: object) -> None:
        """Start to time, unless the last batch's end did."""
        self._current.begin_batch()

    on_test_batch_start = on_predict_batch_start = on_train_batch_start

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batch."""
        self._current.end_batch(batch)

    on_test_batch_end = on_predict_batch_end = on_train_batch_end

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave out the time until the next epoch's first batch."""
        self._current.interrupt()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish the numbers of a stage."""
        self._current.stop()
        evaluates = self._stage != "fit"
        if evaluates and (reads := offered(pl_module, ReadsAhead)) is not None:
            self._current.ahead = reads.read_ahead(_SPLITS.get(self._stage, self._stage))
        summary = self._current.summary()
        self._finished[self._stage] = summary.over_ranks(trainer, evaluates=evaluates)

    on_test_end = on_predict_end = on_train_end

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of validate; within fit, leave the validation out."""
        if self._stage == "validate":
            self._start(trainer, pl_module)
        elif "fit" in self._meters:
            self._meters["fit"].interrupt()

    def on_validation_batch_start(self, *args: object, **kwargs: object) -> None:
        """Start to time, unless this is the validation of a fit."""
        if self._stage == "validate":
            self._current.begin_batch()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batch, unless this is the validation of a fit."""
        if self._stage == "validate":
            self._current.end_batch(batch)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish the numbers of validate, unless this is the validation of a fit."""
        if self._stage == "validate":
            self.on_train_end(trainer, pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Stop the clock and keep this rank's values: the other ranks may not answer."""
        for meter in self._meters.values():
            if meter.running:
                meter.stop()

    def facts(self) -> dict[str, int | float | str | bool | None]:
        """The measured values; in a running stage, those of this rank so far."""
        facts: dict[str, int | float | str | bool | None] = {}
        for stage, meter in self._meters.items():
            summary = self._finished.get(stage) or meter.summary()
            facts |= summary.facts(stage, meter.scope)
        return facts

    def state_dict(self) -> dict[str, Any]:
        """Plain values of the fit so far; called for a checkpoint, whose writing is left out."""
        if "fit" not in self._meters:
            return {}
        self._meters["fit"].interrupt()
        return self._meters["fit"].state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from an earlier attempt's fit.

        A test of that checkpoint ignores it: the checkpoint knows the fit only until it was saved.
        """
        if self._stage not in ("", "fit"):
            return
        self._meters["fit"] = _Meter(self._warmup_steps)
        self._meters["fit"].load(state_dict)

    @property
    def _current(self) -> _Meter:
        return self._meters[self._stage]

    def _start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stage = self._stage
        if stage != "fit":
            self._meters[stage] = _Meter(0, alone=True)
        elif stage not in self._meters:
            self._meters[stage] = _Meter(self._warmup_steps)
        self._finished.pop(stage, None)
        word = "train" if stage == "fit" else stage
        steps = offered(pl_module, StepsOnFeatures)
        if steps is not None and steps.steps_on_cached_features:
            word = f"head_{word}"
        if stage in ("test", "validate"):
            _warm_up(trainer, pl_module)
        self._current.start(trainer.strategy.root_device, word)


def _warm_up(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Run the batch in the middle of this rank's once, and leave no trace of it."""
    whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
    tested: Any = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    loader, warms = offered(tested, HasMiddle), offered(module, WarmsUp)
    if not whole or loader is None or warms is None or not len(tested):
        return
    device = trainer.strategy.root_device
    there = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(there), trainer.precision_plugin.test_step_context():
        warms.warm_up(module.transfer_batch_to_device(loader.middle(), device, 0))


def _tensors(batch: object) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from _tensors(value)


def _attention_masks(batch: object) -> list[Tensor]:
    """Of the tokens that are read, and of those that a decoder is given."""
    if isinstance(batch, Mapping):
        found = [batch.get(name) for name in ("attention_mask", "decoder_attention_mask")]
        # A mask of more dimensions says which token sees which, not which are real.
        masks = [mask for mask in found if isinstance(mask, Tensor) and mask.ndim == 2]
        if masks:
            return masks
        batch = list(batch.values())
    if isinstance(batch, list | tuple):
        inner = (_attention_masks(value) for value in batch if not isinstance(value, Tensor))
        return next((masks for masks in inner if masks), [])
    return []


def _count(batch: object) -> tuple[int, int, Tensor | None]:
    """Samples, token positions and, still on the device, real tokens of a batch."""
    samples = next((tensor.shape[0] for tensor in _tensors(batch) if tensor.ndim), 0)
    masks = _attention_masks(batch)
    if not masks:
        return samples, 0, None
    real = torch.stack([(mask != 0).sum() for mask in masks]).sum()
    return samples, sum(mask.numel() for mask in masks), real
