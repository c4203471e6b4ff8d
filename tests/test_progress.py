from __future__ import annotations

import io

import pytest
import rich
from rich.console import Console

from smolbench import progress
from smolbench.progress import progress_bar


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def console(monkeypatch):
    """The shared console, as a terminal that can be read."""
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(rich, "_console", console)
    return console


@pytest.fixture(autouse=True)
def _first_rank(monkeypatch):
    monkeypatch.setattr(progress.rank_zero_only, "rank", 0, raising=False)


def run(clock, seconds, total=10, per_step=1):
    with progress_bar("Encoding", total) as advance:
        for _ in range(total // per_step):
            clock.now += seconds * per_step / total
            advance(per_step)


def test_a_short_job_says_nothing(clock, capsys):
    run(clock, seconds=1.9)
    assert capsys.readouterr() == ("", "")


def test_a_long_job_leaves_a_line_where_there_is_no_terminal(clock, capsys):
    run(clock, seconds=30, total=2000, per_step=500)
    assert capsys.readouterr() == ("", "Encoding: 2,000 examples in 30 s\n")


def test_a_long_job_draws_a_bar_on_a_terminal(clock, console, capsys):
    run(clock, seconds=10)
    drawn = console.file.getvalue()
    assert "Encoding" in drawn
    assert "10/10" in drawn
    assert "examples" in drawn
    assert capsys.readouterr() == ("", "")


def test_a_short_job_draws_nothing_on_a_terminal(clock, console):
    run(clock, seconds=1.9)
    assert console.file.getvalue() == ""


def fail(clock):
    with progress_bar("Encoding", 10) as advance:
        clock.now += 5
        advance(1)
        raise KeyError


def test_an_error_passes_and_closes_the_bar(clock, console):
    with pytest.raises(KeyError):
        fail(clock)
    assert not console._live_stack
    with progress_bar("Encoding", 10) as advance:  # a bar left open would make this one fail
        clock.now += 5
        advance(10)


def test_no_line_for_a_job_that_failed(clock, capsys):
    with pytest.raises(KeyError):
        fail(clock)
    assert capsys.readouterr().err == ""


def test_other_ranks_are_silent(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress.rank_zero_only, "rank", 1)
    run(clock, seconds=30)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID", "LOCAL_RANK"])
def test_the_rank_outside_of_lightning(clock, capsys, monkeypatch, variable):
    monkeypatch.delattr(progress.rank_zero_only, "rank")
    monkeypatch.setenv(variable, "1")
    run(clock, seconds=30)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv(variable, "0")
    run(clock, seconds=30)
    assert "Encoding" in capsys.readouterr().err
