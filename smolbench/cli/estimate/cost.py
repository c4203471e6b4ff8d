"""What a whole run would cost, by a part of it that was run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from smolbench.cli.estimate.planned import Planned
from smolbench.cli.estimate.rehearsal import Part
from smolbench.models.frozen.rehearsal import PassPart
from smolbench.utils.extrapolate import Span

MIB = 2**20


@dataclass(frozen=True)
class Seconds:
    """A line of an estimate of time.

    Attributes:
        name: What takes it.
        span: How long.
        note: What it was found by.
    """

    name: str
    span: Span
    note: str = ""


@dataclass
class Estimate:
    """What a run would cost.

    Attributes:
        recipe: Its name.
        steps: Optimiser steps.
        epochs: Epochs, the last one perhaps not whole.
        validations: Validations.
        fit: Lines that make up ``smolbench fit``.
        test: Lines that make up ``smolbench test``.
        memory: Peaks in MiB and how they were measured, by kind and stage.
        run_folder: Bytes that the run's folder will have, by what is in it.
        caches: Bytes that caches have and will have, by what is in them.
        remarks: What else has to be known, as sentences.
    """

    recipe: str
    steps: int
    epochs: float
    validations: int
    fit: list[Seconds]
    test: list[Seconds]
    memory: list[tuple[str, float, str]] = field(default_factory=list)
    run_folder: dict[str, int] = field(default_factory=dict)
    caches: dict[str, int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def fit_s(self) -> Span:
        """Seconds of ``smolbench fit``."""
        return total([line.span for line in self.fit])

    @property
    def test_s(self) -> Span:
        """Seconds of ``smolbench test``."""
        return total([line.span for line in self.test])

    @property
    def run_folder_bytes(self) -> int:
        """What the folder of the run will take."""
        return sum(self.run_folder.values())


def total(spans: list[Span]) -> Span:
    """All together."""
    return sum(spans, start=Span.exactly(0.0))


@dataclass(frozen=True)
class Measured:
    """What a part of a run has shown.

    Attributes:
        parts: Batches by split.
        passes: Frozen passes.
        accumulate: Batches of an optimiser step.
        preparation_s: Seconds from the start to the first step, without frozen passes.
        encoded_bytes: What the token ids take, which are kept.
        write_s: Seconds that a checkpoint's writes took, by its name.
        save_every_s: Seconds after which the last state is saved at the latest.
        folder: The run folder that the part has left.
    """

    parts: dict[str, Part]
    passes: list[PassPart]
    accumulate: int
    preparation_s: float
    encoded_bytes: int
    write_s: dict[str, list[float]]
    save_every_s: float
    folder: Path


def estimate_of(recipe: str, planned: Planned, measured: Measured) -> Estimate:
    """Extrapolate from a part of a run to the whole."""
    train, val = measured.parts["train"], measured.parts.get("val")
    steps = planned.steps(train.batches, measured.accumulate)
    batches = planned.batches(train.batches, measured.accumulate)
    training = train.whole(batches / train.batches)
    validations = 0
    if val is not None:
        known = planned.validations(train.batches, measured.accumulate)
        validations = len(val.timed.sizes) and (1 if known is None else known)
    fit = [
        Seconds(
            "preparation",
            Span.exactly(measured.preparation_s),
            "as it took now; downloads and token ids are kept",
        ),
        *_of_passes(measured.passes, ("train", "val")),
        Seconds("training steps", training, _found_by(train, "step")),
    ]
    if val is not None and validations:
        spans = f"{validations:,} times; {_found_by(val, 'batch')}"
        fit.append(Seconds("validation", val.whole(validations), spans))
    fit.append(_of_checkpoints(measured, fit, max(validations, batches // train.batches, 1)))
    test = []
    if (tested := measured.parts.get("test")) is not None:
        test = _of_passes(measured.passes, ("test",))
        again = 1 / tested.batches  # the batch in the middle warms up
        test.append(Seconds("test", tested.whole(1 + again), _found_by(tested, "batch")))
    return Estimate(
        recipe=recipe,
        steps=steps,
        epochs=batches / train.batches,
        validations=validations,
        fit=fit,
        test=test,
        run_folder=_run_folder(measured, planned, steps, validations),
        caches={
            "token ids": measured.encoded_bytes,
            **{one.name: one.nbytes for one in measured.passes if one.nbytes},
        },
    )


def _found_by(part: Part, word: str) -> str:
    timed = len(part.timed.sizes)
    plural = {"batch": "batches"}.get(word, f"{word}s")
    of = -(-part.batches // part.unit)
    return f"{timed} of {of:,} {plural} timed"


def _of_passes(passes: list[PassPart], splits: tuple[str, ...]) -> list[Seconds]:
    lines = []
    for one in passes:
        if one.split not in splits:
            continue
        if one.kept:
            took = f"kept from an earlier run, took {one.seconds.value:,.1f} s"
            lines.append(Seconds(one.name, Span.exactly(0.0), took))
        else:
            note = f"{one.read[0]} of {one.read[1]:,} blocks read"
            lines.append(Seconds(one.name, one.seconds, note))
    return lines


def _of_checkpoints(measured: Measured, fit: list[Seconds], points: int) -> Seconds:
    """Writes: the last state at every point and by the clock, the best at most as often."""
    by_clock = total([line.span for line in fit]).value / measured.save_every_s
    last, best = (_mean(measured.write_s.get(name, [])) for name in ("last", "best"))
    writes = max(points, int(by_clock))
    span = Span(writes * last + points * best, writes * last + best, writes * last + points * best)
    return Seconds("checkpoints", span, f"last {writes:,} times, best up to {points:,} times")


def _mean(seconds: list[float]) -> float:
    return sum(seconds) / len(seconds) if seconds else 0.0


def _run_folder(
    measured: Measured, planned: Planned, steps: int, validations: int
) -> dict[str, int]:
    """Bytes of a run's files once it is trained and tested."""
    found: dict[str, int] = {}
    rest = 0
    for path in measured.folder.rglob("*"):
        if not path.is_file():
            continue
        size = path.stat().st_size
        if path.suffix == ".ckpt":
            found[path.name] = size
        elif path.name == "metrics.csv":
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            rows = (steps // planned.log_every if planned.log_every else 0) + validations
            each = [len(line.encode()) for line in lines]
            row = sum(each[1:]) / len(each[1:]) if each[1:] else 0.0
            rest += each[0] + round(row * rows)
        elif path.name == "predictions.parquet":
            part = measured.parts["test"]
            found[path.name] = round(size * part.batches / len(part.sizes))
        else:
            rest += size
    return {**found, "settings, metrics, results": rest}
