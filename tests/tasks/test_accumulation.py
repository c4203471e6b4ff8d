"""A step's gradient is that of the mean over its rows or tokens, however they are cut."""

from __future__ import annotations

import os
import socket
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from smolbench.cli import main
from smolbench.data.batching import ArrayRows, BatchLoader, BatchPlan
from smolbench.tasks.accumulation import weight_of_batch
from tests.helpers.processes import Process

SEEN: list[dict[str, torch.Tensor]] = []
ROWS = 22
TASKS = {
    "probe": ["imdb_probe", "--model.head=linear"],
    "full": ["imdb_full_smollm2-135m"],
    "words": ["imdb_cnn"],
    "distillation": ["sentiment140_distill_opt-125m"],
    "choice": ["hellaswag_full_smollm2-135m", "--model.objective=choice"],
    "endings": ["hellaswag_full_smollm2-135m", "--model.objective=lm"],
    "summaries": ["samsum_flan-t5-base", "--model.rouge_examples=0"],
    "taught summaries": ["samsum_distill_flan-t5-small", "--model.rouge_examples=0"],
}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Gradients(Callback):
    """Keeps the gradients of every step; nothing is dropped by chance."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.eval()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = pl_module.named_parameters()
        SEEN.append({n: p.grad.clone() for n, p in named if p.grad is not None})


def gradients(recipe: str, *options: str) -> list[dict[str, torch.Tensor]]:
    SEEN.clear()
    fit = ["fit", f"--config={recipe}", "--config=tiny", f"--data.limit_train={ROWS}", *options]
    fit += ["--model.warmup_steps=0", "--data.limit_val=4", "--model.lr=1e-12"]
    fit += [] if "cnn" in recipe else ["--model.dtype=float32"]
    fit += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    fit += ["--trainer.gradient_clip_val=null", "--trainer.enable_progress_bar=false"]
    fit += [f"--trainer.callbacks+={__name__}.Gradients", "--latency.examples=0"]
    assert main(fit) == 0
    return list(SEEN)


def assert_one_big_one(cut: list[dict[str, torch.Tensor]], whole: dict[str, torch.Tensor]) -> None:
    """The only step of an epoch that was cut has the gradient of the epoch in one batch."""
    largest = max(float(one.abs().max()) for one in whole.values())
    (step,) = cut
    assert step.keys() == whole.keys()
    for key, one in step.items():
        torch.testing.assert_close(one, whole[key], rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("name", TASKS)
def test_accumulated_batches_are_one_big_one(folder_here, name):
    """Also in an epoch that is over before its only step is full."""
    recipe, *options = TASKS[name]
    options.append("--data.limit_train=16")
    (whole,) = gradients(
        recipe, *options, "--data.batch_size=16", "--trainer.accumulate_grad_batches=1"
    )
    # the last batch has one row, or a batch and the step are full
    cuts = [(3, 6), (4, 4), (3, 16)] if name in ("full", "choice") else [(3, 16)]
    for size, count in cuts:
        cut_up = [f"--data.batch_size={size}", f"--trainer.accumulate_grad_batches={count}"]
        assert_one_big_one(gradients(recipe, *options, *cut_up), whole)


ON_RANKS = """
import sys, torch
from tests.tasks.test_accumulation import TASKS, gradients
from tests.tasks import test_accumulation
two = ["--config=configs/trainer/ddp2_cpu.yaml", "--data.batch_size=3"]
two += ["--trainer.accumulate_grad_batches=16"]
for name, (recipe, *options) in TASKS.items():
    torch.save(gradients(recipe, *options, *two), f"{name}.{sys.argv[1]}")
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_are_one(folder_here):
    """With batches of 3 rows, of which the processes have 4 and 4, the last of one row."""
    port = free_port()
    ranks = []
    for rank in "01":
        env = {k: v for k, v in os.environ.items() if not k.startswith("PL_")}
        env |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        env |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        env |= {"TORCHELASTIC_RUN_ID": "none", "SMOLBENCH_CACHE": str(folder_here / "cache")}
        env |= {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
        ranks.append(Process("-c", ON_RANKS, rank, env=env, cwd=folder_here))
    for done in [rank.result() for rank in ranks]:
        assert done.returncode == 0, done.stderr
    for name, (recipe, *options) in TASKS.items():
        (whole,) = gradients(
            recipe, *options, f"--data.batch_size={ROWS}", "--trainer.accumulate_grad_batches=1"
        )
        for rank in "01":
            assert_one_big_one(torch.load(f"{name}.{rank}", weights_only=True), whole)


@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("by_tokens", [True, False])
def test_batches_of_all_processes_weigh_by_what_they_hold(by_tokens, accumulated):
    lengths = np.array([3, 9, 4, 1, 7, 7, 2, 5, 8, 6, 1, 30, 4, 4, 11, 5, 6])
    sizes = lengths if by_tokens else np.ones_like(lengths)
    steps: dict[int, list[tuple[float, int]]] = {}
    for rank in range(2):
        plan = BatchPlan(lengths, 2, shuffle=True, seed=3, rank=rank, world_size=2)
        trainer = SimpleNamespace(
            train_dataloader=BatchLoader(ArrayRows({"length": lengths}), plan),
            world_size=2,
            global_rank=rank,
            accumulate_grad_batches=accumulated,
            num_training_batches=len(plan),
        )
        for number, rows in enumerate(plan.batches()):
            # what Lightning and the strategy divide by
            share = weight_of_batch(trainer, number, lengths if by_tokens else None)
            share /= 2 * accumulated
            steps.setdefault(number // accumulated, []).append((share, int(sizes[rows].sum())))
    full = {1: [2, 2, 2, 2], 3: [6, 2]}  # the last one of 3 is not
    assert [len(parts) for parts in steps.values()] == full[accumulated]
    for parts in steps.values():
        together = sum(own for _, own in parts)
        assert [share for share, _ in parts] == pytest.approx([own / together for _, own in parts])


def test_with_another_loader_an_unfinished_step_is_a_whole_one():
    trainer = SimpleNamespace(
        train_dataloader=[], world_size=1, accumulate_grad_batches=4, num_training_batches=6
    )
    assert [weight_of_batch(trainer, n) for n in range(6)] == [1, 1, 1, 1, 2, 2]
    trainer.num_training_batches = float("inf")
    assert weight_of_batch(trainer, 5) == 1
