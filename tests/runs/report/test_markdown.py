from __future__ import annotations

import pytest

from smolbench.runs.record import find_folders, read_records
from smolbench.runs.report.cells import cost_text
from smolbench.runs.report.leaderboard import build_report
from smolbench.runs.report.markdown import escape, render
from tests.helpers.written_runs import write_run


def tables(text):
    """Cells of every table, by rows, and that all rows of a table have as many."""
    found, table = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif table:
            assert len({len(row) for row in table}) == 1
            found.append(table)
            table = []
    return found


def rendered(tmp_path, **options):
    return render(build_report(read_records(find_folders([tmp_path]))[0], **options))


def test_a_leaderboard_is_a_table(tmp_path):
    write_run(tmp_path / "a", test__accuracy=0.9)
    write_run(tmp_path / "b", test__accuracy=0.8, series_digest="other", status="failed")
    text = rendered(tmp_path, price_per_hour=4)
    assert "## stanfordnlp/imdb" in text
    assert "### accuracy on 25,000 examples, test set aaaaaaaaaaaaaaaa" in text
    board, comparison = tables(text)
    first = dict(zip(board[0], next(row for row in board if row[2] == "imdb_probe/a"), strict=True))
    assert first == {
        "rank": "1",
        "run": "imdb_probe/a",
        "model": "HuggingFaceTB/SmolLM2-135M",
        "method": "probe",
        "accuracy": "0.9000 ± 0.0020",
        "seeds": "1",
        "to published": "+0.0080",
        "fit + cache, s": "900",
        "training price": "1.00",
        "peak resident, MiB": "1,500",
        "frozen tokens/s": "9,000",
        "training examples": "25,000",
        "trainable parameters": "225,026",
        "checkpoint, MiB": "0.90",
        "test samples/s": "30.0",
        "latency p50, ms": "60.0",
        "measured on": "AMD EPYC",
        "notes": "",
    }
    (failed,) = [row for row in board if row[2] == "imdb_probe/b"]
    assert failed[0] == ""
    assert failed[-1] == "not finished: failed"
    assert comparison[2][:5] == ["imdb_probe/a", "accuracy", "0.8920", "0.9000", "+0.0080"]


def test_a_board_says_that_its_costs_are_of_different_hardware(tmp_path):
    gpus = {"hardware__name": "NVIDIA H100", "hardware__world_size": 4, "model__dtype": "bfloat16"}
    write_run(tmp_path / "a", test__accuracy=0.9, model__dtype="float32")
    assert "different hardware" not in rendered(tmp_path)
    write_run(tmp_path / "b", test__accuracy=0.8, series_digest="other", **gpus)
    text = rendered(tmp_path)
    assert "test set aaaaaaaaaaaaaaaa, costs of different hardware" in text
    head, *rows = tables(text)[0]
    found = {row[head.index("run")]: dict(zip(head, row, strict=True)) for row in rows}
    assert found["imdb_probe/a"]["measured on"] == "AMD EPYC"
    assert found["imdb_probe/b"]["measured on"] == "4 x NVIDIA H100"
    assert found["imdb_probe/a"]["computed in"] == "float32"
    assert found["imdb_probe/b"]["computed in"] == "bfloat16"


def test_costs_that_no_run_has_are_no_columns(tmp_path):
    write_run(tmp_path / "a", cost__peak_rss_mib=..., data__id="mine")
    ((headings, *_),) = tables(rendered(tmp_path))
    assert "peak resident, MiB" not in headings
    assert "training price" not in headings
    assert "to published" not in headings


def test_names_cannot_break_a_table(tmp_path):
    write_run(tmp_path / "a", data__id="mine", model__id="a|b\nc<script>\x1b[31m")
    ((_, _, row),) = tables(rendered(tmp_path))
    assert row[3] == "a\\|b c\\<script\\> \\[31m"


@pytest.mark.parametrize(
    ("given", "shown"),
    [("a_b", "a_b"), ("*a*", "\\*a\\*"), ("[x](y)", "\\[x\\](y)"), ("`a`", "\\`a\\`"), ("", "")],
)
def test_escape(given, shown):
    assert escape(given) == shown


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("training_s", 0.0, "0.0"),
        ("training_s", 1.234, "1.23"),
        ("training_s", 12.34, "12.3"),
        ("training_s", 123456.0, "123,456"),
        ("trainable_params", 98.0, "98"),
        ("money", 0.0123, "0.012"),
        ("money", 12.345, "12.35"),
        ("money", None, ""),
    ],
)
def test_costs_are_shown(key, value, shown):
    assert cost_text(key, value) == shown
