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


OF_CLASS = {"precision", "recall", "specificity", "f1"}
OF_CLASSES = {f"{name}{end}" for name in OF_CLASS for end in ("", "_macro", "_weighted")}
ACCURACIES = {"accuracy", "accuracy_unknown_wrong", "accuracy_uncalibrated", "accuracy_contextual"}
ACCURACIES |= {"accuracy_pmi", "acc", "acc_norm", "acc_bytes"}
COUNTS = {"n", "n_truncated", "n_references_cut", "n_without_tokens"}
LOSSES = {"loss", "choice_loss", "ending_loss"}


def test_the_whole_table_said_the_other_way_round():
    """By each property, the metrics that have it."""

    def those(has):
        return {name for name, metric in METRICS.items() if has(metric)}

    assert those(lambda m: m.mode == "min") == {"ece", "brier", *LOSSES}
    assert those(lambda m: m.mode == "max") == {"auroc", *ACCURACIES, *OF_CLASSES, *ROUGE}
    assert those(lambda m: m.error == "rows") == {"brier", "loss", *ACCURACIES, *ROUGE}
    assert those(lambda m: m.error == "bootstrap") == {"ece", *OF_CLASSES}
    assert those(lambda m: m.error == "DeLong") == {"auroc"}
    assert those(lambda m: m.of_class) == OF_CLASS
    assert those(lambda m: m.of_probabilities) == {"ece", "brier", "loss"}
    assert those(lambda m: not m.averaged) == {"n_draws", *COUNTS}
    assert those(lambda m: m.unit == "nats") == LOSSES
    assert those(lambda m: m.unit == "examples") == {"n_unknown", *COUNTS}
    assert those(lambda m: m.unit == "tokens") == {"gen_tokens"}
    assert those(lambda m: m.unit) == {"gen_tokens", "n_unknown", *COUNTS, *LOSSES}
    endless = {"gen_tokens", "n_unknown", "n_draws", *COUNTS, *LOSSES}
    assert those(lambda m: m.high == np.inf) == endless
    assert those(lambda m: m.high == 2) == {"brier"}
    assert those(lambda m: m.high == 1) == set(METRICS) - endless - {"brier"}


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("val/rouge3", "max"),
        ("val/accuracy_of_mine", "max"),
        ("val/accuracy_of_mine_std", None),
        ("val/my_loss", "min"),
        ("val/perplexity", "min"),
        ("val/token_perplexity", "min"),
        ("val/lossless", None),
        ("val/rough", None),
    ],
)
def test_direction_of_what_tasks_of_ones_own_log(metric, mode):
    assert direction(metric) == mode


def test_what_was_said_counts_where_nothing_is_known():
    assert mode_of("checkpoint.mode", "val/mine", "min") == "min"
    assert mode_of("checkpoint.mode", "val/loss", None) == "min"
    with pytest.raises(SmolbenchError, match=r"checkpoint\.mode max or min"):
        mode_of("checkpoint.mode", "val/mine", None)


@pytest.mark.parametrize(("metric", "mode"), [("val/loss", "min"), ("val/accuracy", "max")])
def test_a_mode_that_would_keep_the_worst_is_refused(metric, mode):
    assert mode_of("--mode", metric, mode) == mode
    with pytest.raises(SmolbenchError, match=f"give --mode {mode}"):
        mode_of("--mode", metric, "min" if mode == "max" else "max")


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
