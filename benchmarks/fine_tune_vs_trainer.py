"""Full fine-tuning: smolbench beside the Trainer of transformers, at its default and by length.

    python benchmarks/fine_tune_vs_trainer.py

Both train the same classifier from the same weights, in the same number format, on the same rows
with the same batch size and optimiser, for one epoch. The peer runs twice: with its default order
of rows, which is random, and with its grouping by length. It is given tokens that are made once and
batches padded to their own longest row, as smolbench has them. Compared are real tokens (padding
does not count) per second of training steps after a warm-up, waiting for data included; imports,
loading, encoding and the writing of checkpoints are not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import (
    Finding,
    Measured,
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
    require_packages,
    say,
    write_results,
)

DEFAULT_BOUND, GROUPED_BOUND = 1.3, 1.0
"""How many times as many real tokens per second as the peer with each order of rows."""
MEMORY_BOUND = 1.0
OURS, DEFAULT, GROUPED = "smolbench", "Trainer", "Trainer, grouped by length"
RECIPE = "imdb_full_smollm2-135m"
WARMUP_STEPS = 5
"""Batches left out by both; as many as smolbench's ThroughputMonitor leaves out."""
LR, WEIGHT_DECAY = 5e-5, 0.01


def main() -> None:
    """Measure and write the result."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="smolbench-benchmark-") as name:
        folder = Path(name)
        require_packages("accelerate")
        require_hub()
        where = machine()
        say("preparing: rows, weights and tokenizer are downloaded where they are missing ...")
        job = {
            "model": options.model,
            "limit": options.limit,
            "batch_size": options.batch_size,
            "max_length": options.max_length,
            "dtype": options.dtype,
        }
        job |= prepare(folder, job)
        rounds = alternate(
            {
                OURS: lambda number: {OURS: smolbench(folder / str(number), job)},
                DEFAULT: lambda _: {DEFAULT: trainer(folder, job, "random")},
                GROUPED: lambda _: {GROUPED: trainer(folder, job, "group_by_length")},
            },
            options.rounds,
        )
    path = write_results(
        "fine_tune_vs_trainer",
        title=f"Full fine-tuning of {options.model}, beside transformers' Trainer",
        setting={
            "model": f"{options.model} at {job['revision']}, computed in {job['dtype']}, trained"
            " weights in float32",
            "weights": options.weights,
            "data": f"{options.limit} of IMDb's training reviews, one epoch",
            "tokens": f"at most {options.max_length} per row, {job['mean_length']:.0f} on average",
            "batch size": options.batch_size,
            "rounds": options.rounds,
        },
        findings=compared(rounds),
        rounds=rounds,
        where=where,
        notes=[
            "Real tokens per second are of the training steps after the first"
            f" {WARMUP_STEPS}; wall time in the table of sides is of the whole process, and of"
            " smolbench's also the writing of two checkpoints, which the Trainer is spared.",
            "Speed and memory only: quality is not compared here.",
        ],
    )
    say(f"Written: {path}")


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = option_parser(__doc__, model="HuggingFaceTB/SmolLM2-135M")
    parser.add_argument("--limit", type=positive, default=480, help="reviews")
    parser.add_argument("--batch_size", type=positive, default=8)
    parser.add_argument("--max_length", type=positive, default=512)
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    options = parser.parse_args()
    if options.limit // options.batch_size <= 2 * WARMUP_STEPS:
        parser.error(f"there must be more than {2 * WARMUP_STEPS} batches: raise --limit")
    return options


def compared(rounds: Mapping[str, Sequence[Measured]]) -> list[Finding]:
    """What the sides say about each other."""
    speed = {
        side: [float(one.facts["tokens_per_s"]) for one in all_] for side, all_ in rounds.items()
    }
    memory = {side: [one.peak_rss_mib for one in all_] for side, all_ in rounds.items()}
    padding = {side: all_[0].facts["padding_share"] for side, all_ in rounds.items()}
    bounds = {DEFAULT: DEFAULT_BOUND, GROUPED: GROUPED_BOUND}
    return [
        *(
            at_least(
                f"real tokens per second, {OURS} over {peer}",
                ratio(speed[OURS], speed[peer]),
                bound,
                digits=2,
            )
            for peer, bound in bounds.items()
        ),
        *(
            at_most(
                f"peak memory, {OURS} over {peer}", ratio(memory[OURS], memory[peer]), MEMORY_BOUND
            )
            for peer in bounds
        ),
        *(Finding(f"share of padding, {side}", f"{share:.1%}") for side, share in padding.items()),
    ]


# -- the sides ------------------------------------------------------------------------------------


def prepare(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Rows for the Trainer, and everything downloaded; in a process of its own."""
    own_cache = {"SMOLBENCH_CACHE": str(folder / "preparing")}
    return _worker("prepare", folder, job, own_cache).facts


