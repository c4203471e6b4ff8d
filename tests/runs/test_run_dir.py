from __future__ import annotations

import datetime
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from smolbench.errors import SmolbenchError
from smolbench.runs.results import write_results
from smolbench.runs.run_dir import (
    Run,
    find_runs,
    make_folder,
    new_run_dir,
    recipe_name,
    run_of,
    run_of_config,
)


def make(folder: Path, started: str, **extra) -> Path:
    write_results(folder, {"started_at": started, "recipe": folder.parent.name, **extra})
    return folder


def test_names_are_stems_joined_without_the_trainer():
    configs = [Path("configs/imdb_probe.yaml"), Path("configs/trainer/cpu.yaml"), Path("tiny.yaml")]
    assert recipe_name(configs) == "imdb_probe+tiny"
    assert recipe_name(configs[1:2]) == "custom"
    assert recipe_name([]) == "custom"


def test_a_runs_own_config_has_the_runs_name(tmp_path):
    run = make(tmp_path / "imdb_probe" / "now", "1", recipe="imdb_probe+tiny")
    (run / "config.yaml").touch()
    assert recipe_name([run / "config.yaml"]) == "imdb_probe+tiny"
    assert recipe_name([run / "config.yaml", Path("b.yaml")]) == "imdb_probe+tiny+b"
    assert run_of_config(run / "config.yaml") == Run(run)


def test_any_other_file_of_that_name_is_an_ordinary_recipe(tmp_path):
    (tmp_path / "config.yaml").touch()
    assert recipe_name([tmp_path / "config.yaml"]) == "config"
    assert run_of_config(tmp_path / "config.yaml") is None


def test_results_without_a_recipe_are_somebody_elses(tmp_path):
    write_results(tmp_path, {})
    assert recipe_name([tmp_path / "config.yaml"]) == "custom"


def test_the_newest_run_comes_first(tmp_path):
    first = make(tmp_path / "b" / "z", "2025-01-01T00:00:00+00:00")
    third = make(tmp_path / "a" / "x", "2025-03-01T00:00:00+00:00")
    second = make(tmp_path / "b" / "y", "2025-02-01T00:00:00+00:00")
    assert [run.path for run in find_runs(tmp_path)] == [third, second, first]
    assert [run.path for run in find_runs(tmp_path, "b")] == [second, first]
    assert find_runs(tmp_path, "c") == []
    assert find_runs(tmp_path / "missing") == []


def test_two_runs_of_one_second_are_ordered_by_folder(tmp_path):
    folders = [make(new_run_dir(tmp_path, "a"), "same") for _ in range(3)]
    assert [run.path for run in find_runs(tmp_path)] == folders[::-1]


def test_what_is_no_run_is_passed_over(tmp_path):
    run = make(tmp_path / "a" / "x", "1")
    (tmp_path / "a" / "y").mkdir()
    (tmp_path / "a" / "file").touch()
    (tmp_path / "a" / "z").mkdir()
    (tmp_path / "a" / "z" / "results.json").write_text("{")
    assert [found.path for found in find_runs(tmp_path)] == [run]


def test_a_checkpoint_knows_its_run(tmp_path):
    run = make(tmp_path / "a" / "x", "1")
    assert run_of(run / "checkpoints" / "best.ckpt") == Run(run)
    assert run_of(run / "best.ckpt") is None
    assert run_of(tmp_path / "checkpoints" / "best.ckpt") is None
    assert Run(run).checkpoint("best") == run / "checkpoints" / "best.ckpt"


class Noon(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2025, 1, 2, 12, 0, 0, tzinfo=tz)


def test_every_new_run_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("smolbench.runs.run_dir.datetime.datetime", Noon)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_run_dir(tmp_path, "a"), range(24)))
    assert len(set(folders)) == 24
    assert all(folder.is_dir() for folder in folders)
    assert {folder.name for folder in folders} >= {"2025-01-02_12-00-00", "2025-01-02_12-00-00-24"}


def test_making_a_folder_says_whether_it_is_new(tmp_path):
    assert make_folder(tmp_path / "a" / "b")
    assert not make_folder(tmp_path / "a" / "b")


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SmolbenchError, match="is a file"):
        make_folder(tmp_path / "file")
    with pytest.raises(SmolbenchError, match="--runs_dir"):
        new_run_dir(tmp_path / "file", "a")
