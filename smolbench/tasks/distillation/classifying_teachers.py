"""The kinds of teachers that classify: a finished run, a model of the Hub, the built-in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from smolbench.data.classification import TextDataModule
from smolbench.data.token_cache import TokenTable
from smolbench.errors import SmolbenchError
from smolbench.models.pretrained.backbone import TINY, Backbone, DType
from smolbench.models.pretrained.causality import effect_of_padding
from smolbench.models.pretrained.classifier import load_trained_classifier
from smolbench.runs.run_dir import Run
from smolbench.tasks.classification import ClassificationTask
from smolbench.tasks.distillation.agreement import option_of
from smolbench.tasks.distillation.teacher import (
    ClassifyingTeacher,
    model_identity,
    pass_blocks,
    read_config,
)
from smolbench.tasks.distillation.teacher_run import TaughtRun
from smolbench.tasks.fine_tune import FineTuneTask
from smolbench.tasks.pretrained import compute_dtype
from smolbench.tasks.probe import ProbeTask
from smolbench.utils.digest import digest


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


class ClassifyingTeachers:
    """Which teachers there are for a student that classifies; see ``TeacherKinds``.

    Args:
        reading: How a teacher without settings of its own reads texts.
        backbone: Where the pretrained network of a run lies now, if its folder was moved.
    """

    def __init__(self, reading: Reading, backbone: str | None = None) -> None:
        self._reading = reading
        self._backbone = backbone

    def of_run(self, run: Run, checkpoint: Path | None = None) -> ClassifyingTeacher:
        """A finished run's classifier."""
        return RunTeacher(run, checkpoint, self._backbone)

    def of_model(self, name: str) -> ClassifyingTeacher:
        """A model with a trained classification head."""
        return HubTeacher(name, self._reading)

    def built_in(self) -> ClassifyingTeacher:
        """The tiny model with a head fitted to the training rows."""
        return TinyTeacher(self._reading)


# -- a run -----------------------------------------------------------------------------------------


class RunTeacher(ClassifyingTeacher):
    """A finished run that trained a network to classify, rebuilt from its settings and checkpoint.

    Args:
        run: Its folder.
        checkpoint: One of its checkpoints; the best if not given.
        backbone: Where its pretrained network lies now, if its folder was moved.

    Raises:
        SmolbenchError: If the run is unfinished, has no such checkpoint or is of another task.
    """

    def __init__(
        self, run: Run, checkpoint: Path | None = None, backbone: str | None = None
    ) -> None:
        self._trained = TaughtRun(
            run,
            checkpoint,
            (ProbeTask, FineTuneTask),
            "the run of a ProbeTask, FineTuneTask or DistillationTask",
            backbone,
        )
        self.run = self._trained.run
        self.checkpoint = self._trained.checkpoint
        self.name = self._trained.name

    @cached_property
    def identity(self) -> str:
        """Digest of the checkpoint and the model's settings."""
        return self._trained.identity

    def check_inputs(self) -> None:
        """Look for its pretrained network; see the base class."""
        self._trained.options()

    def check(
        self, label_names: Sequence[str], data: TextDataModule, *, mapped: bool = False
    ) -> None:
        """See the base class; remarks if the teacher may have seen rows that are scored."""
        labels = self._trained.signature.get("labels") or []
        if not mapped or len(labels) != len(label_names):
            _require_labels(self.name, labels, label_names, list(labels) == list(label_names))
        self.remark = self._trained.compare_data(data)

    def build(self, label_names: Sequence[str]) -> ClassificationTask:
        """See the base class; the pretrained weights are those of the commit it was trained on."""
        task: ClassificationTask = self._trained.task()
        task.label_names = list(label_names)
        return task

    def fill(self, task: ClassificationTask, table: TokenTable, labels: np.ndarray) -> None:
        """See the base class."""
        self._trained.fill(task)

    def facts(self) -> dict[str, Any]:
        """See the base class."""
        return self._trained.facts() | {
            "teacher/test_accuracy": self._trained.results.get("test/accuracy")
        }


# -- a model of the Hub ----------------------------------------------------------------------------


class _TrainedClassifier(FineTuneTask):
    """A classifier as its files hold it, head included."""

    def build_model(self) -> None:
        """Load it."""
        self._compute = compute_dtype(self.backbone, None, self.device)
        with torch.device("cpu"):  # whatever device Lightning has made the default
            self.model = load_trained_classifier(self.backbone)
            self._effect_of_padding = effect_of_padding(self.model)


class HubTeacher(ClassifyingTeacher):
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
        kinds = read_config(self._backbone).architectures or []
        adapter = self._backbone.adapter
        heads = "ForSequenceClassification" in " ".join(kinds)
        if not (heads if adapter is None else adapter.classes):
            raise SmolbenchError(
                f"The teacher {name} is a model without a trained classification head "
                f"({', '.join(kinds) or 'no architecture named'}): fine-tune it first, and name "
                "that run."
            )

    @cached_property
    def identity(self) -> str:
        """Digest of the commit, or of the folder's files."""
        return model_identity(self._backbone)

    def check(
        self, label_names: Sequence[str], data: TextDataModule, *, mapped: bool = False
    ) -> None:
        """See the base class; names are compared where the model's configuration gives any."""
        known: dict[Any, str] = dict(self._backbone.config.id2label or {})
        names = [known[number] for number in sorted(known)]
        named = not all(name.startswith("LABEL_") for name in names)
        alike = len(names) == len(label_names)
        if alike and named and not mapped:
            alike = all(map(_same_label, names, label_names))
        _require_labels(self.name, names, label_names, alike)

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


def _require_labels(
    who: str, known: Sequence[str], label_names: Sequence[str], alike: bool
) -> None:
    if alike:
        return
    advice = ""
    if len(known) == len(label_names):
        advice = (
            " If only its names or their order are others, say which class of the data each of its "
            f"outputs means, from the first on, such as {option_of(label_names)}."
        )
    raise SmolbenchError(
        f"The teacher {who} knows the labels {', '.join(known) or 'none'}, but the data has "
        f"{', '.join(label_names)}: a teacher needs the same, in the same order.{advice}"
    )


def _same_label(one: str, other: str) -> bool:
    """Whether two names mean the same class: ``NEGATIVE`` is ``neg``."""
    short, long = sorted((one.casefold(), other.casefold()), key=len)
    return long.startswith(short)


# -- the built-in teacher --------------------------------------------------------------------------


class TinyTeacher(ClassifyingTeacher):
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

    def check(
        self, label_names: Sequence[str], data: TextDataModule, *, mapped: bool = False
    ) -> None:
        """It learns the data's own labels.

        Raises:
            SmolbenchError: If it is told what its outputs mean.
        """
        if mapped:
            raise SmolbenchError(
                "The built-in teacher learns the data's own labels: leave out model.teacher_labels."
            )

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
        for rows in pass_blocks(table, task.device):
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
