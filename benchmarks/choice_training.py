"""Training to choose among endings: questions in shared rows beside a row for each ending.

    python benchmarks/choice_training.py

Both sides are smolbench with `objective: choice`, which computes the language-model head at the
endings' tokens only, on the same questions in the same order. What differs is whether the four
endings of a question are read behind one context or behind four. What they learn is the same up to
rounding: the losses of the first step are compared.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
import tempfile
from functools import partial
from pathlib import Path

from harness import (
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

SPEED_BOUND, MEMORY_BOUND, LOSS_BOUND = 1.5, 1.0, 1e-2
SHARED, SEPARATE = "shared rows", "separate rows"


def main() -> None:
    """Measure and write the result."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="smolbench-benchmark-") as name:
        folder = Path(name)
        require_hub()
        where = machine()
        say("preparing: rows and weights are downloaded where they are missing ...")
        fit(folder, options, SHARED, "prepared", questions=options.batch_size)
        rounds = alternate(
            {side: partial(fit, folder, options, side) for side in (SHARED, SEPARATE)},
            options.rounds,
        )
    speed = {side: [one.facts["samples_per_s"] for one in all_] for side, all_ in rounds.items()}
    memory = {side: [one.peak_rss_mib for one in all_] for side, all_ in rounds.items()}
    losses = [rounds[side][0].facts["first_loss"] for side in (SHARED, SEPARATE)]
    path = write_results(
        "choice_training",
        title=f"Training {options.model} to choose, in shared and in separate rows",
        setting={
            "model": options.model,
            "weights": options.weights,
            "method": f"full, computed in {options.dtype}",
            "data": f"{options.limit} training questions of HellaSwag, one epoch",
            "batch size": f"{options.batch_size} questions",
            "rounds": options.rounds,
        },
        findings=[
            at_least(
                "questions per second, shared over separate rows",
                ratio(speed[SHARED], speed[SEPARATE]),
                SPEED_BOUND,
                digits=2,
            ),
            at_most(
                "peak memory, shared over separate rows",
                ratio(memory[SHARED], memory[SEPARATE]),
                MEMORY_BOUND,
            ),
            at_most(
                "difference of the first step's loss",
                Spread.of([abs(losses[0] - losses[1])]),
                LOSS_BOUND,
                digits=5,
                unit=" nats",
            ),
        ],
        rounds=rounds,
        where=where,
        notes=["Questions per second are of the training steps, after warm-up."],
    )
    say(f"Written: {path}")


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = option_parser(__doc__, model="HuggingFaceTB/SmolLM2-135M")
    parser.add_argument("--limit", type=positive, default=160, help="questions")
    parser.add_argument("--batch_size", type=positive, default=8, help="questions at once")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="float32")
    return parser.parse_args()


def fit(
    folder: Path,
    options: argparse.Namespace,
    side: str,
    number: int | str,
    questions: int | None = None,
) -> dict[str, Measured]:
    """One epoch by the command line."""
    run = folder / f"{side.partition(' ')[0]}-{number}"
    command = [sys.executable, "-m", "smolbench", "fit", "--config", "hellaswag_full_smollm2-135m"]
    command += [
        f"--model.backbone={options.model}",
        "--model.objective=choice",
        f"--model.shared_context={str(side == SHARED).lower()}",
        f"--model.dtype={options.dtype}",
        f"--data.limit_train={questions or options.limit}",
        "--data.val_fraction=0",
        f"--data.batch_size={options.batch_size}",
        "--trainer.max_epochs=1",
        "--trainer.log_every_n_steps=1",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        f"--run_dir={run}",
    ]
    measured = measure(command, None, run / "results.json")
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        first = next(csv.DictReader(file))
    facts = {
        "samples_per_s": measured.facts["cost/train_samples_per_s"],
        "tokens_per_s": measured.facts["cost/train_tokens_per_s"],
        "first_loss": float(first["train/loss"]),
    }
    return {side: dataclasses.replace(measured, facts=facts)}


if __name__ == "__main__":
    with readable_errors():
        main()
