"""`cost/test_samples_per_s` is one thing for all tasks, and agrees with a stopwatch."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from smolbench.callbacks import ThroughputMonitor
from smolbench.data import HellaSwagDataModule, IMDbDataModule, SAMSumDataModule
from smolbench.tasks import (
    FineTuneTask,
    MultipleChoiceTask,
    ProbeTask,
    PromptTask,
    SummarizationTask,
)
from tests.helpers.tiny import tiny_language_model
from tests.helpers.training import plain_trainer

ANSWERS = {"neg": "bad", "pos": "good"}
MADE = {
    "probe": lambda kind: ProbeTask(pooling="last", **kind),
    "head": lambda kind: FineTuneTask(method="head", **kind),
    "full": lambda kind: FineTuneTask(method="full", **kind),
    "prompt": lambda kind: PromptTask(rule="verbalizer", label_words=ANSWERS, **kind),
    "choice": lambda kind: MultipleChoiceTask(method="none", **kind),
    "summaries": lambda kind: SummarizationTask(
        method="none", max_new_tokens=4, max_summary_length=16, num_beams=1, samples=0, **kind
    ),
}
DATA = {"choice": HellaSwagDataModule, "summaries": SAMSumDataModule}


class Stopwatch(Callback):
    """What the outermost modules' forward passes take, and how many rows they see."""

    def __init__(self):
        self.depth = 0
        self.seconds = []
        self.before = 0

    def __enter__(self):
        module = torch.nn.modules.module
        self.hooks = [
            module.register_module_forward_pre_hook(self.enter),
            module.register_module_forward_hook(self.leave),
        ]
        return self

    def __exit__(self, *args):
        for hook in self.hooks:
            hook.remove()

    def enter(self, *args):
        self.depth += 1
        if self.depth == 1:
            self.began = perf_counter()

    def leave(self, *args):
        self.depth -= 1
        if self.depth == 0:
            self.seconds.append(perf_counter() - self.began)

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0:
            self.before = len(self.seconds)


def speed_of(name, cache, *, monitor):
    limits = {"limit_train": 40, "limit_val": 8, "limit_test": 30}
    if name not in DATA:
        limits = {"limit_train": 40, "val_fraction": 0.2, "limit_test": 30}
    data = DATA.get(name, IMDbDataModule)(source="sample", batch_size=8, cache_dir=cache, **limits)
    kind = {"backbone": tiny_language_model("llama"), "dtype": "float32", "max_length": 90}
    task = MADE[name](kind)
    speed = ThroughputMonitor()
    with Stopwatch() as watch:
        # the watch comes first, and so sees where the monitor's own warm-up ends
        trainer = plain_trainer(cache, callbacks=[watch, *([speed] if monitor else [])])
        torch.manual_seed(0)
        (metrics,) = trainer.test(task, data, verbose=False)
    facts = {**task.facts(), **speed.facts()}
    return metrics, task.predictions(), facts, watch, torch.rand(1)


@pytest.mark.parametrize("name", MADE)
def test_rows_by_the_rate_are_the_networks_seconds(name, tmp_path):
    alone, others, _, _, also_drawn = speed_of(name, tmp_path / "alone", monitor=False)
    metrics, predictions, facts, watch, drawn = speed_of(name, tmp_path / "timed", monitor=True)
    seconds = 30 / facts["cost/test_samples_per_s"]
    forward = sum(watch.seconds[watch.before :])
    assert forward < seconds < facts["cost/test_s"] + facts.get("cost/test_cache_s", 0.0)
    assert watch.before > 0, "nothing was run before the clock started"
    if name in ("probe", "head"):
        # what the head takes is but a part of it
        network_s = seconds - 30 / facts["cost/head_test_samples_per_s"]
        _, _, again, reused, _ = speed_of(name, tmp_path / "timed", monitor=True)
        assert len(reused.seconds) < len(watch.seconds), "the features come from the cache"
        head_s = 30 / again["cost/head_test_samples_per_s"]
        assert 30 / again["cost/test_samples_per_s"] == pytest.approx(network_s + head_s)

    # what was measured is what comes without a measurement
    assert metrics == alone
    assert all(np.array_equal(column, others[key]) for key, column in predictions.items())
    assert torch.equal(drawn, also_drawn)
