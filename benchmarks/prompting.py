"""Few-shot prompting: smolbench beside whole prompts.

    python benchmarks/prompting.py

The peer puts every text behind the whole prompt, from the longest to the shortest, pads on the left
and lets the model compute the logits of the last positions only, which the answers need. Both read
the same token ids in the same number format with the same batch size. Longer texts are IMDb's,
behind the report's three examples; short ones AG News', behind four.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
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
    say,
    write_results,
)

DATASETS = {
    "IMDb": ("imdb_few_shot_smollm2-135m", ["--model.rule=verbalizer", "--model.unknown_as=null"]),
    "AG News": ("ag_news_few_shot_smollm2-135m", ["--model.shot_seeds=[0]"]),
}
"""Recipe and what is changed in it, by the texts' origin."""
SPEED_BOUNDS = {"IMDb": 1.3, "AG News": 3.5}
"""What the shared beginning can save: 86 of 368 and 276 of 345 tokens of SmolLM2, 1.3x
and 5.0x, of which short rows that attend to a long beginning keep a part."""
SCORE_BOUND, MEMORY_BOUND = 1e-3, 1.0
OURS, PEER = "smolbench", "whole prompts"


def main() -> None:
    """Measure and write the result."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="smolbench-benchmark-") as name:
        folder = Path(name)
        require_hub()
        where = machine()
        sides = {}
        for data in DATASETS:
            say(f"preparing {data}: rows and weights are downloaded where they are missing ...")
            worker("prepare", folder, options, data)
            sides[f"{data}, {OURS}"] = partial(smolbench, folder, options, data)
            sides[f"{data}, {PEER}"] = partial(whole_prompts, folder, options, data)
        rounds = alternate(sides, options.rounds)
    findings: list[Finding] = []
    for data in DATASETS:
        findings += compared(rounds[f"{data}, {OURS}"], rounds[f"{data}, {PEER}"], data)
    path = write_results(
        "prompting",
        title=f"Few-shot prompting of {options.model}, beside whole prompts",
        setting={
            "model": f"{options.model}, {options.dtype}",
            "weights": options.weights,
            "data": f"{options.limit} test texts each",
            "batch size": options.batch_size,
            "rounds": options.rounds,
        },
        findings=findings,
        rounds={
            side: [
                dataclasses.replace(one, facts={"score_s": one.facts["score_s"]}) for one in all_
            ]
            for side, all_ in rounds.items()
        },
        where=where,
        notes=[
            "Ratios of speed are of scoring alone; wall times in the table of sides are of whole"
            " processes, with imports, loading and tokenising.",
        ],
    )
    say(f"Written: {path}")


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = option_parser(__doc__, model="HuggingFaceTB/SmolLM2-135M")
    parser.add_argument("--limit", type=positive, default=200, help="texts")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch_size", type=positive, default=16)
    return parser.parse_args()


def compared(ours: Sequence[Measured], peer: Sequence[Measured], data: str) -> list[Finding]:
    """What the sides say about each other on one kind of texts."""
    seconds = [[one.facts["score_s"] for one in side] for side in (ours, peer)]
    memory = [[one.peak_rss_mib for one in side] for side in (ours, peer)]
    pairs = zip(ours[0].facts["scores"], peer[0].facts["scores"], strict=True)
    far = max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))
    return [
        at_least(
            f"{data}: texts per second, smolbench over whole prompts",
            ratio(seconds[1], seconds[0]),
            SPEED_BOUNDS[data],
            digits=2,
        ),
        at_most(
            f"{data}: peak memory, smolbench over whole prompts",
            ratio(memory[0], memory[1]),
            MEMORY_BOUND,
        ),
        at_most(
            f"{data}: largest difference of a class's probability",
            Spread.of([far]),
            SCORE_BOUND,
            digits=6,
            unit="",
        ),
    ]


# -- the sides ------------------------------------------------------------------------------------


def arguments(options: argparse.Namespace, data: str) -> list[str]:
    """What both sides read: recipe, model, rows."""
    recipe, changes = DATASETS[data]
    return [
        *("--config", recipe, *changes),
        "--model.calibration=none",
        f"--model.backbone={options.model}",
        f"--model.dtype={options.dtype}",
        f"--data.limit_test={options.limit}",
        f"--data.batch_size={options.batch_size}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--latency.examples=0",
    ]


def smolbench(
    folder: Path, options: argparse.Namespace, data: str, number: int
) -> dict[str, Measured]:
    """The command line."""
    run = folder / f"{data}-{number}"
    command = [sys.executable, "-m", "smolbench", "test", *arguments(options, data)]
    measured = measure([*command, f"--run_dir={run}"], None, run / "results.json")
    read = worker("predictions", folder, options, data, run=str(run))
    facts = {"score_s": measured.facts["cost/test_s"], "scores": read.facts["scores"]}
    return {f"{data}, {OURS}": dataclasses.replace(measured, facts=facts)}


def whole_prompts(
    folder: Path, options: argparse.Namespace, data: str, _: int
) -> dict[str, Measured]:
    """The peer."""
    return {f"{data}, {PEER}": worker("whole_prompts", folder, options, data)}


def worker(
    what: str, folder: Path, options: argparse.Namespace, data: str, **more: str
) -> Measured:
    """Run one of the functions below in a process of its own."""
    job = {**vars(options), "data": data, "arguments": arguments(options, data), **more}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    report = folder / f"{what}.json"
    command = [sys.executable, __file__, "--worker", what, str(folder), str(report)]
    return measure(command, None, report)


# -- in a fresh process ---------------------------------------------------------------------------


def work_prepare(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Token ids of all whole prompts and of the answers, as smolbench reads them."""
    import importlib

    import yaml
    from lightning.pytorch import Trainer

    from smolbench.runs.recipes import resolve_config
    from smolbench.tasks import PromptTask

    recipe, changes = DATASETS[job["data"]]
    settings = yaml.safe_load(resolve_config(recipe).read_text(encoding="utf-8"))
    model = settings["model"]["init_args"] | {"backbone": job["model"], "dtype": job["dtype"]}
    model |= {
        change.removeprefix("--model.").partition("=")[0]: yaml.safe_load(change.partition("=")[2])
        for change in changes
    }
    task = PromptTask(**{**model, "calibration": "none"})
    modules = importlib.import_module("smolbench.data")
    data = getattr(modules, settings["data"]["class_path"])(limit_test=job["limit"])
    task.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    task.trainer.datamodule = data  # type: ignore[attr-defined] # where the examples come from
    (encoder,) = task.encoders
    rows = encoder.encode(data.texts("test"))["input_ids"]
    prompts = {
        "rows": [[*encoder.shared_ids, *row] for row in rows],
        "answers": task.words.ids,
    }
    (folder / f"{job['data']}.json").write_text(json.dumps(prompts), encoding="utf-8")
    return {}


