from __future__ import annotations

import math

import numpy as np
import pytest

from smolbench.metrics.multiple_choice import Choices, multiple_choice_metrics

LIKELIHOODS = np.array(
    [[-10.0, -9.0, -30.0, -12.0], [-5.0, -5.0, -8.0, -9.0], [-4.0, -3.0, -2.0, -1.0]], np.float32
)
LENGTHS = np.array([[10, 5, 60, 10], [5, 10, 10, 10], [4, 4, 4, 4]])
BYTES = np.array([[10, 5, 10, 10], [5, 10, 100, 10], [4, 4, 4, 0]])
TOKENS = np.array([[2, 2, 6, 3], [1, 1, 2, 2], [1, 1, 1, 1]])
CHOICES = Choices(LIKELIHOODS, LENGTHS, BYTES, TOKENS)


def test_each_metric_divides_by_its_own_length():
    chosen = CHOICES.predictions()
    assert chosen["acc"].tolist() == [1, 0, 3]  # of equal ones the first
    assert chosen["acc_norm"].tolist() == [2, 1, 3]
    # an ending of no length is never chosen, as numpy has it in lm_eval
    assert chosen["acc_bytes"].tolist() == [0, 2, 2]


def test_shares_errors_and_losses():
    labels = np.array([2, 1, 0])
    found = multiple_choice_metrics(CHOICES, labels)
    assert found["acc"] == 0
    assert found["acc_norm"] == pytest.approx(2 / 3)
    assert found["acc_norm_stderr"] == pytest.approx(math.sqrt(2 / 3 * 1 / 3 / 2))
    assert found["n"] == 3
    assert found["ending_loss"] == pytest.approx((30 + 5 + 4) / (6 + 1 + 1))
    losses = [
        np.log(np.exp(row.astype(float)).sum()) - row[k]
        for row, k in zip(LIKELIHOODS, labels, strict=True)
    ]
    assert found["choice_loss"] == pytest.approx(np.mean(losses))


def test_one_example_has_no_standard_error():
    one = Choices(LIKELIHOODS[:1], LENGTHS[:1], BYTES[:1], TOKENS[:1])
    assert math.isnan(multiple_choice_metrics(one, np.array([0]))["acc_stderr"])
