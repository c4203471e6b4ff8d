"""Classification metrics over all predictions of a split; no Lightning here.

Definitions are torchmetrics' (and so scikit-learn's); everything is computed once from the gathered
predictions, so neither batches nor ranks can bias a mean.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def classification_metrics(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Quality of predictions.

    Args:
        logits: Scores per class, shape ``(N, C)``, float32.
        labels: True classes, shape ``(N,)``.

    Returns:
        ``accuracy`` with its standard error ``accuracy_stderr`` (``sqrt(p (1 - p) / (n - 1))``),
        ``f1_macro``, ``precision_macro``, ``recall_macro``, ``loss`` (mean cross-entropy, nats)
        and ``n``; for two classes also ``precision``, ``recall``, ``specificity``, ``f1`` of
        class 1, and ``auroc`` where both classes occur.
    """
    from torchmetrics.functional import classification as tm  # lazy: import cost

    classes = logits.shape[1]
    predictions = logits.argmax(dim=1)
    accuracy = (predictions == labels).double().mean().item()
    n = len(labels)
    metrics = {
        "accuracy": accuracy,
        "accuracy_stderr": math.sqrt(accuracy * (1 - accuracy) / (n - 1)) if n > 1 else math.nan,
        "loss": F.cross_entropy(logits.double(), labels).item(),
        "n": float(n),
    }
    for name, function in (
        ("f1_macro", tm.multiclass_f1_score),
        ("precision_macro", tm.multiclass_precision),
        ("recall_macro", tm.multiclass_recall),
    ):
        metrics[name] = function(predictions, labels, num_classes=classes, average="macro").item()
    if classes == 2:
        metrics["precision"] = tm.binary_precision(predictions, labels).item()
        metrics["recall"] = tm.binary_recall(predictions, labels).item()
        metrics["specificity"] = tm.binary_specificity(predictions, labels).item()
        metrics["f1"] = tm.binary_f1_score(predictions, labels).item()
        if 0 < labels.sum() < n:
            # the difference orders examples as the probability does, without its rounding to 0 or 1
            margin = (logits[:, 1] - logits[:, 0]).double()
            ranks = torch.unique(margin, return_inverse=True)[1].double() / n
            metrics["auroc"] = tm.binary_auroc(ranks, labels).item()
    return metrics
