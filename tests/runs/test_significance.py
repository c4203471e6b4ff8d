from __future__ import annotations

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from scipy.stats import binomtest

from smolbench.cli import main
from smolbench.runs.leaderboard import build_report
from smolbench.runs.record import find_folders, read_records
from smolbench.runs.significance import holm, mcnemar, with_significance
from tests.helpers.written_runs import MULTIPLE_CHOICE, SUMMARIES, write_run

N = 200
LABELS = np.arange(N) % 2


def write(folder, right, base=None, *, shuffled=False, **changes):
    """A run that is right on the texts given, with its predictions."""
    right = np.asarray(right)
    metric = "acc_norm" if base else "accuracy"
    options = {"test__n": N, f"test__{metric}": right.mean().item(), "series_digest": folder.name}
    write_run(folder, *([base] if base else []), **{**options, **changes})
    order = np.random.default_rng(0).permutation(N) if shuffled else np.arange(N)
    prediction = np.where(right, LABELS, 1 - LABELS)
    name = "prediction_norm" if base else "prediction"
    columns = {"index": order, "label": LABELS[order], name: prediction[order]}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "predictions.parquet")
    return folder


def first(n):
    return np.arange(N) < n


def p_values(tmp_path):
    report, refused = with_significance(build_report(read_records(find_folders([tmp_path]))[0]))
    ((board,),) = [dataset.boards for dataset in report]
    return {row.records[0].path.name: row.p_value for row in board.rows if row.records}, refused


@pytest.mark.parametrize(
    ("wins", "losses"), [(0, 0), (1, 0), (5, 5), (12, 3), (3, 12), (0, 40), (90, 110)]
)
def test_mcnemar_is_the_binomial_test_of_what_differs(wins, losses):
    one = np.zeros(300, dtype=bool)
    other = np.zeros(300, dtype=bool)
    one[:wins] = True
    other[wins : wins + losses] = True
    one[250:] = other[250:] = True  # both right: says nothing
    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar(one, other) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_of_many_texts_does_not_overflow():
    one = np.ones(25_000, dtype=bool)
    assert mcnemar(one, ~one) == 0.0
    half = np.arange(25_000) % 2 == 0
    assert mcnemar(half, ~half) == 1.0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        ([0.04], [0.04]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # Holm (1979): times 3, 2, 1, never falling
        ([0.5, 0.6], [1.0, 1.0]),
    ],
)
def test_holm(given, expected):
    assert holm(given) == pytest.approx(expected)


def test_every_row_is_tested_against_the_best(tmp_path):
    write(tmp_path / "best", first(180))
    write(tmp_path / "near", first(179), shuffled=True)
    write(tmp_path / "far", first(120))
    values, refused = p_values(tmp_path)
    assert refused == []
    assert values["best"] is None
    assert values["near"] == 1.0
    assert values["far"] == pytest.approx(2 * binomtest(0, 60).pvalue)


def test_the_order_of_the_file_does_not_matter(tmp_path):
    right = np.random.default_rng(1).random(N) < 0.8
    write(tmp_path / "best", right)
    write(tmp_path / "same", right, shuffled=True)
    assert p_values(tmp_path)[0]["same"] == 1.0


def test_multiple_choice_is_tested_by_its_metric(tmp_path):
    write(tmp_path / "a", first(100), MULTIPLE_CHOICE)
    write(tmp_path / "b", first(60), MULTIPLE_CHOICE)
    assert p_values(tmp_path)[0]["b"] == pytest.approx(binomtest(0, 40).pvalue)


def test_what_is_not_ranked_is_not_tested(tmp_path):
    write(tmp_path / "best", first(180))
    write(tmp_path / "failed", first(190), status="failed")
    write(tmp_path / "untrained", first(100), attempts=...)
    assert set(p_values(tmp_path)[0].values()) == {None}


def test_predictions_that_are_missing_or_of_another_score_are_not_tested(tmp_path):
    write(tmp_path / "best", first(180))
    write(tmp_path / "missing", first(100)).joinpath("predictions.parquet").unlink()
    write(tmp_path / "other", first(100), test__accuracy=0.6)
    values, refused = p_values(tmp_path)
    assert (values["missing"], values["other"], refused) == (None, None, [])


def test_a_damaged_file_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "runs" / "best", first(180))
    write(tmp_path / "runs" / "cut", first(100)).joinpath("predictions.parquet").write_bytes(
        b"PAR1"
    )
    columns = pyarrow.table({"index": [0], "label": [0]})
    other = write(tmp_path / "runs" / "else", first(90))
    pyarrow.parquet.write_table(columns, other / "predictions.parquet")
    write(tmp_path / "runs" / "whole", first(80))
    assert main(["report", "--significance"]) == 1
    captured = capsys.readouterr()
    assert "runs/cut/predictions.parquet cannot be read" in captured.err
    assert "runs/else/predictions.parquet cannot be read" in captured.err
    assert "p to the best" in captured.out
    assert "<0.001" in captured.out
    assert "McNemar" in captured.out
    assert "McNemar" in (tmp_path / "report.html").read_text()
    assert main(["report"]) == 0
    assert "McNemar" not in capsys.readouterr().out


def test_summaries_are_neither_right_nor_wrong(tmp_path):
    for name, value in (("a", 0.3), ("b", 0.4)):
        write_run(tmp_path / name, SUMMARIES, test__rouge1=value, series_digest=name)
        table = pyarrow.table({"index": [0, 1], "summary": ["x", "y"]})
        pyarrow.parquet.write_table(table, tmp_path / name / "predictions.parquet")
    assert p_values(tmp_path) == ({"a": None, "b": None}, [])
