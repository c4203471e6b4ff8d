from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from smolbench.cli import main
from smolbench.runs.samples import write_samples
from tests.helpers.written_runs import CLASSIFICATION, MULTIPLE_CHOICE, SUMMARIES, write_run


@pytest.fixture
def two(folder_here):
    write_run(folder_here / "runs" / "imdb_probe" / "1")
    write_run(folder_here / "runs" / "hellaswag_smollm2" / "1", MULTIPLE_CHOICE)
    return folder_here


def test_all_runs_to_the_terminal_and_the_same_to_a_file(two, capsys):
    assert main(["report", "--markdown", "out/report.md"]) == 0
    out = capsys.readouterr().out
    assert "imdb_probe/1" in out
    assert "hellaswag_smollm2/1" in out
    assert (two / "out" / "report.md").read_text() == out
    assert main(["report"]) == 0
    assert capsys.readouterr().out == out


def test_a_page_beside_it(two, capsys):
    assert main(["report", "runs", "--output", "pages/a.html"]) == 0
    assert "imdb_probe/1" in (two / "pages" / "a.html").read_text()
    assert not (two / "report.html").exists()
    assert "Written: pages/a.html" in capsys.readouterr().err
    assert main(["report"]) == 0
    assert (two / "report.html").read_text() == (two / "pages" / "a.html").read_text()


