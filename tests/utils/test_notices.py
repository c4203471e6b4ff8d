from __future__ import annotations

import logging

import pytest

from smolbench.callbacks import ResultsWriter, RunCheckpoint
from smolbench.runs.record import find_folders, read_records
from smolbench.runs.report.leaderboard import build_report
from smolbench.runs.report.summary import print_summary
from smolbench.runs.results import read_results
from smolbench.utils.notices import LIMIT, begin, gathered, kept, warn
from tests.helpers.plain import PlainModule, loader, trainer
from tests.helpers.written_runs import write_run


@pytest.fixture
def seen(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("smolbench"), "propagate", True)
    return caplog


def test_a_line_is_said_once_per_command(seen):
    for count in (3, 3, 4):
        warn("%d rows are\n gone (%s).", count, "100%")
    warn("100% of it")
    assert list(dict.fromkeys(seen.messages)) == [
        "3 rows are gone (100%).",
        "4 rows are gone (100%).",
        "100% of it",
    ]
    begin()
    assert gathered([], "fit") == []


def test_many_are_counted():
    for number in range(LIMIT + 5):
        warn("line %d", number)
    lines = gathered([], "test")
    assert (len(lines), lines[0], lines[-1]) == (LIMIT, "test: line 0", "and 6 more warnings")


@pytest.mark.parametrize("known", [None, "text", 3, [1, None]])
def test_results_of_anybody_else_break_nothing(known):
    assert kept(known, "fit") == []


class Warns(PlainModule):
    """Warns of whatever it is told to, at the start of each stage."""

    def __init__(self, *lines) -> None:
        super().__init__()
        self.lines = lines

    def on_fit_start(self):
        list(map(warn, self.lines))

    on_test_start = on_fit_start


def warnings(folder):
    return read_results(folder)["warnings"]


def test_each_command_says_its_own_and_leaves_those_of_others(tmp_path):
    trainer(tmp_path, ResultsWriter({"recipe": "a"}), RunCheckpoint()).fit(
        Warns("a", "b"), loader()
    )
    assert warnings(tmp_path) == ["a", "b"]
    for lines, found in ((("b", "c"), ["a", "b", "test: c"]), (("d",), ["a", "b", "test: d"])):
        trainer(tmp_path, ResultsWriter()).test(Warns(*lines), loader(), verbose=False)
        assert warnings(tmp_path) == found
    last = tmp_path / "checkpoints" / "last.ckpt"
    trainer(tmp_path, ResultsWriter({"recipe": "a"}), RunCheckpoint(), max_epochs=2).fit(
        Warns("a", "e"), loader(), ckpt_path=last
    )
    assert warnings(tmp_path) == ["a", "b", "e"]


def test_they_stand_under_the_table_and_on_the_row(tmp_path, capsys):
    lines = [f"[{number}] rows are gone." for number in range(5)]
    write_run(tmp_path / "imdb_probe" / "a", warnings=lines)
    print_summary(read_results(tmp_path / "imdb_probe" / "a"), tmp_path, splits=("val",))
    assert [f"warning: {line}" in capsys.readouterr().out for line in lines[:1]] == [True]
    ((dataset,),) = [build_report(read_records(find_folders([tmp_path]))[0])]
    row = next(row for row in dataset.boards[0].rows if not row.is_published)
    assert row.notes == ("[0] rows are gone", "[1] rows are gone", "[2] rows are gone",
                         "2 more warnings")  # fmt: skip
