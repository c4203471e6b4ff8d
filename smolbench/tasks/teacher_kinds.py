"""The kinds of teachers: a finished run, a model of the Hub, the built-in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from smolbench.callbacks.checkpoint import read_checkpoint
from smolbench.data.classification import TextDataModule
from smolbench.data.token_cache import TokenTable
from smolbench.digest import digest, file_digest
from smolbench.errors import SmolbenchError
from smolbench.models.backbone import TINY, Backbone, DType
from smolbench.models.classifier import load_trained_classifier
from smolbench.runs.run_dir import Run
from smolbench.runs.settings import Settings, read_settings
from smolbench.tasks.adapting import compute_dtype
from smolbench.tasks.classification import ClassificationTask
from smolbench.tasks.fine_tune import FineTuneTask
from smolbench.tasks.probe import ProbeTask
from smolbench.tasks.teacher import Teacher, pass_blocks
from smolbench.tasks.trained import pinned_options, signature_of, task_class_of

_SPLIT_OPTIONS = ("revision", "split_seed", "val_fraction", "test_fraction", "downsample", "clean")
"""Data options that decide which rows are trained on; limits only leave some of them out."""


@dataclass(frozen=True)
class Reading:
    """How a teacher without settings of its own reads texts: as its student does.

    Attributes:
        max_length: Longest row in tokens.
        truncation_side: Which end of a long text is cut off.
        dtype: What the network computes in.
    """

    max_length: int
    truncation_side: Literal["left", "right"]
    dtype: DType


# -- a run -----------------------------------------------------------------------------------------


class RunTeacher(Teacher):
    """A finished run that trained a network to classify, rebuilt from its settings and checkpoint.

    Args:
        run: Its folder.
        checkpoint: One of its checkpoints; the best if not given.

    Raises:
        SmolbenchError: If the run is unfinished, has no such checkpoint or is of another task.
    """

    def __init__(self, run: Run, checkpoint: Path | None = None) -> None:
        self.run = run = Run(run.path.resolve())
        self.name = str(run.path)
        self.checkpoint = checkpoint or run.checkpoint("best")
        self._results = run.results()
        self._same_rows: bool | None = None
        if self._results.get("status") != "finished" or "attempts" not in self._results:
            status = self._results.get("status") if "attempts" in self._results else "only scored"
            raise SmolbenchError(
                f"The teacher {self.name} is no finished training (it is {status}): finish it "
                f"with `smolbench fit --run_dir {self.name} --ckpt_path last`, or name another."
            )
        if not self.checkpoint.is_file():
            raise SmolbenchError(
                f"The teacher {self.name} has no checkpoint {self.checkpoint.name}: train it "
                "anew, or name another."
            )
        self._settings = read_settings(run.config)
        self._task = _task_class(self._settings, run.path)

    @cached_property
    def identity(self) -> str:
        """Digest of the checkpoint and the model's settings."""
        content = file_digest([self.checkpoint])
        return digest({"checkpoint": content, "model": self._settings["model"]})

    @cached_property
    def _signature(self) -> Mapping[str, Any]:
        return signature_of(read_checkpoint(self.checkpoint), self.checkpoint)

    def check(self, label_names: Sequence[str], data: TextDataModule) -> None:
        """See the base class; remarks if the teacher may have seen rows that are scored."""
        labels = self._signature.get("labels") or []
        if list(labels) != list(label_names):
            raise SmolbenchError(
                f"The teacher {self.name} knows the labels {', '.join(labels) or 'none'}, but the "
                f"data has {', '.join(label_names)}: a teacher needs the same, in the same order."
            )
        facts = data.facts()
        here, there = facts.get("data/id"), self._results.get("data/id")
        if here != there:
            raise SmolbenchError(
                f"The teacher {self.name} was trained on {there}, but this run learns from {here}: "
                "train a teacher on the same data."
            )
        options: Mapping[str, Any] = (self._settings.get("data") or {}).get("init_args") or {}
        differing = [
            f"data.{name} was {options[name]}, is {getattr(data, name)}"
            for name in _SPLIT_OPTIONS
            if name in options and options[name] != getattr(data, name, options[name])
        ]
        revision = self._results.get("data/revision")
        if revision != facts.get("data/revision"):
            differing.append(f"the data's revision was {revision}, is {facts['data/revision']}")
        self._same_rows = not differing
        if differing:
            self.remark = (
                "The teacher may have learned from rows that this run is scored on, because it "
                f"was trained on another choice of rows: {'; '.join(differing)}."
            )

    def build(self, label_names: Sequence[str]) -> ClassificationTask:
        """See the base class; the pretrained weights are those of the commit it was trained on."""
        task = self._task(**pinned_options(self._settings, self._signature))
        task.label_names = list(label_names)
        return task

    def fill(self, task: ClassificationTask, table: TokenTable, labels: np.ndarray) -> None:
        """See the base class."""
        checkpoint = read_checkpoint(self.checkpoint)
        try:
            task.on_load_checkpoint(checkpoint)
        except SmolbenchError as error:
            raise SmolbenchError(f"The teacher {self.name} cannot be rebuilt. {error}") from error
        task.load_state_dict(checkpoint["state_dict"], strict=False)

    def facts(self) -> dict[str, Any]:
        """See the base class."""
        return {
            "teacher/id": self._results.get("model/id"),
            "teacher/run": self.name,
            "teacher/method": self._results.get("method"),
            "teacher/test_accuracy": self._results.get("test/accuracy"),
            "teacher/same_rows": self._same_rows,
        }


