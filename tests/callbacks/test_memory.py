from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace

import lightning.pytorch as pl
import psutil
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from smolbench.callbacks import memory
from smolbench.callbacks.memory import MemoryMonitor, ResidentReader

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).mean()

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx):
        pass

    def predict_step(self, batch, batch_idx):
        return self.layer(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class FakeReader:
    """Peaks that rise by 1 MiB with each sample."""

    kind = "allocated"
    method = "sampled"

    def __init__(self):
        self.base = 0.0
        self.samples = 0
        self.stopped = 0

    def start(self):
        self.samples = 0

    def sample(self):
        self.samples += 1

    def peaks(self):
        return {
            "rss": self.base + 100.0,
            "allocated": self.base + self.samples,
            "reserved": self.base + 10.0 * self.samples,
        }

    def stop(self):
        self.stopped += 1


@pytest.fixture
def fake(monkeypatch):
    reader = FakeReader()
    monkeypatch.setattr(memory, "readers_for", lambda device: [reader])
    monkeypatch.setattr(memory, "resident_mib", lambda: 50.0)
    monkeypatch.setattr(memory, "process_peak_mib", lambda: 7.0)
    return reader


def loader(batches=3):
    return DataLoader(TensorDataset(torch.ones(batches, 2)), batch_size=1)


def trainer_with(*callbacks, **options):
    options = {"max_epochs": 1, "enable_checkpointing": False} | options
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )


class FactsAtEnd(pl.Callback):
    """Notes what a results writer would see in the end hooks and on an error."""

    def __init__(self, monitor):
        self.monitor = monitor
        self.seen = {}

    def on_fit_end(self, trainer, pl_module):
        self.seen["fit"] = self.monitor.facts()

    def on_test_end(self, trainer, pl_module):
        self.seen["test"] = self.monitor.facts()

    def on_exception(self, trainer, pl_module, exception):
        self.seen["exception"] = self.monitor.facts()


def test_kinds_and_stages_are_told_apart(fake):
    monitor = MemoryMonitor()
    trainer = trainer_with(monitor)
    trainer.fit(Module(), loader(3))
    assert monitor.facts() == {
        "cost/peak_rss_mib_fit": 100.0,
        "cost/peak_allocated_mib_fit": 3.0,
        "cost/peak_reserved_mib_fit": 30.0,
        "cost/peak_rss_mib": 100.0,
        "cost/peak_allocated_mib": 3.0,
        "cost/peak_reserved_mib": 30.0,
        "cost/peak_rss_process_mib": 7.0,
        "cost/rss_delta_mib": 0.0,
        "cost/allocated_method": "sampled",
    }
    fake.base = 200.0
    trainer.test(Module(), loader(2), verbose=False)
    facts = monitor.facts()
    assert facts["cost/peak_rss_mib_fit"] == 100.0
    assert facts["cost/peak_allocated_mib_test"] == 202.0
    assert facts["cost/peak_rss_mib"] == 300.0
    assert facts["cost/peak_reserved_mib"] == 220.0


def test_validation_within_fit_belongs_to_fit(fake):
    monitor = MemoryMonitor()
    trainer_with(monitor).fit(Module(), loader(3), loader(2))
    facts = monitor.facts()
    # 3 training batches, 2 of the sanity check, 2 of the validation
    assert facts["cost/peak_allocated_mib_fit"] == 7.0
    assert "cost/peak_allocated_mib_validate" not in facts


def test_validate_and_predict_are_stages_of_their_own(fake):
    monitor = MemoryMonitor()
    trainer = trainer_with(monitor)
    trainer.validate(Module(), loader(2), verbose=False)
    trainer.predict(Module(), loader(4))
    facts = monitor.facts()
    assert facts["cost/peak_allocated_mib_validate"] == 2.0
    assert facts["cost/peak_allocated_mib_predict"] == 4.0
    assert "cost/rss_delta_mib" not in facts


def test_a_second_test_replaces_the_first(fake):
    monitor = MemoryMonitor()
    trainer = trainer_with(monitor)
    trainer.test(Module(), loader(5), verbose=False)
    trainer.test(Module(), loader(2), verbose=False)
    assert monitor.facts()["cost/peak_allocated_mib_test"] == 2.0


