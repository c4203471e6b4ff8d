"""Distillation over some epochs: the teacher's logits computed once, beside one in the loop.

    python benchmarks/distillation.py

All sides are started by the command line with the same recipe, data, order of rows, optimiser and
checkpoints; they differ in where the teacher's logits come from. smolbench computes them in one
pass before the training and keeps them: it is started with an empty cache, and once more with
everything cached. The peer (``teacher_in_the_loop.py``) runs the teacher in every step. Both are
measured with a student that trains as a whole and with one that trains by LoRA.

That all learn the same is checked apart from that, in float32: their losses over the first steps.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import (
    ROOT,
    Finding,
    Measured,
    Spread,
    alternate,
    at_least,
    at_most,
    machine,
    measure,
    option_parser,
    positive,
    ratio,
    readable_errors,
    require_hub,
    say,
    write_results,
)

BOUNDS = {"full": (1.25, 1.45), "lora": (1.4, 1.8)}
"""How many times faster than the teacher in the loop the first and the second run are to be."""
LOSS_BOUND, LOSS_STEPS = 1e-3, 50
IN_THE_LOOP, FIRST, SECOND = "teacher in the loop", "smolbench, first run", "smolbench, second run"
RECIPE = "sentiment140_distill_opt-125m"


def main() -> None:
    """Measure and write the result."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="smolbench-benchmark-") as name:
        folder = Path(name)
        require_hub()
        where = machine()
        say("preparing: weights and rows are downloaded where they are missing ...")
        teacher = folder / "teacher"
        measure([sys.executable, __file__, "--worker", options.teacher, str(teacher)])
        common = [
            f"--model.teacher={teacher}",
            f"--model.backbone={options.student}",
            f"--model.max_length={options.max_length}",
            f"--data.limit_train={options.limit}",
            f"--data.batch_size={options.batch_size}",
            "--data.val_fraction=0",
            f"--trainer.max_epochs={options.epochs}",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
        ]
        gap, steps = loss_gap(folder, common)
        sides = {}
        for method in BOUNDS:
            own = [*common, f"--model.method={method}", f"--model.dtype={options.dtype}"]
            sides[f"smolbench, {method}"] = lambda number, own=own, method=method: smolbench_twice(
                folder / f"{method}-{number}", own, method
            )
            sides[f"in the loop, {method}"] = lambda number, own=own, method=method: in_the_loop(
                folder / f"{method}-{number}-loop", own, method
            )
        rounds = alternate(sides, options.rounds)
    path = write_results(
        "distillation",
        title=f"Distillation of {options.teacher} into {options.student}",
        setting={
            "teacher": f"{options.teacher} with a classification head",
            "student": options.student,
            "weights": options.weights,
            "data": f"{options.limit} tweets of Sentiment140, {options.epochs} epochs",
            "batch size": options.batch_size,
            "tokens": f"at most {options.max_length} per row",
            "computed in": options.dtype,
            "rounds": options.rounds,
        },
        findings=[*compared(rounds), at_most_gap(gap, steps)],
        rounds=rounds,
        where=where,
        notes=[
            "Wall time of the whole process, with imports, data, loading and checkpoints.",
            "The teacher's head is not trained: what it says decides nothing about the time.",
        ],
    )
    say(f"Written: {path}")


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = option_parser(__doc__)
    parser.add_argument("--teacher", default="facebook/opt-350m")
    parser.add_argument(
        "--student", default="facebook/opt-125m", help="with the teacher's tokenizer"
    )
    parser.add_argument("--limit", type=positive, default=1600, help="tweets")
    parser.add_argument("--epochs", type=positive, default=3)
    parser.add_argument("--batch_size", type=positive, default=16)
    parser.add_argument("--max_length", type=positive, default=128)
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    return parser.parse_args()


