"""Summaries: smolbench beside the Seq2SeqTrainer of transformers, in training and in writing.

    python benchmarks/summarization.py

Both train the same encoder-decoder model from the same weights for one epoch, and both write the
summaries of the same test dialogues and compute their losses, with the same batch size, number
format, beams and most tokens. The peer groups the rows by length in training, takes them from the
longest to the shortest in the test, and is given tokens that are made once and batches padded to
their own longest row, as smolbench has them. Compared are real tokens of dialogues and references
per second of training steps after a warm-up, and dialogues per second of the whole test loop;
imports, loading, encoding and the writing of checkpoints are not. In float32 both must write the
same tokens; summaries that are nearly all empty, or nearly all cut off by the most tokens allowed,
as a model with random weights writes them, prove nothing and are not compared.
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

TRAIN_BOUND, WRITE_BOUND = 1.2, 1.5
"""How many times the peer's real tokens in training, and dialogues in the test, per second."""
OURS, PEER = "smolbench", "Seq2SeqTrainer, by length"
RECIPE = "samsum_flan-t5-base"
USELESS_SHARE = 0.5
"""Of summaries that are empty or cut off; more of them prove nothing."""
WARMUP_STEPS = 5
"""Batches of a training left out by both; as many as smolbench's ThroughputMonitor leaves out."""
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
            "train": options.train,
            "test": options.test,
            "batch_size": options.batch_size,
            "dtype": options.dtype,
            "max_new_tokens": options.max_new_tokens,
            "num_beams": options.num_beams,
        }
        job |= prepare(folder, job)
        sides = {
            OURS: lambda number: {OURS: smolbench(folder / str(number), job)},
            PEER: lambda number: {PEER: peer(folder / f"{number}-peer", folder, job)},
        }
        rounds = alternate(sides, options.rounds)
    path = write_results(
        "summarization",
        title=f"Summaries by {options.model}, beside transformers' Seq2SeqTrainer",
        setting={
            "model": f"{options.model} at {job['revision']}, in {options.dtype}; trained weights in"
            " float32",
            "weights": options.weights,
            "data": f"{options.train} of SAMSum's training dialogues for one epoch, and"
            f" {options.test} of its test dialogues",
            "tokens": f"{job['mean_length']:.0f} per training dialogue on average",
            "summaries": f"at most {options.max_new_tokens} tokens, {options.num_beams} beams",
            "batch size": options.batch_size,
            "rounds": options.rounds,
        },
        findings=compared(rounds, options.dtype),
        rounds=rounds,
        where=where,
        notes=[
            f"Real tokens per second are of the training steps after the first {WARMUP_STEPS}.",
            "Summaries are the same if their texts, their numbers of tokens and whether they came"
            " to an end are.",
        ],
    )
    say(f"Written: {path}")


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = option_parser(__doc__, model="google/flan-t5-base")
    parser.add_argument("--train", type=positive, default=240, help="training dialogues")
    parser.add_argument("--test", type=positive, default=48, help="test dialogues")
    parser.add_argument("--batch_size", type=positive, default=8)
    parser.add_argument("--max_new_tokens", type=positive, default=64)
    parser.add_argument("--num_beams", type=positive, default=4)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    if options.train // options.batch_size <= 2 * WARMUP_STEPS:
        parser.error(f"there must be more than {2 * WARMUP_STEPS} batches: raise --train")
    return options


def compared(rounds: Mapping[str, Sequence[Measured]], dtype: str) -> list[Finding]:
    """What the sides say about each other."""

    def values(side: str, key: str) -> list[float]:
        return [float(one.facts[key]) for one in rounds[side]]

    return [
        at_least(
            "real tokens per second of training",
            ratio(values(OURS, "tokens_per_s"), values(PEER, "tokens_per_s")),
            TRAIN_BOUND,
            digits=2,
        ),
        *written(rounds, dtype),
        *(
            Finding(f"share of padding in training, {side}", f"{values(side, 'padding')[0]:.1%}")
            for side in (OURS, PEER)
        ),
    ]


