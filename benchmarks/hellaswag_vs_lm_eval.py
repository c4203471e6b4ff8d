"""HellaSwag: `smolbench test` beside lm-evaluation-harness, on the same rows and weights.

    python benchmarks/hellaswag_vs_lm_eval.py

Both read the same seeded sample of the whole split and score it in the same number format. What is
compared is the time in which all endings are scored: that which the harness spends in its model,
without tokenising, and smolbench's whole test loop. The harness runs its own task on its own model
class, from a file with the rows. Log-likelihoods, chosen endings and metrics are compared one by
one.
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

SPEED_BOUND, MEMORY_BOUND, LIKELIHOOD_BOUND = 2.2, 1.0, 1e-3
OURS, PEER = "smolbench", "lm_eval"
METRICS = ("acc", "acc_norm")
DTYPES = ("float32", "bfloat16")


def main() -> None:
    """Measure and write the result."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="smolbench-benchmark-") as name:
        folder = Path(name)
        require_packages("lm_eval")
        require_hub()
        where = machine()
        say("preparing: rows and weights are downloaded where they are missing ...")
        job = {name: getattr(options, name) for name in ("model", "limit", "peer_batch_size")}
        job |= worker("prepare", folder, job).facts
        sides = {}
        for dtype in options.dtype:
            sides[f"{OURS}, {dtype}"] = partial(smolbench, folder, options, dtype)
            sides[f"{PEER}, {dtype}"] = partial(lm_eval, folder, job, dtype)
        rounds = alternate(sides, options.rounds)
    findings: list[Finding] = []
    for dtype in options.dtype:
        findings += compared(rounds[f"{OURS}, {dtype}"], rounds[f"{PEER}, {dtype}"], dtype)
    path = write_results(
        "hellaswag_vs_lm_eval",
        title=f"HellaSwag with {options.model}, beside lm-evaluation-harness {job['version']}",
        setting={
            "model": f"{options.model} at {job['revision']}",
            "weights": options.weights,
            "data": f"{options.limit} rows, a seeded sample of the {job['of']} test rows",
            "questions at once": f"{options.batch_size} (smolbench)",
            "requests at once": f"{options.peer_batch_size} (lm_eval), four to a question",
            "rounds": options.rounds,
        },
        findings=findings,
        rounds=strip(rounds),
        where=where,
        notes=[
            "Ratios of speed are of scoring alone; wall times in the table of sides are of whole"
            " processes, with imports, loading and tokenising.",
            "Accuracy is compared between the two programs, and says nothing about the model where"
            " its weights are a stand-in's.",
        ],
    )
    say(f"Written: {path}")


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = option_parser(__doc__, model="HuggingFaceTB/SmolLM2-135M")
    parser.add_argument("--limit", type=positive, default=200, help="rows")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--batch_size", type=positive, default=8, help="questions at once")
    parser.add_argument("--peer_batch_size", type=positive, default=16, help="its requests at once")
    return parser.parse_args()


def compared(ours: Sequence[Measured], peer: Sequence[Measured], dtype: str) -> list[Finding]:
    """What the sides say about each other in one number format."""
    seconds = [[one.facts["score_s"] for one in side] for side in (ours, peer)]
    memory = [[one.peak_rss_mib for one in side] for side in (ours, peer)]
    findings = [
        at_least(
            f"{dtype}: questions per second, smolbench over lm_eval",
            ratio(seconds[1], seconds[0]),
            SPEED_BOUND,
            digits=2,
        ),
        at_most(
            f"{dtype}: peak memory, smolbench over lm_eval",
            ratio(memory[0], memory[1]),
            MEMORY_BOUND,
        ),
    ]
    return findings + equality(ours[0].facts, peer[0].facts, dtype)


def equality(ours: Mapping[str, Any], peer: Mapping[str, Any], dtype: str) -> list[Finding]:
    """How far the two programs agree; the bounds are for float32, where rounding hides nothing."""
    pairs = list(zip(ours["log_likelihoods"], peer["log_likelihoods"], strict=True))
    far = max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))
    same = sum(one.index(max(one)) == other.index(max(other)) for one, other in pairs)
    exact = dtype == "float32"
    findings = [
        Finding(
            f"{dtype}: largest difference of a log-likelihood",
            f"{far:.2g} nats",
            f"at most {LIKELIHOOD_BOUND:g}" if exact else "",
            ("reached" if far <= LIKELIHOOD_BOUND else "missed") if exact else "",
        ),
        Finding(
            f"{dtype}: questions for which both choose the same ending",
            f"{same} of {len(pairs)}",
            "all" if exact else "",
            ("reached" if same == len(pairs) else "missed") if exact else "",
        ),
    ]
    for name in METRICS:
        equal = abs(ours[name] - peer[name]) < 1e-6
        findings.append(
            Finding(
                f"{dtype}: {name}, smolbench and lm_eval",
                f"{ours[name]:.4f} and {peer[name]:.4f}",
                "the same" if exact else "",
                ("reached" if equal else "missed") if exact else "",
            )
        )
    return findings


