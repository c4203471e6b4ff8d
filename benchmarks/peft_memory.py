"""Memory of a training step: full fine-tuning beside LoRA and BitFit, and what it consists of.

    python benchmarks/peft_memory.py

Each method trains in a process of its own for a few steps on batches of the same shape, random
token ids, with the task, optimiser and Lightning loop that the command line uses. The peak is the
resident memory of the process, seen from outside, or with ``--accelerator cuda`` what the allocator
gave out. What it consists of is added up from the tensors themselves: weights, gradients, the
optimiser's state, and activations, which is everything that the forward pass keeps for the backward
pass.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import (
    Finding,
    Measured,
    Spread,
    Verdict,
    alternate,
    at_most,
    machine,
    measure,
    option_parser,
    positive,
    readable_errors,
    require_hub,
    say,
    table,
    write_results,
)

METHODS = ("full", "lora", "bitfit")
MODELS = ("HuggingFaceTB/SmolLM2-135M", "facebook/opt-125m")
PARTS = ("weights", "gradients", "optimiser", "activations")
BEST_BOUND_MB, LAST_BOUND_MB = 2.5, 6.0
"""LoRA's checkpoints of a model with about 135 million parameters, r=8."""
STEPS = 2
"""In the second the optimiser's state is there from the start."""


def main() -> None:
    """Measure and write the result."""
    options = parse(__doc__.splitlines()[0])
    with tempfile.TemporaryDirectory(prefix="smolbench-benchmark-") as name:
        folder = Path(name)
        require_hub()
        where = machine()
        job = job_of(options)
        say("preparing: weights and tokenizers are downloaded where they are missing ...")
        for model in options.models:
            train(folder, {**job, "model": model, "method": "lora", "length": 8})
        sides = [(model, method) for model in options.models for method in METHODS]
        rounds = alternate(
            {
                side(model, method): lambda _, job={**job, "model": model, "method": method}: {
                    side(job["model"], job["method"]): train(folder, job)
                }
                for model, method in sides
            },
            options.rounds,
        )
    path = write_results(
        "peft_memory",
        title="Memory of a training step, by method",
        setting={
            "models": ", ".join(options.models),
            "weights": options.weights,
            "batch": f"{options.batch_size} x {options.length} tokens",
            "trained weights": "float32; LoRA r=8 on query and value projections",
            "computed in": rounds[side(*sides[0])][0].facts["dtype"],
            "rounds": options.rounds,
        },
        findings=compared(rounds, options.models),
        rounds=rounds,
        where=where,
        notes=[
            "Activations include copies of float32 weights in the format that is computed in,"
            " where the two differ.",
            "The peak holds Python, the libraries and what the allocator keeps too, and the parts"
            " are not all at their largest at the same moment: they do not add up to it.",
            "BitFit on a network without biases is `bitfit_added`.",
            "LoRA's process holds peft too, with what it imports.",
        ],
    )
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + "\n".join(parts_table(rounds)) + "\n")
    say(f"Written: {path}")


def parse(description: str) -> argparse.Namespace:
    """Options of the command line."""
    parser = option_parser(description)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batch_size", type=positive, default=4)
    parser.add_argument("--length", type=positive, default=256, help="tokens per row")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--accelerator", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args()


def job_of(options: argparse.Namespace) -> dict[str, Any]:
    """What all sides have in common, for their processes."""
    return {
        "batch_size": options.batch_size,
        "length": options.length,
        "dtype": options.dtype,
        "accelerator": options.accelerator,
    }


def side(model: str, method: str) -> str:
    """Name of what is measured."""
    return f"{model}, {method}"


def compared(rounds: Mapping[str, Sequence[Measured]], models: Sequence[str]) -> list[Finding]:
    """What the methods say about each other."""
    findings = []
    for model in models:
        full = rounds[side(model, "full")]
        for method in METHODS[1:]:
            found = rounds[side(model, method)]
            saved = Spread.of([peak(a) - peak(b) for a, b in zip(full, found, strict=True)])
            needless = _unneeded(full[0]) - _unneeded(found[0])
            findings.append(_saves_at_least(side(model, method), saved, needless))
        for name, bound in (("best", BEST_BOUND_MB), ("last", LAST_BOUND_MB)):
            sizes = [one.facts[f"{name}_ckpt_mb"] for one in rounds[side(model, "lora")]]
            what = f"{side(model, 'lora')}: {name}.ckpt"
            findings.append(at_most(what, Spread.of(sizes), bound, unit=" MB"))
    return findings


def peak(measured: Measured) -> float:
    """Peak memory in MiB: the allocator's where there is one, else the resident memory."""
    return float(measured.facts["peak_allocated_mib"] or measured.peak_rss_mib)


def _unneeded(measured: Measured) -> float:
    """MiB of the gradients and the optimiser's state."""
    return float(measured.facts["gradients"] + measured.facts["optimiser"])


