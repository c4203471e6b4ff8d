"""Whether a teacher says what the labels say, before a student learns from both."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from smolbench.errors import SmolbenchError
from smolbench.utils.notices import warn

log = logging.getLogger("smolbench")
_SURE = 3.0
"""Standard errors by which another order of classes must fit better."""
_NOTICEABLE = 2.0
"""Standard errors from which a teacher is taken to know something of the labels."""
_ENOUGH = 100
"""Labels below which chance cannot be told from a weak teacher."""


@dataclass(frozen=True)
class Agreement:
    """How a teacher's answers go with the labels of ``n`` texts.

    Attributes:
        n: Number of labels.
        share: Share of them that are the teacher's likeliest class.
        best: The largest such share in any order of the teacher's classes.
        order: Which of the teacher's outputs is each class in that order, shape ``(C,)``.
        misread: Whether that order fits better than chance explains.
        evidence: By how many standard errors its probabilities go with the labels (their
            covariance, summed over the classes); 0 at chance.
    """

    n: int
    share: float
    best: float
    order: tuple[int, ...]
    misread: bool
    evidence: float


def agreement(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Agreement:
    """Compare a teacher's logits with labels.

    Args:
        logits: Shape ``(N, C)``.
        labels: Classes, shape ``(N,)``.
    """
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped] # lazy: import cost

    n, classes = logits.shape
    said = logits.argmax(axis=1)
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (labels, said), 1)
    # of orders that fit alike, the one that stands
    order = linear_sum_assignment(counts + 0.5 * np.eye(classes), maximize=True)[1]
    moved = order != np.arange(classes)
    gained = int(counts[moved, order[moved]].sum())
    lost = int(counts.diagonal()[moved].sum())
    probabilities = torch.from_numpy(logits.astype(np.float64)).softmax(dim=1).numpy()
    apart = np.eye(classes)[labels] - np.bincount(labels, minlength=classes) / n
    above = ((probabilities - probabilities.mean(axis=0)) * apart).sum(axis=1)
    error = max(above.std(), 1e-6) / n**0.5  # it may be as sure of every text
    return Agreement(
        n,
        float(counts.trace() / n),
        float(counts[np.arange(classes), order].sum() / n),
        tuple(int(column) for column in order),
        gained > 2 * lost and gained - lost > _SURE * (gained + lost) ** 0.5,
        float(above.mean() / error),
    )


def require_agreement(
    found: Agreement, who: str, label_names: Sequence[str], given: Sequence[str] | None
) -> None:
    """Say how a teacher agrees with the labels, and refuse one that says something else.

    Args:
        found: Measured in the order that the student takes the teacher's classes in.
        who: The teacher, to be read behind "The teacher".
        label_names: Names of the ``C`` classes.
        given: The order that ``model.teacher_labels`` gives, if it does.

    Raises:
        SmolbenchError: If another order of its classes fits clearly better; or, with no order
            given, if it knows nothing of the labels.
    """
    said = f"The teacher {who} agrees with {found.share:.4f} of the {found.n:,} training labels"
    columns = list(given or label_names)
    if found.misread:
        better = [""] * len(columns)
        for label, output in enumerate(found.order):
            # an output was read as one class, and goes with another
            better[columns.index(label_names[output])] = label_names[label]
        raise SmolbenchError(
            f"{said}, and with {found.best:.4f} of them in another order of its classes: a student "
            "would learn to mistake one for the other. If its outputs, from the first on, mean "
            f"{', '.join(better)}, say so by {option_of(better)}; if not, take another teacher."
        )
    if found.evidence >= _NOTICEABLE:
        log.info("%s.", said)
        return
    chance = f"{said}, and no more often than chance would"
    if given is not None or found.n < _ENOUGH:
        warn("%s: it may have nothing to teach.", chance)
        return
    raise SmolbenchError(
        f"{chance}: it has nothing to teach. Take another teacher or a text that it reads as it "
        "was trained to; to learn from it all the same, say what its outputs mean, from the first "
        f"on: {option_of(columns)}."
    )


def option_of(labels: Sequence[str]) -> str:
    """How a shell is given what the outputs of a teacher mean."""
    return f"--model.teacher_labels {shlex.quote(json.dumps(list(labels), ensure_ascii=False))}"
