"""Tasks and DataModules of somebody's own, given to the command line by their class path."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from smolbench.cli import main
from smolbench.cli.sweep.check import _check_here
from smolbench.data import BaseDataModule, TextDataModule
from smolbench.tasks import BaseTask, ClassificationTask
from tests.helpers.command import FEW, ONE_EPOCH, results

MODULE = '''
import torch
from smolbench.data import BaseDataModule, TextDataModule
from smolbench.tasks import BaseTask, ProbeTask


class OwnHalfTask(BaseTask):
    def encoder_key(self):
        return {}


class OwnHalfData(TextDataModule):
    def load_hub(self):
        raise AssertionError


class OwnTaskOfNoKind(BaseTask):
    encode = encoder_key = signature = None


class OwnDataOfNoKind(BaseDataModule):
    load_hub = load_sample = check = hold_out = None


class OwnTask(BaseTask):
    """As little as there must be."""

    kind = "classification"

    def __init__(self, backbone: str = "", max_length: int = 9, lr: float = 0.1, **options):
        super().__init__(lr=lr, **options)
        self.layer = torch.nn.Linear(1, 2)

    def encode(self, examples):
        return {"input_ids": [[len(text)] for text in examples["text"]]}

    def encoder_key(self):
        return {"encoder": "length of the text"}

    def signature(self):
        return {}

    def loss(self, batch):
        lengths = batch["input_ids"][:, :1].float() / 1000
        return torch.nn.functional.cross_entropy(self.layer(lengths), batch["labels"])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.loss(batch))


class OwnProbe(ProbeTask):
    """Its learning rate follows a metric."""

    def __init__(self, plateau: str | None = None, mine_from: int = 0, **options):
        super().__init__(**options)
        self.plateau, self.mine_from = plateau, mine_from

    def configure_optimizers(self):
        if self.plateau is None:
            return super().configure_optimizers()
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return [optimizer], [{"scheduler": schedule, "monitor": self.plateau}]

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        if self.current_epoch >= self.mine_from:
            self.log("val/mine", 0.5)
'''
STOP = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor"]
SAVE = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor"]
OWN = ["--model=own_classes_of_a_user.OwnProbe"]


@pytest.fixture(autouse=True)
def _own_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("own_classes_of_a_user.py").write_text(MODULE)


@pytest.fixture
def refused(capsys):
    """The one sentence that a fit is refused with."""

    def call(*options):
        assert main(["fit", *FEW, ONE_EPOCH, *options]) == 2
        err = capsys.readouterr().err
        assert "Traceback" not in err
        last = err.strip().splitlines()[-1]
        assert last.startswith("smolbench: error: "), err
        return last

    return call


@pytest.mark.parametrize("base", [BaseTask, ClassificationTask, BaseDataModule, TextDataModule])
def test_an_incomplete_class_is_no_object(base):
    with pytest.raises(TypeError, match=r"encode.*encoder_key|load_hub"):
        base()


@pytest.mark.parametrize(
    ("options", "name", "missing"),
    [
        (["--model=own_classes_of_a_user.OwnHalfTask"], "OwnHalfTask", "encode, signature"),
        (["--model.class_path=own_classes_of_a_user.OwnHalfTask"], "OwnHalfTask", "encode, sign"),
        (["--data=own_classes_of_a_user.OwnHalfData"], "OwnHalfData", "load_sample"),
        (["--config=half.yaml"], "OwnHalfData", "load_sample"),
        (["--model=ClassificationTask"], "ClassificationTask", "encode, encoder_key"),
        (["--data=TextDataModule"], "TextDataModule", "load_hub, load_sample"),
    ],
)
def test_an_incomplete_class_is_one_sentence(refused, options, name, missing):
    half = {"class_path": "own_classes_of_a_user.OwnHalfData", "init_args": {"batch_size": 4}}
    Path("half.yaml").write_text(json.dumps({"data": half}))
    said = refused(*options)
    assert f"{name} is incomplete, it does not define {missing}" in said
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("option", "missing"),
    [("model.OwnTaskOfNoKind", "kind"), ("data.OwnDataOfNoKind", "kind, content")],
)
def test_a_class_that_lacks_a_value_is_one_sentence(refused, option, missing):
    part, name = option.split(".")
    Path("own.yaml").write_text(json.dumps({part: f"own_classes_of_a_user.{name}"}))
    last = refused("--config=own.yaml")
    assert f"{name} is incomplete, it does not set {missing}:" in last


def test_a_task_needs_no_more_than_its_base_class_names():
    options = [*FEW, ONE_EPOCH, "--model=own_classes_of_a_user.OwnTask", "--run_dir=run"]
    assert main(["fit", *options, "--checkpoint.monitor=val/loss", "--checkpoint.mode=min"]) == 0
    assert main(["test", *options, "--checkpoint.monitor=val/loss", "--checkpoint.mode=min"]) == 0
    found = results(Path("run"))
    assert found["test/loss"] > 0
    assert found["best/step"] > 0


# -- metrics that are watched ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([*STOP, "val_loss"], "EarlyStopping.monitor is 'val_loss'"),
        ([*SAVE, "val_loss"], "ModelCheckpoint.monitor is 'val_loss'"),
        (["--checkpoint.monitor=val_loss"], "checkpoint.monitor is 'val_loss'"),
        (
            ["--trainer.callbacks+=TrainingPlateau", "--trainer.callbacks.metric=val_loss"],
            "TrainingPlateau.metric is 'val_loss'",
        ),
    ],
)
@pytest.mark.parametrize("estimate", [False, True])
def test_an_unknown_metric_is_refused_before_the_training(refused, options, said, estimate):
    last = refused(*options, *["--estimate"][:estimate])
    there = "val/accuracy, val/f1_macro, val/loss, train/loss, train/lr"
    assert f"{said}, but ProbeTask logs {there}: did you mean 'val/loss'?" in last
    assert not Path("runs").exists()


def test_a_sweep_is_refused_what_its_trials_would_be():
    (found,) = _check_here([[*FEW, *STOP, "val_loss"]])
    assert "did you mean 'val/loss'?" in found


@pytest.mark.parametrize(
    "options",
    [
        [*STOP, "val/loss"],
        [*STOP, "train/loss"],
        [*STOP, "val_loss", "--trainer.callbacks.strict=false"],
        [*SAVE, "val/accuracy", "--trainer.callbacks.mode=max"],
        [*SAVE, "val/accuracy", "--trainer.callbacks.save_top_k=-1"],
        ["--checkpoint.monitor=val/loss"],
        [*SAVE, "step"],
        [
            *STOP,
            "lr-AdamW/pg1",
            "--trainer.callbacks+=LearningRateMonitor",
            "--trainer.logger=CSVLogger",
            "--trainer.logger.save_dir=logs",
        ],
        [*OWN, *STOP, "val/mine"],
        [*OWN, "--checkpoint.monitor=val/mine", "--checkpoint.mode=max"],
        [*OWN, "--model.plateau=val/mine"],
    ],
)
def test_a_known_metric_is_watched(options):
    assert main(["fit", *FEW, ONE_EPOCH, *options]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([*STOP, "val/accuracy"], "EarlyStopping.mode is min for 'val/accuracy'"),
        ([*SAVE, "val/f1_macro"], "ModelCheckpoint.mode is min for 'val/f1_macro'"),
        (
            ["--checkpoint.monitor=val/loss", "--checkpoint.mode=max"],
            "checkpoint.mode is max for 'val/loss'",
        ),
        (["--checkpoint.mode=min"], "checkpoint.mode is min for 'val/accuracy'"),
        ([*OWN, *STOP, "val/accuracy"], "EarlyStopping.mode is min for 'val/accuracy'"),
        ([*OWN, "--checkpoint.monitor=val/mine"], "add checkpoint.mode max or min"),
    ],
)
def test_a_metric_that_is_watched_the_wrong_way_round_is_refused(refused, options, said):
    assert said in refused(*options)
    assert not Path("runs").exists()


def test_the_lowest_loss_is_kept_without_a_mode():
    options = [*FEW, "--trainer.max_epochs=4", "--model.lr=0.5", "--run_dir=run"]
    assert main(["fit", *options, "--checkpoint.monitor=val/loss"]) == 0
    with Path("run/metrics.csv").open() as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert len(set(losses)) > 1
    assert results(Path("run"))["val/loss"] == pytest.approx(min(losses))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([*STOP, "val_mine"], "EarlyStopping.monitor is 'val_mine'"),
        ([*SAVE, "val_mine"], "ModelCheckpoint.monitor is 'val_mine'"),
        (
            ["--checkpoint.monitor=val_mine", "--checkpoint.mode=max"],
            "checkpoint.monitor is 'val_mine'",
        ),
    ],
)
def test_what_an_own_task_does_not_log_is_said_after_the_first_validation(refused, options, said):
    last = refused(*OWN, *options)
    assert f"{said}, but OwnProbe logs train/loss, train/lr, val/accuracy," in last
    assert "did you mean 'val/mine'?" in last


def test_a_plateau_that_watches_no_validation_is_refused(refused):
    last = refused(*OWN, "--model.plateau=val_mine")
    assert "ReduceLROnPlateau of OwnProbe has the monitor 'val_mine'" in last


def test_a_metric_of_later_epochs_is_said_like_an_unknown_one(refused):
    assert "'val/mine', but OwnProbe logs train/loss, train/lr, val/accuracy" in refused(
        *OWN, "--model.mine_from=1", *STOP, "val/mine"
    )


@pytest.mark.parametrize(
    ("more", "status"), [([], 2), (["--trainer.check_val_every_n_epoch=2"], 0)]
)
def test_summaries_that_are_not_written_in_every_epoch(capsys, monkeypatch, more, status):
    monkeypatch.setattr("lightning.pytorch.Trainer.fit", lambda *_, **__: None)
    monkeypatch.setattr("smolbench.cli.lightning_cli.SmolCLI.after_fit", lambda _: None)
    write = ["--config=samsum_flan-t5-base", "--config=tiny", "--model.rouge_every=2"]
    assert (
        main(["fit", *write, *STOP, "val/rouge1", "--trainer.callbacks.mode=max", *more]) == status
    )
    assert (
        "val/rouge1', which this SummarizationTask logs once in 2" in capsys.readouterr().err
    ) == (status == 2)


def test_an_error_that_is_not_about_a_metric_stays(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("of another kind: val_mine")

    monkeypatch.setattr(torch.optim.AdamW, "step", fail)
    with pytest.raises(RuntimeError, match="of another kind"):
        main(["fit", *FEW, ONE_EPOCH, *OWN, *STOP, "val_mine"])


def test_texts_are_predicted_by_a_datamodule_of_smolbench(folder_here, capsys):
    assert main(["fit", *FEW, ONE_EPOCH, "--run_dir=run"]) == 0
    own = "--data=lightning.pytorch.demos.boring_classes.BoringDataModule"
    assert main(["predict", "--run_dir=run", "--text=A gem.", own]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "hands texts to a DataModule of smolbench, and BoringDataModule is none" in last
