"""Distillation of summaries: a student learns every token from a reference and from a teacher."""

from __future__ import annotations

import logging
from typing import Any

import torch

from smolbench.data.batching import IGNORE_LABEL
from smolbench.errors import SmolbenchError
from smolbench.models.pretrained.backbone import TINY, TINY_T5
from smolbench.models.summaries.summarizer import target_logits
from smolbench.tasks.distillation.student import TaughtTask, distillation_loss
from smolbench.tasks.distillation.summarizing_teachers import (
    TeacherNetwork,
    WritingTeacher,
    WritingTeachers,
)
from smolbench.tasks.generation import Batch
from smolbench.tasks.summarize import SummarizationTask
from smolbench.utils.notices import warn

log = logging.getLogger("smolbench")
_COMPARED = 1000
"""Tokens of the first references that a teacher is compared with, in the passes of the training."""
_NOTICEABLE = 2.0
"""Standard errors by which it must say them better than their commonest token does."""


class SummaryDistillationTask(TaughtTask[WritingTeacher], SummarizationTask):
    """Train a student to summarize, by any method, on references and on a teacher's logits.

    As Hinton et al. (2015, arXiv 1503.02531), at every token of the reference behind the true
    tokens before it; see :func:`~smolbench.tasks.distillation.student.distillation_loss`. The
    teacher runs in every training step, without gradient and dropout, on the student's token ids:
    its logits over a whole vocabulary are too many to be kept (those of SAMSum by Flan-T5 are
    50 GB), and a part of them would not be the same loss. It is no part of this module: no
    checkpoint holds it. Validation and test are the student's alone.

    Args:
        teacher: Who is learned from, of the same vocabulary as the student: the folder of a
            finished run of :class:`SummarizationTask` or this task, a checkpoint in it, a recipe
            (its newest finished run is meant), or the id or folder of a model, which teaches as it
            comes. With a built-in tiny backbone a shipped recipe means its run with ``--config
            tiny``, and where there is none the built-in model (``tiny``), which knows nothing.
        teacher_backbone: Where the pretrained network of a run that teaches lies now, if its folder
            was moved.
        alpha: Share of the teacher in the loss; the references have the rest.
        temperature: What both networks' logits are divided by where they are compared.
        **options: See :class:`SummarizationTask`; ``label_smoothing`` is of the references.

    Raises:
        SmolbenchError: If the settings contradict each other, or there is no such teacher.
    """

    _other_teacher = "a model of the student's vocabulary"

    def __init__(
        self,
        *,
        teacher: str | None = None,
        teacher_backbone: str | None = None,
        alpha: float = 0.5,
        temperature: float = 2.0,
        **options: Any,  # noqa: ANN401 - those of the base class
    ) -> None:
        super().__init__(**options)
        self._learn_from(teacher, teacher_backbone, alpha, temperature)
        self._lecturer: TeacherNetwork | None = None
        self._right: list[torch.Tensor] | None = None  # of the first tokens
        self._references: list[torch.Tensor] = []
        self._agreement: float | None = None
        self._compared = 0
        self._goes_on = False

    @property
    def _kinds(self) -> WritingTeachers:
        return WritingTeachers(self, self._teacher_backbone)

    def _check_teacher(self) -> None:
        self.teacher.check(self, self.data)

    def on_fit_start(self) -> None:
        """Load the teacher, and say what there is to be known about it."""
        super().on_fit_start()
        if self.trainer.is_global_zero and self.teacher.remark is not None:
            warn(self.teacher.remark)
        # before any batch is tried for its size
        self._lecturer = self.teacher.start(self.device)

    def on_train_start(self) -> None:
        """Compare the teacher with the first references, before most is learned from it."""
        super().on_train_start()
        self._goes_on = self.trainer.global_step > 0
        self._right, self._references = ([] if self.alpha > 0 else None), []

    def _compare(self, taught: torch.Tensor, labels: torch.Tensor) -> None:
        """Count where a teacher's likeliest token is the reference's; say so when it is enough."""
        if self._right is None:
            return
        self._right.append(taught.argmax(dim=1) == labels)
        self._references.append(labels)
        if sum(map(len, self._references)) >= _COMPARED:
            # the built-in models know nothing, and are there to try a recipe out
            built_in = self.backbone.name in {TINY, TINY_T5}
            self._say_agreement(refuse=not built_in and not self._goes_on)

    def _say_agreement(self, *, refuse: bool = False) -> None:
        """Say how far the teacher agrees, and refuse or warn of one at chance.

        Raises:
            SmolbenchError: If it is to be refused.
        """
        if not self._right:
            return
        right, references = torch.cat(self._right), torch.cat(self._references)
        self._right = None
        self._agreement = float(right.float().mean())
        self._compared = len(right)
        commonest = float(references.bincount().max() / len(references))
        error = (commonest * (1 - commonest) / len(references)) ** 0.5
        said = (
            f"The teacher {self.teacher.name} agrees with {self._agreement:.4f} of the first "
            f"{len(right):,} tokens of the references"
        )
        chance = f"{said}, hardly more than their commonest token is ({commonest:.4f})"
        if self._agreement <= commonest + _NOTICEABLE * error:
            if refuse:
                raise SmolbenchError(
                    f"{chance}: it has nothing to teach. Take another teacher, such as a run that "
                    "was trained on these summaries, or train without one (SummarizationTask)."
                )
            if self.trainer.is_global_zero:
                warn("%s: it may have nothing to teach.", chance)
        elif self.trainer.is_global_zero:
            log.info("%s.", said)

    def on_train_end(self) -> None:
        """Say how far a teacher agrees of whom little was heard."""
        super().on_train_end()
        self._say_agreement()

    def facts(self) -> dict[str, Any]:
        """Also how far the teacher agrees with the references; see the base class."""
        facts = super().facts()
        if self._agreement is not None:
            facts |= {"teacher/agreement": self._agreement, "teacher/agreement_n": self._compared}
        return facts

    def on_fit_end(self) -> None:
        """Let the teacher go."""
        super().on_fit_end()
        self._lecturer = None

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean over the references' tokens, in nats; see ``distillation_loss``."""
        assert self._lecturer is not None, "on_fit_start has loaded it"
        taught = self._lecturer.logits(batch)
        with self.precision():
            logits = target_logits(self.model, batch)
        # tables may be wider than the vocabulary, and not by the same number of rows
        width = min(logits.shape[1], taught.shape[1])
        labels = batch["labels"][batch["labels"] != IGNORE_LABEL]
        self._compare(taught[:, :width], labels)
        return distillation_loss(
            logits[:, :width],
            taught[:, :width],
            labels,
            self.alpha,
            self.temperature,
            self.label_smoothing,
        )
