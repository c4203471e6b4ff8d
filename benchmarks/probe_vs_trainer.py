"""Ten epochs of probing: smolbench beside the same head trained by the Trainer of transformers.

    python benchmarks/probe_vs_trainer.py

The peer trains the same head on the same frozen network, in the same number format, on the same
rows, template and places of the features, with the same batch size and optimiser, and is given what
makes it fast: no gradient through the network, no cache of keys and values, no attention mask where
none is needed, tokens made once, batches padded to their own longest row. Its order of rows is its
own, once random and once grouped by length. Compared are whole runs, and one pass over the rows
with one of its epochs, which says what is gained beside passing once instead of ten times.
smolbench is started by its command line, with an empty cache; then once more with another head, so
that the features are there.
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
    require_packages,
    say,
    write_results,
)

FIRST_BOUND, SECOND_BOUND = 10.0, 50.0
"""How many times faster than the peer the first and the second run are to be."""
CHECKPOINT_BOUND_MB = 5.0
FIRST, SECOND, PEER = "smolbench, first run", "smolbench, another head", "Trainer"
GROUPED = "Trainer, grouped by length"
RECIPE = "imdb_probe"


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
            "epochs": options.peer_epochs or options.epochs,
            "batch_size": options.batch_size,
            "max_length": options.max_length,
        }
        job |= prepare(folder, job)
        rounds = alternate(
            {
                "smolbench": lambda number: smolbench_twice(folder / str(number), options),
                PEER: lambda _: {PEER: trainer(folder, job, "random")},
                GROUPED: lambda _: {GROUPED: trainer(folder, job, "group_by_length")},
            },
            options.rounds,
        )
    extrapolated = job["epochs"] < options.epochs
    path = write_results(
        "probe_vs_trainer",
        title=f"{options.epochs} epochs of probing {options.model}, beside transformers' Trainer",
        setting={
            "model": f"{options.model} at {job['revision']}, {job['dtype']}",
            "weights": options.weights,
            "data": f"{options.limit} of IMDb's training reviews, the template of {RECIPE}",
            "tokens": f"at most {options.max_length} per row, {job['mean_length']:.0f} on average,"
            f" {job['shared']} of them the same in every row",
            "epochs": f"{options.epochs}, of which the Trainer ran {job['epochs']}",
            "batch size": options.batch_size,
            "rounds": options.rounds,
        },
        findings=compared(rounds, options.epochs / job["epochs"]),
        rounds=rounds,
        where=where,
        notes=[
            "Wall time of the whole process, with imports, data and loading, without downloads.",
            "Speed and memory only: quality is not compared here.",
            *(
                [
                    f"The Trainer ran {job['epochs']} of {options.epochs} epochs: in the ratios of"
                    " time its training, not its start, is multiplied; its line in the table of"
                    " sides is what was run."
                ]
                if extrapolated
                else []
            ),
        ],
    )
    say(f"Written: {path}")


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = option_parser(__doc__, model="HuggingFaceTB/SmolLM2-135M")
    parser.add_argument("--limit", type=positive, default=512, help="reviews")
    parser.add_argument("--epochs", type=positive, default=10)
    parser.add_argument(
        "--peer_epochs", type=positive, help="let the Trainer run fewer, and multiply; it is said"
    )
    parser.add_argument("--batch_size", type=positive, default=32)
    parser.add_argument("--max_length", type=positive, default=256)
    options = parser.parse_args()
    if options.peer_epochs is not None and options.peer_epochs > options.epochs:
        parser.error("--peer_epochs must not be above --epochs")
    if options.limit % options.batch_size == 1:
        parser.error("the last batch would be one review, which BatchNorm cannot learn from")
    return options


def compared(rounds: Mapping[str, Sequence[Measured]], factor: float) -> list[Finding]:
    """What the sides say about each other.

    Args:
        rounds: What was measured.
        factor: Epochs asked for, over those that the Trainer ran.
    """
    seconds = {side: [one.seconds for one in all_] for side, all_ in rounds.items()}
    # only what grows with the epochs is multiplied
    for side in (PEER, GROUPED):
        seconds[side] = [one.seconds + (factor - 1) * one.facts["train_s"] for one in rounds[side]]
    passes = [one.facts["cost/cache_s"] for one in rounds[FIRST]]
    epochs = {side: [one.facts["epoch_s"] for one in rounds[side]] for side in (PEER, GROUPED)}
    memory = {side: [one.peak_rss_mib for one in all_] for side, all_ in rounds.items()}
    said = "" if factor == 1 else " (extrapolated)"
    findings = [
        at_least(
            f"total time, Trainer{said} over the first run of smolbench",
            ratio(seconds[PEER], seconds[FIRST]),
            FIRST_BOUND,
        ),
        at_least(
            f"total time, Trainer{said} over a second run with another head",
            ratio(seconds[PEER], seconds[SECOND]),
            SECOND_BOUND,
        ),
        *(
            Finding(
                f"total time, {GROUPED}{said}, over {name}",
                ratio(seconds[GROUPED], own).shown(2, "x"),
            )
            for name, own in (("the first run", seconds[FIRST]), ("the second", seconds[SECOND]))
        ),
        *(
            Finding(f"one epoch of the {side} over the one pass", ratio(one, passes).shown(2, "x"))
            for side, one in epochs.items()
        ),
        at_most(
            "peak memory, first run of smolbench over Trainer",
            ratio(memory[FIRST], memory[PEER]),
            1.0,
        ),
    ]
    for name in ("best", "last"):
        sizes = [one.facts[f"{name}_ckpt_mb"] for one in rounds[FIRST]]
        findings.append(at_most(f"{name}.ckpt", Spread.of(sizes), CHECKPOINT_BOUND_MB, unit=" MB"))
    return findings


# -- the sides ------------------------------------------------------------------------------------


def prepare(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Rows for the Trainer, and everything downloaded; in a process of its own."""
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    report = folder / "prepared.json"
    own_cache = {"SMOLBENCH_CACHE": str(folder / "preparing")}
    command = [sys.executable, __file__, "--worker", "prepare", str(folder), str(report)]
    return measure(command, own_cache, report).facts


