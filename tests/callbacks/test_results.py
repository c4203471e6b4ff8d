from __future__ import annotations

import json

import lightning.pytorch as pl
import pyarrow.parquet
import pytest
import torch

from smolbench.callbacks import (
    ExactResume,
    GracefulStop,
    MemoryMonitor,
    MetricsCSV,
    ResultsWriter,
    RunCheckpoint,
    RunInterrupted,
    ThroughputMonitor,
    TrainingGuard,
)
from smolbench.errors import SmolbenchError
from tests.helpers.plain import PlainModule, loader, trainer

pytestmark = [pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")]


def results(folder):
    return json.loads((folder / "results.json").read_text())


class Facts(pl.Callback):
    def __init__(self, **facts) -> None:
        self.known = facts

    def facts(self):
        return self.known


class Spy(pl.Callback):
    """Reads the file when a stage is under way."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.seen: list[dict] = []

    def on_train_batch_end(self, *args):
        self.seen.append(results(self.folder))

    def on_test_batch_end(self, *args):
        self.seen.append(results(self.folder))


def test_everything_in_somebodys_plain_project(tmp_path):
    def callbacks():
        return (
            GracefulStop(),
            ExactResume(),
            MemoryMonitor(),
            ThroughputMonitor(),
            TrainingGuard(),
            MetricsCSV(),
            RunCheckpoint(),
            ResultsWriter(),
        )

    fit = trainer(tmp_path, *callbacks(), max_epochs=2)
    fit.fit(PlainModule(), loader(), loader(1))
    fit.test(PlainModule(), loader(), verbose=False)
    last = tmp_path / "checkpoints" / "last.ckpt"
    trainer(tmp_path, *callbacks(), max_epochs=3).fit(PlainModule(), loader(), ckpt_path=last)
    trainer(tmp_path, *callbacks()).test(
        PlainModule(), loader(), ckpt_path=last, verbose=False, weights_only=True
    )
    found = results(tmp_path)
    assert found["status"] == "finished"
    assert found["attempts"] == 2
    assert found["test/loss"] >= 0
    for key in ("cost/fit_s", "cost/test_s", "cost/peak_rss_mib", "cost/train_samples_per_s"):
        assert found[key] > 0, key
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoints",
        "environment.json",
        "metrics.csv",
        "results.json",
    ]


def test_a_kill_leaves_running(tmp_path):
    spy = Spy(tmp_path)
    writer = ResultsWriter({"recipe": "a", "started_at": "now"})
    trainer(tmp_path, spy, Facts(one=1), writer).fit(PlainModule(), loader())
    assert spy.seen[0]["status"] == "running"
    assert spy.seen[0]["recipe"] == "a"
    assert spy.seen[0]["one"] == 1
    assert spy.seen[0]["hardware/device"] == "cpu"
    assert results(tmp_path)["status"] == "finished"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RunInterrupted(2, "stop"), "interrupted"),
        (SmolbenchError("no"), "failed"),
        (ValueError("no"), "failed"),
    ],
)
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_how_it_ended(tmp_path, error, status, stage):
    class Fail(pl.Callback):
        def on_train_batch_start(self, *args):
            raise error

        on_test_batch_start = on_train_batch_start

    with pytest.raises(type(error)):
        getattr(trainer(tmp_path, Fail(), ResultsWriter()), stage)(PlainModule(), loader())
    assert results(tmp_path)["status"] == status


def test_a_failure_that_keeps_others_from_saying_anything(tmp_path):
    class Broken(Facts):
        def facts(self):
            raise SmolbenchError("the model cannot be loaded")

    fit = trainer(tmp_path, Broken(), ResultsWriter())
    with pytest.raises(SmolbenchError, match="cannot be loaded"):
        fit.fit(PlainModule(), loader())
    assert results(tmp_path)["status"] == "failed"


@pytest.mark.parametrize("before", ["finished", "interrupted", "running", "failed"])
def test_a_test_does_not_change_what_is_said_of_the_training(tmp_path, before):
    trainer(tmp_path, ResultsWriter({"recipe": "a", "seed": 3})).fit(PlainModule(), loader())
    known = results(tmp_path) | {"status": before, "hardware/name": "another machine"}
    (tmp_path / "results.json").write_text(json.dumps(known))
    environment = (tmp_path / "environment.json").read_text()
    spy = Spy(tmp_path)
    testing = trainer(tmp_path, spy, ResultsWriter())
    testing.test(PlainModule(), loader(), verbose=False)
    assert {found["status"] for found in [*spy.seen, results(tmp_path)]} == {before}
    found = results(tmp_path)
    assert found.items() >= known.items()
    assert found["hardware/name_test"] != "another machine"
    assert [key for key in found if key.startswith("hardware/") and key.endswith("_test")] == [
        "hardware/name_test"
    ]
    assert (tmp_path / "environment.json").read_text() == environment


def test_a_test_that_fails_changes_nothing(tmp_path):
    class Fail(pl.Callback):
        def on_test_batch_start(self, *args):
            raise ValueError

    trainer(tmp_path, ResultsWriter()).fit(PlainModule(), loader())
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    testing = trainer(tmp_path, MemoryMonitor(), Fail(), ResultsWriter({"a": 1}, "a: 1"))
    with pytest.raises(ValueError, match=r"^$"):
        testing.test(PlainModule(), loader(), verbose=False)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


def test_of_two_peaks_the_higher_stands(tmp_path):
    trainer(tmp_path, Facts(**{"cost/peak_x": 5, "cost/y": 5}), ResultsWriter()).fit(
        PlainModule(), loader()
    )
    trainer(tmp_path, Facts(**{"cost/peak_x": 3, "cost/y": 3}), ResultsWriter()).test(
        PlainModule(), loader(), verbose=False
    )
    assert results(tmp_path)["cost/peak_x"] == 5
    assert results(tmp_path)["cost/y"] == 3


class Predicting(PlainModule):
    def predictions(self):
        return {"index": torch.arange(3).numpy(), "label": torch.tensor([0, 1, 0]).numpy()}


def test_predictions_are_written(tmp_path):
    trainer(tmp_path, ResultsWriter()).test(Predicting(), loader(), verbose=False)
    table = pyarrow.parquet.read_table(tmp_path / "predictions.parquet")
    assert table.to_pydict() == {"index": [0, 1, 2], "label": [0, 1, 0]}
    assert not list(tmp_path.glob("*.partial"))


def test_training_on_forgets_the_old_test(tmp_path):
    writer = {"recipe": "a"}
    trainer(tmp_path, ResultsWriter(writer), RunCheckpoint()).fit(PlainModule(), loader())
    monitors = (MemoryMonitor(), ThroughputMonitor())
    trainer(tmp_path, *monitors, ResultsWriter()).test(Predicting(), loader(), verbose=False)
    last = tmp_path / "checkpoints" / "last.ckpt"

    # nothing left to train: the test still holds
    trainer(tmp_path, ResultsWriter(writer), RunCheckpoint()).fit(
        PlainModule(), loader(), ckpt_path=last
    )
    assert "test/loss" in results(tmp_path)
    assert (tmp_path / "predictions.parquet").exists()

    spy = Spy(tmp_path)
    trainer(tmp_path, spy, ResultsWriter(writer), RunCheckpoint(), max_epochs=2).fit(
        PlainModule(), loader(), ckpt_path=last
    )
    for found in (spy.seen[0], results(tmp_path)):
        assert not [key for key in found if "test" in key]
    assert not (tmp_path / "predictions.parquet").exists()
    assert results(tmp_path)["attempts"] == 3


def test_the_first_start_stands(tmp_path):
    for number in (1, 2):
        writer = ResultsWriter({"started_at": f"start {number}", "git_revision": number})
        trainer(tmp_path, writer).fit(PlainModule(), loader())
    assert results(tmp_path)["started_at"] == "start 1"
    assert results(tmp_path)["git_revision"] == 2


def test_the_config_is_written_only_if_there_is_one(tmp_path):
    trainer(tmp_path, ResultsWriter(config="a: 1\n")).fit(PlainModule(), loader())
    trainer(tmp_path, ResultsWriter()).test(PlainModule(), loader(), verbose=False)
    assert (tmp_path / "config.yaml").read_text() == "a: 1\n"


def test_fast_dev_run_writes_nothing(tmp_path):
    for stage in ("fit", "test"):
        quick = trainer(tmp_path, ResultsWriter(config="a: 1\n"), fast_dev_run=True)
        getattr(quick, stage)(Predicting(), loader())
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.Trainer.is_global_zero", False)
    trainer(tmp_path, ResultsWriter(config="a: 1\n"), Facts(one=1)).fit(PlainModule(), loader())
    trainer(tmp_path, ResultsWriter()).test(Predicting(), loader(), verbose=False)
    assert not (tmp_path / "results.json").exists()
    assert not (tmp_path / "predictions.parquet").exists()


def test_damaged_results_stop_before_anything_is_lost(tmp_path):
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(SmolbenchError, match="cannot be read as JSON"):
        trainer(tmp_path, ResultsWriter()).fit(PlainModule(), loader())
    assert (tmp_path / "results.json").read_text() == "{"


def test_validate_adds_its_metrics(tmp_path):
    trainer(tmp_path, ResultsWriter()).validate(PlainModule((0.25,)), loader(), verbose=False)
    assert results(tmp_path)["val/score"] == 0.25
    assert results(tmp_path)["status"] == "finished"
