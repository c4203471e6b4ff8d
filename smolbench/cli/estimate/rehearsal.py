"""Which part of a run is run, and what it took."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from smolbench.callbacks.devices import wait_for
from smolbench.data.batching import BatchPlan, Indices, Plan
from smolbench.utils.extrapolate import Span, Timed, spread

WARM_UP = 5
"""Steps that are not timed; the first is that over the most tokens, which shows the peak memory."""
STEPS = 20
"""Steps that are."""
EVALUATED = 8
"""Batches of an evaluation that are timed."""


@dataclass
class Part:
    """A part of a split's batches on this process, and what they took.

    Attributes:
        batches: Batches of the whole split.
        size: What is in them: tokens with their padding, or rows where all are alike.
        sizes: The same of every batch that is run, in its order.
        untimed: Batches at the beginning that warm up.
        unit: Batches that are timed together: those of one optimiser step.
        timed: What those behind them took.
        total_s: What the evaluation of them took as a whole; 0 for a training.
    """

    batches: int
    size: float
    sizes: list[float]
    untimed: int
    unit: int
    timed: Timed = field(default_factory=Timed)
    total_s: float = 0.0

    def whole(self, times: float = 1.0) -> Span:
        """What going through the whole split so many times takes, in seconds."""
        span = self.timed.whole(self.size * times)
        if self.total_s and sum(self.timed.seconds):
            # also what comes behind the batches: scores, summaries that waited
            span = span.times(self.total_s / sum(self.timed.seconds))
        return span


class Rehearsal:
    """Chooses the batches of a run that stand for all of them."""

    def __init__(self) -> None:
        self.parts: dict[str, Part] = {}

    def part_of(self, split: str, plan: BatchPlan, accumulate: int) -> Plan:
        """A few batches of a split, whose sizes are spread as those of all.

        Args:
            split: ``train``, ``val`` or ``test``.
            plan: All of its batches.
            accumulate: Batches of an optimiser step.
        """
        count, sizes = len(plan), plan.sizes()
        largest = int(np.argmax(sizes))
        if split == "train":
            unit = accumulate
            warm_up, wanted = WARM_UP * unit, STEPS * unit
            if count <= warm_up + wanted:  # the epoch as it is
                chosen, untimed = list(range(count)), min(warm_up, count // 2)
            else:
                chosen = spread(sizes, wanted)
                np.random.default_rng(0).shuffle(chosen)  # steps get faster or slower with time
                chosen, untimed = [largest, *spread(sizes, warm_up - 1), *chosen], warm_up
        else:
            unit, untimed = 1, 0
            chosen = list(range(count)) if count <= EVALUATED else spread(sizes, EVALUATED)
            if largest not in chosen:
                chosen[-1] = largest
            chosen.sort()  # the longest first, as in any evaluation
        ran = [float(sizes[number]) for number in chosen]
        self.parts[split] = Part(count, float(sum(sizes)), ran, untimed, unit)
        return PartPlan(plan, chosen)


def _now(trainer: Trainer) -> float:
    """Seconds on the clock, once the device has done its work."""
    wait_for(trainer.strategy.root_device)
    return perf_counter()


class PartPlan:
    """Some batches of a plan's first epoch.

    Args:
        whole: The plan.
        chosen: Numbers of its batches, in the order to come.
    """

    def __init__(self, whole: BatchPlan, chosen: list[int]) -> None:
        self.n_rows = whole.n_rows
        self.batch_size = whole.batch_size
        self.epoch = 0
        batches = whole.batches()
        self._batches = [batches[number] for number in chosen]

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is the first."""

    def batches(self) -> list[Indices]:
        """Return the row numbers [B] of each batch."""
        return self._batches

    def __len__(self) -> int:
        """Return their number."""
        return len(self._batches)


class RehearsalClock(Callback):
    """Times the batches of a rehearsal, each from the end of the one before.

    Args:
        rehearsal: It chose them.
    """

    def __init__(self, rehearsal: Rehearsal) -> None:
        self.rehearsal = rehearsal
        self.began_training: float | None = None
        """When the first step began; what was before was preparation."""
        self._mark: float | None = None
        self._began = 0.0
        self._seconds: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note when."""
        self._mark, self._seconds = None, []
        self.began_training = _now(trainer)

    def on_train_batch_start(self, trainer: Trainer, *args: object, **kwargs: object) -> None:
        """Start to time, unless the last batch's end did."""
        if self._mark is None:
            self._mark = _now(trainer)

    on_validation_batch_start = on_test_batch_start = on_train_batch_start

    def on_train_batch_end(self, trainer: Trainer, *args: object, **kwargs: object) -> None:
        """Take the time, waiting for the device."""
        now = _now(trainer)
        assert self._mark is not None, "the batch has begun"
        self._seconds.append(now - self._mark)
        self._mark = now

    on_validation_batch_end = on_test_batch_end = on_train_batch_end

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The steps are done; an epoch's validation has been, if there is one."""
        if self._seconds:
            self._settle("train")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the training's times, and start an evaluation's."""
        if self._seconds:
            self._settle("train")
        self._began = _now(trainer)

    on_test_start = on_validation_start

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the time of the evaluation as a whole."""
        self._evaluated(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the time of the evaluation as a whole."""
        self._evaluated(trainer, "test")

    def _evaluated(self, trainer: Trainer, split: str) -> None:
        self._settle(split)
        total = _now(trainer) - self._began
        self.rehearsal.parts[split].total_s = total

    def _settle(self, split: str) -> None:
        part = self.rehearsal.parts[split]
        unit, last = part.unit, len(self._seconds)
        for first in range(part.untimed, last, unit):
            end = min(first + unit, last)
            part.timed.add(sum(part.sizes[first:end]), sum(self._seconds[first:end]))
        self._mark, self._seconds = None, []
