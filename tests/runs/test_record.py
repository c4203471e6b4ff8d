from __future__ import annotations

import math

import pytest

from smolbench.errors import SmolbenchError
from smolbench.runs.record import RunRecord, find_folders, read_records
from tests.helpers.written_runs import CLASSIFICATION, MULTIPLE_CHOICE, SUMMARIES, write_run


def record(tmp_path, base=CLASSIFICATION, **changes):
    folder = write_run(tmp_path / "run", base, **changes)
    ((found,), refused) = read_records([folder])
    assert refused == []
    return found


def test_the_kind_of_a_run_says_what_it_is_ranked_by(tmp_path):
    assert record(tmp_path).metric == "accuracy"
    assert record(tmp_path, MULTIPLE_CHOICE).metric == "acc_norm"
    assert record(tmp_path, SUMMARIES).metric == "rouge1"
    assert record(tmp_path, test__accuracy=...).metric is None


def test_a_convention_counts_where_it_makes_scores_incomparable(tmp_path):
    assert record(tmp_path, MULTIPLE_CHOICE).convention == "lm_eval"
    assert record(tmp_path, SUMMARIES, convention="card").convention == "card"
    assert record(tmp_path, method="prompt", convention="top_50").convention is None


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "trained"),
        ({"attempts": ...}, "untrained"),
        ({"attempts": ..., "checkpoint": "runs/a/b/checkpoints/best.ckpt"}, "trained"),
        ({"attempts": ..., "method": "prompt"}, "as_is"),
        ({"attempts": ..., "method": "none"}, "as_is"),
    ],
)
def test_what_was_scored(tmp_path, changes, state):
    assert record(tmp_path, **changes).state == state


def test_training_time_is_fit_and_cache(tmp_path):
    assert record(tmp_path).training_s == 900.0
    assert record(tmp_path, cost__cache_s=...).training_s == 100.0
    assert record(tmp_path, cost__fit_s=...).training_s is None  # not known is not nothing
    assert record(tmp_path, MULTIPLE_CHOICE).training_s == 0.0


def test_peak_memory_is_the_devices(tmp_path):
    assert record(tmp_path).peak_memory == (1500.0, "rss")
    assert record(tmp_path, cost__peak_allocated_mib=700.0).peak_memory == (700.0, "allocated")
    assert record(tmp_path, cost__peak_rss_mib=...).peak_memory is None


@pytest.mark.parametrize("value", ["0.5", True, [0.5], {}, None, math.nan, math.inf, 10**400])
def test_what_is_no_number_is_not_taken_for_one(value, tmp_path):
    assert RunRecord(tmp_path, {"test/accuracy": value}).number("test/accuracy") is None


def test_an_empty_file_of_the_schema_is_a_run(tmp_path):
    found = RunRecord(tmp_path / "x", {})
    assert (found.name, found.status, found.dataset) == ("unknown/x", "unknown", "unknown dataset")
    assert (found.metric, found.started_at, found.peak_memory) == (None, "", None)


def test_runs_are_found_at_any_depth_and_once(tmp_path):
    one = write_run(tmp_path / "runs" / "a" / "1")
    two = write_run(tmp_path / "runs" / "b" / "2")
    assert find_folders([tmp_path, one, tmp_path / "runs"]) == [one, two]
    assert find_folders([one]) == [one]


def test_a_place_without_runs_is_refused(tmp_path):
    with pytest.raises(SmolbenchError, match="There are no runs below"):
        find_folders([tmp_path])
    with pytest.raises(SmolbenchError, match="There is no folder"):
        find_folders([tmp_path / "missing"])


def test_the_newest_comes_first_and_the_unreadable_is_named(tmp_path):
    old = write_run(tmp_path / "old", started_at="2025-01-01")
    new = write_run(tmp_path / "new", started_at="2025-02-01")
    bad = write_run(tmp_path / "bad")
    (bad / "results.json").write_text('{"schema": 1, "recipe": "im')
    records, refused = read_records([bad, old, new])
    assert [found.path for found in records] == [new, old]
    (sentence,) = refused
    assert str(bad) in sentence
