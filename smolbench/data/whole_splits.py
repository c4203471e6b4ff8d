"""No part of a split by batches: those go by length, so that the first of them are no sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smolbench.errors import SmolbenchError

_OF_STAGE = {
    "fit": ("limit_train_batches", "limit_val_batches", "overfit_batches"),
    "validate": ("limit_val_batches",),
    "test": ("limit_test_batches",),
    "predict": ("limit_predict_batches",),
}
_INSTEAD = {
    "limit_train_batches": "data.limit_train, a number of rows,",
    "limit_val_batches": "data.limit_val, a number of rows (data.val_fraction 0 for none),",
    "limit_test_batches": "data.limit_test, a number of rows,",
    "limit_predict_batches": "fewer texts,",
    "overfit_batches": "data.limit_train and data.limit_val, numbers of rows,",
}


def refuse_batch_limits(stage: str, options: Mapping[str, Any]) -> None:
    """Refuse a Trainer that stops within a split: what is counted and scored is all of it.

    Evaluation goes from the longest texts to the shortest, and results name the rows of a split and
    their number; ``data.limit_*`` draws a seeded sample, which they name as well.

    Args:
        stage: ``fit``, ``validate``, ``test`` or ``predict``.
        options: Of the Trainer, by name. With ``fast_dev_run`` nothing is refused.

    Raises:
        SmolbenchError: Naming the option of the data that takes a part.
    """
    if options.get("fast_dev_run"):
        return
    for name in _OF_STAGE[stage]:
        limit = options.get(name)
        unlimited = limit in (None, 0) if name == "overfit_batches" else _is_whole(limit)
        if not unlimited:
            raise SmolbenchError(
                f"trainer.{name} is {limit}, but batches go by the length of their texts, so that "
                f"a part of them is no sample of the split: give {_INSTEAD[name]} instead."
            )


def _is_whole(limit: float | None) -> bool:
    return limit is None or (isinstance(limit, float) and limit == 1.0)  # 1 is a single batch