def smolbench(folder: Path, job: Mapping[str, Any]) -> Measured:
    """The command line, with an empty cache."""
    run = folder / "run"
    command = [sys.executable, "-m", "smolbench", "fit", "--config", RECIPE]
    command += [
        f"--model.backbone={job['model']}",
        f"--model.max_length={job['max_length']}",
        f"--model.dtype={job['dtype']}",
        f"--model.lr={LR}",
        f"--model.weight_decay={WEIGHT_DECAY}",
        "--model.warmup_steps=0",
        f"--data.limit_train={job['limit']}",
        "--data.val_fraction=0",
        f"--data.batch_size={job['batch_size']}",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        f"--run_dir={run}",
    ]
    measured = measure(command, {"SMOLBENCH_CACHE": str(folder / "cache")}, run / "results.json")
    facts = {k: v for k, v in measured.facts.items() if k.startswith(("cost/", "data/n_"))}
    facts["tokens_per_s"] = facts["cost/train_tokens_per_s"]
    facts["padding_share"] = facts["cost/padding_share"]
    return dataclasses.replace(measured, facts=facts)


def trainer(folder: Path, job: Mapping[str, Any], order: str) -> Measured:
    """The peer, with an order of rows that transformers knows."""
    return _worker("trainer", folder, {**job, "order": order}, None)


def _worker(
    what: str, folder: Path, job: Mapping[str, Any], env: Mapping[str, str] | None
) -> Measured:
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    report = folder / f"{what}.json"
    command = [sys.executable, __file__, "--worker", what, str(folder), str(report)]
    return measure(command, env, report)


# -- in a fresh process ---------------------------------------------------------------------------


def work_prepare(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Choose and encode the rows that smolbench chooses; load everything once."""
    import torch

    from smolbench.data import IMDbDataModule
    from smolbench.tasks import FineTuneTask

    task = FineTuneTask(
        backbone=job["model"], max_length=job["max_length"], dtype=job["dtype"], num_classes=2
    )
    split = IMDbDataModule(limit_train=job["limit"], val_fraction=0.0).split("train")
    ids = task.encode({"text": split.examples["text"][:]})["input_ids"]
    rows = [
        {"input_ids": list(row), "labels": int(label)}
        for row, label in zip(ids, split.labels, strict=True)
    ]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    task.configure_model()
    return {
        "revision": task.backbone.revision,
        "dtype": str(task.backbone.dtype(torch.device("cpu"))).removeprefix("torch."),
        "mean_length": sum(len(row["input_ids"]) for row in rows) / len(rows),
    }


def work_trainer(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Train as transformers does."""
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(
        job["model"], dtype=torch.float32, num_labels=2
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.use_cache = False
    collate = DataCollatorWithPadding(tokenizer)
    batches: list[tuple[int, int]] = []

    def counted(examples: list[dict[str, Any]]) -> Mapping[str, torch.Tensor]:
        batch: Mapping[str, torch.Tensor] = collate(examples)
        mask = batch["attention_mask"]
        batches.append((int(mask.sum()), mask.numel()))
        return batch

    ends: list[float] = []

    class Clock(TrainerCallback):
        """When each step has ended; steps follow each other, so waiting for data counts."""

        def on_step_end(self, *arguments: object, **options: object) -> None:
            ends.append(time.perf_counter())

    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        num_train_epochs=1,
        per_device_train_batch_size=job["batch_size"],
        train_sampling_strategy=job["order"],
        learning_rate=LR,
        weight_decay=WEIGHT_DECAY,
        lr_scheduler_type="linear",
        max_grad_norm=0.0,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=job["dtype"] == "bfloat16",
        dataloader_pin_memory=False,
    )
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    peer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=counted,
        callbacks=[Clock()],
    )
    peer.train()
    if len(batches) != len(ends):
        raise RuntimeError(f"{len(batches)} batches were made for {len(ends)} steps.")
    seconds = ends[-1] - ends[WARMUP_STEPS - 1]
    real = sum(tokens for tokens, _ in batches[WARMUP_STEPS:])
    everything = sum(positions for _, positions in batches[WARMUP_STEPS:])
    return {
        "tokens_per_s": real / seconds,
        "padding_share": 1 - real / everything,
        "steps": len(batches),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        what, place, report = sys.argv[2:]
        job = json.loads((Path(place) / "job.json").read_text(encoding="utf-8"))
        work = {"prepare": work_prepare, "trainer": work_trainer}[what]
        Path(report).write_text(json.dumps(work(Path(place), job)), encoding="utf-8")
    else:
        with readable_errors():
            main()
