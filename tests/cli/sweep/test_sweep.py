"""``smolbench sweep`` with trials that take no time; see tests/helpers/fake_sweep.py."""

from __future__ import annotations

import csv
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from smolbench.cli import main
from tests.helpers import fake_sweep

ROOT = Path(__file__).parents[3]
SWEEP = [sys.executable, "-m", "tests.helpers.fake_sweep"]
FOLDER = Path("runs/sweeps/imdb_probe")


@pytest.fixture
def here(folder_here, monkeypatch):
    """An empty folder, in which sweeps run scripts."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("smolbench.cli.sweep.process.SMOLBENCH", SWEEP)
    # what it changes is put back at the end
    monkeypatch.setattr("smolbench.cli.sweep.definition.check", None)
    fake_sweep.stand_in()
    return folder_here


def sweep(*arguments: str) -> int:
    return main(["sweep", "--config=imdb_probe", *arguments])


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SWEEP, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def starts() -> list[tuple[str, str, int]]:
    path = Path("starts.txt")
    lines = path.read_text().splitlines() if path.is_file() else []
    return [(name, how, int(pid)) for name, how, pid in map(str.split, lines)]


def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


def results(folder: Path = FOLDER) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_grid_its_tables_and_the_test_of_the_best(here, capsys):
    assert sweep("--grid", "fake.lr=5,9,7", "--grid", "data.batch_size=8,16") == 0
    assert [how for _, how, _ in starts()] == ["new"] * 6
    rows = results()
    assert [row["fake.lr"] for row in rows] == ["9", "9", "7", "7", "5", "5"]
    assert [row["test/accuracy"] for row in rows] == ["0.9", "", "", "", "", ""]
    assert rows[0]["runtime_s"] == "2.0"
    assert rows[0]["cost/rss_delta_mib"] == "1.5"
    assert {row["status"] for row in rows} == {"finished"}
    printed = capsys.readouterr().out
    assert (FOLDER / "results.md").read_text() == printed
    best = "Best by val/accuracy: fake.lr=9 data.batch_size=8; 1 more is as good."
    assert f"6 of 6 trials are done. {best}" in printed
    page = (FOLDER / "results.html").read_text()
    assert "fake.lr=9 data.batch_size=8" in page
    assert not re.search(r"(src|href)=[\"']?http", page)
    # nothing is left to do
    assert sweep("--grid", "fake.lr=5,9,7", "--grid", "data.batch_size=8,16") == 0
    assert len(starts()) == 6


def test_failures_are_recorded_and_stop_nothing(here, capsys):
    grid = ("--grid", "fake.do=fail,die,no_metric,die_always,ok", "--grid=fake.lr=3")
    assert sweep(*grid) == 1
    found = {row["fake.do"]: row for row in results()}
    assert found["fail"]["error"] == "There is no such thing."
    assert found["no_metric"]["error"] == ("Its results have no val/accuracy, but val/f1_macro.")
    assert found["die_always"]["error"].startswith("It was killed 3 times")
    assert found["die"]["status"] == found["ok"]["status"] == "finished"
    assert Counter(name for name, _, _ in starts()) == {
        "000_do=fail,lr=3": 1,
        "001_do=die,lr=3": 2,
        "002_do=no_metric,lr=3": 1,
        "003_do=die_always,lr=3": 3,
        "004_do=ok,lr=3": 1,
    }
    assert "- Trial 000, fake.do=fail fake.lr=3: There is no such thing." in (
        capsys.readouterr().out
    )
    # known failures are not run again, unless they are asked for
    assert sweep(*grid) == 1
    assert len(starts()) == 8
    assert sweep(*grid, "--retry_failed") == 1
    again = [name for name, _, _ in starts()[8:]]
    assert again.count("000_do=fail,lr=3") == 1
    assert "004_do=ok,lr=3" not in again


def test_what_cannot_be_gone_on_with_begins_anew(here):
    assert sweep("--grid=fake.do=die_anew", "--grid=fake.lr=3") == 0
    assert [how for _, how, _ in starts()] == ["new", "new"]
    assert [row["status"] for row in results()] == ["finished"]


@pytest.mark.slow
@pytest.mark.parametrize("storage", [[], ["--storage=sqlite:///shared.db"], ["--storage=own.log"]])
def test_workers_share_the_points_and_each_runs_once(here, storage):
    grid = ["--grid=fake.lr=1,2,3,4", "--grid=data.batch_size=8,16,32", "--grid=fake.seconds=0.02"]
    workers = [start(*grid, *storage) for _ in range(3)]
    printed = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], printed
    assert len(starts()) == 12
    assert len({name for name, _, _ in starts()}) == 12
    assert [row["status"] for row in results()] == ["finished"] * 12
    took = [text.count("finished: val/accuracy") for text in printed]
    assert sum(took) == 12
    assert min(took) > 0, "all of them worked"
    assert sum(text.count("Test of trial") for text in printed) == 1


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_stopped(here):
    grid = ["--grid=fake.do=ok,slow,last"]
    first = start(*grid)
    until(lambda: len(starts()) == 2 and (FOLDER / "trials/001_do=slow/results.json").exists())
    first.send_signal(signal.SIGKILL)
    first.communicate()
    orphan = starts()[1][2]
    if sys.platform == "linux":  # it is told to stop, and does not train on unseen
        until(lambda: not psutil.pid_exists(orphan))
    second = start(*grid)
    printed, _ = second.communicate(timeout=60)
    assert second.returncode == 0, printed
    assert [(name, how) for name, how, _ in starts()] == [
        ("000_do=ok", "new"),
        ("001_do=slow", "new"),
        ("002_do=last", "new"),
        ("001_do=slow", "again"),
    ]
    assert [row["status"] for row in results()] == ["finished"] * 3


@pytest.mark.slow
def test_a_living_worker_takes_over_from_a_dead_one(here):
    grid = ["--grid=fake.do=slow,ok"]
    first = start(*grid)
    until(lambda: len(starts()) == 1)
    second = start(*grid)
    until(lambda: len(starts()) == 2)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    printed, _ = second.communicate(timeout=60)
    assert second.returncode == 0, printed
    assert [how for _, how, _ in starts()] == ["new", "new", "again"]


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(here, signum):
    grid = ["--grid=fake.do=slow,ok"]
    first = start(*grid)
    until(lambda: (FOLDER / "trials/000_do=slow/results.json").exists())
    first.send_signal(signum)
    printed, _ = first.communicate(timeout=20)
    assert first.returncode == 128 + signum
    assert "Stopped. Go on with the same command." in printed
    assert "Traceback" not in printed
    assert '"interrupted"' in (FOLDER / "trials/000_do=slow/results.json").read_text()
    assert [row["status"] for row in results()] == ["waiting", "waiting"]
    assert not psutil.pid_exists(starts()[0][2])
    second = start(*grid)
    printed, _ = second.communicate(timeout=60)
    assert second.returncode == 0, printed
    assert sorted(how for _, how, _ in starts()) == ["again", "new", "new"]


@pytest.mark.slow
def test_a_trial_that_lost_its_sweep_is_waited_for(here):
    """Where no kernel tells it to stop, it ends its run, which then counts."""
    script = (
        "import runpy, smolbench.cli.sweep.process as p; p.TIES = False; "
        "runpy.run_module('tests.helpers.fake_sweep', run_name='__main__')"
    )
    grid = ["--grid=fake.lr=3", "--grid=fake.seconds=0.7"]
    first = subprocess.Popen([sys.executable, "-c", script, *grid])
    until(lambda: (FOLDER / "trials/000_lr=3,seconds=0.7/results.json").exists())
    time.sleep(0.5)  # its sign of life is given: a kill in the middle would leave a lock
    first.kill()
    first.wait()
    assert psutil.pid_exists(starts()[0][2])
    assert sweep(*grid) == 0
    assert [how for _, how, _ in starts()] == ["new"]
    assert [row["status"] for row in results()] == ["finished"]


def test_a_worker_that_died_before_it_entered_the_result(here):
    grid = ["--grid=fake.lr=1,2"]
    assert sweep(*grid) == 0
    for name in ("journal.log", "results.csv"):
        (FOLDER / name).unlink()
    assert sweep(*grid) == 0
    assert len(starts()) == 2, "what has finished is not run again"
    assert [row["val/accuracy"] for row in results()] == ["0.2", "0.1"]


def test_seeds_are_a_grid_and_the_best_combination_is_tested_under_all(here, capsys):
    grid = ["--grid=fake.lr=4,6", "--grid=seed_everything=0,1,2"]
    assert sweep(*grid) == 0
    tested = [row for row in results() if row["test/accuracy"]]
    assert [(row["fake.lr"], row["seed_everything"]) for row in tested] == [
        ("6", "0"),
        ("6", "1"),
        ("6", "2"),
    ]
    printed = capsys.readouterr().out
    assert "in the mean of 3 seeds: fake.lr=6" in printed
    assert re.search(r"\| +6 \| +3 \| +0.6000 ± 0.0000 \|", printed)
    assert sweep(*grid, "--test=all") == 0
    assert all(row["test/accuracy"] for row in results())
    assert len(starts()) == 6


def test_another_grid_of_the_same_name_is_refused(here, capsys):
    assert sweep("--grid=fake.lr=1", "--test=none") == 0
    assert sweep("--grid=fake.lr=1,2") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "another sweep of the name imdb_probe: grid was ['fake.lr=1'], is" in said
    assert "--name" in said
    assert sweep("--grid=fake.lr=1", "--model.lr=1e-3") == 2
    assert "arguments was" in capsys.readouterr().err
    assert sweep("--grid=fake.lr=1,2", "--name=other", "--test=none") == 0
    assert len(starts()) == 3


def test_a_storage_without_its_folder_knows_its_sweep(here, capsys):
    storage = "--storage=sqlite:///shared.db"
    assert sweep("--grid=fake.lr=1", storage) == 0
    assert sweep("--grid=fake.lr=2", storage, "--runs_dir=elsewhere") == 2
    assert "another sweep of the name imdb_probe" in capsys.readouterr().err
    assert sweep("--grid=fake.lr=1", storage, "--runs_dir=elsewhere2") == 0
    captured = capsys.readouterr()
    assert "ran on another machine" in captured.err
    assert "0.1000" in captured.out, "its numbers are in the storage"
    assert len(starts()) == 1


def test_random_and_tpe(here):
    spaces = ["--grid=data.batch_size=8,16", "--range=fake.lr=1:9"]
    assert sweep(*spaces, "--sampler=random", "--trials=4", "--name=r", "--test=none") == 0
    assert len(starts()) == 4
    assert sweep(*spaces, "--sampler=random", "--trials=5", "--name=r", "--test=none") == 0
    assert len(starts()) == 5
    assert sweep(*spaces, "--sampler=tpe", "--trials=12", "--name=t", "--test=none") == 0
    assert len(starts()) == 17
    assert len({name for name, _, _ in starts()}) >= 12
    rows = results(Path("runs/sweeps/t"))
    assert len(rows) == 12
    assert all(float(row["val/accuracy"]) * 10 == float(row["fake.lr"]) for row in rows)


@pytest.mark.slow
def test_tpe_shares_its_trials_and_repeats_no_point_of_a_grid(here):
    grid = ["--grid=fake.lr=1,2,3", "--grid=data.batch_size=8,16", "--sampler=tpe", "--trials=50"]
    workers = [start(*grid) for _ in range(2)]
    printed = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], printed
    assert len(starts()) == len({name for name, _, _ in starts()}) == 6


def test_what_is_worse_than_the_median_is_pruned(here, monkeypatch):
    monkeypatch.setattr("smolbench.cli.sweep.trial.LOOK_S", 0.1)
    grid = ["--grid=fake.lr=9,8,7,6,5,1", "--grid=fake.seconds=0.4"]
    assert sweep(*grid, "--prune", "--test=none") == 0
    found = {row["fake.lr"]: row["status"] for row in results()}
    assert found["9"] == "finished"
    assert found["1"] == "pruned"


def test_a_sweep_goes_on_where_its_model_lies_now(here, capsys):
    Path("net").mkdir()
    Path("net/config.json").write_text("{}")
    grid = ["--grid=fake.lr=1", "--test=none"]
    assert sweep(*grid, "--model.backbone=net") == 0
    Path("net").rename("moved")
    assert sweep(*grid, "--model.backbone=moved") == 0
    assert len(starts()) == 1
    Path("moved/config.json").write_text("[]")
    capsys.readouterr()
    assert sweep(*grid, "--model.backbone=moved") == 2
    assert "There is another sweep of the name imdb_probe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "nothing to sweep"),
        (["--range=model.lr=1:2"], "add --sampler random or tpe and --trials N"),
        (["--grid=a=1", "--sampler=tpe"], "--sampler tpe needs --trials N"),
        (["--grid=a=1", "--trials=3"], "a grid is run as a whole"),
        (["--grid=a=1", "--trials=0"], "0 is no number of trials"),
        (["--grid=a=1", "--a=2"], "a is swept and given as --a"),
        (["--grid=a=1", "--ckpt_path=last"], "--ckpt_path cannot be given"),
        (["--grid=run_dir=x,y"], "run_dir cannot be swept"),
        (["--grid=a=1", "--name=../x"], "names a folder"),
        (["--grid=a=1", "--metric=test/accuracy"], "compared on validation rows"),
        (["--grid=a=1", "--config=nowhere"], "There is no configuration 'nowhere'"),
        (["--grid=a=1", "--storage=nothing://x"], "storage, nothing://x, cannot be used"),
        (["--grid=a=1", "--storage=a://me:secret@x/y"], "storage, a://x/y, cannot be used"),
    ],
)
def test_what_is_refused(here, capsys, arguments, sentence):
    assert sweep(*arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert not starts()


def test_a_damaged_journal_is_a_sentence(here, capsys):
    FOLDER.mkdir(parents=True)
    (FOLDER / "journal.log").write_text('{"half\n{}\n')
    assert sweep("--grid=a=1") == 2
    assert "journal.log in the sweep's folder, cannot be used" in capsys.readouterr().err


def test_without_optuna_it_says_what_to_install(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert sweep("--grid=a=1") == 2
    assert "`pip install optuna` (the extra `sweep`)" in capsys.readouterr().err


def test_help_needs_neither_torch_nor_optuna(here):
    code = (
        "import sys; from smolbench.cli import main; assert main(['sweep', '--help']) == 0; "
        "sys.exit(bool({'torch', 'numpy', 'optuna', 'rich', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--grid" in done.stdout


def test_runs_and_report_find_the_trials(here, capsys):
    assert sweep("--grid=fake.lr=1,2") == 0
    capsys.readouterr()
    assert main(["runs"]) == 0
    assert "000_lr=1" in capsys.readouterr().out
    assert main(["report"]) == 0
