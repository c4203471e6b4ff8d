"""Which way metrics get better."""

from __future__ import annotations

import pytest

from smolbench.errors import SmolbenchError
from smolbench.metrics.directions import direction, mode_of


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
