"""ROUGE beside rouge_score itself, and its uncertainty."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from smolbench.data.samples.samsum import samsum_sample
from smolbench.metrics.rouge import (
    ROUGE,
    Summaries,
    rouge_metrics,
    rouge_scores,
)
from smolbench.metrics.rouge_tokens import sentences

REFERENCES = samsum_sample("test")["summary"]
SUMMARIES = [*REFERENCES[1:], "Running late! They're at the cafes. Nobody came."]


def scored(references, summaries):
    return rouge_scores(references, summaries, lambda count: None)


@pytest.fixture(scope="module")
def scores():
    return scored(REFERENCES, SUMMARIES)


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ('He said "no." Then he left.', ['He said "no."', "Then he left."]),
        ("It costs 3.50 today.", ["It costs 3.50 today."]),
        ("One line\nanother line", ["One line", "another line"]),
        ("  spaces.  more ", ["spaces.", "more"]),
        ("", []),
    ],
)
def test_sentences_stand_on_lines_of_their_own(text, split):
    assert sentences(text).split("\n") == (split or [""])


def test_scores_are_those_of_rouge_score(scores):
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    for row, reference, summary in zip(scores, REFERENCES, SUMMARIES, strict=True):
        lines = [text.replace(". ", ".\n").replace("! ", "!\n") for text in (reference, summary)]
        found = scorer.score(*lines)
        assert row.tolist() == [found[name].fmeasure for name in ROUGE]
    assert (scores[:, 2] != scores[:, 3]).any()  # the lines make the difference


def test_each_summary_is_counted_once_and_has_a_reference():
    done = []
    rouge_scores(["one", "two", "three"], ["one", "two", "four"], done.append)
    assert done == [1, 1, 1]
    with pytest.raises(ValueError, match="argument 2"):
        scored(["one"], ["one", "two"])


@pytest.mark.parametrize("ended", [0, 1, 3, 4])
def test_the_truncated_share_is_of_summaries_without_an_end(ended):
    numbers = np.arange(4)
    made = Summaries(
        numbers, ["a"] * 4, ["a"] * 4, np.ones((4, 4)), numbers, numbers < ended, numbers < 0
    )
    assert made.metrics()["truncated_share"] == (4 - ended) / 4


def test_the_stemmer_is_on():
    assert scored(["they were running"], ["he runs"])[0, 0] == pytest.approx(2 / 5)


def test_metrics_are_means_with_intervals(scores):
    state = random.getstate(), np.random.get_state()[1].tolist()
    found = rouge_metrics(scores)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state
    assert found == rouge_metrics(scores.copy())
    for column, name in enumerate(ROUGE):
        values = scores[:, column]
        assert found[name] == pytest.approx(values.mean())
        error = values.std(ddof=1) / math.sqrt(len(values))
        assert found[f"{name}_stderr"] == pytest.approx(error)
        # for a mean the bootstrap's interval is close to the normal one
        assert found[f"{name}_low"] == pytest.approx(found[name] - 1.96 * error, abs=0.3 * error)
        assert found[f"{name}_high"] == pytest.approx(found[name] + 1.96 * error, abs=0.3 * error)


def test_a_single_example_has_no_interval(scores):
    found = rouge_metrics(scores[:1])
    assert found["rouge1"] == scores[0, 0]
    assert all(math.isnan(found[f"rouge1_{end}"]) for end in ("stderr", "low", "high"))


def test_summaries_are_summed_up_and_kept_one_by_one(scores):
    lengths, ended = np.array([3, 5, 4]), np.array([True, False, True])
    wordless = np.array([False, False, True])
    made = Summaries(
        np.array([4, 7, 9]), SUMMARIES[:3], REFERENCES[:3], scores[:3], lengths, ended, wordless
    )
    found = made.metrics()
    assert found["gen_tokens"] == 4
    assert found["truncated_share"] == pytest.approx(1 / 3)
    assert found["n_without_tokens"] == 1
    assert found["rougeL"] == pytest.approx(scores[:3, 2].mean())
    columns = made.columns()
    assert columns["index"].tolist() == [4, 7, 9]
    assert columns["rougeLsum"].tolist() == scores[:3, 3].tolist()
    assert columns["summary"] == SUMMARIES[:3]
