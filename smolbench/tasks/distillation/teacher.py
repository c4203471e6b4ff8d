"""Teachers, and the logits of those that classify, computed in one pass."""

from __future__ import annotations

import gc
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from smolbench import identity
from smolbench.data.classification import TextDataModule
from smolbench.data.token_cache import TokenTable
from smolbench.errors import SmolbenchError
from smolbench.models.frozen.cache import (
    ComputeBlock,
    cached_outputs,
    plan_blocks,
    tokens_at_once,
)
from smolbench.models.frozen.entry import CachedOutputs
from smolbench.models.frozen.rehearsal import PassRehearsal
from smolbench.models.kernels.paths import forward_environment
from smolbench.models.pretrained.backbone import Backbone, OwnCodeError
from smolbench.models.pretrained.precision import native_bfloat16
from smolbench.tasks.classification import ClassificationTask
from smolbench.utils.digest import digest
from smolbench.utils.ranks import Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Teacher(ABC):
    """A trained network whose logits a student learns from.

    Attributes:
        name: What messages call it.
        remark: What there is to be known about it, before a training begins; ``None`` if nothing.
    """

    name: str
    remark: str | None = None

    @cached_property
    @abstractmethod
    def identity(self) -> str:
        """Digest of everything that its logits depend on, beside what it reads."""

    def check_inputs(self) -> None:  # noqa: B027 - most have nothing to refuse
        """Refuse what would stop a training later.

        Raises:
            SmolbenchError: Saying what is wrong.
        """

    def facts(self) -> dict[str, Any]:
        """What results say of the teacher."""
        return {"teacher/id": self.name, "teacher/run": None}


def read_config(backbone: Backbone) -> PreTrainedConfig:
    """The configuration of a model that teaches as it comes.

    Raises:
        SmolbenchError: If it does not exist, cannot be reached or has code of its own.
    """
    try:
        return backbone.config
    except OwnCodeError as error:
        raise SmolbenchError(
            f"The teacher {backbone.name} is a model with Python code of its own, which runs only "
            "for teachers that are runs: train one on it, with --model.trust_remote_code true, and "
            "name that run."
        ) from error


def model_identity(backbone: Backbone) -> str:
    """Digest of a model that teaches as it comes: of its commit, or of its folder's files."""
    named = {} if backbone.is_local else {"model": backbone.name}
    return digest({**named, "revision": backbone.revision, "dtype": backbone.dtype_name})


class ClassifyingTeacher(Teacher):
    """A trained classifier, which is loaded only where its logits are not known yet."""

    @abstractmethod
    def check(
        self, label_names: Sequence[str], data: TextDataModule, *, mapped: bool = False
    ) -> None:
        """Refuse a teacher of other labels or another dataset than the student's.

        Args:
            label_names: Names of the data's classes.
            data: What the student learns from.
            mapped: Whether the user says which class each of its outputs means, so that its own
                names do not count.

        Raises:
            SmolbenchError: Saying what differs.
        """

    @abstractmethod
    def build(self, label_names: Sequence[str]) -> ClassificationTask:
        """A task without weights, which knows how texts become token ids."""

    @abstractmethod
    def fill(self, task: ClassificationTask, table: TokenTable, labels: np.ndarray) -> None:
        """Give a task whose network is loaded the weights that were trained.

        Args:
            task: From :meth:`build`.
            table: The texts that the student learns from.
            labels: Their classes, shape ``(N,)``.
        """


def teacher_logits(
    teacher: ClassifyingTeacher,
    data: TextDataModule,
    label_names: Sequence[str],
    device: torch.device,
    ranks: Ranks,
    rehearsal: PassRehearsal | None = None,
) -> CachedOutputs:
    """Logits of the training texts, from the cache or computed now in one pass.

    The network is loaded only if any of them is missing, and let go afterwards.

    Args:
        teacher: Checked, see :meth:`ClassifyingTeacher.check`.
        data: Its training split is read; texts are encoded as the teacher reads them.
        label_names: Names of the ``C`` classes.
        device: Where the network runs.
        ranks: The job's processes, which share the pass.
        rehearsal: Given where the run is only estimated: a part is read, and nothing kept.

    Returns:
        Float32, shape ``(N, C)``, and what they took.
    """
    reading = teacher.build(label_names)
    table = data.encoded_by(
        "train", reading.encode, reading.encoder_key(), "Encoding train for the teacher"
    )
    reading.check_tokens(table)
    labels = data.split("train").labels
    assert labels is not None, "the training split has labels"
    key = identity.key(
        "cache",
        {
            "teacher_logits": 4,
            "teacher": teacher.identity,
            "forward": forward_environment(),
            "device": device.type,
            "ways": asdict(reading.reading_ways(device)),
            "tokens": table.key,
            "labels": zlib.crc32(labels.tobytes()),  # the built-in teacher is fitted to them
            "bfloat16": native_bfloat16(device),
            "pass_tokens": tokens_at_once(device),
        },
    )

    def start() -> ComputeBlock:
        task = teacher.build(label_names)
        task.to(device)
        task.configure_model()
        teacher.fill(task, table, labels)
        task.to(device).eval()
        read = task.reader(table)

        def compute(rows: np.ndarray) -> dict[str, np.ndarray]:
            with torch.inference_mode():
                return {key: task(read(rows)).float().cpu().numpy()}

        return compute

    description = "The teacher reads train"
    part = None
    if rehearsal is not None:
        part = rehearsal.begin(description, "train", table.ragged["input_ids"].lengths)
    cached = cached_outputs(
        data.cache_dir / "teachers",
        key,
        widths={key: len(label_names)},
        blocks=pass_blocks(table, device),
        start_compute=start,
        description=description,
        device=device,
        ranks=ranks,
        part=part,
    )
    if not cached.reused:
        gc.collect()  # a module and its parts refer to each other
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return cached


def pass_blocks(table: TokenTable, device: torch.device) -> list[np.ndarray]:
    """Row numbers of what a teacher reads at once."""
    return plan_blocks(table.ragged["input_ids"].lengths, tokens_at_once(device))
