"""Distillation as it is usually done, the teacher running in every step: for distillation.py."""

from __future__ import annotations

import numpy as np
import torch

from smolbench.data.batching import Rows
from smolbench.data.token_cache import TokenTable
from smolbench.tasks import DistillationTask, FineTuneTask
from smolbench.tasks.classification import Batch, ClassificationTask
from smolbench.tasks.distillation.student import distillation_loss


class TeacherInTheLoop(DistillationTask):
    """The same student and loss, but the teacher labels each batch when it is trained on.

    Teacher and student must have one tokenizer: both read the same batch.
    """

    _network: list[ClassificationTask] | None = None
    """In a list: the teacher is neither trained nor saved."""

    def rows(self, split: str, table: TokenTable, labels: np.ndarray | None) -> Rows:
        """The student's rows, without logits."""
        return FineTuneTask.rows(self, split, table, labels)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Loss of a batch, in nats."""
        if self._network is None:
            network = self.teacher.build(self.label_names)
            network.configure_model()
            self._network = [network.to(self.device).eval().requires_grad_(False)]
        with torch.no_grad():
            taught = self._network[0](batch)
        return distillation_loss(self(batch), taught, batch["labels"], self.alpha, self.temperature)