def work_predictions(_: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Probabilities of the classes of a run, text by text."""
    import pyarrow.parquet as pq

    table = pq.read_table(Path(job["run"]) / "predictions.parquet")
    columns = [table[name].to_pylist() for name in table.column_names if name.startswith("score_")]
    return {"scores": [list(row) for row in zip(*columns, strict=True)]}


def work_whole_prompts(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Score every prompt as a whole; each answer is one token or is scored token by token."""
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoModelForCausalLM

    prompts = json.loads((folder / f"{job['data']}.json").read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    model.eval()
    scores: list[list[float]] = [[]] * len(prompts["rows"])
    order = sorted(range(len(scores)), key=lambda number: -len(prompts["rows"][number]))
    started = time.monotonic()
    with torch.inference_mode():
        for start in range(0, len(order), job["batch_size"]):
            numbers = order[start : start + job["batch_size"]]
            batch = [prompts["rows"][number] for number in numbers]
            found = torch.zeros(len(batch), len(prompts["answers"]))
            # all answers of one token are read off the same logits
            longer = [answer for answer in prompts["answers"] if len(answer) > 1]
            for continued in [[], *(answer[:-1] for answer in longer)]:
                rows = [torch.tensor([*row, *continued]) for row in batch]
                left = partial(pad_sequence, batch_first=True, padding_side="left")
                ids, mask = left(rows), left([torch.ones_like(row) for row in rows])
                kept = len(continued) + 1
                logs = (
                    model(
                        input_ids=ids,
                        attention_mask=mask,
                        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
                        logits_to_keep=kept,
                    )
                    .logits.float()
                    .log_softmax(-1)
                )
                for c, answer in enumerate(prompts["answers"]):
                    if answer[:-1] == continued:
                        found[:, c] = logs[:, torch.arange(kept), torch.tensor(answer)].sum(dim=1)
            for number, row in zip(numbers, found.softmax(dim=1).tolist(), strict=True):
                scores[number] = row
    return {"score_s": time.monotonic() - started, "scores": scores}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        what, place, report = sys.argv[2:]
        job = json.loads((Path(place) / "job.json").read_text(encoding="utf-8"))
        work = {
            "prepare": work_prepare,
            "predictions": work_predictions,
            "whole_prompts": work_whole_prompts,
        }[what]
        Path(report).write_text(json.dumps(work(Path(place), job)), encoding="utf-8")
    else:
        with readable_errors():
            main()