def test_delta_is_resident_at_the_end_of_training_minus_at_the_start(fake, monkeypatch):
    resident = [40.0]
    monkeypatch.setattr(memory, "resident_mib", lambda: resident[0])

    class Grows(Module):
        def training_step(self, batch, batch_idx):
            resident[0] += 5.0
            return super().training_step(batch, batch_idx)

        def on_train_end(self):
            resident[0] = 1000.0

    monitor = MemoryMonitor()
    trainer_with(monitor).fit(Grows(), loader(3))
    assert monitor.facts()["cost/rss_delta_mib"] == 15.0


def test_the_delta_is_without_what_a_frozen_pass_has_left(fake, monkeypatch):
    resident = [40.0]
    monkeypatch.setattr(memory, "resident_mib", lambda: resident[0])

    class Fills(Module):
        def __init__(self, passes):
            super().__init__()
            self.passes = passes

        def on_train_start(self):
            for left in self.passes:
                with memory.peaks_within(torch.device("cpu")):
                    resident[0] += left

        def training_step(self, batch, batch_idx):
            resident[0] += 5.0
            return super().training_step(batch, batch_idx)

    deltas = []
    for passes in ((), (300.0, -20.0)):
        monitor = MemoryMonitor()
        trainer_with(monitor).fit(Fills(passes), loader(3))
        deltas.append(monitor.facts()["cost/rss_delta_mib"])
    assert deltas == [15.0, 15.0]


def test_resumed_fit_reports_the_maximum_over_attempts(fake, tmp_path, monkeypatch):
    first = MemoryMonitor()
    fake.base = 500.0
    trainer = trainer_with(first)
    with monkeypatch.context() as larger:
        larger.setattr(memory, "process_peak_mib", lambda: 900.0)
        trainer.fit(Module(), loader(3))
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)

    fake.base = 0.0
    second = MemoryMonitor()
    trainer_with(second, max_epochs=2).fit(
        Module(), loader(4), ckpt_path=str(path), weights_only=True
    )
    facts = second.facts()
    assert facts["cost/peak_rss_process_mib"] == 900.0
    assert facts["cost/peak_rss_mib_fit"] == 600.0
    assert facts["cost/peak_allocated_mib"] == 503.0


def test_resume_keeps_the_larger_delta(fake, monkeypatch):
    monitor = MemoryMonitor()
    monitor.load_state_dict({"peaks_mib": {"rss": 7.0}, "rss_delta_mib": 60.0, "methods": {}})
    assert monitor.facts() == {
        "cost/peak_rss_mib_fit": 7.0,
        "cost/peak_rss_mib": 7.0,
        "cost/rss_delta_mib": 60.0,
    }
    trainer_with(monitor).fit(Module(), loader(1))
    assert monitor.facts()["cost/rss_delta_mib"] == 60.0


def test_state_is_saved_mid_fit_and_plain(fake, tmp_path):
    class Saves(Module):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if batch_idx == 1:
                self.trainer.save_checkpoint(tmp_path / "mid.ckpt")

    trainer_with(MemoryMonitor()).fit(Saves(), loader(5))
    state = torch.load(tmp_path / "mid.ckpt", weights_only=True)["callbacks"]["MemoryMonitor"]
    assert state["peaks_mib"] == {"rss": 100.0, "allocated": 2.0, "reserved": 20.0}
    assert state["rss_delta_mib"] == 0.0


def test_a_test_of_a_checkpoint_does_not_take_over_its_fit(fake, tmp_path):
    trainer = trainer_with(MemoryMonitor())
    trainer.fit(Module(), loader(3))
    trainer.save_checkpoint(tmp_path / "best.ckpt")
    monitor = MemoryMonitor()
    trainer_with(monitor).test(
        Module(), loader(1), ckpt_path=str(tmp_path / "best.ckpt"), verbose=False
    )
    assert [key for key in monitor.facts() if key.endswith("_fit")] == []


def test_one_sampled_attempt_makes_the_maximum_a_sampled_one(fake):
    monitor = MemoryMonitor()
    fake.method = "high-water mark"
    trainer_with(monitor).fit(Module(), loader(1))
    assert monitor.facts()["cost/allocated_method"] == "high-water mark"
    monitor.load_state_dict(
        {"peaks_mib": {}, "rss_delta_mib": None, "methods": {"allocated": "sampled"}}
    )
    assert monitor.facts()["cost/allocated_method"] == "sampled"


