"""The plots of a report as PNG files."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from smolbench.cli import main
from smolbench.runs.record import find_folders, read_records
from smolbench.runs.report.details import details_of
from smolbench.runs.report.leaderboard import build_report
from smolbench.runs.report.page import plot_of
from smolbench.runs.report.pictures import (
    confusion_matrix,
    pareto_front,
    quality_over_cost,
    write_pictures,
)
from tests.helpers.written_runs import write_run

RUNS = {
    "cheap": {"test/accuracy": 0.80, "cost/fit_s": 10.0, "cost/cache_s": 0.0},
    "middle": {"test/accuracy": 0.78, "cost/fit_s": 50.0, "cost/cache_s": 0.0},
    "good": {"test/accuracy": 0.93, "cost/fit_s": 2000.0, "cost/cache_s": 100.0},
}


@pytest.fixture
def three(folder_here: Path) -> Path:
    for number, (name, facts) in enumerate(RUNS.items()):
        write_run(folder_here / "runs" / name, series_digest=f"{number}" * 16, recipe=name, **facts)
    return folder_here


def board_of(folder: Path):
    records, _ = read_records(find_folders([folder / "runs"]))
    return build_report(records, None)[0].boards[0]


def pixels(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xae\x42\x60\x82")
    return struct.unpack(">II", content[16:24])


def test_files_are_pictures(three, capsys):
    assert main(["report", "--png", "figures"]) == 0
    names = {path.name for path in (three / "figures").iterdir()}
    assert "stanfordnlp_imdb-1-training_s.png" in names
    assert "stanfordnlp_imdb-1-peak_rss_mib.png" in names
    for path in (three / "figures").iterdir():
        assert pixels(path) == (1280, 840)
        assert path.stat().st_size > 5_000
    assert f"Written: {len(names)} pictures" in capsys.readouterr().err


def test_equal_results_give_equal_files_and_others_do_not(three):
    def drawn(folder: str) -> dict[str, bytes]:
        records, _ = read_records(find_folders([three / "runs"]))
        written = write_pictures(build_report(records, None), three / folder, details=False)
        return {path.name: path.read_bytes() for path in written}

    before, again = drawn("a"), drawn("b")
    assert before == again
    changed = RUNS["good"] | {"cost/fit_s": 99.0}
    write_run(three / "runs/good", series_digest="2" * 16, recipe="good", **changed)
    after = drawn("c")
    assert before["stanfordnlp_imdb-1-training_s.png"] != after["stanfordnlp_imdb-1-training_s.png"]
    assert before["stanfordnlp_imdb-1-n_train.png"] == after["stanfordnlp_imdb-1-n_train.png"]


def test_points_are_the_tables(three):
    board = board_of(three)
    plot = plot_of("board", board)
    cost = next(cost for cost in plot["costs"] if cost["key"] == "training_s")
    axes = quality_over_cost(plot, cost).axes[0]
    points = {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for container in axes.containers
        for line in [container.lines[0]]
    }
    assert points == {(10.0, 0.80), (50.0, 0.78), (2100.0, 0.93)}
    ranked = [row for row in board.rows if row.obstacle is None and not row.is_published]
    assert points == {(row.costs["training_s"], row.value) for row in ranked}
    front = next(line for line in axes.lines if line.get_label() == "front")
    assert list(front.get_xdata()) == [10.0, 2100.0]
    assert list(front.get_ydata()) == [0.80, 0.93]
    assert axes.get_xscale() == "log", "they span more than a factor of ten"
    assert axes.get_xlabel() == "fit + cache, s"
    assert axes.get_ylabel() == board.metric
    shown = {text.get_text() for text in axes.texts}
    assert shown == {"cheap", "good"}, "recipes, where no two points are of the same one"
    # a published figure stands at the right edge, at its quality
    published = [row.value for row in board.rows if row.is_published]
    drawn = [line.get_ydata()[0] for line in axes.lines if line.get_label() == "published"]
    low, high = axes.get_ylim()
    assert sorted(drawn) == sorted(value for value in published if low <= value <= high)


def row(cost: float, value: float) -> dict:
    return {"value": value, "worth": value, "costs": {"key": {"value": cost}}}


def test_the_pareto_front_is_what_nothing_beats():
    rows = [row(3, 0.9), row(1, 0.5), row(2, 0.4), row(1, 0.6), row(4, 0.9)]
    cheap = pareto_front(rows, {"key": "key", "more": False})
    assert [(r["costs"]["key"]["value"], r["value"]) for r in cheap] == [(1, 0.6), (3, 0.9)]
    fast = pareto_front(rows, {"key": "key", "more": True})
    assert [(r["costs"]["key"]["value"], r["value"]) for r in fast] == [(4, 0.9)]
    losses = [{**r, "worth": -r["value"]} for r in rows]
    losses = pareto_front(losses, {"key": "key", "more": False})
    assert [(r["costs"]["key"]["value"], r["value"]) for r in losses] == [(1, 0.5), (2, 0.4)]


def test_learning_curves_come_with_the_details(three):
    lines = "step,train/loss,val/accuracy\n1,0.5,\n2,0.25,0.6\n3,0.2,0.7\n"
    (three / "runs/good/metrics.csv").write_text(lines)
    assert main(["report", "--png", "plain"]) == 0
    assert not list((three / "plain").glob("run-*"))
    assert main(["report", "--png", "figures", "--details"]) == 0
    names = {path.name for path in (three / "figures").glob("run-*")}
    assert names == {"run-good_good-loss.png", "run-good_good-accuracy.png"}


def test_confusion_matrices_come_with_the_details(three):
    counts = {"test__labels": ["neg", "pos"], "test__confusion": [[1200, 300], [0, 700]]}
    write_run(three / "runs/good", series_digest="2" * 16, recipe="good", **counts)
    assert main(["report", "--png", "figures", "--details"]) == 0
    assert pixels(three / "figures" / "run-good_good-confusion.png") == (1280, 840)
    (record,) = read_records([three / "runs/good"])[0]
    axes = confusion_matrix(details_of(record).confusion, record).axes[0]
    assert axes.images[0].get_array().tolist() == [[0.8, 0.2], [0.0, 1.0]]
    found = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    assert found == {(0, 0): "1,200", (1, 0): "300", (0, 1): "0", (1, 1): "700"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["neg", "pos"]
    assert axes.get_ylabel() == "true"


def test_a_single_run_has_nothing_to_weigh(folder_here):
    write_run(folder_here / "runs/one")
    assert main(["report", "--png", "figures"]) == 0
    assert not (folder_here / "figures").exists()


def test_without_matplotlib(three, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", "--png", "figures"]) == 2
    assert "`pip install matplotlib` (the extra `plots`)" in capsys.readouterr().err
    assert not (three / "report.html").exists()


def test_a_folder_that_cannot_be_written(three, capsys):
    (three / "figures").write_text("a file")
    assert main(["report", "--png", "figures"]) == 2
    assert "figures cannot be written" in capsys.readouterr().err
