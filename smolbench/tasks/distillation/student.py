"""What students share that learn from labels and from a trained teacher's logits."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F

from smolbench.errors import SmolbenchError
from smolbench.models.pretrained.backbone import TINY, TINY_T5
from smolbench.tasks.base import BaseTask, saved_signature
from smolbench.tasks.distillation.find_teacher import TeacherKinds, find_teacher
from smolbench.tasks.distillation.teacher import Teacher
from smolbench.utils.ranks import TrainerRanks

T = TypeVar("T", bound=Teacher)


class TaughtTask(BaseTask, Generic[T]):
    """A task whose loss is :func:`distillation_loss`, in front of the task that its student is of.

    The teacher is looked for by its name, once; a resumed training goes on with the one that it
    began with. It is no part of the module, so that no checkpoint holds it and no strategy spreads
    it over processes.
    """

    backbone: Any

    def _learn_from(
        self, teacher: str | None, teacher_backbone: str | None, alpha: float, temperature: float
    ) -> None:
        """Take the settings; to be called by ``__init__``.

        Raises:
            SmolbenchError: If one is missing or out of range.
        """
        if not teacher:
            raise SmolbenchError(
                "model.teacher is missing: name the folder of a finished run, a checkpoint in it, "
                f"a recipe that was run, or {self._other_teacher}."
            )
        if not 0 <= alpha <= 1 or not 0 < temperature < math.inf:
            raise SmolbenchError(
                "model.alpha must be in [0, 1] and model.temperature positive; given are "
                f"{alpha} and {temperature}."
            )
        self.alpha = alpha
        self.temperature = temperature
        self._named_teacher = teacher
        self._teacher_backbone = teacher_backbone
        self._teacher: T | None = None
        self._learned_from: str | None = None  # the identity that a checkpoint tells

    # -- what a student says ----------------------------------------------------------------------

    _other_teacher: str
    """Which models serve as a teacher that no run has trained."""

    @property
    @abstractmethod
    def _kinds(self) -> TeacherKinds[T]:
        """Which teachers there are for this student."""

    @abstractmethod
    def _check_teacher(self) -> None:
        """Refuse a teacher that does not go with the student or the data.

        Raises:
            SmolbenchError: Saying what differs.
        """

    # -- the teacher ------------------------------------------------------------------------------

    @property
    def teacher(self) -> T:
        """Who is learned from; of a recipe's runs, the one that a resumed training began with.

        Raises:
            SmolbenchError: If there is no such teacher.
        """
        if self._teacher is None:
            self._teacher = teacher = find_teacher(
                self._named_teacher,
                self._kinds,
                runs_dir=self.runs_dir,
                tiny_student=self.backbone.name in {TINY, TINY_T5},
                identity=self._learned_from,
            )
            if self._teacher_backbone and self._teacher.facts()["teacher/run"] is None:
                raise SmolbenchError(
                    f"model.teacher_backbone is for a teacher that is a run, and {teacher.name} is "
                    "none: leave it out."
                )
        return self._teacher

    def check_inputs(self) -> None:
        """Find the teacher; see the base class."""
        super().check_inputs()
        self.teacher.check_inputs()

    @property
    def _trains(self) -> bool:
        return self._trainer is not None and self._trainer.state.fn == "fit"

    def setup(self, stage: str) -> None:
        """Check the teacher against further data, too; see the base class."""
        super().setup(stage)
        if self._trains and self._built:
            self._check_teacher()

    def build_model(self) -> None:
        """Check the teacher, then build the student."""
        if self._trains:
            self._check_teacher()
            # a recipe's newest run may become another one while the processes look for it
            if len(set(TrainerRanks(self.trainer).gather(self.teacher.identity))) > 1:
                raise SmolbenchError(
                    "The processes of this job have found different teachers, because a run has "
                    "just finished: name one run's folder in model.teacher."
                )
        super().build_model()

    # -- what results and checkpoints say ---------------------------------------------------------

    def signature(self) -> dict[str, Any]:
        """The student's, and whom it learned from; see the base class."""
        # a trained student is scored without its teacher, which may be gone
        identity = None if self._trains else self._learned_from
        student = super().signature()  # type: ignore[safe-super] # the task behind this class
        return {
            **student,
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
            self._check_teacher()
        super().on_load_checkpoint(checkpoint)

    def facts(self) -> dict[str, Any]:
        """Also the teacher; see the base class."""
        facts = {**super().facts(), "method": f"distill_{self.method}"}
        if self._teacher is not None:
            facts |= {**self._teacher.facts(), "teacher/digest": self._teacher.identity}
        return facts


def distillation_loss(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    alpha: float,
    temperature: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """``alpha T^2 KL(softmax(z_t / T) || softmax(z_s / T)) + (1 - alpha) CE(y, z_s)``.

    Hinton et al. (2015, arXiv 1503.02531, section 2): with the factor ``T^2`` the gradients of both
    parts keep their relative size whatever the temperature. Both parts are means over the ``N``
    decisions: examples that are classified, or tokens of summaries.

    Args:
        logits: The student's, ``z_s``, shape ``(N, C)``; of tokens ``C`` is the vocabulary.
        teacher_logits: The teacher's, ``z_t``, shape ``(N, C)``.
        labels: Classes ``y``, shape ``(N,)``.
        alpha: Share of the teacher.
        temperature: ``T``.
        label_smoothing: Share of each label that is spread evenly over the classes.

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
        hard = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        return alpha * temperature**2 * soft + (1 - alpha) * hard
