from __future__ import annotations

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from scipy.stats import binomtest, ttest_rel
from sklearn.metrics import f1_score

from smolbench.cli import main
from smolbench.runs.record import find_folders, read_records
from smolbench.runs.report.leaderboard import build_report
from smolbench.runs.report.significance import (
    holm,
    mcnemar,
    paired_bootstrap,
    paired_bootstrap_of_f1,
    with_significance,
)
from tests.helpers.written_runs import MULTIPLE_CHOICE, SUMMARIES, write_run

N = 200
LABELS = np.arange(N) % 2


def write(folder, right, base=None, *, shuffled=False, draw=None, **changes):
    """A run that is right on the texts given, with its predictions, and those of a second draw."""
    right = np.asarray(right)
    metric = "acc_norm" if base else "accuracy"
    options = {"test__n": N, f"test__{metric}": right.mean().item(), "series_digest": folder.name}
    write_run(folder, *([base] if base else []), **{**options, **changes})
    order = np.random.default_rng(0).permutation(N) if shuffled else np.arange(N)
    prediction = np.where(right, LABELS, 1 - LABELS)
    name = "prediction_norm" if base else "prediction"
    columns = {"index": order, "label": LABELS[order], name: prediction[order]}
    if draw is not None:
        columns["prediction_of_shots_7"] = np.where(draw, LABELS, 1 - LABELS)[order]
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


def test_of_several_draws_their_mean_is_tested(tmp_path):
    draws = first(180), np.arange(N) >= 40
    mean = np.mean(draws, axis=0)
    write(tmp_path / "best", first(185))
    write(tmp_path / "draws", draws[0], draw=draws[1], test__n_draws=2, test__accuracy=mean.mean())
    assert p_values(tmp_path)[0]["draws"] == paired_bootstrap(first(185).astype(float), mean)
    # the first draw alone is not what was scored, also where it happens to score the same
    write(tmp_path / "draws", draws[0], draw=draws[1], test__n_draws=2, test__accuracy=0.9)
    assert p_values(tmp_path)[0]["draws"] is None


def test_every_row_is_tested_against_the_best(tmp_path):
    write(tmp_path / "best", first(180))
    write(tmp_path / "near", first(179), shuffled=True)
    write(tmp_path / "far", first(120))
    values, refused = p_values(tmp_path)
    assert refused == []
    assert values["best"] is None
    assert values["near"] == 1.0
    assert values["far"] == pytest.approx(2 * binomtest(0, 60).pvalue)


def test_of_several_seeds_the_newest_run_is_tested(tmp_path):
    write(tmp_path / "best", first(180))
    series = {"series_digest": "one", "started_at": "2026-01-01T12:00:00+00:00"}
    write(tmp_path / "old", np.arange(N) >= 40, seed=0, **series)
    series["started_at"] = "2026-01-02T12:00:00+00:00"
    write(tmp_path / "new", first(160), seed=1, **series)
    values = p_values(tmp_path)[0]
    assert values == {"best": None, "new": pytest.approx(binomtest(0, 20).pvalue)}


@pytest.mark.parametrize("base", [None, MULTIPLE_CHOICE])
def test_the_order_of_the_file_does_not_matter(tmp_path, base):
    """Paired by another order, texts that both are right on would count for either of the two."""
    write(tmp_path / "best", first(160), base)
    write(tmp_path / "less", first(150), base, shuffled=True)
    assert p_values(tmp_path)[0]["less"] == pytest.approx(binomtest(0, 10).pvalue)


def test_multiple_choice_is_tested_by_its_metric(tmp_path):
    write(tmp_path / "a", first(100), MULTIPLE_CHOICE)
    write(tmp_path / "b", first(60), MULTIPLE_CHOICE)
    assert p_values(tmp_path)[0]["b"] == pytest.approx(binomtest(0, 40).pvalue)


def test_what_is_not_ranked_is_not_tested(tmp_path):
    write(tmp_path / "best", first(180))
    write(tmp_path / "failed", first(190), status="failed")
    write(tmp_path / "untrained", first(100), attempts=...)
    assert set(p_values(tmp_path)[0].values()) == {None}


def test_predictions_that_are_missing_or_of_another_score_are_not_tested(tmp_path, recwarn):
    write(tmp_path / "best", first(180))
    empty = pyarrow.table({name: pyarrow.array([], "int64") for name in ("index", "label")})
    empty = empty.append_column("prediction", pyarrow.array([], "int64"))
    pyarrow.parquet.write_table(empty, write(tmp_path / "empty", first(90)) / "predictions.parquet")
    write(tmp_path / "missing", first(100)).joinpath("predictions.parquet").unlink()
    write(tmp_path / "other", first(100), test__accuracy=0.6)
    values, refused = p_values(tmp_path)
    assert [values[name] for name in ("missing", "other", "empty")] == [None] * 3
    assert not refused
    assert not recwarn


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


@pytest.mark.parametrize("shift", [0.0, 0.01, 0.02, 0.03, -0.02, 0.2])
def test_the_paired_bootstrap_of_many_texts_is_the_paired_t_test(shift):
    generator = np.random.default_rng(1)
    both = generator.uniform(size=800)  # what makes a text easy for either
    one, other = both + shift, both + generator.normal(scale=0.3, size=800)
    expected = ttest_rel(one, other).pvalue
    assert paired_bootstrap(one, other) == pytest.approx(expected, abs=0.015)
    assert paired_bootstrap(other, one) == paired_bootstrap(one, other)


