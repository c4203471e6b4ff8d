from __future__ import annotations

import math
from pathlib import Path

import pytest

from smolbench.runs.report.summary import print_summary

RESULTS = {
    "recipe": "imdb_probe",
    "status": "finished",
    "val/accuracy": 0.75,
    "test/accuracy": 0.8765,
    "test/accuracy_stderr": 0.0123,
    "test/n": 25000,
    "cost/fit_s": 1234.5,
    "cost/cache_s": 60.0,
    "cost/cache_reused": True,
    "cost/peak_rss_mib": 2048.0,
    "model/trainable_params": 225026,
}


def lines(capsys, results, *splits):
    print_summary(results, Path("runs/a/b"), splits=splits)
    return capsys.readouterr().out


def test_quality_and_cost_are_said(capsys):
    out = lines(capsys, RESULTS, "test")
    for said in ("imdb_probe (finished)", "0.8765", "± 0.0123", "25,000", "1,234", "2,048 ", "MiB"):
        assert said in out
    assert "60.0" in out
    assert "(reused)" in out
    assert "225,026" in out


def test_only_the_splits_asked_for(capsys):
    assert "0.7500" not in lines(capsys, RESULTS, "test")
    assert "0.8765" not in lines(capsys, RESULTS, "val")


@pytest.mark.parametrize("value", [None, math.nan, math.inf, 0, 1e-9, -3.5, 1e12])
def test_no_number_breaks_it(capsys, value):
    lines(capsys, {"test/accuracy": value, "cost/fit_s": value}, "test")


def test_nothing_known(capsys):
    assert "run (None)" in lines(capsys, {}, "val", "test")


def test_figures_of_a_class_name_it_and_the_headline_is_first(capsys):
    said = {**RESULTS, "test/f1": 0.5, "test/recall": 0.25, "headline": "f1"}
    out = lines(capsys, {**said, "positive_label": "fraud"}, "test")
    assert "test recall of 'fraud'" in out
    assert out.index("test F1 of 'fraud'") < out.index("test accuracy")


CLASSES = {
    "test/labels": ["World", "[bold]", "Business"],
    "test/class_precision": [0.5, 0.75, 0.0],
    "test/class_recall": [0.25, 1.0, 0.0],
    "test/class_f1": [0.3333, 0.8571, 0.0],
    "test/class_n": [1200, 3, 0],
    "test/predicted_share": [0.4, 0.6, 0.0],
    "test/confusion": [[300, 897, 3], [0, 3, 0], [0, 0, 0]],
}


def test_classes_of_a_test_are_shown(capsys):
    out = lines(capsys, RESULTS | CLASSES, "test")
    for said in ("World", "[bold]", "0.8571", "1,200", "60.0%", "897", "true \\ predicted"):
        assert said in out
    assert "Class by class" not in lines(capsys, RESULTS | CLASSES, "val")


def test_very_many_classes_are_left_to_the_results(capsys):
    many = {key: value * 7 for key, value in CLASSES.items()}  # 21
    assert "Class by class" not in lines(capsys, RESULTS | many, "test")
    assert "What was" not in lines(
        capsys, RESULTS | {k: v for k, v in CLASSES.items() if k != "test/confusion"}, "test"
    )