def test_facts_in_the_middle_and_after_an_error(fake):
    class Fails(Module):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise RuntimeError("broken")
            return super().training_step(batch, batch_idx)

    monitor = MemoryMonitor()
    # Both orders: the writer may come before the monitor.
    before, after = FactsAtEnd(monitor), FactsAtEnd(monitor)
    with pytest.raises(RuntimeError, match="broken"):
        trainer_with(before, monitor, after).fit(Fails(), loader(3))
    for writer in (before, after):
        assert writer.seen["exception"]["cost/peak_allocated_mib_fit"] == 2.0
    assert fake.stopped == 1
    fake.base = 900.0
    assert monitor.facts()["cost/peak_allocated_mib_fit"] == 2.0


def test_a_fit_with_nothing_to_train_still_has_a_value(fake):
    monitor = MemoryMonitor()
    trainer_with(monitor, max_epochs=0).fit(Module(), loader(3))
    assert monitor.facts()["cost/peak_rss_mib_fit"] == 100.0
    assert fake.stopped == 1


def test_a_test_without_batches_still_has_a_value(fake):
    monitor = MemoryMonitor()
    trainer_with(monitor, limit_test_batches=0).test(Module(), loader(3), verbose=False)
    assert monitor.facts()["cost/peak_rss_mib_test"] == 100.0
    assert fake.stopped == 1


def test_ranks_are_reduced_to_the_maximum():
    sent = []

    def reduce(tensor, reduce_op):
        sent.append(reduce_op)
        return torch.maximum(tensor, torch.tensor([9.0, 1.0], dtype=tensor.dtype))

    strategy = SimpleNamespace(root_device=torch.device("cpu"), reduce=reduce)
    several = SimpleNamespace(world_size=2, strategy=strategy)
    assert memory.reduce_over_ranks(several, [3.0, 4.0], "max") == [9.0, 4.0]
    assert sent == ["max"]
    assert memory.reduce_over_ranks(SimpleNamespace(world_size=1), [3.0], "max") == [3.0]


def test_stage_end_reduces_once_and_facts_never(fake, monkeypatch):
    reduced = []

    def reduce(trainer, values, operation):
        reduced.append(list(values))
        return [value + 1000.0 for value in values]

    monkeypatch.setattr(memory, "reduce_over_ranks", reduce)
    monitor = MemoryMonitor()
    writer = FactsAtEnd(monitor)
    trainer_with(monitor, writer).fit(Module(), loader(3))
    assert reduced == [[3.0, 30.0, 100.0, 7.0, 0.0]]
    assert writer.seen["fit"]["cost/peak_rss_process_mib"] == 1007.0
    assert writer.seen["fit"]["cost/peak_rss_mib"] == 1100.0
    assert writer.seen["fit"]["cost/rss_delta_mib"] == 1000.0
    assert monitor.facts() == writer.seen["fit"]
    assert len(reduced) == 1


