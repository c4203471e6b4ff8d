"""Classification metrics over all predictions of a split; no Lightning here.

Definitions are torchmetrics' (and so scikit-learn's); everything is computed once from the gathered
predictions, so neither batches nor ranks can bias a mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from smolbench.metrics.uncertainty import (
    auroc_stderr,
    calibration_stderr,
    confusion_stderrs,
    mean_over_seeds,
    mean_stderr,
)

LEAST_PROBABILITY = 1e-9
"""What a probability of 0 counts as in the loss, which would be infinite: forests are certain."""
CALIBRATION_BINS = 15
"""Equal bins of confidence, as Guo et al. (2017) use."""
MAX_CONFUSION_CLASSES = 100
"""With more classes the confusion matrix is left out: it would be longer than all other results."""


def validation_metrics(
    logits: torch.Tensor, labels: torch.Tensor, positive: int | None = None
) -> dict[str, float]:
    """What is worth its time after every epoch.

    Args:
        logits: Scores per class, shape ``(N, C)``, float32; minus infinity is a probability of 0.
        labels: True classes, shape ``(N,)``.
        positive: The class that ``f1`` is of; without, there is none.

    Returns:
        ``accuracy`` with its standard error ``accuracy_stderr`` (``sqrt(p (1 - p) / (n - 1))``, as
        lm-eval), ``f1_macro``, perhaps ``f1``, ``loss`` (mean cross-entropy, nats) and ``n``.
    """
    from torchmetrics.functional import classification as tm  # lazy: import cost

    predictions, n = logits.argmax(dim=1), len(labels)
    accuracy = (predictions == labels).double().mean().item()
    f1 = tm.multiclass_f1_score(predictions, labels, num_classes=logits.shape[1], average="macro")
    of_class = {}
    if positive is not None:
        cells = confusion_matrix(predictions, labels, logits.shape[1])
        of_class = {"f1": scores_of_class(cells, positive)["f1"]}
    return {
        **of_class,
        "accuracy": accuracy,
        "accuracy_stderr": math.sqrt(accuracy * (1 - accuracy) / (n - 1)) if n > 1 else math.nan,
        "f1_macro": f1.item(),
        "loss": _losses(logits.double(), labels).mean().item(),
        "n": float(n),
    }


def classification_metrics(
    logits: torch.Tensor | Sequence[torch.Tensor],
    labels: torch.Tensor,
    positive: int | None = None,
    *,
    probabilistic: bool = True,
    decimals: int | None = None,
) -> dict[str, float]:
    """Quality of predictions, with standard errors.

    Each metric but ``n`` has a ``<metric>_stderr``; :mod:`smolbench.metrics.uncertainty` says how
    it is found. What the rows leave undefined (the recall of a class that none is of, the
    specificity of one that all are of) is ``nan``, what the predictions do (the precision of a
    class that is never predicted) is 0; averages over classes are scikit-learn's.

    Args:
        logits: Scores per class, shape ``(N, C)``, float32. Several are draws of the same rows
            (under other examples in a prompt): metrics are means over them, with ``<metric>_std``.
        labels: True classes, shape ``(N,)``.
        positive: The class that ``precision``, ``recall``, ``specificity`` and ``f1`` without an
            ending are of; without, there are none.
        probabilistic: Whether the scores are log-probabilities, up to what all classes of a row
            have in common. If not, such as the margins of a support vector machine, rows are
            ordered by the scores themselves.
        decimals: Of the log-odds that order rows, where equal probabilities have come through
            logarithms in float32 and are not quite equal any more.

    Returns:
        Those of :func:`validation_metrics`; ``precision``, ``recall``, ``specificity`` (recall of
        the rows that are not of a class), ``f1`` with the endings ``_macro`` and ``_weighted``,
        and perhaps all four of one class; ``auroc`` (of either class, or with more the mean
        of one versus rest; ``nan`` unless all classes occur); ``ece``, the expected calibration
        error of the most probable class in 15 bins; ``brier``, as scikit-learn's
        ``brier_score_loss``: of either class, or with more summed over them.
    """
    draws = [logits] if isinstance(logits, torch.Tensor) else logits
    each = [_of_draw(one, labels, positive, probabilistic, decimals) for one in draws]
    metrics = mean_over_seeds([found for found, _ in each])
    rows = [of_rows for _, of_rows in each]
    predictions = np.stack([one.predictions.numpy() for one in rows])
    right = predictions == labels.numpy()
    errors = {
        "accuracy": mean_stderr(right.mean(axis=0)),
        **confusion_stderrs(predictions, labels.numpy(), draws[0].shape[1], positive),
        "loss": mean_stderr(np.mean([one.losses.numpy() for one in rows], axis=0)),
        "brier": mean_stderr(np.mean([one.brier.numpy() for one in rows], axis=0)),
        "ece": calibration_stderr(
            np.stack([one.confidence.numpy() for one in rows]), right, CALIBRATION_BINS
        ),
        "auroc": math.nan,
    }
    if not math.isnan(metrics["auroc"]):
        errors["auroc"] = auroc_stderr([curve for one in rows for curve in one.curves])
    return metrics | {
        f"{name}_stderr": math.nan if math.isnan(metrics[name]) else error
        for name, error in errors.items()
        if name in metrics
    }


class _Rows(NamedTuple):
    """What standard errors are made of, shapes ``(N,)``."""

    predictions: torch.Tensor
    losses: torch.Tensor
    brier: torch.Tensor
    confidence: torch.Tensor
    curves: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]


def _of_draw(
    logits: torch.Tensor,
    labels: torch.Tensor,
    positive: int | None,
    probabilistic: bool,
    decimals: int | None,
) -> tuple[dict[str, float], _Rows]:
    """Metrics of a single draw; see :func:`classification_metrics`."""
    from torchmetrics.functional import classification as tm  # lazy: import cost

    classes, n = logits.shape[1], len(labels)
    wide = logits.double()
    predictions, probabilities = wide.argmax(dim=1), wide.softmax(dim=1)
    metrics = validation_metrics(logits, labels)
    del metrics["accuracy_stderr"]
    for average in ("macro", "weighted"):
        for name, function in (
            ("precision", tm.multiclass_precision),
            ("recall", tm.multiclass_recall),
            ("specificity", tm.multiclass_specificity),
            ("f1", tm.multiclass_f1_score),
        ):
            value = function(predictions, labels, num_classes=classes, average=average)
            metrics[f"{name}_{average}"] = value.item()
    if (labels == labels[0]).all():  # no row is of another class than this one
        metrics |= {f"specificity_{average}": math.nan for average in ("macro", "weighted")}
    cells = confusion_matrix(predictions, labels, classes)
    if positive is not None:
        metrics |= scores_of_class(cells, positive)

    squares = (probabilities - F.one_hot(labels, classes)).square()
    brier_of_row = squares[:, 1] if classes == 2 else squares.sum(dim=1)
    metrics["brier"] = brier_of_row.mean().item()
    confidence = probabilities.max(dim=1).values
    metrics["ece"] = tm.multiclass_calibration_error(
        probabilities, labels, num_classes=classes, n_bins=CALIBRATION_BINS, norm="l1"
    ).item()

    metrics["auroc"] = math.nan
    curves = []
    if labels.bincount(minlength=classes).min() > 0:  # of a class without rows there is none
        of = [1] if classes == 2 else list(range(classes))
        # ranks order rows as the scores do, within the 0 to 1 that torchmetrics expects
        ordered = _log_odds(wide) if probabilistic else wide
        if decimals is not None:
            ordered = ordered.round(decimals=decimals)
        columns = ordered[:, of].numpy().T
        ranks = [torch.from_numpy(np.unique(odds, return_inverse=True)[1]) for odds in columns]
        truths = [(labels == k).long() for k in of]
        pairs = list(zip(ranks, truths, strict=True))
        each = [tm.binary_auroc(rank.double() / n, truth).item() for rank, truth in pairs]
        metrics["auroc"] = sum(each) / len(each)
        curves = [(rank.numpy(), truth.bool().numpy()) for rank, truth in pairs]
    return metrics, _Rows(predictions, _losses(wide, labels), brier_of_row, confidence, curves)


def classification_tables(
    predictions: torch.Tensor, labels: torch.Tensor, label_names: list[str]
) -> dict[str, list[Any]]:
    """What a report shows class by class.

    Args:
        predictions: Predicted classes, shape ``(N,)``, or of several draws, shape ``(S, N)``.
        labels: True classes, shape ``(N,)``.
        label_names: Names of the ``C`` classes.

    Returns:
        ``labels`` (the names); ``class_precision``, ``class_recall``, ``class_f1``, ``class_n``
        (rows of the class) and ``predicted_share`` (share of the rows that were given the class),
        with one value per class, of several draws their mean; and, for up to 100 classes,
        ``confusion``: a row per true class with the number of its rows per predicted class, of all
        draws together.
    """
    from torchmetrics.functional import classification as tm  # lazy: import cost

    classes = len(label_names)
    draws = predictions.reshape(-1, len(labels))

    def each(metric: Callable[..., torch.Tensor]) -> list[float]:
        of = [metric(one, labels, num_classes=classes, average="none") for one in draws]
        # float32 as it is written: 0.52, not 0.5199999809265137
        return [float(str(np.float32(value))) for value in torch.stack(of).mean(dim=0)]

    tables: dict[str, list[Any]] = {
        "labels": list(label_names),
        "class_precision": each(tm.multiclass_precision),
        "class_recall": each(tm.multiclass_recall),
        "class_f1": each(tm.multiclass_f1_score),
        "class_n": labels.bincount(minlength=classes).tolist(),
        "predicted_share": (
            draws.flatten().bincount(minlength=classes).double() / draws.numel()
        ).tolist(),
    }
    if classes <= MAX_CONFUSION_CLASSES:
        cells = sum(confusion_matrix(one, labels, classes) for one in draws)
        tables["confusion"] = np.asarray(cells).tolist()
    return tables


def confusion_matrix(
    predictions: torch.Tensor, labels: torch.Tensor, classes: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Rows per true class (first axis) and predicted class (second), shape ``(C, C)``."""
    from torchmetrics.functional import classification as tm  # lazy: import cost

    cells: torch.Tensor = tm.multiclass_confusion_matrix(predictions, labels, num_classes=classes)
    return cells.numpy()


