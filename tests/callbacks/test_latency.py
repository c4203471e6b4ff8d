from __future__ import annotations

import logging
import time

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule

from smolbench.callbacks import LatencyMonitor, MemoryMonitor, ThroughputMonitor
from smolbench.callbacks.latency import MIN_TEXTS, WARMUP_TEXTS, spread_texts
from smolbench.errors import SmolbenchError
from tests.helpers.plain import PlainModule, loader, trainer

TEXTS = ["x" * (n % 100 + 1) for n in range(0, 700, 7)]


class Texts(LightningDataModule):
    def test_dataloader(self):
        return loader()

    def texts(self, split):
        assert split == "test"
        return TEXTS


class Answering(PlainModule):
    """Takes a given time for a text, and a long time for the first four."""

    def __init__(self, seconds=0.0, warmup_s=0.0, sleep=time.sleep):
        super().__init__()
        self.sleep = sleep
        self.seconds = seconds
        self.warmup_s = warmup_s
        self.asked = []
        self.started = 0

    def start_answering(self):
        assert not self.training
        self.started += 1

        def answer(texts):
            assert torch.is_inference_mode_enabled()
            self.sleep(self.warmup_s if len(self.asked) < WARMUP_TEXTS else self.seconds)
            self.asked += texts
            return torch.ones(len(texts), 2)

        return answer


def measured(tmp_path, module, monitor, *others, data=None):
    data = Texts() if data is None else data
    trainer(tmp_path, *others, monitor).test(module, data, verbose=False)
    return monitor.facts()


class Clock:
    """A busy machine sleeps longer than it is asked to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_single_texts_are_timed_after_a_warm_up(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("smolbench.callbacks.latency.perf_counter", clock)
    module = Answering(seconds=0.004, warmup_s=0.1, sleep=clock.sleep)
    facts = measured(tmp_path, module, LatencyMonitor(examples=10))
    assert facts["cost/test_latency_n"] == 10
    assert facts["cost/test_latency_ms_p50"] == pytest.approx(4)
    assert facts["cost/test_latency_ms_p95"] == pytest.approx(4)
    assert module.asked[0] == max(spread_texts(TEXTS, 10), key=len)
    assert module.asked[WARMUP_TEXTS:] == spread_texts(TEXTS, 10)


def test_the_quantiles_are_the_median_and_the_95th_percentile(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("smolbench.callbacks.latency.perf_counter", clock)
    module = Answering()
    # a millisecond for the first text behind the warm-up, two for the second, and so on to 40
    module.sleep = lambda seconds: clock.sleep((len(module.asked) - WARMUP_TEXTS + 1) / 1000)
    facts = measured(tmp_path, module, LatencyMonitor(examples=40))
    assert facts["cost/test_latency_n"] == 40
    assert facts["cost/test_latency_ms_p50"] == pytest.approx(20.5)
    assert facts["cost/test_latency_ms_p95"] == pytest.approx(1 + 0.95 * 39)


def test_it_ends_in_time_but_not_before_there_is_a_spread(tmp_path):
    monitor = LatencyMonitor(examples=50, max_s=0.0)
    facts = measured(tmp_path, Answering(seconds=0.002), monitor)
    assert facts["cost/test_latency_n"] == MIN_TEXTS


def test_it_is_no_part_of_the_tests_own_costs(tmp_path):
    class Hungry(Answering):
        def start_answering(self):
            self.kept = torch.ones(200 << 18)  # 200 MiB
            return super().start_answering()

    speed, memory = ThroughputMonitor(), MemoryMonitor()
    module = Hungry(seconds=0.05)
    measured(tmp_path, module, LatencyMonitor(examples=10), speed, memory)
    without = MemoryMonitor()
    trainer(tmp_path, without).test(PlainModule(), Texts(), verbose=False)
    assert speed.facts()["cost/test_s"] < 0.4
    peak = memory.facts()["cost/peak_rss_mib_test"]
    assert peak < without.facts()["cost/peak_rss_mib_test"] - 100


def test_zero_examples_switch_it_off(tmp_path):
    module = Answering()
    assert measured(tmp_path, module, LatencyMonitor(examples=0)) == {}
    assert module.started == 0


def test_modules_and_data_that_take_no_part_are_let_be(tmp_path):
    class Mute(PlainModule):
        def start_answering(self):
            raise NotImplementedError

    for module in (PlainModule(), Mute()):
        assert measured(tmp_path, module, LatencyMonitor()) == {}
    monitor = LatencyMonitor()
    trainer(tmp_path, monitor).test(Answering(), loader(), verbose=False)
    assert monitor.facts() == {}


def test_weights_that_are_gone_do_not_spoil_the_test(tmp_path, caplog):
    class Gone(PlainModule):
        def start_answering(self):
            raise SmolbenchError("There are no weights.")

    with caplog.at_level(logging.WARNING, logger="smolbench"):
        logging.getLogger("smolbench").propagate = True
        assert measured(tmp_path, Gone(), LatencyMonitor()) == {}
    assert "not measured: There are no weights." in caplog.text


def test_a_new_test_forgets_the_old_one(tmp_path):
    monitor = LatencyMonitor(examples=5)
    measured(tmp_path, Answering(), monitor)
    assert measured(tmp_path, PlainModule(), monitor) == {}


@pytest.mark.parametrize("options", [{"examples": -1}, {"max_s": -0.1}])
def test_negative_numbers_are_refused(options):
    with pytest.raises(SmolbenchError, match=r"--latency\.examples 0"):
        LatencyMonitor(**options)


def test_chosen_texts_stand_for_all():
    chosen = spread_texts(TEXTS, 10)
    # the middle of each tenth of the order by length
    assert sorted(map(len, chosen)) == [sorted(map(len, TEXTS))[5 + 10 * i] for i in range(10)]
    assert spread_texts(TEXTS, 10) == chosen
    for n in (4, 6, 8):  # no large gap in any first part
        lengths = np.array([0, *sorted(map(len, chosen[:n])), 100])
        assert np.diff(lengths).max() <= 2.5 * 100 / n
    assert sorted(spread_texts(TEXTS[:3], 10)) == sorted(TEXTS[:3])
