"""Distillation: a student learns from the labels and from a trained teacher's logits."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from smolbench.data.batching import ArrayRows, JoinedRows, Rows
from smolbench.data.classification import TextDataModule
from smolbench.data.token_cache import TokenTable
from smolbench.errors import SmolbenchError
from smolbench.models.backbone import TINY
from smolbench.models.output_files import CachedOutputs
from smolbench.ranks import TrainerRanks
from smolbench.tasks.classification import Batch
from smolbench.tasks.find_teacher import find_teacher
from smolbench.tasks.fine_tune import FineTuneTask
from smolbench.tasks.task import saved_signature
from smolbench.tasks.teacher import Teacher, teacher_logits
from smolbench.tasks.teacher_kinds import Reading

log = logging.getLogger("smolbench")


class DistillationTask(FineTuneTask):
    """Fine-tune a student, by any method, on labels and on a teacher's logits.

    As Hinton et al. (2015, arXiv 1503.02531), see :func:`distillation_loss`. The teacher reads the
    training texts once, with its own tokenizer and template; its logits are kept on disk and reused
    over epochs, students and runs. It is no part of this module: no checkpoint holds it, and it is
    let go before the training starts. Validation and test are the student's alone.

    Args:
        teacher: Who is learned from: the folder of a finished run of :class:`ProbeTask`,
            :class:`FineTuneTask` or this task, a checkpoint in it, a recipe (its newest finished
            run is meant), the id or folder of a model with a trained classification head, or
            ``tiny`` for the built-in model with a head fitted to the training rows. With the
            backbone ``tiny`` a shipped recipe means its run with ``--config tiny``, and where there
            is none the built-in teacher.
        alpha: Share of the teacher in the loss; the labels have the rest.
        temperature: What both networks' logits are divided by where they are compared.
        **options: See :class:`FineTuneTask`.

    Raises:
        SmolbenchError: If the settings contradict each other, or there is no such teacher.
    """

    def __init__(
        self,
        *,
        teacher: str | None = None,
        alpha: float = 0.5,
        temperature: float = 2.0,
        **options: Any,  # noqa: ANN401 - those of the base class
    ) -> None:
        super().__init__(**options)
        if not teacher:
            raise SmolbenchError(
                "model.teacher is missing: name the folder of a finished run, a checkpoint in it, "
                "a recipe that was run, or a model with a trained classification head."
            )
        if not 0 <= alpha <= 1 or not 0 < temperature < math.inf:
            raise SmolbenchError(
                "model.alpha must be in [0, 1] and model.temperature positive; given are "
                f"{alpha} and {temperature}."
            )
        self.alpha = alpha
        self.temperature = temperature
        self._named_teacher = teacher
        self._teacher: Teacher | None = None
        self._learned_from: str | None = None  # the identity that a checkpoint tells
        self._lesson: CachedOutputs | None = None

    # -- the teacher ------------------------------------------------------------------------------

    @property
    def teacher(self) -> Teacher:
        """Who is learned from; of a recipe's runs, the one that a resumed training began with.

        Raises:
            SmolbenchError: If there is no such teacher.
        """
        if self._teacher is None:
            self._teacher = find_teacher(
                self._named_teacher,
                runs_dir=self.runs_dir,
                reading=Reading(self._max_length, self._truncation_side, self.backbone.dtype_name),
                tiny_student=self.backbone.name == TINY,
                identity=self._learned_from,
            )
        return self._teacher

    def check_inputs(self) -> None:
        """Find the teacher; see the base class."""
        _ = self.teacher

    @property
    def _trains(self) -> bool:
        return self._trainer is not None and self._trainer.state.fn == "fit"

    @property
    def _data(self) -> TextDataModule:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, TextDataModule):
            raise SmolbenchError(
                "DistillationTask learns from a smolbench DataModule, whose texts its teacher "
                "reads too: give one to Trainer.fit."
            )
        return data

    def build_model(self) -> None:
        """Check the teacher against the data, then build the student."""
        if self._trains:
            self.teacher.check(self.label_names, self._data)
            # a recipe's newest run may become another one while the processes look for it
            if (
                self._trainer
                and len(set(TrainerRanks(self.trainer).gather(self.teacher.identity))) > 1
            ):
                raise SmolbenchError(
                    "The processes of this job have found different teachers, because a run has "
                    "just finished: name one run's folder in model.teacher."
                )
        super().build_model()

    def on_fit_start(self) -> None:
        """Say also what there is to be known about the teacher."""
        super().on_fit_start()
        if self.trainer.is_global_zero and self.teacher.remark is not None:
            log.warning("%s", self.teacher.remark)

    def rows(self, split: str, table: TokenTable, labels: np.ndarray | None) -> Rows:
        """The student's rows; those of the training with ``teacher_logits``, shape ``(B, C)``."""
        rows = super().rows(split, table, labels)
        if split != "train":
            return rows
        self._lesson = teacher_logits(
            self.teacher, self._data, self.label_names, self.device, TrainerRanks(self.trainer)
        )
        return JoinedRows(rows, ArrayRows({"teacher_logits": self._lesson.outputs}))

    def loss(self, batch: Batch) -> torch.Tensor:
        """Loss of a batch, in nats; see :func:`distillation_loss`."""
        return distillation_loss(
            self(batch), batch["teacher_logits"], batch["labels"], self.alpha, self.temperature
        )

    # -- what results and checkpoints say ---------------------------------------------------------

    def signature(self) -> dict[str, Any]:
        """The student's, and whom it learned from; see the base class."""
        # a trained student is scored without its teacher, which may be gone
        identity = None if self._trains else self._learned_from
        return {
            **super().signature(),
            "teacher": self._named_teacher,
            "teacher_digest": identity or self.teacher.identity,
            "alpha": self.alpha,
            "temperature": self.temperature,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the teacher that the training began with; see the base class."""
        saved = saved_signature(checkpoint, type(self).__name__)
        self._learned_from = saved.get("teacher_digest")
        if self._trains and self.teacher.identity != self._learned_from:
            self._teacher = None  # a newer run of the recipe
            self.teacher.check(self.label_names, self._data)
        super().on_load_checkpoint(checkpoint)

    def facts(self) -> dict[str, Any]:
        """Also the teacher, and what its logits cost; see the base class."""
        facts = {**super().facts(), "method": f"distill_{self.method}"}
        if self._teacher is not None:
            facts |= self._teacher.facts()
        if self._lesson is not None:
            facts["cost/cache_s"] = facts.get("cost/cache_s", 0.0) + self._lesson.seconds
            reused = facts.get("cost/cache_reused", True)
            facts["cost/cache_reused"] = bool(reused) and self._lesson.reused
        return facts


def distillation_loss(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    alpha: float,
    temperature: float,
) -> torch.Tensor:
    """``alpha T^2 KL(softmax(z_t / T) || softmax(z_s / T)) + (1 - alpha) CE(y, z_s)``.

    Hinton et al. (2015, arXiv 1503.02531, section 2): with the factor ``T^2`` the gradients of both
    parts keep their relative size whatever the temperature. Both parts are means over the examples.

    Args:
        logits: The student's, ``z_s``, shape ``(B, C)``.
        teacher_logits: The teacher's, ``z_t``, shape ``(B, C)``.
        labels: Classes ``y``, shape ``(B,)``.
        alpha: Share of the teacher.
        temperature: ``T``.

    Returns:
        A scalar, in nats, computed in float32.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        soft = F.kl_div(
            F.log_softmax(logits / temperature, dim=1),
            F.log_softmax(teacher_logits.float() / temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        hard = F.cross_entropy(logits, labels)
        return alpha * temperature**2 * soft + (1 - alpha) * hard
