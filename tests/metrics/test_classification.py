from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from smolbench.metrics.classification import (
    classification_metrics,
    classification_tables,
    validation_metrics,
)
from smolbench.metrics.uncertainty import calibration_stderr


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def by_sklearn(logits, labels):
    logits, labels = logits.double().numpy(), labels.numpy()
    predictions = logits.argmax(axis=1)
    accuracy, n = sk.accuracy_score(labels, predictions), len(labels)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    macro = {"average": "macro", "zero_division": 0}
    p = np.exp(log_p)
    truth = np.eye(logits.shape[1])[labels]
    expected = {
        "accuracy": accuracy,
        "accuracy_stderr": math.sqrt(accuracy * (1 - accuracy) / (n - 1)) if n > 1 else math.nan,
        "loss": -log_p[np.arange(n), labels].mean(),
        "n": n,
        "f1_macro": sk.f1_score(labels, predictions, **macro),
        "precision_macro": sk.precision_score(labels, predictions, **macro),
        "recall_macro": sk.recall_score(labels, predictions, **macro),
        **specificities(labels, predictions, logits.shape[1]),
        "ece": calibration_error(p, predictions == labels),
        "brier": ((p - truth) ** 2).sum(axis=1).mean(),
        "auroc": math.nan,
    }
    for name in ("precision", "recall", "f1"):
        score = getattr(sk, f"{name}_score")
        expected[f"{name}_weighted"] = score(
            labels, predictions, average="weighted", zero_division=0
        )
    present = set(labels.tolist()) == set(range(logits.shape[1]))
    if logits.shape[1] > 2 and present:
        expected["auroc"] = sk.roc_auc_score(labels, p, multi_class="ovr")
    if logits.shape[1] == 2:
        expected |= {
            "precision": sk.precision_score(labels, predictions, zero_division=0),
            "recall": sk.recall_score(labels, predictions, zero_division=0),
            "specificity": sk.recall_score(labels, predictions, pos_label=0, zero_division=0),
            "f1": sk.f1_score(labels, predictions, zero_division=0),
        }
        expected["brier"] = sk.brier_score_loss(labels, p[:, 1], pos_label=1)
        if present:
            expected["auroc"] = sk.roc_auc_score(labels, logits[:, 1] - logits[:, 0])
    # what the rows leave undefined, where scikit-learn says 0
    if len(set(labels.tolist())) == 1:
        expected |= {"specificity_macro": math.nan, "specificity_weighted": math.nan}
        if logits.shape[1] == 2:
            undefined = ("specificity",) if labels[0] == 1 else ("recall", "f1")
            expected |= dict.fromkeys(undefined, math.nan)
    return expected


def specificities(labels, predictions, classes):
    """Recall of the rows that are not of a class: the mean over classes, and weighted."""
    each = np.array(
        [sk.recall_score(labels != k, predictions != k, zero_division=0) for k in range(classes)]
    )
    known = np.isin(np.arange(classes), np.concatenate([labels, predictions]))
    weights = np.bincount(labels, minlength=classes)
    return {
        "specificity_macro": each[known].mean(),
        "specificity_weighted": np.average(each, weights=weights),
    }


def calibration_error(p, right, bins=15):
    confidence = p.max(axis=1)
    edges = np.linspace(0, 1, bins + 1)
    found = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            found += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return found


def check(logits, labels):
    positive = 1 if logits.shape[1] == 2 else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = classification_metrics(logits, labels, positive)
        quick = validation_metrics(logits, labels, positive)
    expected = by_sklearn(logits, labels)
    values = {k: v for k, v in found.items() if not k.endswith("_stderr")}
    values["accuracy_stderr"] = found["accuracy_stderr"]
    assert values.keys() == expected.keys()
    assert values == pytest.approx(expected, abs=2e-6, nan_ok=True)
    assert {f"{name}_stderr" for name in values} - found.keys() == {
        "n_stderr",
        "accuracy_stderr_stderr",
    }
    assert quick == pytest.approx({k: found[k] for k in quick}, nan_ok=True)
    assert all(type(value) is float for value in found.values())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("n", [2, 7, 200])
def test_metrics_are_those_of_scikit_learn(seed, classes, n):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator)
    check(logits, torch.randint(classes, (n,), generator=generator))


@pytest.mark.parametrize("classes", [2, 4])
def test_a_class_that_is_never_predicted(classes):
    logits = torch.randn(50, classes)
    logits[:, 1] = -10
    check(logits, torch.arange(50) % classes)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_class_that_no_row_has(classes):
    logits = torch.randn(50, classes)
    check(logits, torch.where(torch.arange(50) % classes == 1, 0, torch.arange(50) % classes))


def test_a_class_that_occurs_nowhere():
    logits = torch.randn(50, 4)
    logits[:, 2] = -10
    check(logits, torch.tensor([0, 1, 3, 3, 0] * 10))


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_only(label):
    check(torch.randn(20, 2), torch.full((20,), label))


@pytest.mark.parametrize("logits", [[[1.0, 2.0]], [[2.0, 1.0, 0.0]]])
def test_one_row(logits):
    check(torch.tensor(logits), torch.tensor([1]))


def test_ties_between_rows():
    # one decimal: many margins are equal
    logits = torch.stack([torch.zeros(300), torch.randn(300).round(decimals=1)], dim=1)
    check(logits, torch.randint(2, (300,)))
    check(torch.zeros(10, 2), torch.arange(10) % 2)