def smolbench_twice(folder: Path, options: argparse.Namespace) -> dict[str, Measured]:
    """The command line with an empty cache, then with another head."""
    found = {}
    for side, head in ((FIRST, "mlp"), (SECOND, "linear")):
        run = folder / head
        command = [sys.executable, "-m", "smolbench", "fit", "--config", RECIPE]
        command += [
            f"--model.backbone={options.model}",
            f"--model.max_length={options.max_length}",
            f"--model.head={head}",
            f"--data.limit_train={options.limit}",
            f"--data.batch_size={options.batch_size}",
            f"--trainer.max_epochs={options.epochs}",
            "--trainer.accumulate_grad_batches=1",
            "--model.warmup_steps=0.1",  # of few steps, however few rows there are
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            f"--run_dir={run}",
        ]
        measured = measure(
            command, {"SMOLBENCH_CACHE": str(folder / "cache")}, run / "results.json"
        )
        facts = {k: v for k, v in measured.facts.items() if k.startswith(("cost/", "data/n_"))}
        if facts["cost/cache_reused"] != (side == SECOND):
            raise RuntimeError(f"{side}: features were found in the cache, or were not.")
        for name in ("best", "last"):
            size = (run / "checkpoints" / f"{name}.ckpt").stat().st_size
            facts[f"{name}_ckpt_mb"] = size / 1e6
        found[side] = dataclasses.replace(measured, facts=facts)
    return found


def trainer(folder: Path, job: Mapping[str, Any], order: str) -> Measured:
    """The peer, with its rows in an order that transformers knows."""
    (folder / "job.json").write_text(json.dumps({**job, "order": order}), encoding="utf-8")
    report = folder / "trainer.json"
    command = [sys.executable, __file__, "--worker", "trainer", str(folder), str(report)]
    return measure(command, None, report)


# -- in a fresh process ---------------------------------------------------------------------------