def strip(rounds: Mapping[str, Sequence[Measured]]) -> dict[str, list[Measured]]:
    """The measurements without the thousands of log-likelihoods."""
    return {
        side: [
            dataclasses.replace(
                one, facts={k: v for k, v in one.facts.items() if k != "log_likelihoods"}
            )
            for one in all_
        ]
        for side, all_ in rounds.items()
    }


# -- the sides ------------------------------------------------------------------------------------


def worker(what: str, folder: Path, job: Mapping[str, Any]) -> Measured:
    """Run one of the functions below in a process of its own."""
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    report = folder / f"{what}.json"
    command = [sys.executable, __file__, "--worker", what, str(folder), str(report)]
    return measure(command, None, report)


def smolbench(
    folder: Path, options: argparse.Namespace, dtype: str, number: int
) -> dict[str, Measured]:
    """The command line."""
    side = f"{OURS}, {dtype}"
    run = folder / f"run-{dtype}-{number}"
    command = [sys.executable, "-m", "smolbench", "test", "--config", "hellaswag_smollm2"]
    command += [
        f"--model.backbone={options.model}",
        f"--model.dtype={dtype}",
        f"--data.limit_test={options.limit}",
        f"--data.batch_size={options.batch_size}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        f"--run_dir={run}",
    ]
    measured = measure(command, None, run / "results.json")
    facts: dict[str, Any] = {name: measured.facts[f"test/{name}"] for name in METRICS}
    facts["score_s"] = measured.facts["cost/test_s"]
    read = worker("predictions", folder, {"run": str(run)})
    facts["log_likelihoods"] = read.facts["log_likelihoods"]
    return {side: dataclasses.replace(measured, facts=facts)}


def lm_eval(folder: Path, job: Mapping[str, Any], dtype: str, _: int) -> dict[str, Measured]:
    """The peer."""
    return {f"{PEER}, {dtype}": worker("lm_eval", folder, {**job, "dtype": dtype})}


# -- in a fresh process ---------------------------------------------------------------------------


def work_prepare(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the rows that smolbench chooses; load everything once."""
    from importlib.metadata import version

    import torch

    from smolbench.data import HellaSwagDataModule
    from smolbench.models.pretrained.language_model import LanguageModel, load_language_model

    whole = HellaSwagDataModule()
    sample = HellaSwagDataModule(limit_test=job["limit"]).split("test").examples
    rows = {name: sample[name][:] for name in sample.column_names}
    rows["label"] = [str(label) for label in rows["label"]]
    (folder / "rows.jsonl").write_text(
        "".join(
            json.dumps(dict(zip(rows, values, strict=True))) + "\n"
            for values in zip(*rows.values(), strict=True)
        ),
        encoding="utf-8",
    )
    backbone = LanguageModel(job["model"], None, "float32")
    load_language_model(backbone, torch.float32)
    _ = backbone.tokenizer
    return {
        "revision": backbone.revision,
        "of": len(whole.split("test")),
        "version": version("lm_eval"),
    }


def work_predictions(_: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Log-likelihoods of a run, row by row."""
    import pyarrow.parquet as pq

    table = pq.read_table(Path(job["run"]) / "predictions.parquet")
    columns = [table[f"log_likelihood_{number}"].to_pylist() for number in range(4)]
    return {"log_likelihoods": [list(row) for row in zip(*columns, strict=True)]}


def work_lm_eval(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Score the rows as lm-evaluation-harness does."""
    from lm_eval import evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks.hellaswag.utils import process_docs

    spent = []

    class Timed(HFLM):
        """Knows how long scoring takes."""

        def _loglikelihood_tokens(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            started = time.monotonic()
            found = super()._loglikelihood_tokens(*args, **kwargs)
            spent.append(time.monotonic() - started)
            return found

    task = ConfigurableTask(
        config={
            "task": "hellaswag",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"validation": str(folder / "rows.jsonl")}},
            "output_type": "multiple_choice",
            "validation_split": "validation",
            "process_docs": process_docs,
            "doc_to_text": "{{query}}",
            "doc_to_target": "{{label}}",
            "doc_to_choice": "choices",
            "metric_list": [{"metric": name} for name in METRICS],
        }
    )
    model = Timed(
        pretrained=job["model"],
        device="cpu",
        dtype=job["dtype"],
        batch_size=job["peer_batch_size"],
    )
    found = evaluate(lm=model, task_dict={"hellaswag": task}, log_samples=True, bootstrap_iters=0)
    samples = sorted(found["samples"]["hellaswag"], key=lambda sample: sample["doc_id"])
    results = found["results"]["hellaswag"]
    return {
        "score_s": sum(spent),
        "log_likelihoods": [[answer[0] for answer in s["filtered_resps"]] for s in samples],
        **{name: results[f"{name},none"] for name in METRICS},
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        what, place, report = sys.argv[2:]
        job = json.loads((Path(place) / "job.json").read_text(encoding="utf-8"))
        work = {
            "prepare": work_prepare,
            "predictions": work_predictions,
            "lm_eval": work_lm_eval,
        }[what]
        Path(report).write_text(json.dumps(work(Path(place), job)), encoding="utf-8")
    else:
        with readable_errors():
            main()