def scores_of_class(cells: np.ndarray[Any, np.dtype[np.int64]], positive: int) -> dict[str, float]:
    """``precision``, ``recall``, ``specificity`` and ``f1`` of a class, against all others.

    Args:
        cells: From :func:`confusion_matrix`.
        positive: The class.
    """
    right, called = int(cells[positive, positive]), int(cells[:, positive].sum())
    of, n = int(cells[positive].sum()), int(cells.sum())
    return {
        "precision": right / called if called else 0.0,
        "recall": right / of if of else math.nan,
        "specificity": (n - of - called + right) / (n - of) if n > of else math.nan,
        "f1": 2 * right / (of + called) if of else math.nan,
    }


def _losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each row, nats, shape ``(N,)``; finite also where a probability is 0."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    return torch.where(losses.isposinf(), -math.log(LEAST_PROBABILITY), losses)


def _log_odds(logits: torch.Tensor) -> torch.Tensor:
    """Log-odds of each class against the rest, shape ``(N, C)``.

    They order rows as the probabilities do, without rounding to 0 or 1.
    """
    if logits.shape[1] == 2:
        margin = logits[:, 1] - logits[:, 0]
        return torch.stack([-margin, margin], dim=1)
    log_p = logits.log_softmax(dim=1)
    odds = log_p - torch.log1p(-log_p.exp().clamp(max=0.5))
    top = logits.argmax(dim=1, keepdim=True)  # only this class can have more than half
    rest = logits.scatter(1, top, -math.inf).logsumexp(dim=1, keepdim=True)
    return odds.scatter(1, top, logits.gather(1, top) - rest)