def test_the_paired_bootstrap_has_its_ends():
    scores = np.linspace(0, 1, 50)
    assert paired_bootstrap(scores, scores) == 1.0
    assert paired_bootstrap(scores + 1, scores) == 1e-4


def write_summaries(folder, scores, *, order=None, **changes):
    order = np.arange(len(scores)) if order is None else order
    options = {"test__rouge1": scores.mean().item(), "series_digest": folder.name}
    write_run(folder, SUMMARIES, **{**options, **changes})
    columns = {"index": order, "summary": ["x"] * len(scores), "rouge1": scores[order]}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "predictions.parquet")


def test_summaries_are_tested_by_their_scores(tmp_path):
    generator = np.random.default_rng(0)
    best = generator.uniform(size=400)
    near = best - generator.normal(0.002, 0.1, size=400)
    write_summaries(tmp_path / "best", best)
    write_summaries(tmp_path / "near", near, order=generator.permutation(400))
    write_summaries(tmp_path / "far", best - generator.uniform(0, 0.2, size=400))
    found, refused = p_values(tmp_path)
    assert refused == []
    assert found["best"] is None
    assert found["far"] == pytest.approx(2e-4)  # two rows
    assert found["near"] == pytest.approx(paired_bootstrap(best, near))
    assert found["near"] > 0.05


def test_summaries_of_another_score_are_not_tested(tmp_path):
    scores = np.linspace(0.2, 0.6, 40)
    write_summaries(tmp_path / "best", scores)
    write_summaries(tmp_path / "other", scores / 2, test__rouge1=0.3)
    write_summaries(tmp_path / "undefined", np.full(40, np.nan), test__rouge1=0.3)
    assert p_values(tmp_path)[0] == {"best": None, "other": None, "undefined": None}


# -- F1, which is no mean over texts ---------------------------------------------------------------


def write_f1(folder, called, metric="f1", positive="pos", **changes):
    labels = (np.arange(N) % 5 == 0).astype(int)
    scores = {
        "test__f1": f1_score(labels, called, pos_label=["neg", "pos"].index(positive)),
        "test__f1_macro": f1_score(labels, called, average="macro"),
    }
    given = {"test__n": N, "series_digest": folder.name, "headline": metric, **scores}
    given |= {
        "positive_label": positive if metric == "f1" else None,
        "test__labels": ["neg", "pos"],
    }
    write_run(folder, **{**given, **changes})
    columns = {"index": np.arange(N), "label": labels, "prediction": called}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "predictions.parquet")


@pytest.mark.parametrize(("metric", "positive"), [("f1", "pos"), ("f1", "neg"), ("f1_macro", "")])
def test_f1_is_tested_by_resampling_the_texts(tmp_path, metric, positive):
    truth = (np.arange(N) % 5 == 0).astype(int)
    close = np.where(np.arange(N) == 10, 1 - truth, truth)
    far = np.where(np.arange(N) % 3 == 0, 1 - truth, truth)
    for name, called in (("best", truth), ("close", close), ("far", far)):
        write_f1(tmp_path / name, called, metric, positive or "pos")
    found, refused = p_values(tmp_path)
    assert not refused
    assert found["far"] < 0.001
    assert found["close"] > 0.3
    # as a resampling of the rows one by one
    generator = np.random.default_rng(1)
    average = {"average": "macro"} if metric == "f1_macro" else {"pos_label": positive == "pos"}
    part = np.where(np.arange(N) % 25 == 1, 1 - truth, truth)
    other = np.where(np.arange(N) % 40 == 0, 1 - truth, truth)
    scored = [lambda rows, c=c: f1_score(truth[rows], c[rows], **average) for c in (part, other)]
    observed = scored[0](slice(None)) - scored[1](slice(None))
    draws = [scored[0](rows) - scored[1](rows) for rows in generator.integers(N, size=(400, N))]
    expected = np.mean(np.abs(np.array(draws) - observed) >= abs(observed))
    pairs = [np.stack([truth, called], axis=1) for called in (part, other)]
    number = None if metric == "f1_macro" else ["neg", "pos"].index(positive)
    assert paired_bootstrap_of_f1(*pairs, number) == pytest.approx(expected, abs=0.08)
    assert paired_bootstrap_of_f1(pairs[0], pairs[0], number) == 1


def test_the_mean_over_classes_is_tested_whatever_class_is_the_positive_one(tmp_path):
    truth = (np.arange(N) % 5 == 0).astype(int)
    less = np.where(np.arange(N) % 40 == 0, 1 - truth, truth)
    for folder, given in (("named", "pos"), ("bare", None)):
        for name, called in (("best", truth), ("less", less)):
            write_f1(tmp_path / folder / name, called, "f1_macro", positive_label=given)
    named, bare = (p_values(tmp_path / folder)[0]["less"] for folder in ("named", "bare"))
    assert named == bare
    assert named is not None


def test_f1_of_other_classes_is_on_boards_of_their_own(tmp_path):
    for name, positive in (("a", "pos"), ("b", "pos"), ("c", "neg")):
        write_f1(tmp_path / name, (np.arange(N) % 5 == 0).astype(int), "f1", positive)
    (dataset,) = build_report(read_records(find_folders([tmp_path]))[0])
    assert sorted(len(board.rows) for board in dataset.boards) == [1, 2]
    assert {board.convention for board in dataset.boards} == {"of 'pos'", "of 'neg'"}