def test_real_run_sees_a_peak_that_is_gone_at_the_end():
    class Spike(Module):
        def test_step(self, batch, batch_idx):
            if batch_idx == 1:
                self.spike = torch.ones(64 * memory.MIB // 4)
                time.sleep(3 * memory.SAMPLE_SECONDS)
                del self.spike

    monitor = MemoryMonitor()
    writer = FactsAtEnd(monitor)
    trainer = trainer_with(monitor, writer)
    module = Spike()
    trainer.fit(module, loader())
    before = psutil.Process().memory_info().rss / memory.MIB
    trainer.test(module, loader(), verbose=False)
    facts = writer.seen["test"]
    assert facts["cost/peak_rss_mib_test"] > before + 48
    assert facts["cost/peak_rss_mib_fit"] > 0
    assert facts["cost/peak_rss_mib"] == max(
        facts["cost/peak_rss_mib_fit"], facts["cost/peak_rss_mib_test"]
    )
    assert facts["cost/rss_method"] in ("high-water mark", "sampled")
    # A later stage starts afresh.
    trainer.predict(module, loader())
    assert monitor.facts()["cost/peak_rss_mib_predict"] < facts["cost/peak_rss_mib_test"] - 32


def test_the_process_has_a_peak_from_before_any_stage():
    """In a process of its own, started by one that holds much more."""
    code = (
        "import torch\n"
        "from smolbench.callbacks import memory\n"
        "before = memory.resident_mib()\n"
        "spike = torch.ones(96 * memory.MIB // 4)\n"
        "del spike\n"
        "reader = memory.ResidentReader()\n"
        "reader.start()\n"
        "process, stage = memory.process_peak_mib(), reader.peaks()['rss']\n"
        "reader.stop()\n"
        "assert process > stage + 64, (process, stage)\n"
        "assert before + 90 < process < before + 200, (before, process)\n"
    )
    held = torch.ones(400 * memory.MIB // 4)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert held.numel()


@pytest.fixture
def proc(monkeypatch, tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n")
    monkeypatch.setattr(memory, "STATUS", status)
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "clear_refs")
    return tmp_path


@linux
def test_high_water_mark_is_reset_and_read(proc):
    reader = ResidentReader()
    reader.start()
    assert (proc / "clear_refs").read_text() == "5"
    assert reader.method == "high-water mark"
    assert reader.peaks() == {"rss": 2.0}
    reader.stop()


@pytest.mark.parametrize("why", ["not permitted", "ignored", "not Linux"])
def test_without_a_reset_memory_is_sampled(proc, monkeypatch, why):
    if why == "not permitted":
        (proc / "clear_refs").mkdir()
    elif why == "ignored":
        (proc / "status").write_text("VmHWM:\t 900000 kB\nVmRSS:\t 1024 kB\n")
    else:
        monkeypatch.setattr(memory, "STATUS", proc / "missing")
    resident = [10.0]
    lifetime = [70.0]
    monkeypatch.setattr(memory, "resident_mib", lambda: resident[0])
    monkeypatch.setattr(memory, "_lifetime_peak_mib", lambda: lifetime[0])
    monkeypatch.setattr(memory, "SAMPLE_SECONDS", 0.001)
    reader = ResidentReader()
    reader.start()
    assert reader.method == "sampled"
    resident[0] = 30.0
    deadline = time.monotonic() + 5
    while reader._sampled_mib < 30.0 and time.monotonic() < deadline:
        time.sleep(0.001)
    resident[0] = 20.0
    assert reader.peaks() == {"rss": 30.0}
    lifetime[0] = 90.0  # a peak between two samples that the kernel kept
    assert reader.peaks() == {"rss": 90.0}
    reader.stop()
    time.sleep(0.02)
    resident[0] = 99.0
    time.sleep(0.02)
    assert reader._sampled_mib == 30.0


def test_lifetime_peak_is_in_mib_on_every_system(monkeypatch):
    if memory.resource is None:
        pytest.skip("no getrusage")
    usage = SimpleNamespace(ru_maxrss=3 * 2**20)
    monkeypatch.setattr(memory.resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory._lifetime_peak_mib() == 3.0
    monkeypatch.setattr(memory.sys, "platform", "linux")
    assert memory._lifetime_peak_mib() == 3072.0


def test_mps_is_sampled(monkeypatch):
    allocated = [1 * memory.MIB]
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: allocated[0])
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 3 * allocated[0])
    reader = memory.readers_for(torch.device("mps"))[1]
    reader.start()
    allocated[0] = 5 * memory.MIB
    reader.sample()
    allocated[0] = 2 * memory.MIB
    assert reader.peaks() == {"allocated": 5.0, "reserved": 15.0}
    assert reader.method == "sampled"
    reader.start()
    assert reader.peaks() == {"allocated": 2.0, "reserved": 6.0}


def test_cuda_peaks_are_reset_and_read_for_the_device_of_the_rank(monkeypatch):
    device = torch.device("cuda", 1)
    calls = []
    monkeypatch.setattr(torch.cuda, "init", lambda: calls.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda d: calls.append(d))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", {device: 2 * memory.MIB}.__getitem__)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", {device: 8 * memory.MIB}.__getitem__)
    resident, cuda = memory.readers_for(device)
    assert isinstance(resident, ResidentReader)
    cuda.start()
    assert calls == ["init", device]
    assert cuda.peaks() == {"allocated": 2.0, "reserved": 8.0}
    assert cuda.method == "high-water mark"
