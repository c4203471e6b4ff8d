"""What `smolbench footprint` predicts of a training step's memory, and what it takes.

    python benchmarks/footprint_vs_measured.py

Each method trains in a process of its own for a few steps on batches of the same shape, as
`peft_memory.py` lets it. Measured is the peak resident memory of the training, less what was
resident before the model was loaded, when the same had been done with the built-in tiny model:
Python, the libraries and what they set up do not count. glibc keeps freed memory in holes between
what lives, which no model of tensors knows of; so the prediction is compared with an allocator that
gives freed memory back at once, and LoRA is also measured with the usual one.
With ``--accelerator cuda`` it is the peak of what the allocator gave out. Predicted is what
`smolbench footprint` says from the model's configuration alone.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft_memory
from harness import (
    Finding,
    Measured,
    Side,
    Spread,
    alternate,
    at_most,
    machine,
    measure,
    ratio,
    readable_errors,
    require_hub,
    say,
    table,
    write_results,
)
from peft_memory import METHODS, side

USUAL = ", usual allocator"
GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""glibc then asks the system for all that takes 64 KiB or more, and gives it back once it is freed;
elsewhere this changes nothing."""
BOUND = 0.15
"""How far off a prediction may be, as a share of what was measured."""
PARTS = ("weights", "gradients", "optimizer", "activations", "step", "total")


def main() -> None:
    """Measure and write the result."""
    options = peft_memory.parse(__doc__.splitlines()[0])
    with tempfile.TemporaryDirectory(prefix="smolbench-benchmark-") as name:
        folder = Path(name)
        require_hub()
        where = machine()
        job = peft_memory.job_of(options)
        say("preparing: weights and tokenizers are downloaded where they are missing ...")
        for model in options.models:
            peft_memory.train(folder, {**job, "model": model, "method": "lora", "length": 8})
        rounds = alternate(sides_of(folder, options.models, job), options.rounds)
    path = write_results(
        "footprint_vs_measured",
        title="Memory of a training step: predicted and measured",
        setting={
            "models": ", ".join(options.models),
            "weights": options.weights,
            "batch": f"{options.batch_size} x {options.length} tokens",
            "computed in": next(iter(rounds.values()))[0].facts["dtype"],
            "rounds": options.rounds,
        },
        findings=compared(rounds),
        rounds=rounds,
        where=where,
        notes=[
            "Measured: peak resident memory of the training, less what was resident before the"
            " model was loaded, after the same steps of the built-in tiny model.",
            "Measured with an allocator that gives freed memory back at once"
            f" ({' '.join('='.join(pair) for pair in GIVING_BACK.items())}), but for the sides of"
            " the usual one.",
            "BitFit on a network without biases is `bitfit_added`.",
        ],
    )
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + "\n".join(parts_table(rounds)) + "\n")
    say(f"Written: {path}")


def sides_of(folder: Path, models: Sequence[str], job: Mapping[str, Any]) -> dict[str, Side]:
    """Every method on every model, and LoRA with both allocators."""

    def made(name: str, own: Mapping[str, Any], env: Mapping[str, str]) -> Side:
        return lambda _: {name: train(folder, own, env)}

    sides: dict[str, Side] = {}
    for model in models:
        for method in METHODS:
            own = {**job, "model": model, "method": method}
            name = side(model, method)
            sides[name] = made(name, own, GIVING_BACK)
            if method == "lora":
                sides[name + USUAL] = made(name + USUAL, own, {})
    return sides


def compared(rounds: Mapping[str, Sequence[Measured]]) -> list[Finding]:
    """How far off every prediction is."""
    findings = []
    for name, all_ in rounds.items():
        if name.endswith(USUAL):
            exact = rounds[name.removesuffix(USUAL)]
            more = ratio([taken(one) for one in all_], [taken(one) for one in exact])
            slower = ratio([one.seconds for one in exact], [one.seconds for one in all_])
            findings.append(Finding(f"{name}: takes", more.shown(2, "x")))
            what = f"{name.removesuffix(USUAL)}: wall time if memory is given back at once"
            findings.append(Finding(what, slower.shown(2, "x")))
            continue
        off = [abs(one.facts["predicted"]["total"] / taken(one) - 1) * 100 for one in all_]
        what = f"{name}: predicted, off by"
        findings.append(at_most(what, Spread.of(off), BOUND * 100, digits=1, unit=" %"))
    return findings


def taken(measured: Measured) -> float:
    """What the training has taken, in MiB."""
    return float(measured.facts["taken_mib"])


def parts_table(rounds: Mapping[str, Sequence[Measured]]) -> list[str]:
    """What the predictions consist of."""
    return table(
        ["MiB", "method", *(f"predicted {part}" for part in PARTS), "measured peak"],
        [
            [
                name.partition(", ")[0],
                all_[0].facts["method"],
                *(f"{all_[0].facts['predicted'][part]:,.0f}" for part in PARTS),
                Spread.of([taken(one) for one in all_]).shown(0),
            ]
            for name, all_ in rounds.items()
            if not name.endswith(USUAL)
        ],
    )


def train(folder: Path, job: Mapping[str, Any], env: Mapping[str, str]) -> Measured:
    """A few steps of one method."""
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    report = folder / "report.json"
    return measure([sys.executable, __file__, "--worker", str(folder), str(report)], env, report)


# -- in a fresh process ---------------------------------------------------------------------------


def work(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Train, and predict what that takes."""
    import torch

    from smolbench.callbacks.memory import resident_mib
    from smolbench.models.memory.footprint import training_memory
    from smolbench.models.pretrained.backbone import Backbone

    peft_memory.work(folder / "tiny", {**job, "model": "tiny", "length": 64})
    gc.collect()
    before = resident_mib()
    facts = peft_memory.work(folder / "run", job)
    predicted = training_memory(
        Backbone(job["model"], None, job["dtype"]),
        facts["method"],
        job["batch_size"],
        job["length"],
        getattr(torch, facts["dtype"]),
    )
    allocated = facts["peak_allocated_mib"]
    return {
        **facts,
        "taken_mib": facts["peak_fit_mib"] - before if allocated is None else allocated,
        "predicted": {part: getattr(predicted, part) / 2**20 for part in PARTS},
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        place, report = sys.argv[2:]
        job = json.loads((Path(place) / "job.json").read_text(encoding="utf-8"))
        Path(report).write_text(json.dumps(work(Path(place), job)), encoding="utf-8")
    else:
        with readable_errors():
            main()