def compared(rounds: Mapping[str, Sequence[Measured]]) -> list[Finding]:
    """What the sides say about each other."""
    seconds = {side: [one.seconds for one in all_] for side, all_ in rounds.items()}
    memory = {side: [one.peak_rss_mib for one in all_] for side, all_ in rounds.items()}
    findings = []
    for method, bounds in BOUNDS.items():
        loop = f"{IN_THE_LOOP}, {method}"
        for run, bound in zip((FIRST, SECOND), bounds, strict=True):
            spread = ratio(seconds[loop], seconds[f"{run}, {method}"])
            what = f"{method} student: total time, teacher in the loop over {run}"
            findings.append(at_least(what, spread, bound, digits=2))
        spread = ratio(memory[f"{FIRST}, {method}"], memory[loop])
        what = f"{method} student: peak memory, {FIRST} over teacher in the loop"
        findings.append(Finding(what, spread.shown(2, "x")))
    return findings


def at_most_gap(gap: float, steps: int) -> Finding:
    """Whether both learn the same."""
    what = f"largest difference of the losses over the first {steps} steps, float32"
    return at_most(what, Spread.of([gap]), LOSS_BOUND, digits=6, unit=" nats")


# -- the sides ------------------------------------------------------------------------------------


def smolbench_twice(folder: Path, options: Sequence[str], method: str) -> dict[str, Measured]:
    """The command line with an empty cache, then with everything cached."""
    found = {}
    for number, side in enumerate((FIRST, SECOND)):
        measured = fit(folder, f"run{number}", options)
        if measured.facts["cost/cache_reused"] != (side == SECOND):
            raise RuntimeError(f"{side}: logits were found in the cache, or were not.")
        found[f"{side}, {method}"] = measured
    return found


def in_the_loop(folder: Path, options: Sequence[str], method: str) -> dict[str, Measured]:
    """The peer, with token ids cached as in a second run."""
    fit(folder, "tokens", [*in_loop(options), "--trainer.max_steps=1"])
    return {f"{IN_THE_LOOP}, {method}": fit(folder, "run", in_loop(options))}


def in_loop(options: Sequence[str]) -> list[str]:
    """The same options for the peer."""
    return ["--model.class_path=teacher_in_the_loop.TeacherInTheLoop", *options]


def fit(folder: Path, name: str, options: Sequence[str]) -> Measured:
    """One training by the command line."""
    run = folder / name
    command = [sys.executable, "-m", "smolbench", "fit", "--config", RECIPE, *options]
    env = {
        "SMOLBENCH_CACHE": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")]),
    }
    measured = measure([*command, f"--run_dir={run}"], env, run / "results.json")
    facts = {k: v for k, v in measured.facts.items() if k.startswith(("cost/", "data/n_"))}
    return dataclasses.replace(measured, facts=facts)


def loss_gap(folder: Path, common: Sequence[str]) -> tuple[float, int]:
    """The largest difference of both sides' losses, in nats, and over how many steps."""
    options = [
        *common,
        "--model.dtype=float32",
        f"--trainer.max_steps={LOSS_STEPS}",
        "--trainer.log_every_n_steps=1",
    ]
    say(f"comparing the losses of {LOSS_STEPS} steps ...")
    fit(folder, "ours", options)
    fit(folder, "peer", in_loop(options))
    ours, peer = (losses(folder / name / "metrics.csv") for name in ("ours", "peer"))
    if len(ours) != len(peer) or not ours:
        raise RuntimeError(f"{len(ours)} and {len(peer)} steps cannot be compared.")
    return max(abs(a - b) for a, b in zip(ours, peer, strict=True)), len(ours)


def losses(path: Path) -> list[float]:
    """Training losses by step."""
    with path.open(encoding="utf-8") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


# -- in a fresh process ---------------------------------------------------------------------------


def work(model: str, folder: str) -> None:
    """Write a teacher: a network with a classification head, in a folder of its own."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    labels = {0: "neg", 1: "pos"}
    options: dict[str, Any] = {"id2label": labels, "dtype": torch.float32}
    network = AutoModelForSequenceClassification.from_pretrained(model, **options)
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    else:
        with readable_errors():
            main()
