from __future__ import annotations

import io

import pytest
import rich
from rich.console import Console

from smolbench.utils import progress
from smolbench.utils.progress import progress_bar


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


@pytest.fixture
def library_bar():
    """A class such as huggingface_hub has, drawn by us."""
    from tqdm.auto import tqdm

    bar_class = type("LibraryBar", (tqdm,), {})
    progress._draw_with_rich(bar_class)
    return bar_class


def download(library_bar, clock, seconds=10, complete=True):
    bar = library_bar(total=10 * 2**20, initial=2**20, unit="B", unit_scale=True, desc="weights")
    for _ in range(9 if complete else 4):
        clock.now += seconds / 9
        bar.update(2**20)
        bar.refresh()
    bar.close()


def test_a_download_of_a_library_is_drawn_like_everything_else(library_bar, clock, console, capsys):
    download(library_bar, clock)
    drawn = console.file.getvalue()
    assert "weights" in drawn
    assert "10.5/10.5 MB" in drawn
    assert capsys.readouterr() == ("", "")


def test_a_download_leaves_a_line_where_there_is_no_terminal(library_bar, clock, capsys):
    download(library_bar, clock)
    assert capsys.readouterr() == ("", "weights: 10.0 MiB in 10 s\n")


def test_a_short_or_broken_download_leaves_none(library_bar, clock, capsys):
    download(library_bar, clock, seconds=1)
    download(library_bar, clock, complete=False)
    assert capsys.readouterr() == ("", "")


def test_an_iterated_library_bar_counts(library_bar, clock, capsys):
    for _ in library_bar(range(20), desc="Generating", unit=" examples", mininterval=0):
        clock.now += 1
    assert capsys.readouterr() == ("", "Generating: 20 examples in 20 s\n")


def test_a_library_bar_that_is_switched_off_stays_so(library_bar, clock, capsys):
    for _ in library_bar(range(20), disable=True):
        clock.now += 1
    assert capsys.readouterr() == ("", "")


def test_both_libraries_bars_are_replaced_once():
    import datasets.utils
    import huggingface_hub.utils

    classes = [huggingface_hub.utils.tqdm, datasets.utils.tqdm]
    before = [vars(bar_class).get("_bar", "none of ours") for bar_class in classes]
    saved = [(c.__init__, c.display, c.close) for c in classes]
    try:
        progress.draw_library_bars()
        once = [(c.__init__, c.display, c.close) for c in classes]
        progress.draw_library_bars()
        assert [(c.__init__, c.display, c.close) for c in classes] == once
    finally:
        if "none of ours" in before:
            for bar_class, (init, display, close) in zip(classes, saved, strict=True):
                bar_class.__init__, bar_class.display, bar_class.close = init, display, close
                del bar_class._bar
