"""Which way metrics get better."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smolbench.errors import SmolbenchError
from smolbench.metrics.classification import classification_metrics
from smolbench.metrics.multiple_choice import Choices, multiple_choice_metrics
from smolbench.metrics.rouge import ROUGE
from smolbench.metrics.table import ENDINGS, METRICS, direction, is_measured, mode_of


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("val/loss", "min"),
        ("train/loss", "min"),
        ("val/choice_loss", "min"),
        ("test/ece", "min"),
        ("test/brier", "min"),
        ("val/accuracy", "max"),
        ("val/acc_norm", "max"),
        ("val/f1_macro", "max"),
        ("test/rougeLsum", "max"),
        ("test/auroc", "max"),
        ("val/accuracy_stderr", None),
        ("val/n", None),
        ("val/n_truncated", None),
        ("val/gen_tokens", None),
        ("val/recess", None),
        ("train/lr", None),
    ],
)
def test_direction(metric, mode):
    assert direction(metric) == mode


def test_what_was_said_counts_where_nothing_is_known():
    assert mode_of("checkpoint.mode", "val/mine", "min") == "min"
    assert mode_of("checkpoint.mode", "val/loss", None) == "min"
    with pytest.raises(SmolbenchError, match=r"checkpoint\.mode max or min"):
        mode_of("checkpoint.mode", "val/mine", None)


def test_a_mode_that_would_keep_the_worst_is_refused():
    with pytest.raises(SmolbenchError, match=r"give --mode min"):
        mode_of("--mode", "val/loss", "max")


def check(found):
    """Names, ranges and errors of measured metrics are those of the table."""
    for name, value in found.items():
        if not name.endswith(ENDINGS):
            assert 0 <= value <= METRICS[name].high, name
            assert (f"{name}_stderr" in found) == (METRICS[name].error is not None), name
            assert is_measured(name) == (name != "n")


def test_what_is_measured_is_in_the_table():
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 3), torch.arange(40) % 3
    check(classification_metrics(logits, labels, positive=1))
    generator = np.random.default_rng(0)
    choices = Choices(-generator.random((9, 4)), *(np.full((9, 4), n) for n in (3, 12, 2)))
    check(multiple_choice_metrics(choices, np.arange(9) % 4))
    assert set(ROUGE) < set(METRICS)