def _task_class(settings: Settings, run: Path) -> type[ClassificationTask]:
    found = task_class_of(settings, run)
    if not issubclass(found, (ProbeTask, FineTuneTask)):
        raise SmolbenchError(
            f"The teacher {run} is of a {found.__name__}, which cannot teach: name the run of a "
            "ProbeTask, FineTuneTask or DistillationTask."
        )
    return found


# -- a model of the Hub ----------------------------------------------------------------------------


class _TrainedClassifier(FineTuneTask):
    """A classifier as its files hold it, head included."""

    def build_model(self) -> None:
        """Load it."""
        self._compute = compute_dtype(self.backbone, None, self.device)
        with torch.device("cpu"):  # whatever device Lightning has made the default
            self.model = load_trained_classifier(self.backbone)


class HubTeacher(Teacher):
    """A model with a trained classification head, on the Hub or in a folder.

    On which data it was trained is not known, so it is not checked.

    Args:
        name: Its id or folder.
        reading: How it reads texts.

    Raises:
        SmolbenchError: If it does not exist, or is no classifier.
    """

    def __init__(self, name: str, reading: Reading) -> None:
        self.name = name
        self._reading = reading
        self._backbone = Backbone(name, None, reading.dtype)
        kinds = self._backbone.config.architectures or []
        if not any("ForSequenceClassification" in kind for kind in kinds):
            raise SmolbenchError(
                f"The teacher {name} is a model without a trained classification head "
                f"({', '.join(kinds) or 'no architecture named'}): fine-tune it first, and name "
                "that run."
            )

    @cached_property
    def identity(self) -> str:
        """Digest of the commit, or of the folder's files."""
        named = {"model": self.name, "revision": self._backbone.revision}
        return digest({**named, "dtype": self._reading.dtype})

    def check(self, label_names: Sequence[str], data: TextDataModule) -> None:
        """See the base class; names are compared where the model's configuration gives any."""
        known: dict[Any, str] = dict(self._backbone.config.id2label or {})
        names = [known[number] for number in sorted(known)]
        named = not all(name.startswith("LABEL_") for name in names)
        if len(names) != len(label_names) or (
            named and not all(map(_same_label, names, label_names))
        ):
            raise SmolbenchError(
                f"The teacher {self.name} knows the labels {', '.join(names)}, but the data has "
                f"{', '.join(label_names)}: a teacher needs the same, in the same order."
            )

    def build(self, label_names: Sequence[str]) -> ClassificationTask:
        """See the base class."""
        task = _TrainedClassifier(
            backbone=self.name,
            dtype=self._reading.dtype,
            max_length=min(
                self._reading.max_length, self._backbone.max_positions or self._reading.max_length
            ),
            truncation_side=self._reading.truncation_side,
        )
        task.label_names = list(label_names)
        return task

    def fill(self, task: ClassificationTask, table: TokenTable, labels: np.ndarray) -> None:
        """Nothing is left to do."""


def _same_label(one: str, other: str) -> bool:
    """Whether two names mean the same class: ``NEGATIVE`` is ``neg``."""
    short, long = sorted((one.casefold(), other.casefold()), key=len)
    return long.startswith(short)


# -- the built-in teacher --------------------------------------------------------------------------


class TinyTeacher(Teacher):
    """The built-in tiny model with a linear head, fitted to the rows the student learns from.

    It needs no run and no network: for trying things out. Its head is scikit-learn's logistic
    regression on the mean of the last layer.

    Args:
        reading: How it reads texts.
    """

    name = TINY

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @cached_property
    def identity(self) -> str:
        """Digest of the tiny model; the rows it is fitted to name its logits too."""
        revision = Backbone(TINY, None, self._reading.dtype).revision
        return digest({"fitted": 1, "revision": revision, "dtype": self._reading.dtype})

    def check(self, label_names: Sequence[str], data: TextDataModule) -> None:
        """It learns the data's own labels."""

    def build(self, label_names: Sequence[str]) -> ClassificationTask:
        """See the base class."""
        task = ProbeTask(
            backbone=TINY,
            pooling="mean",
            head="linear",
            dtype=self._reading.dtype,
            max_length=self._reading.max_length,
            truncation_side=self._reading.truncation_side,
        )
        task.label_names = list(label_names)
        return task

    def fill(self, task: ClassificationTask, table: TokenTable, labels: np.ndarray) -> None:
        """Fit the head."""
        from sklearn.linear_model import LogisticRegression  # lazy: import cost

        assert isinstance(task, ProbeTask), "build made it"
        head = task.head
        assert isinstance(head, torch.nn.Linear), "its head is linear"
        read = task.reader(table)
        features = np.empty((len(table), head.in_features), dtype=np.float32)
        for rows in pass_blocks(table):
            features[rows] = read(rows)["features"].cpu()
        regression = LogisticRegression(max_iter=1000).fit(features, labels)
        weight, bias = regression.coef_, regression.intercept_
        if len(weight) == 1:  # two classes: the second against the first
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        with torch.no_grad():
            # a class without any row is never the answer
            head.weight.zero_()
            head.bias.fill_(float(bias.min()) - 10)
            for number, own_weight, own_bias in zip(regression.classes_, weight, bias, strict=True):
                head.weight[number] = torch.from_numpy(own_weight)
                head.bias[number] = float(own_bias)