def test_nothing_heavy_is_imported(two):
    code = (
        "import sys; from smolbench.cli import main; assert main(['report']) == 0; "
        "assert main(['runs']) == 0; sys.exit(bool({'torch', 'numpy', 'rich'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_some_runs(two, capsys):
    assert main(["report", "runs/imdb_probe"]) == 0
    assert "hellaswag" not in capsys.readouterr().out
    assert main(["report", "runs/hellaswag_smollm2/1", "runs/imdb_probe/1"]) == 0
    assert "imdb_probe/1" in capsys.readouterr().out


def test_a_damaged_run_is_named_and_the_rest_reported(two, capsys):
    (two / "runs" / "imdb_probe" / "1" / "results.json").write_text('{"schema": 7}')
    assert main(["report"]) == 1
    captured = capsys.readouterr()
    assert "runs/imdb_probe/1/results.json has schema 7" in captured.err
    assert "hellaswag_smollm2/1" in captured.out


@pytest.mark.parametrize("price", ["-1", "nan", "inf", "much"])
def test_a_price_is_a_number(two, capsys, price):
    assert main(["report", f"--price_per_hour={price}"]) == 2
    assert "is no price" in capsys.readouterr().err


def test_what_cannot_be_written_is_a_sentence(two, capsys):
    (two / "taken").mkdir()
    assert main(["report", "--markdown", "taken"]) == 2
    assert "taken cannot be written (Is a directory)" in capsys.readouterr().err


def test_nothing_to_report(folder_here, capsys):
    assert main(["report"]) == 2
    assert "There is no folder runs" in capsys.readouterr().err
    assert main(["report", "."]) == 2
    assert "There are no runs below" in capsys.readouterr().err


ODD = (None, "x", "", "\x1b[2J", -1, 10**400, True, [], [10**400], ["a", None], {"a": 1}, ...)


@pytest.mark.parametrize("value", ODD)
def test_no_value_of_any_key_breaks_it(two, capsys, value):
    others = ("parent_run", "teacher/same_rows", "test/labels", "test/class_f1", "test/confusion")
    for number, key in enumerate((*CLASSIFICATION, *others)):
        tables = {"test__labels": ["a"], "test__class_n": [3], "test__confusion": [[3]]}
        write_run(two / "odd" / str(number), **{**tables, key.replace("/", "__"): value})
    assert main(["report", "odd", "--significance", "--price_per_hour=1"]) == 0
    assert main(["runs", "--runs_dir=odd"]) == 0
    assert main(["runs", "--runs_dir=odd", "--json"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_details_of_every_run_are_on_the_page_if_asked_for(two, capsys):
    run = two / "runs" / "imdb_probe" / "1"
    (run / "metrics.csv").write_text("step,train/loss\n1,0.5\n2,0.25\n")
    columns = {"index": [0], "label": [0], "prediction": [1], "score_a": [0.3], "score_b": [0.7]}
    pyarrow.parquet.write_table(pyarrow.table(columns), run / "predictions.parquet")
    (run / "environment.json").write_text('{"python": "3.11.9", "command": ["a b", "<c>"]}')
    assert main(["report"]) == 0
    assert "polyline" not in (two / "report.html").read_text()
    assert main(["report", "--details"]) == 0
    page = (two / "report.html").read_text()
    assert page.count("<polyline") == 1
    assert "0.7000" in page
    assert "3.11.9" in page
    assert "&lt;c&gt;" in page
    (run / "metrics.csv").write_bytes(b"\xff")
    capsys.readouterr()
    assert main(["report", "--details"]) == 1
    assert "metrics.csv cannot be read" in capsys.readouterr().err
    assert "0.7000" in (two / "report.html").read_text()


def test_sample_predictions_are_written_with_the_details(two, capsys):
    run = two / "runs" / "imdb_probe" / "1"
    columns = {"index": [3], "label": [0], "prediction": [1], "score_a": [0.3], "score_b": [0.7]}
    pyarrow.parquet.write_table(pyarrow.table(columns), run / "predictions.parquet")
    write_run(two / "runs" / "samsum" / "1", SUMMARIES, recipe="samsum")
    sample = {"document": "A: <hi>", "reference": "R", "before": None, "after": "same"}
    write_samples(two / "runs" / "samsum" / "1", [sample, {**sample, "before": "same"}])
    assert main(["report", "--csv", "plain"]) == 0
    assert not list((two / "plain").glob("run-*"))
    assert "after training" not in (two / "report.html").read_text()
    assert main(["report", "--details", "--csv", "tables"]) == 0
    predictions = (two / "tables" / "run-imdb_probe_1-predictions.csv").read_text().splitlines()
    assert predictions[0].startswith("row,answer,true class,predicted,its score")
    assert predictions[1] == "3,wrong,a,b,0.7,0.3,0.7"
    samples = (two / "tables" / "run-samsum_1-samples.csv").read_text().splitlines()
    assert samples[0] == "document,before training,after training,reference"
    assert samples[1:] == ["A: <hi>,,same,R", "A: <hi>,same,same,R"]
    page = (two / "report.html").read_text()
    assert page.count("<dt>after training</dt><dd>same</dd>") == 2
    assert page.count("<dt>before training</dt><dd>same</dd>") == 1
    assert "A: &lt;hi&gt;" in page


def test_tables_as_csv(two, capsys):
    tables = {"test__labels": ["neg", "pos"], "test__confusion": [[8, 2], [1, 9]]}
    tables["test__accuracy_std"] = 0.01
    write_run(two / "runs" / "imdb_probe" / "2", series_digest="other", **tables)
    for seed in (0, 1):
        write_run(two / "runs" / "imdb_probe" / f"s{seed}", series_digest="s", seed=seed,
                  test__accuracy=0.6 + seed / 10)  # fmt: skip
    assert main(["report", "--csv", "tables"]) == 0
    with (two / "tables" / "stanfordnlp_imdb-1-leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    mine = [row for row in rows if row["run"].startswith("imdb_probe/")]
    errors = ["± over examples", "± over draws", "± over seeds"]
    assert [[row[name] for name in ("accuracy", *errors)] for row in mine[:2]] == [
        ["0.89", "0.002", "", ""],
        ["0.89", "0.002", "0.01", ""],
    ]
    assert float(mine[2]["± over seeds"]) == pytest.approx(0.1 / 2**0.5)
    assert mine[2]["± over examples"] == ""
    assert "0.8900 ± 0.0020 (over draws ± 0.0100)" in capsys.readouterr().out
    confusion = (two / "tables" / "run-imdb_probe_2-confusion.csv").read_text().splitlines()
    assert confusion == ["true \\ predicted,neg,pos", "neg,8.0,2.0", "pos,1.0,9.0"]
    assert (two / "tables" / "Rowan_hellaswag-1-leaderboard.csv").exists()
    (two / "file").touch()
    assert main(["report", "--csv", "file"]) == 2
    assert "file cannot be written" in capsys.readouterr().err
