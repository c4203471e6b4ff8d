"""Says which batch did not fit into memory."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class BatchWatch(Callback):
    """Remember the batch that is being worked on, for the message when memory runs out."""

    def __init__(self) -> None:
        self._batch: str | None = None

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ANN401 - as Lightning types it
        batch_idx: int,
    ) -> None:
        """Look at a batch."""
        self._batch = f"a training batch of {_shape(batch)}"

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look at a batch."""
        self._batch = f"a validation batch of {_shape(batch)}"

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look at a batch."""
        self._batch = f"a test batch of {_shape(batch)}"

    def sentence(self, error: BaseException) -> str | None:
        """What to say of an error; ``None`` if memory has not run out."""
        if not is_out_of_memory(error):
            return None
        advice = (
            "try a smaller data.batch_size with trainer.accumulate_grad_batches raised by as much, "
            "data.batch_size auto, a smaller data.eval_batch_size or a shorter model.max_length."
        )
        if self._batch is None:
            self._batch = "the model, or a batch of the frozen network"
            advice = f"lower model.pass_tokens where the model has it, or {advice}"
        reason = " ".join(str(error).split())[:200]
        return f"Out of memory with {self._batch}: {advice} ({reason})"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # the CPU's and MPS's allocators have no type of error of their own
    failed = ("can't allocate memory", "not enough memory", "MPS backend out of memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in failed)


def _shape(batch: Any) -> str:  # noqa: ANN401 - whatever a loader yields
    tensors = [v for v in batch.values() if torch.is_tensor(v)] if isinstance(batch, dict) else []
    if not tensors:
        return "unknown size"
    ids = batch.get("input_ids")
    rows = f"{len(tensors[0])} rows"
    return f"{rows} of up to {ids.shape[1]} tokens" if torch.is_tensor(ids) else rows