def work_prepare(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the rows that smolbench chooses; load everything once."""
    import torch

    from smolbench.data import IMDbDataModule
    from smolbench.tasks import ProbeTask

    task = ProbeTask(**recipe_options(), backbone=job["model"], max_length=job["max_length"])
    split = IMDbDataModule(limit_train=job["limit"], val_fraction=0.0).split("train")
    rows = {"text": split.examples["text"][:], "label": [int(label) for label in split.labels]}
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    device = torch.device("cpu")
    encoder = task.encoder
    own = encoder.encode(rows["text"])["input_ids"]
    return {
        "revision": task.backbone.revision,
        "dtype": str(task.backbone.dtype(device)).removeprefix("torch."),
        "causal": task.backbone.facts(device).causal,
        "shared": len(encoder.shared_ids),
        "mean_length": len(encoder.shared_ids) + sum(map(len, own)) / len(own),
    }


def recipe_options() -> dict[str, Any]:
    """The recipe's options of the model, but those that the benchmark sets."""
    import yaml

    from smolbench.runs.recipes import resolve_config

    recipe = yaml.safe_load(resolve_config(RECIPE).read_text(encoding="utf-8"))
    options: dict[str, Any] = recipe["model"]["init_args"]
    options.pop("backbone")
    return options


def work_trainer(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Train the head as transformers does."""
    import torch
    from torch import nn
    from transformers import (
        AutoModel,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    from smolbench.models.encoding.template import TemplateEncoder
    from smolbench.models.frozen.features import pool
    from smolbench.models.pretrained.heads import build_head

    options = recipe_options()
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    encoder = TemplateEncoder(tokenizer, options["template"], job["max_length"])
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    shared = len(encoder.shared_ids)
    examples = [
        {
            "input_ids": encoder.shared_ids + row.ids,
            "text_start": shared + row.start,
            "text_length": row.length,
            "labels": label,
        }
        for row, label in zip(encoder.rows(rows["text"]), rows["label"], strict=True)
    ]
    anchor = encoder.anchor_offset(options["anchor"])

    class Probe(nn.Module):
        """A frozen network and a head."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone = AutoModel.from_pretrained(
                job["model"], dtype=getattr(torch, job["dtype"])
            ).requires_grad_(False)
            self.backbone.config.use_cache = False
            width = self.backbone.config.hidden_size
            self.head = build_head("mlp", width, 2, hidden_size=384, dropout=0.1, seed=0)

        def train(self, mode: bool = True) -> Probe:
            super().train(mode)
            self.backbone.eval()
            return self

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            text_start: torch.Tensor,
            text_length: torch.Tensor,
            labels: torch.Tensor,
        ) -> dict[str, torch.Tensor]:
            with torch.no_grad():
                # causal rows never look at their padding, which stands on the right
                mask = None if job["causal"] else attention_mask
                states = self.backbone(input_ids, attention_mask=mask).last_hidden_state
                lengths = attention_mask.sum(1)
                features = pool(
                    states,
                    options["pooling"],
                    lengths,
                    text_start,
                    text_length,
                    anchor,
                )
            logits = self.head(features)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        num_train_epochs=job["epochs"],
        per_device_train_batch_size=job["batch_size"],
        train_sampling_strategy=job["order"],
        learning_rate=1e-4,
        weight_decay=0.01,
        warmup_steps=options["warmup_steps"],
        lr_scheduler_type="linear",
        max_grad_norm=0.0,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
    )
    peer = Trainer(
        model=Probe(),
        args=arguments,
        train_dataset=examples,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    started = time.monotonic()
    done = peer.train()
    spent = time.monotonic() - started
    return {"train_s": spent, "epoch_s": spent / job["epochs"], "steps": done.global_step}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        what, place, report = sys.argv[2:]
        job = json.loads((Path(place) / "job.json").read_text(encoding="utf-8"))
        work = {"prepare": work_prepare, "trainer": work_trainer}[what]
        Path(report).write_text(json.dumps(work(Path(place), job)), encoding="utf-8")
    else:
        with readable_errors():
            main()
