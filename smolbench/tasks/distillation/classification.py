"""Distillation: a student learns from the labels and from a trained teacher's logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from smolbench.data.batching import ArrayRows, JoinedRows, Rows
from smolbench.data.classification import TextDataModule
from smolbench.data.token_cache import TokenTable
from smolbench.errors import SmolbenchError
from smolbench.models.frozen.entry import CachedOutputs, peak_costs
from smolbench.tasks.classification import Batch
from smolbench.tasks.distillation.agreement import Agreement, agreement, require_agreement
from smolbench.tasks.distillation.classifying_teachers import ClassifyingTeachers, Reading
from smolbench.tasks.distillation.student import TaughtTask, distillation_loss
from smolbench.tasks.distillation.teacher import ClassifyingTeacher, teacher_logits
from smolbench.tasks.fine_tune import FineTuneTask
from smolbench.utils.notices import warn
from smolbench.utils.ranks import TrainerRanks


class DistillationTask(TaughtTask[ClassifyingTeacher], FineTuneTask):
    """Fine-tune a student, by any method, on labels and on a teacher's logits.

    As Hinton et al. (2015, arXiv 1503.02531), see
    :func:`~smolbench.tasks.distillation.student.distillation_loss`. The teacher reads the training
    texts once, with its own tokenizer and template; its logits are kept on disk and reused over
    epochs, students and runs. It is no part of this module: no checkpoint holds it, and it is let
    go before the training starts. Validation and test are the student's alone. Summaries are
    distilled by :class:`~smolbench.tasks.distillation.summarization.SummaryDistillationTask`.

    Args:
        teacher: Who is learned from: the folder of a finished run of :class:`ProbeTask`,
            :class:`FineTuneTask` or this task, a checkpoint in it, a recipe (its newest finished
            run is meant), the id or folder of a model with a trained classification head, or
            ``tiny`` for the built-in model with a head fitted to the training rows. With the
            backbone ``tiny`` a shipped recipe means its run with ``--config tiny``, and where there
            is none the built-in teacher.
        teacher_backbone: Where the pretrained network of a run that teaches lies now, if its folder
            was moved.
        teacher_labels: The data's class that each of the teacher's outputs means, from the first
            on, where its own names do not say so, or say it otherwise.
        alpha: Share of the teacher in the loss; the labels have the rest.
        temperature: What both networks' logits are divided by where they are compared.
        **options: See :class:`FineTuneTask`.

    Raises:
        SmolbenchError: If the settings contradict each other, or there is no such teacher.
    """

    _other_teacher = "a model with a trained classification head"

    def __init__(
        self,
        *,
        teacher: str | None = None,
        teacher_backbone: str | None = None,
        teacher_labels: list[str] | None = None,
        alpha: float = 0.5,
        temperature: float = 2.0,
        **options: Any,  # noqa: ANN401 - those of the base class
    ) -> None:
        super().__init__(**options)
        self._learn_from(teacher, teacher_backbone, alpha, temperature)
        self.teacher_labels = teacher_labels
        self._lesson: CachedOutputs | None = None
        self._agreement: Agreement | None = None

    # -- the teacher ------------------------------------------------------------------------------

    @property
    def _kinds(self) -> ClassifyingTeachers:
        return ClassifyingTeachers(
            Reading(self._max_length, self._truncation_side, self.backbone.dtype_name),
            self._teacher_backbone,
        )

    def _check_teacher(self) -> None:
        given = self.teacher_labels
        if given is not None and sorted(given) != sorted(self.label_names):
            raise SmolbenchError(
                f"model.teacher_labels is {', '.join(given) or 'empty'}, but must name each of the "
                f"data's classes once: {', '.join(self.label_names)}."
            )
        self.teacher.check(self.label_names, self._texts, mapped=given is not None)

    @property
    def _texts(self) -> TextDataModule:
        data = self.any_data
        if not isinstance(data, TextDataModule):
            raise SmolbenchError(
                "DistillationTask learns from a smolbench DataModule, whose texts its teacher "
                "reads too: give one to Trainer.fit."
            )
        return data

    def on_fit_start(self) -> None:
        """Say also what there is to be known about the teacher."""
        super().on_fit_start()
        if self.trainer.is_global_zero and self.teacher.remark is not None:
            warn(self.teacher.remark)

    def rows(self, split: str, table: TokenTable, labels: np.ndarray | None) -> Rows:
        """The student's rows; those of the training with ``teacher_logits``, shape ``(B, C)``."""
        rows = super().rows(split, table, labels)
        if split != "train":
            return rows
        self._lesson = teacher_logits(
            self.teacher,
            self._texts,
            self.label_names,
            self.device,
            TrainerRanks(self.trainer),
            self.rehearsal,
        )
        logits = self._lesson.outputs
        if self.teacher_labels is not None:
            logits = logits[:, [self.teacher_labels.index(name) for name in self.label_names]]
        if self.alpha > 0 and self.rehearsal is None and labels is not None:
            self._agreement = agreement(logits, labels)
            require_agreement(
                self._agreement, self.teacher.name, self.label_names, self.teacher_labels
            )
        return JoinedRows(rows, ArrayRows({"teacher_logits": logits}))

    def loss(self, batch: Batch) -> torch.Tensor:
        """Loss in nats; see :func:`~smolbench.tasks.distillation.student.distillation_loss`."""
        return distillation_loss(
            self(batch), batch["teacher_logits"], batch["labels"], self.alpha, self.temperature
        )

    # -- what results say -------------------------------------------------------------------------

    def signature(self) -> dict[str, Any]:
        """Also what the teacher's outputs were taken for; see the base class."""
        return {**super().signature(), "teacher_labels": self.teacher_labels}

    def facts(self) -> dict[str, Any]:
        """Also what the teacher's logits cost, and are worth; see the base class."""
        facts = super().facts()
        if self._agreement is not None:
            facts |= {
                "teacher/agreement": self._agreement.share,
                "teacher/agreement_n": self._agreement.n,
            }
        if self._lesson is not None:
            facts["cost/cache_s"] = facts.get("cost/cache_s", 0.0) + self._lesson.seconds
            reused = facts.get("cost/cache_reused", True)
            facts["cost/cache_reused"] = bool(reused) and self._lesson.reused
            lesson = peak_costs([self._lesson], "fit")
            facts |= {key: max(mib, facts.get(key, 0.0)) for key, mib in lesson.items()}
        return facts
