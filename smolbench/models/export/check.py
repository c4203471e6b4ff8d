"""Whether an export says what the run's own model says, and what its card says about that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from smolbench.errors import SmolbenchError

DTypeName = Literal["float32", "bfloat16"]
Unit = Literal["probabilities", "log-probabilities per token, in nats,"]
PER_TOKEN: Unit = "log-probabilities per token, in nats,"
TOLERANCE = 1e-3
"""By how much an export may differ from a run that computed in float32."""
ROUNDINGS = 4.0
"""By how much it may differ from a run in bfloat16: times what transformers' own bfloat16 is off.

The run's path has rounding errors of its own, and so has the export where it computes in bfloat16.
Of a few dozen texts the largest difference of an honest export is mostly as large as the library's
own, but was up to 2.4 times that in 120 trials. What is wrong in structure is off by far more: a
prompt that was lost by thirty times.
"""
UNLIKE_TEXTS = 0.1
"""Share of written texts that may be others in float32, where near ties hang on the last bit."""


@dataclass(frozen=True)
class Trial:
    """Examples that an export is compared on with its run.

    Attributes:
        examples: Their columns, as the task's ``encode`` takes them, ordered by length.
        source: Where they come from, in words.
        mixed: What the run's trainer computed in by mixed precision; ``None`` if it did not.
    """

    examples: Mapping[str, Sequence[Any]]
    source: str
    mixed: torch.dtype | None = None


@dataclass(frozen=True)
class Expected:
    """What the run's own path says of some examples, and how a loaded export is asked for it.

    Attributes:
        scores: Float32, shape ``(N, C)``.
        dtype: What it was computed in.
        examples: Which examples those are, in words.
        ask: A loaded export to its scores of the same examples, shape ``(N, C)``.
        unit: What the scores are.
        written: What it writes behind some of the examples; ``None`` if it does not write.
        let_write: A loaded export to what it writes behind the same ones.
    """

    scores: torch.Tensor
    dtype: DTypeName
    examples: str
    ask: Callable[[Any], torch.Tensor]
    unit: Unit = "probabilities"
    written: Sequence[str] | None = None
    let_write: Callable[[Any], Sequence[str]] | None = None


@dataclass(frozen=True)
class Check:
    """What the comparison of an export with its run has shown.

    Attributes:
        n: Number of examples.
        examples: Which ones, in words.
        unit: What was compared.
        run_dtype: What the run's path computed in.
        export_dtype: What the export computed in: what its card says.
        difference: The largest one.
        allowed: What it had to stay within.
        labels_differ: Examples for which they choose differently; ``None`` if there is no choice.
        texts: Texts that both have written; ``None`` if they write none.
        texts_differ: How many of those are others.
    """

    n: int
    examples: str
    unit: Unit
    run_dtype: DTypeName
    export_dtype: DTypeName
    difference: float
    allowed: float
    labels_differ: int | None = None
    texts: int | None = None
    texts_differ: int | None = None

    def lines(self) -> list[str]:
        """What a model card says of it."""
        why = "which both computing in float32 have to keep to"
        if self.run_dtype == "bfloat16":
            why = (
                f"{ROUNDINGS:g} times what transformers' own bfloat16 differs from float32 on "
                f"these examples, or {TOLERANCE:g} if that is more"
            )
        said = [
            f"It was loaded again, in {self.export_dtype}, and compared with the path that scored "
            f"the run, which computes in {self.run_dtype}, on {self.n} "
            f"{self.examples}.",
            f"The {self.unit} differ by {self.difference:.2g} at most; allowed were "
            f"{self.allowed:.2g} ({why}).",
        ]
        if self.labels_differ is not None:
            said.append(f"They choose differently for {self.labels_differ} of the {self.n}.")
        if self.texts is not None:
            said.append(f"Of {self.texts} texts that both wrote, {self.texts_differ} differ.")
        return said

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def check_export(
    expected: Expected,
    folder: Path,
    load: Callable[[Path, torch.dtype], Any],
    dtype: DTypeName = "float32",
) -> Check:
    """Refuse an export that does not say what the run's own model says.

    Where the run computed in float32, scores may differ by :data:`TOLERANCE`, what it chooses must
    be the same where its margin is larger than that, and :data:`UNLIKE_TEXTS` of the texts that it
    writes may be others. Where it computed in bfloat16, the scores may differ by :data:`ROUNDINGS`
    times the error that the export, loaded in bfloat16 by transformers alone, has against float32
    (but by :data:`TOLERANCE` at least); other choices and texts are counted.

    Args:
        expected: What the run's model says.
        folder: What was written.
        load: Loads it as anybody would, in a number format.
        dtype: The number format that its card says.

    Raises:
        SmolbenchError: If it cannot be loaded or run, or says something else.
    """
    said: dict[DTypeName, torch.Tensor] = {}
    written: Sequence[str] | None = None
    in_bfloat16 = expected.dtype == "bfloat16"
    try:
        for name in dict.fromkeys((dtype, "float32", "bfloat16") if in_bfloat16 else (dtype,)):
            loaded = load(folder, getattr(torch, name))
            said[name] = expected.ask(loaded).float()
            if name == dtype and expected.let_write is not None:
                written = expected.let_write(loaded)
            del loaded  # memory holds one at a time
    except SmolbenchError:
        raise
    except Exception as error:  # whatever other libraries make of it
        reason = " ".join(str(error).split())[:300]
        raise SmolbenchError(
            "What was exported cannot be loaded again and run, so it is not kept "
            f"({type(error).__name__}: {reason})."
        ) from error
    allowed = TOLERANCE
    if in_bfloat16:
        allowed = max(allowed, ROUNDINGS * _gap(said["bfloat16"], said["float32"]))
    check = Check(
        n=len(expected.scores),
        examples=expected.examples,
        unit=expected.unit,
        run_dtype=expected.dtype,
        export_dtype=dtype,
        difference=_gap(said[dtype], expected.scores),
        allowed=allowed,
        labels_differ=_other_choices(expected.scores, said[dtype]),
        texts=None if expected.written is None else len(expected.written),
        texts_differ=_other_texts(expected.written, written),
    )
    _require(check, expected.scores, said[dtype])
    return check


def _require(check: Check, run: torch.Tensor, export: torch.Tensor) -> None:
    """Refuse what is more than rounding."""
    fault = ""
    if not check.difference <= check.allowed:  # not a number is no agreement
        fault = (
            f"the {check.unit} differ by up to {check.difference:.2g}, where {check.allowed:.2g} "
            "can be rounding"
        )
    elif check.run_dtype == "float32" and _other_choices(run, export, beyond=TOLERANCE):
        fault = "they choose differently where the margin is more than rounding"
    elif (
        check.run_dtype == "float32"
        and (check.texts_differ or 0) > (check.texts or 0) * UNLIKE_TEXTS
    ):
        fault = f"{check.texts_differ} of {check.texts} texts that both wrote differ"
    if fault:
        raise SmolbenchError(
            f"What was exported says something else than the run's model: on {check.n} "
            f"{check.examples}, {fault}. It is not kept: this architecture or tokenizer cannot be "
            "exported yet, or the library versions installed here run it in another way than "
            "smolbench does."
        )


def _gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference; infinite if there is nothing in common."""
    same = one.shape == other.shape and one.numel() > 0
    return float((one - other).abs().max()) if same else float("inf")


def _other_choices(run: torch.Tensor, export: torch.Tensor, beyond: float = 0.0) -> int | None:
    """Rows whose highest score is another's, where the run's leads by more than a margin."""
    if run.shape != export.shape or run.shape[1] < 2:
        return None
    best = run.topk(2, dim=1)
    clear = best.values[:, 0] - best.values[:, 1] > beyond
    return int((clear & (export.argmax(dim=1) != best.indices[:, 0])).sum())


def _other_texts(run: Sequence[str] | None, export: Sequence[str] | None) -> int | None:
    if run is None:
        return None
    assert export is not None, "it is asked for what the run writes"
    return sum(one != other for one, other in zip(run, export, strict=True))
