"""Teachers that write summaries: a finished run, a model of the Hub, the built-in one."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from smolbench.data.datamodule import BaseDataModule
from smolbench.errors import SmolbenchError
from smolbench.models.pretrained.backbone import TINY, TINY_T5, DType
from smolbench.models.summaries.summarizer import target_logits
from smolbench.runs.run_dir import Run
from smolbench.tasks.distillation.teacher import Teacher, model_identity, read_config
from smolbench.tasks.distillation.teacher_run import TaughtRun
from smolbench.tasks.generation import Batch
from smolbench.tasks.summarize import SummarizationTask


class WritingTeacher(Teacher):
    """A trained network that writes summaries and says how likely each token of one is.

    It reads its student's token ids, so both must have the same vocabulary and be of one kind.
    """

    @abstractmethod
    def build(self) -> SummarizationTask:
        """A task without weights."""

    @cached_property
    def _bare(self) -> SummarizationTask:
        """A task that stays without weights, to be asked how it reads."""
        return self.build()

    def fill(self, task: SummarizationTask) -> None:
        """Give a task whose network is loaded the weights that were trained, where those differ."""

    def check(self, student: SummarizationTask, data: BaseDataModule) -> None:
        """Refuse a teacher that cannot read what its student reads, or knows other data.

        Raises:
            SmolbenchError: Saying what differs.
        """
        own = self._bare
        if own.causal != student.causal:
            kinds = ("an encoder-decoder model", "a causal one")
            raise SmolbenchError(
                f"The teacher {self.name} is {kinds[own.causal]} and the student "
                f"{student.backbone.given} {kinds[student.causal]}: choose two of one kind."
            )
        ours, theirs = student.backbone.tokenizer, own.backbone.tokenizer
        if ours.get_vocab() != theirs.get_vocab() or student.encoder.end != own.encoder.end:
            raise SmolbenchError(
                f"The teacher {self.name} has another vocabulary ({len(theirs):,} tokens) than the "
                f"student {student.backbone.given} ({len(ours):,}): token by token one learns only "
                "from a model of the same tokenizer, such as a larger one of its family."
            )
        ours_read, theirs_read = (task.encoder.documents.template for task in (student, own))
        if ours_read != theirs_read:
            raise SmolbenchError(
                f"The teacher {self.name} has learned to read {theirs_read!r}, and the student "
                f"reads {ours_read!r}: give the student the same model.template."
            )
        if (table := data.split("train").table) is not None:
            own.check_tokens(table)

    def start(self, device: torch.device) -> TeacherNetwork:
        """Load the network, frozen, onto a device."""
        return TeacherNetwork(self, device)


class TeacherNetwork:
    """A teacher's network in evaluation mode; deliberately no module, see ``TaughtTask``.

    Args:
        teacher: Checked, see :meth:`WritingTeacher.check`.
        device: Where it runs.
    """

    def __init__(self, teacher: WritingTeacher, device: torch.device) -> None:
        self._task = teacher.build()
        # what is loaded may draw random numbers, which the training must not depend on
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            self._task.to(device)
            self._task.configure_model()
            teacher.fill(self._task)
        self._task.freeze()
        self._task.to(device)

    def logits(self, batch: Batch) -> torch.Tensor:
        """What it says of the tokens of the summaries, see :func:`target_logits`; no gradient."""
        with torch.no_grad(), self._task.precision():
            return target_logits(self._task.model, batch)


class WritingTeachers:
    """Which teachers there are for a student that summarizes; see ``TeacherKinds``.

    Args:
        student: Whom they teach: a model without settings of its own reads as it does.
        backbone: Where the pretrained network of a run lies now, if its folder was moved.
    """

    def __init__(self, student: SummarizationTask, backbone: str | None = None) -> None:
        self._student = student
        self._backbone = backbone

    def of_run(self, run: Run, checkpoint: Path | None = None) -> WritingTeacher:
        """A finished run's summarizer."""
        return _RunTeacher(run, checkpoint, self._backbone)

    def of_model(self, name: str) -> WritingTeacher:
        """A model of the Hub or in a folder, as it comes."""
        return _ModelTeacher(name, self._student)

    def built_in(self) -> WritingTeacher:
        """The built-in tiny model that the student is, too; it has learned nothing."""
        backbone = self._student.backbone
        return self.of_model(TINY_T5 if backbone.config.is_encoder_decoder else TINY)


class _RunTeacher(WritingTeacher):
    """A finished run that trained a network to summarize."""

    def __init__(self, run: Run, checkpoint: Path | None, backbone: str | None) -> None:
        self._trained = TaughtRun(
            run,
            checkpoint,
            (SummarizationTask,),
            "the run of a SummarizationTask or SummaryDistillationTask",
            backbone,
        )
        self.name = self._trained.name

    @cached_property
    def identity(self) -> str:
        """Digest of the checkpoint and the model's settings."""
        return self._trained.identity

    def check_inputs(self) -> None:
        """Look for its pretrained network; see the base class."""
        self._trained.options()

    def check(self, student: SummarizationTask, data: BaseDataModule) -> None:
        """See the base class; remarks if the teacher may have seen rows that are scored."""
        super().check(student, data)
        self.remark = self._trained.compare_data(data)

    def build(self) -> SummarizationTask:
        """See the base class."""
        task: SummarizationTask = self._trained.task()
        return task

    def fill(self, task: SummarizationTask) -> None:
        """See the base class."""
        self._trained.fill(task)

    def facts(self) -> dict[str, Any]:
        """See the base class."""
        rouge = self._trained.results.get("test/rouge1")
        return {**self._trained.facts(), "teacher/test_rouge1": rouge}


class _ModelTeacher(WritingTeacher):
    """A model as it comes, from the Hub or a folder; on which data it was trained is not known."""

    def __init__(self, name: str, student: SummarizationTask) -> None:
        self.name = name
        self._dtype: DType = student.backbone.dtype_name
        self._template = student.encoder.documents.template
        self._lengths = (student.max_length, student.max_summary_length)
        _ = read_config(self._bare.backbone)  # whether it exists is asked for at once

    @cached_property
    def identity(self) -> str:
        """Digest of the commit, or of the folder's files."""
        return model_identity(self._bare.backbone)

    def build(self) -> SummarizationTask:
        """See the base class."""
        return SummarizationTask(
            method="none",
            backbone=self.name,
            dtype=self._dtype,
            template=self._template,
            max_length=self._lengths[0],
            max_summary_length=self._lengths[1],
        )
