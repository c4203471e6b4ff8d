from __future__ import annotations

import pyarrow
import pyarrow.parquet
import pytest

from smolbench.errors import SmolbenchError
from smolbench.runs.report.mistakes import sample_table, summaries_table
from smolbench.runs.samples import FILE_NAME, write_samples


def write(folder, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "predictions.parquet")


def cells(table):
    return [[cell.shown for cell in line] for line in table.lines]


def test_the_most_confident_mistakes_come_first(tmp_path):
    right = [0.9, 0.2, 0.6, 0.7, 0.82, 0.55, 0.65, 0.75, 0.85]
    prediction = [0 if share > 0.5 else 1 for share in right]
    write(
        tmp_path,
        index=list(range(9)),
        label=[0, 0, 1, 1, 1, 1, 1, 1, 0],
        prediction=prediction,
        score_neg=right,
        score_pos=[1 - share for share in right],
    )
    found = cells(sample_table(tmp_path))
    wrong = [line for line in found if line[1] == "wrong"]
    assert [line[0] for line in wrong] == ["4", "1", "7", "3", "6"]
    assert [line[0] for line in found if line[1] == "right"] == ["0", "8"]
    assert wrong[0] == ["4", "wrong", "pos", "neg", "0.8200", "0.8200", "0.1800"]
    assert wrong[1][2:5] == ["neg", "pos", "0.8000"]


def test_an_answer_that_is_no_class_is_no_confident_one(tmp_path):
    write(
        tmp_path,
        index=[0, 1],
        label=[0, 0],
        prediction=[-1, 1],
        score_a=[0.9, 0.2],
        score_b=[0.1, 0.8],
    )
    found = cells(sample_table(tmp_path))
    assert [line[3] for line in found] == ["b", "-1"]


def test_endings_are_ranked_by_what_they_are_ahead(tmp_path):
    write(
        tmp_path,
        index=[0, 1, 2],
        label=[0, 1, 0],
        prediction=[0, 1, 0],  # by the plain sum
        prediction_norm=[1, 0, 0],
        log_likelihood_0=[-4.0, -3.0, -1.0],
        log_likelihood_1=[-6.0, -2.0, -9.0],
        length_0=[2.0, 6.0, 1.0],
        length_1=[4.0, 1.0, 9.0],
    )
    table = sample_table(tmp_path)
    assert [heading.label for heading in table.headings][4:] == [
        "ahead by",
        "score of 0",
        "score of 1",
    ]
    assert cells(table) == [
        ["1", "wrong", "1", "0", "1.5000", "-0.5000", "-2.0000"],
        ["0", "wrong", "0", "1", "0.5000", "-2.0000", "-1.5000"],
        ["2", "right", "0", "0", "0.0000", "-1.0000", "-1.0000"],
    ]
    write(tmp_path, index=[0], label=[0], prediction_norm=[0], log_likelihood_0=[-1.0])
    with pytest.raises(SmolbenchError, match=r"predictions\.parquet cannot be read"):
        sample_table(tmp_path)


def test_there_may_be_nothing_to_show(tmp_path):
    assert sample_table(tmp_path) is None
    write(tmp_path, index=[0], label=[0], prediction=[0], summary=["x"])
    assert sample_table(tmp_path) is None


def test_summaries_stand_beside_their_references(tmp_path):
    assert summaries_table(tmp_path) is None
    sample = {
        "document": "A: hi\r\nB: hello",
        "reference": "They greet.",
        "before": "B",
        "after": "B",
    }
    write_samples(tmp_path, [{**sample, "after": None}, sample])
    table = summaries_table(tmp_path)
    assert [heading.label for heading in table.headings] == [
        "document",
        "before training",
        "after training",
        "reference",
    ]
    assert cells(table) == [
        ["A: hi\r\nB: hello", "B", "", "They greet."],
        ["A: hi\r\nB: hello", "B", "B", "They greet."],
    ]
    write_samples(tmp_path, [{**sample, "before_convention": "card"}])
    assert cells(summaries_table(tmp_path))[0][-1] == "card"
    (tmp_path / FILE_NAME).write_text("[{}]")
    assert summaries_table(tmp_path) is None


def test_a_damaged_file_is_a_sentence(tmp_path):
    (tmp_path / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(SmolbenchError, match=r"predictions\.parquet cannot be read"):
        sample_table(tmp_path)
