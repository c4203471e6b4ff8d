from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from smolbench.metrics.classification import classification_metrics, confusion_matrix
from smolbench.metrics.uncertainty import (
    auroc_stderr,
    calibration_stderr,
    confusion_scores,
    confusion_stderrs,
    mean_over_seeds,
    mean_stderr,
)


def drawn(classes, n=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator)
    noise = torch.randn(n, classes, generator=generator)
    return logits, (logits + 1.5 * noise).argmax(dim=1)


@pytest.mark.parametrize("classes", [2, 4])
def test_scores_of_a_confusion_matrix_are_those_of_torchmetrics(classes):
    for seed in range(3):
        logits, labels = drawn(classes, n=9, seed=seed)
        found = confusion_scores(confusion_matrix(logits.argmax(1), labels, classes))
        expected = classification_metrics(logits, labels)
        for name, value in found.items():
            assert float(value) == pytest.approx(expected[name], abs=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
def test_standard_errors_are_those_of_resampled_rows(classes):
    """Row by row, with other random numbers: equal up to the noise of 300 resamples."""
    logits, labels = drawn(classes)
    found = classification_metrics(logits, labels)
    generator = torch.Generator().manual_seed(1)
    resampled = []
    for _ in range(300):
        rows = torch.randint(len(labels), (len(labels),), generator=generator)
        resampled.append(classification_metrics_of(logits[rows], labels[rows]))
    for name in resampled[0]:
        expected = np.std([one[name] for one in resampled], ddof=1)
        assert found[f"{name}_stderr"] == pytest.approx(expected, rel=0.2), name


def classification_metrics_of(logits, labels):
    p, truth = logits.softmax(1).numpy(), labels.numpy()
    classes = p.shape[1]
    cells = confusion_matrix(logits.argmax(1), labels, classes)
    found = {name: float(value) for name, value in confusion_scores(cells).items()}
    if classes == 2:
        found["auroc"] = roc_auc_score(truth, p[:, 1])
        found["brier"] = ((p[:, 1] - truth) ** 2).mean()
    else:
        found["auroc"] = roc_auc_score(truth, p, multi_class="ovr")
        found["brier"] = ((p - np.eye(classes)[truth]) ** 2).sum(axis=1).mean()
    found["loss"] = -np.log(p[np.arange(len(p)), truth]).mean()
    return found


def test_delong_by_hand():
    scores, positive = np.array([1.0, 3, 2, 4, 2]), np.array([0, 1, 0, 1, 1], dtype=bool)
    # shares of the other class on the right side; positives: 1, 1, 0.75; negatives: 1, 2.5 / 3
    expected = np.var([1, 1, 0.75], ddof=1) / 3 + np.var([1, 2.5 / 3], ddof=1) / 2
    assert auroc_stderr([(scores, positive)]) == pytest.approx(expected**0.5)
    # the mean of a curve and itself is the curve
    assert auroc_stderr([(scores, positive)] * 2) == pytest.approx(expected**0.5)


def test_calibration_error_of_one_bin_is_a_mean():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.86, 0.93, size=2000)  # within one of 15 bins
    right = generator.random(2000) < 0.7
    expected = (right - confidence).std(ddof=1) / 2000**0.5
    assert calibration_stderr(confidence, right, 15) == pytest.approx(expected, rel=0.1)


def test_gaps_of_unlike_confidence_do_not_cancel():
    """Sure rows that are wrong and unsure ones that are right: the error is 0.9 each time."""
    confidence = np.repeat([0.1, 0.9], 40)
    assert calibration_stderr(confidence, confidence < 0.5, 15) == pytest.approx(0, abs=1e-12)
    assert calibration_stderr(confidence, confidence < 0.5, 1) > 0.05


def test_one_row_has_no_standard_error(recwarn):
    assert np.isnan(mean_stderr(np.array([1.0])))
    assert not recwarn
    found = classification_metrics(torch.tensor([[1.0, 2.0]]), torch.tensor([1]))
    assert all(np.isnan(value) for name, value in found.items() if name.endswith("_stderr"))
    assert np.isnan(list(confusion_stderrs(np.array([0]), np.array([0]), 2).values())).all()


def test_the_same_rows_give_the_same_errors():
    assert classification_metrics(*drawn(4)) == classification_metrics(*drawn(4))


def test_means_over_seeds_have_a_spread_where_there_are_several():
    one, other = {"accuracy": 0.5, "n": 40.0}, {"accuracy": 0.7, "n": 40.0}
    assert mean_over_seeds([one]) == one
    assert mean_over_seeds([one, other]) == pytest.approx(
        {"accuracy": 0.6, "n": 40, "accuracy_std": 0.02**0.5}
    )


@pytest.mark.parametrize("classes", [2, 4])
def test_the_error_of_a_mean_over_draws_is_that_of_rows_resampled_for_all_of_them(classes):
    logits, labels = drawn(classes)
    noise = torch.Generator().manual_seed(2)
    draws = [logits + torch.randn(logits.shape, generator=noise) for _ in range(3)]
    found = classification_metrics(draws, labels)
    each = [classification_metrics(one, labels) for one in draws]
    generator = torch.Generator().manual_seed(1)
    resampled = []
    for _ in range(300):
        rows = torch.randint(len(labels), (len(labels),), generator=generator)
        of = [classification_metrics_of(one[rows], labels[rows]) for one in draws]
        resampled.append({name: np.mean([one[name] for one in of]) for name in of[0]})
    for name in resampled[0]:
        expected = np.std([one[name] for one in resampled], ddof=1)
        assert found[f"{name}_stderr"] == pytest.approx(expected, rel=0.2), name
        values = [one[name] for one in each]
        assert found[name] == pytest.approx(np.mean(values)), name
        assert found[f"{name}_std"] == pytest.approx(np.std(values, ddof=1)), name
    right = np.mean([(one.argmax(1) == labels).numpy() for one in draws], axis=0)
    assert found["accuracy_stderr"] == pytest.approx(right.std(ddof=1) / len(right) ** 0.5)
    assert not [name for name in found if name.endswith("_stderr_std")]
    # a draw that is there three times says no more than once
    assert classification_metrics([logits] * 3, labels)["ece_stderr"] == pytest.approx(
        classification_metrics(logits, labels)["ece_stderr"]
    )