def written(rounds: Mapping[str, Sequence[Measured]], dtype: str) -> list[Finding]:
    """What the sides say about each other's summaries, if they can say anything."""
    summaries = {side: [one.facts["summaries"] for one in all_] for side, all_ in rounds.items()}
    everything = [each for all_ in summaries.values() for one in all_ for each in one]
    empty = sum(not text for text, _, _ in everything) / len(everything)
    cut = sum(not ended for _, _, ended in everything) / len(everything)
    if max(empty, cut) > USELESS_SHARE:
        said = f"not compared: {empty:.0%} of the summaries are empty, {cut:.0%} are cut off"
        return [Finding("dialogues summarized per second", said, f"at least {WRITE_BOUND:g}x")]
    shares = [
        sum(a != b for a, b in zip(ours, theirs, strict=True)) / len(ours)
        for ours, theirs in zip(summaries[OURS], summaries[PEER], strict=True)
    ]
    other = "share of summaries that are not the same"
    speeds = ([float(one.facts["dialogues_per_s"]) for one in rounds[s]] for s in (OURS, PEER))
    return [
        at_least("dialogues summarized per second", ratio(*speeds), WRITE_BOUND, digits=2),
        # in bfloat16 rows are rounded otherwise beside longer ones
        at_most(other, Spread.of(shares), 0.0, digits=3, unit="")
        if dtype == "float32"
        else Finding(other, Spread.of(shares).shown(3)),
        Finding("share of summaries that are cut off", f"{cut:.1%}"),
    ]


# -- the sides ------------------------------------------------------------------------------------


def prepare(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Rows for the peer, and everything downloaded; in a process of its own."""
    own_cache = {"SMOLBENCH_CACHE": str(folder / "preparing")}
    return _worker("prepare", folder, folder, job, own_cache).facts


def smolbench(folder: Path, job: Mapping[str, Any]) -> Measured:
    """The command line, with an empty cache: a training, and a test of the untrained model."""
    common = [
        f"--model.backbone={job['model']}",
        f"--model.dtype={job['dtype']}",
        f"--model.max_new_tokens={job['max_new_tokens']}",
        f"--model.num_beams={job['num_beams']}",
        "--model.rouge_examples=0",
        "--model.samples=0",
        f"--data.limit_train={job['train']}",
        "--data.limit_val=1",
        f"--data.limit_test={job['test']}",
        f"--data.batch_size={job['batch_size']}",
        "--latency.examples=0",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    learning = [f"--model.lr={LR}", f"--model.weight_decay={WEIGHT_DECAY}"]
    fit = _command(folder, "fit", [*common, *learning, "--trainer.max_epochs=1"])
    test = _command(folder, "test", [*common, "--model.method=none"])
    facts = {
        "tokens_per_s": fit.facts["cost/train_tokens_per_s"],
        "padding": fit.facts["cost/padding_share"],
        "dialogues_per_s": test.facts["data/n_test"] / test.facts["cost/test_s"],
        "summaries": _worker("read", folder, folder, job, None).facts["summaries"],
    }
    return _together(fit, test, facts)


def _command(folder: Path, subcommand: str, options: Sequence[str]) -> Measured:
    run = folder / subcommand
    command = [sys.executable, "-m", "smolbench", subcommand, "--config", RECIPE, *options]
    env = {"SMOLBENCH_CACHE": str(folder / "cache")}
    return measure([*command, f"--run_dir={run}"], env, run / "results.json")


def peer(folder: Path, prepared: Path, job: Mapping[str, Any]) -> Measured:
    """The peer's training, and its test of the untrained model, in a process each."""
    fit = _worker("train", prepared, folder, job, None)
    test = _worker("write", prepared, folder, job, None)
    return _together(fit, test, {**fit.facts, **test.facts})


def _together(fit: Measured, test: Measured, facts: Mapping[str, Any]) -> Measured:
    """Two processes of one side as one measurement."""
    return dataclasses.replace(
        fit,
        seconds=fit.seconds + test.seconds,
        cpu_seconds=fit.cpu_seconds + test.cpu_seconds,
        peak_rss_mib=max(fit.peak_rss_mib, test.peak_rss_mib),
        facts=dict(facts),
    )


def _worker(
    what: str,
    prepared: Path,
    folder: Path,
    job: Mapping[str, Any],
    env: Mapping[str, str] | None,
) -> Measured:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(
        json.dumps({**job, "prepared": str(prepared)}), encoding="utf-8"
    )
    report = folder / f"{what}.json"
    command = [sys.executable, __file__, "--worker", what, str(folder), str(report)]
    return measure(command, env, report)


# -- in a fresh process ---------------------------------------------------------------------------


def work_prepare(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Choose and encode the rows that smolbench chooses; load everything once."""
    from smolbench.data import SAMSumDataModule
    from smolbench.tasks import SummarizationTask

    task = SummarizationTask(backbone=job["model"], max_new_tokens=job["max_new_tokens"])
    data = SAMSumDataModule(limit_train=job["train"], limit_test=job["test"])
    for name in ("train", "test"):
        examples = data.split(name).examples
        encoded = task.encode({column: examples[column][:] for column in ("document", "summary")})
        rows = [
            {"input_ids": list(ids), "labels": list(labels)}
            for ids, labels in zip(encoded["input_ids"], encoded["labels"], strict=True)
        ]
        (folder / f"{name}_rows.json").write_text(json.dumps(rows), encoding="utf-8")
        if name == "train":
            mean = sum(len(row["input_ids"]) for row in rows) / len(rows)
    task.configure_model()
    return {"revision": task.backbone.revision, "mean_length": mean}


def work_read(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """What smolbench has written, in the order of the test split."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(folder / "test" / "predictions.parquet")
    rows = table.sort_by("index").select(["summary", "n_tokens", "ended"]).to_pylist()
    return {"summaries": [list(row.values()) for row in rows]}


def work_train(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Train as transformers does."""
    import torch
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        """When each step has ended; steps follow each other, so waiting for data counts."""

        def on_step_end(self, *arguments: object, **options: object) -> None:
            ends.append(time.perf_counter())

    trainer, batches, _ = _trainer(folder, job, torch.float32, callbacks=[Clock()])
    trainer.train()
    if len(batches) != len(ends):
        raise RuntimeError(f"{len(batches)} batches were made for {len(ends)} steps.")
    real = sum(tokens for tokens, _ in batches[WARMUP_STEPS:])
    everything = sum(positions for _, positions in batches[WARMUP_STEPS:])
    return {
        "tokens_per_s": real / (ends[-1] - ends[WARMUP_STEPS - 1]),
        "padding": 1 - real / everything,
    }


def work_write(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Write summaries as transformers does."""
    import torch

    trainer, _, tokenizer = _trainer(folder, job, getattr(torch, job["dtype"]))
    rows = json.loads((Path(job["prepared"]) / "test_rows.json").read_text(encoding="utf-8"))
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]["input_ids"]))
    begin = time.perf_counter()
    found = trainer.predict(
        [rows[number] for number in order],
        max_new_tokens=job["max_new_tokens"],
        num_beams=job["num_beams"],
        do_sample=False,
    )
    seconds = time.perf_counter() - begin
    end = tokenizer.eos_token_id
    summaries: list[Any] = [None] * len(rows)
    for number, row in zip(order, found.predictions.tolist(), strict=True):
        tokens = row[1:]  # the first one starts the decoder
        ended = end in tokens
        tokens = tokens[: tokens.index(end) + 1] if ended else [t for t in tokens if t >= 0]
        text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        summaries[number] = [text, len(tokens), ended]
    return {"dialogues_per_s": len(rows) / seconds, "summaries": summaries}