def _saves_at_least(what: str, saved: Spread, bound: float) -> Finding:
    verdict: Verdict = "missed"
    if saved.median >= bound:
        verdict = "reached" if saved.low >= bound else "reached by the median only"
    return Finding(
        f"{what}: peak memory below full fine-tuning's by",
        saved.shown(0, " MiB"),
        f"at least the gradients and optimiser state saved, {bound:,.0f} MiB",
        verdict,
    )


def parts_table(rounds: Mapping[str, Sequence[Measured]]) -> list[str]:
    """What the memory consists of."""
    return table(
        ["MiB", "method", "trained parameters", *PARTS, "peak"],
        [
            [
                name.partition(", ")[0],
                all_[0].facts["method"],
                f"{all_[0].facts['trained']:,}",
                *(f"{all_[0].facts[part]:,.1f}" for part in PARTS),
                Spread.of([peak(one) for one in all_]).shown(0),
            ]
            for name, all_ in rounds.items()
        ],
    )


def train(folder: Path, job: Mapping[str, Any]) -> Measured:
    """A few steps of one method."""
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    report = folder / "report.json"
    return measure([sys.executable, __file__, "--worker", str(folder), str(report)], None, report)


# -- in a fresh process ---------------------------------------------------------------------------


def work(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Train, and add up the tensors."""
    import torch
    from lightning.pytorch import Callback, LightningModule, Trainer

    from smolbench.callbacks import MemoryMonitor, RunCheckpoint
    from smolbench.errors import SmolbenchError
    from smolbench.tasks import FineTuneTask

    task, method = None, job["method"]
    while task is None:
        task = FineTuneTask(
            method=method,
            backbone=job["model"],
            max_length=job["length"],
            dtype=job["dtype"],
            num_classes=2,
        )
        try:
            task.configure_model()
        except SmolbenchError:
            if method != "bitfit":
                raise
            task, method = None, "bitfit_added"  # there are no biases

    class Parts(Callback):
        """Sizes of the tensors in the last step, in MiB."""

        def __init__(self) -> None:
            self.found: dict[str, float] = {}
            self.kept: dict[int, int] = {}

        def on_train_batch_start(self, *arguments: object, **options: object) -> None:
            self.kept.clear()
            self.hooks = torch.autograd.graph.saved_tensors_hooks(self.keep, lambda kept: kept)
            self.hooks.__enter__()

        def keep(self, tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            self.kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        def on_before_backward(
            self, trainer: Trainer, module: LightningModule, loss: torch.Tensor
        ) -> None:
            self.hooks.__exit__()
            own = {p.untyped_storage().data_ptr() for p in module.parameters()}
            sizes = (size for place, size in self.kept.items() if place not in own)
            self.found["activations"] = sum(sizes) / 2**20

        def on_train_batch_end(
            self, trainer: Trainer, module: LightningModule, *arguments: object
        ) -> None:
            states = trainer.optimizers[0].state.values()
            state = [value for entry in states for value in entry.values()]
            everything = [*module.parameters(), *module.buffers()]
            self.found["weights"] = _mib(everything)
            self.found["optimiser"] = _mib([v for v in state if isinstance(v, torch.Tensor)])

        def on_before_optimizer_step(
            self, trainer: Trainer, module: LightningModule, optimizer: torch.optim.Optimizer
        ) -> None:
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            self.found["gradients"] = _mib(gradients)

    def _mib(tensors: Sequence[torch.Tensor]) -> float:
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values()) / 2**20

    generator = torch.Generator().manual_seed(0)
    shape = (job["batch_size"], job["length"])
    batch = {
        "input_ids": torch.randint(5, task.backbone.config.vocab_size, shape, generator=generator),
        "attention_mask": torch.ones(shape, dtype=torch.long),
        "labels": torch.arange(job["batch_size"]) % 2,
    }
    parts, memory = Parts(), MemoryMonitor()
    # a full one is as large as the model three times over, and says nothing new
    saving = [RunCheckpoint()] if method == "lora" else []
    Trainer(
        max_steps=STEPS,
        accelerator=job["accelerator"],
        devices=1,
        default_root_dir=str(folder / "run"),
        callbacks=[parts, memory, *saving],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(saving),
    ).fit(task, torch.utils.data.DataLoader([batch] * STEPS, batch_size=None))
    files = {name: folder / "run" / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")}
    return {
        **parts.found,
        **{f"{name}_ckpt_mb": _size_mb(path) if saving else None for name, path in files.items()},
        "method": method,
        "dtype": task.facts()["model/dtype"],
        "trained": task.facts()["model/trainable_params"],
        "peak_allocated_mib": memory.facts().get("cost/peak_allocated_mib"),
        "peak_fit_mib": memory.facts()["cost/peak_rss_mib_fit"],
    }


def _size_mb(path: Path) -> float:
    return path.stat().st_size / 1e6


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        place, report = sys.argv[2:]
        job = json.loads((Path(place) / "job.json").read_text(encoding="utf-8"))
        Path(report).write_text(json.dumps(work(Path(place), job)), encoding="utf-8")
    else:
        with readable_errors():
            main()