@pytest.mark.parametrize("positive", [0, 1, 2])
def test_scores_of_one_class_against_the_others(positive):
    logits, labels = torch.randn(60, 3), torch.arange(60) % 5 % 3
    found = classification_metrics(logits, labels, positive)
    truth, said = labels.numpy() == positive, logits.argmax(dim=1).numpy() == positive
    assert found["precision"] == pytest.approx(sk.precision_score(truth, said))
    assert found["recall"] == pytest.approx(sk.recall_score(truth, said))
    assert found["specificity"] == pytest.approx(sk.recall_score(~truth, ~said))
    assert found["f1"] == pytest.approx(sk.f1_score(truth, said))
    assert validation_metrics(logits, labels, positive)["f1"] == found["f1"]
    assert 0 < found["f1_stderr"] < 0.2
    assert "f1" not in classification_metrics(logits, labels)


@pytest.mark.parametrize("probabilistic", [True, False])
def test_the_order_of_several_classes_is_that_of_their_scores(probabilistic):
    labels = torch.arange(300) % 4
    scores = torch.randn(300, 4) + 2 * torch.nn.functional.one_hot(labels, 4)
    if probabilistic:  # of a forest of 20 trees: many are equal
        shares = torch.distributions.Multinomial(20, logits=scores).sample() / 20
        said, scores = shares, shares.clamp_min(1e-9).log()
    else:
        said = scores
    decimals = 5 if probabilistic else None
    found = classification_metrics(
        scores.float(), labels, probabilistic=probabilistic, decimals=decimals
    )
    each = [sk.roc_auc_score(labels == k, said[:, k].numpy()) for k in range(4)]
    assert found["auroc"] == pytest.approx(np.mean(each), abs=1e-6)


def test_ties_between_classes_go_to_the_first():
    assert classification_metrics(torch.zeros(4, 3), torch.tensor([0, 0, 1, 2]))["accuracy"] == 0.5


def test_certain_predictions_keep_their_order():
    # their probabilities are all 0 or 1 in float32
    margins = torch.tensor([200.0, 300, 250, 400, -200, -300, -250, -400])
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 1, 0])
    logits = torch.stack([-margins, margins], dim=1)
    assert set(logits.softmax(1).flatten().tolist()) == {0.0, 1.0}
    check(logits, labels)


def test_the_standard_error_by_hand():
    logits = torch.eye(2)[[0, 0, 1, 1, 1]]
    labels = torch.tensor([0, 0, 1, 1, 0])  # four of five are right
    found = classification_metrics(logits, labels)
    assert found["accuracy"] == pytest.approx(0.8)
    # the sample standard deviation of 1, 1, 1, 1, 0, over the root of 5
    assert found["accuracy_stderr"] == pytest.approx(np.std([1, 1, 1, 1, 0], ddof=1) / 5**0.5)
    assert math.isnan(classification_metrics(logits[:1], labels[:1])["accuracy_stderr"])


def test_the_error_of_the_calibration_error_is_of_confidence_and_right_rows():
    logits = 2 * torch.randn(60, 4)
    labels = torch.randint(4, (60,))
    confidence, predictions = (part.numpy() for part in logits.double().softmax(dim=1).max(dim=1))
    expected = calibration_stderr(confidence, predictions == labels.numpy(), 15)
    found = classification_metrics(logits, labels)
    assert found["ece_stderr"] == pytest.approx(expected)
    assert expected != pytest.approx(calibration_stderr(confidence, predictions > 0, 15))


def test_certain_predictions_of_several_classes_keep_their_order():
    # in the first class's column all probabilities are 0 or 1 in float64
    margins = torch.tensor([900.0, 1000, 800, 1200, -900, -1000, -800, -1200])
    labels = torch.tensor([0, 1, 2, 0, 1, 0, 2, 1])
    logits = torch.stack([margins, torch.zeros(8), torch.full((8,), -0.5)], dim=1)
    one = [(sk.roc_auc_score(labels == 0, margins))]
    for k in (1, 2):
        odds = logits[:, k] - logits[:, [c for c in range(3) if c != k]].logsumexp(dim=1)
        one.append(sk.roc_auc_score(labels == k, odds))
    assert classification_metrics(logits, labels)["auroc"] == pytest.approx(np.mean(one), abs=1e-6)


def test_tables_are_those_of_scikit_learn():
    predictions, labels = torch.tensor([0, 0, 1, 3, 3, 0]), torch.tensor([0, 1, 1, 3, 0, 0])
    names = ["a", "b", "absent", "d"]
    found = classification_tables(predictions, labels, names)
    every = {"labels": range(4), "average": None, "zero_division": 0}
    for name in ("precision", "recall", "f1"):
        expected = getattr(sk, f"{name}_score")(labels, predictions, **every)
        assert found[f"class_{name}"] == pytest.approx(expected)
    assert found["labels"] == names
    assert found["class_n"] == [3, 2, 0, 1]
    assert found["predicted_share"] == pytest.approx([3 / 6, 1 / 6, 0, 2 / 6])
    assert found["confusion"] == sk.confusion_matrix(labels, predictions, labels=range(4)).tolist()


def test_a_confusion_matrix_of_very_many_classes_is_left_out():
    rows = torch.arange(101)
    found = classification_tables(rows, rows, [str(row) for row in range(101)])
    assert "confusion" not in found
    assert found["class_f1"] == [1.0] * 101