def _trainer(
    folder: Path,
    job: Mapping[str, Any],
    dtype: Any,  # noqa: ANN401 - torch is imported here only
    **options: Any,  # noqa: ANN401 - as transformers types them
) -> Any:  # noqa: ANN401 - as above
    """The peer with weights in a number format; the sizes of its batches; the tokenizer."""
    import torch
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForSeq2SeqLM.from_pretrained(job["model"], dtype=dtype)
    collate = DataCollatorForSeq2Seq(tokenizer, model=model)
    batches: list[tuple[int, int]] = []

    def counted(examples: list[dict[str, Any]]) -> Mapping[str, torch.Tensor]:
        batch: Mapping[str, torch.Tensor] = collate(examples)
        masks = batch["attention_mask"], batch["labels"] != -100
        batches.append((sum(int(m.sum()) for m in masks), sum(m.numel() for m in masks)))
        return batch

    arguments = Seq2SeqTrainingArguments(
        output_dir=str(folder / "trainer"),
        num_train_epochs=1,
        per_device_train_batch_size=job["batch_size"],
        per_device_eval_batch_size=job["batch_size"],
        train_sampling_strategy="group_by_length",
        predict_with_generate=True,
        learning_rate=LR,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=0.0,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=dtype == torch.float32 and job["dtype"] == "bfloat16",
        dataloader_pin_memory=False,
    )
    rows = json.loads((Path(job["prepared"]) / "train_rows.json").read_text(encoding="utf-8"))
    trainer = Seq2SeqTrainer(
        model=model, args=arguments, train_dataset=rows, data_collator=counted, **options
    )
    return trainer, batches, tokenizer


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        what, place, report = sys.argv[2:]
        job = json.loads((Path(place) / "job.json").read_text(encoding="utf-8"))
        work = {
            "prepare": work_prepare,
            "read": work_read,
            "train": work_train,
            "write": work_write,
        }[what]
        Path(report).write_text(json.dumps(work(Path(place), job)), encoding="utf-8")
    else:
        with readable_errors():
            main()
