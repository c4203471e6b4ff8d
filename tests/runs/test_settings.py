from __future__ import annotations

from copy import deepcopy

import pytest

from smolbench.errors import SmolbenchError
from smolbench.runs.settings import (
    changed_for_scoring,
    check_same_run,
    flatten,
    series_digest,
)

SETTINGS = {
    "seed_everything": 0,
    "trainer": {
        "max_epochs": 3,
        "max_steps": -1,
        "precision": None,
        "logger": False,
        "limit_test_batches": None,
    },
    "model": {
        "class_path": "ProbeTask",
        "init_args": {"lr": 0.1, "schedule": "constant", "backbone": "tiny"},
    },
    "data": {
        "class_path": "IMDbDataModule",
        "init_args": {"batch_size": 32, "limit_test": None, "num_workers": 0, "cache_dir": None},
    },
    "checkpoint": {"every_minutes": 10.0, "monitor": None},
}


def changed(**values):
    """The settings with some changed; a name is dotted by ``__``."""
    settings = deepcopy(SETTINGS)
    for name, value in values.items():
        *path, last = name.split("__")
        place = settings
        for step in path:
            place = place[step]
            place = place.get("init_args", place)
        place[last] = value
    return settings


def test_flat_names():
    flat = flatten(SETTINGS)
    assert flat["model.class_path"] == "ProbeTask"
    assert flat["model.lr"] == 0.1
    assert flat["seed_everything"] == 0
    assert flatten({"data": {"class_path": "X", "init_args": None}}) == {"data.class_path": "X"}


def test_the_same_settings_go_on():
    check_same_run(SETTINGS, deepcopy(SETTINGS), extend=False)


@pytest.mark.parametrize(
    "free",
    [
        {"data__num_workers": 4},
        {"data__cache_dir": "x"},
        {"data__limit_test": 10},
        {"trainer__logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "x"}}},
        {"trainer__enable_progress_bar": False},
        {"trainer__max_time": "00:01:00:00"},
        {"checkpoint__every_minutes": 1.0},
        {"trainer__max_epochs": 4},
        {"trainer__max_epochs": -1},
    ],
)
def test_free_to_differ(free):
    check_same_run(SETTINGS, changed(**free), extend=False)


def test_latency_may_be_measured_otherwise_than_before_and_in_runs_that_knew_no_latency():
    now = {**SETTINGS, "latency": {"examples": 0, "max_s": 20.0}}
    check_same_run(SETTINGS, now, extend=False)
    assert changed_for_scoring(SETTINGS, now) == []


@pytest.mark.parametrize(
    "other",
    [
        {"seed_everything": 1},
        {"model__lr": 0.2},
        {"model__backbone": "other"},
        {"data__batch_size": 33},
        {"data__class_path": "Other"},
        {"trainer__max_epochs": 2},
        {"trainer__max_epochs": None},
        {"trainer__max_steps": 7},
        {"trainer__precision": "bf16-mixed"},
        {"trainer__limit_test_batches": 3},
        {"checkpoint__monitor": "val/loss"},
        {"model__new_option": 1},
    ],
)
def test_everything_else_is_another_run(other):
    name = next(iter(other)).replace("__", ".")
    with pytest.raises(SmolbenchError, match=rf"not the run that was started: {name} was .*, is "):
        check_same_run(SETTINGS, changed(**other), extend=True)


def test_all_differences_are_listed():
    with pytest.raises(SmolbenchError) as caught:
        check_same_run(SETTINGS, changed(model__lr=1, data__batch_size=1), extend=False)
    assert "data.batch_size was 32, is 1" in str(caught.value)
    assert "model.lr was 0.1, is 1" in str(caught.value)


def test_a_run_without_an_end_cannot_become_longer():
    with pytest.raises(SmolbenchError, match=r"trainer\.max_epochs was -1, is 5"):
        check_same_run(changed(trainer__max_epochs=-1), changed(trainer__max_epochs=5), extend=True)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_that_ends_is_stretched_only_on_demand(schedule):
    before = changed(model__schedule=schedule)
    now = changed(model__schedule=schedule, trainer__max_epochs=6)
    with pytest.raises(SmolbenchError, match=r"--extend .* stretched over 6 epochs"):
        check_same_run(before, now, extend=False)
    check_same_run(before, now, extend=True)


def test_a_warm_up_over_a_share_of_the_steps_is_stretched_only_on_demand():
    before = changed(model__warmup_steps=0.1)
    now = changed(model__warmup_steps=0.1, trainer__max_epochs=6)
    with pytest.raises(SmolbenchError, match=r"--extend .* warms up over that share of 6 epochs"):
        check_same_run(before, now, extend=False)
    check_same_run(before, now, extend=True)
    longer = changed(model__warmup_steps=10, trainer__max_epochs=6)
    check_same_run(changed(model__warmup_steps=10), longer, extend=False)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({}, []),
        ({"data__num_workers": 4, "data__cache_dir": "x"}, []),
        ({"trainer__max_epochs": 9, "checkpoint__every_minutes": 1.0}, []),
        ({"trainer__logger": True}, []),
        ({"data__limit_test": 5}, ["data.limit_test"]),
        ({"model__lr": 5}, ["model.lr"]),
        ({"seed_everything": 5}, ["seed_everything"]),
        ({"trainer__precision": "64-true"}, ["trainer.precision"]),
        ({"trainer__limit_test_batches": 2}, []),  # a test refuses it
        ({"trainer__fast_dev_run": True}, ["trainer.fast_dev_run"]),
    ],
)
def test_what_makes_another_score(values, names):
    assert changed_for_scoring(SETTINGS, changed(**values)) == names


def test_a_series_is_what_differs_in_the_seed_only():
    series = series_digest(SETTINGS)
    for free in (
        changed(seed_everything=1),
        changed(data__num_workers=4, data__cache_dir="elsewhere"),
        changed(trainer__logger=True, checkpoint__every_minutes=1.0),
    ):
        assert series_digest(free) == series
    for other in (
        changed(model__lr=0.2),
        changed(data__batch_size=16),
        changed(trainer__max_epochs=4),
        changed(trainer__precision="bf16-mixed"),
        changed(checkpoint__monitor="val/loss"),
    ):
        assert series_digest(other) != series


def test_steps_may_rise_as_epochs_do():
    before = changed(trainer__max_steps=10, model__schedule="linear")
    more = changed(trainer__max_steps=20, model__schedule="linear")
    with pytest.raises(SmolbenchError, match=r"max_steps was 10, is 20.*by the end of step"):
        check_same_run(before, more, extend=False)
    check_same_run(before, more, extend=True)
    with pytest.raises(SmolbenchError, match="This is not the run that was started"):
        check_same_run(more, before, extend=True)
    constant = changed(trainer__max_steps=10)
    check_same_run(constant, changed(trainer__max_steps=-1), extend=False)
