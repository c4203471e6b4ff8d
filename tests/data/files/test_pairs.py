"""A user's own pairs: files, Hub datasets, and what is wrong with them."""

from __future__ import annotations

import gzip
import json

import pytest
from datasets import Dataset

from smolbench.data import TextFilesDataModule, TextPairsDataModule
from smolbench.data.files import options as own_rows
from smolbench.data.hub import Source
from smolbench.errors import SmolbenchError

PAIRS = [(f"Text {n},\nof two lines", f'Summary "{n}"') for n in range(20)]


def write_csv(path, pairs, header="text,summary"):
    quoted = [",".join('"{}"'.format(text.replace('"', '""')) for text in pair) for pair in pairs]
    path.write_text("\n".join([header, *quoted]) + "\n")
    return str(path)


def write_jsonl(path, pairs, names=("text", "summary")):
    lines = [json.dumps(dict(zip(names, pair, strict=True))) for pair in pairs]
    path.write_text("\n".join(lines))
    return str(path)


def data(cache, **options):
    return TextPairsDataModule(cache_dir=str(cache / "cache"), **options)


def pairs(made, split):
    examples = made.split(split).examples
    return list(zip(examples["document"], examples["summary"], strict=True))


def test_one_file_is_divided(tmp_path):
    made = data(tmp_path, train_file=write_csv(tmp_path / "a.csv", PAIRS))
    parts = [pairs(made, split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [14, 2, 4]
    assert sorted(pair for part in parts for pair in part) == sorted(PAIRS)
    again = data(tmp_path, train_file=str(tmp_path / "a.csv"))
    assert pairs(again, "test") == parts[2]
    other = data(tmp_path, train_file=str(tmp_path / "a.csv"), split_seed=1)
    assert pairs(other, "test") != parts[2]
    assert made.facts()["data/id"] == "a.csv"


def test_files_of_their_own(tmp_path):
    names = {
        "train_file": write_csv(tmp_path / "a.csv", PAIRS[:10]),
        "val_file": write_jsonl(tmp_path / "b.jsonl", PAIRS[10:15]),
        "test_file": str(tmp_path / "c.jsonl.gz"),
    }
    lines = "\n".join(json.dumps({"text": a, "summary": b}) for a, b in PAIRS[15:])
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    made = data(tmp_path, **names)
    assert pairs(made, "train") == PAIRS[:10]
    assert pairs(made, "val") == PAIRS[10:15]
    assert pairs(made, "test") == PAIRS[15:]


def test_parquet_and_other_column_names(tmp_path):
    Dataset.from_dict({"article": ["a", "b", "c"], "highlights": ["x", "y", "z"]}).to_parquet(
        str(tmp_path / "a.parquet")
    )
    made = data(
        tmp_path,
        train_file=str(tmp_path / "a.parquet"),
        test_file=str(tmp_path / "a.parquet"),
        text_column="article",
        summary_column="highlights",
        val_fraction=0.0,
    )
    assert pairs(made, "train") == [("a", "x"), ("b", "y"), ("c", "z")]


def test_a_dataset_of_the_hub(tmp_path, monkeypatch):
    rows = Dataset.from_dict({"a": ["1", "2", "", "4"], "b": ["x", None, "z", "w"], "c": [0] * 4})
    loaded = Source(dict.fromkeys(("train", "validation", "test"), rows), "some/set", "abc")
    monkeypatch.setattr(own_rows, "load_hub", lambda name, **options: loaded)
    made = data(
        tmp_path, dataset_id="some/set", text_column="a", summary_column="b", val_split="validation"
    )
    assert pairs(made, "train") == pairs(made, "val") == [("1", "x"), ("4", "w")]
    assert made.facts()["data/n_dropped_empty"] == 6
    assert made.facts()["data/revision"] == "abc"


def test_the_sample_needs_no_file(tmp_path):
    assert len(data(tmp_path, source="sample").split("test")) == 60


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (("Text", ""), r"a\.csv, row 3.*: the summary is empty; fill it in, or remove the row"),
        (("Text", "  "), r"row 3.*: the summary is empty"),
        (("", "Summary"), r"row 3.*: the text is empty"),
        (("Text", "a\0b"), r"row 3.*: the summary holds a NUL"),
    ],
)
def test_a_bad_row_is_named(tmp_path, second, said):
    file = write_csv(tmp_path / "a.csv", [("One", "1"), second])
    with pytest.raises(SmolbenchError, match=said):
        data(tmp_path, train_file=file).split("train")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a", "summary": None}, "line 2: the summary is missing"),
        ({"text": "a", "summary": 3}, r"line 2: the summary is a number \(3\), .*summary_column"),
        ({"text": "a"}, r"line 2 has no 'summary'; .* with --data.summary_column"),
        ({"text": "a", "summary": "\ud800"}, "line 2: the summary is not valid, it has half"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, said):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "summary": "y"}\n' + json.dumps(row))
    with pytest.raises(SmolbenchError, match=said):
        data(tmp_path, train_file=str(tmp_path / "a.jsonl")).split("train")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "There is no data: give --data.train_file"),
        ({"train_file": "a.csv", "dataset_id": "x/y"}, "Both data.dataset_id"),
        ({"train_file": "a.csv", "summary_column": "text"}, "must be two columns"),
        ({"train_file": "a.csv", "test_fraction": 1.5}, "between 0 and 1"),
        ({"train_file": "a.csv", "encoding": "klingon"}, "is not known: name one"),
    ],
)
def test_contradicting_options(tmp_path, options, said):
    with pytest.raises(SmolbenchError, match=said):
        data(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train_file": "a.csv", "dataset_config": "en"}, "data.dataset_config 'en' is for a data"),
        ({"train_file": "a.csv", "train_split": "dev"}, "data.train_split 'dev' is for a dataset"),
        ({"train_file": "a.csv", "val_split": "dev"}, "data.val_split 'dev' .* is a file"),
        ({"train_file": "a.csv", "test_split": None}, "data.test_split None is for a dataset"),
        ({"train_file": "a.parquet", "encoding": "cp1252"}, "Parquet has one of its own"),
        ({"dataset_id": "x/y", "encoding": "cp1252"}, "x/y is a dataset on the Hub"),
        ({"dataset_id": "x/y", "test_fraction": 0.1}, "data.test_fraction 0.1 and data.test_split"),
        (
            {"train_file": "a.csv", "test_file": "b.csv", "test_fraction": 0.1},
            "both say what the test rows are",
        ),
        (
            {"train_file": "a.csv", "val_file": "b.csv", "val_fraction": 0.2},
            "data.val_fraction 0.2 and data.val_file b.csv both say what the validation rows are",
        ),
        (
            {"dataset_id": "x/y", "val_split": "dev", "val_fraction": 0.2},
            "data.val_fraction 0.2 and data.val_split 'dev' both say",
        ),
    ],
)
@pytest.mark.parametrize("kind", [TextPairsDataModule, TextFilesDataModule])
def test_options_that_nothing_would_read(kind, options, said):
    with pytest.raises(SmolbenchError, match=said):
        kind(**options)


@pytest.mark.parametrize("kind", [TextPairsDataModule, TextFilesDataModule])
def test_none_drawn_for_validation_goes_with_rows_of_their_own(kind):
    # as a recipe that validates on nothing has it
    kind(train_file="a.csv", val_file="b.csv", val_fraction=0)


def test_a_text_with_several_summaries_stays_together(tmp_path):
    several = [(f"Text {n % 10}", f"Summary {n}") for n in range(40)]
    made = data(tmp_path, train_file=write_csv(tmp_path / "a.csv", several), val_fraction=0.3)
    parts = [{text for text, _ in pairs(made, split)} for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == 10
    assert set.union(*parts) == {f"Text {n}" for n in range(10)}
    assert sum(len(pairs(made, split)) for split in ("train", "val", "test")) == 40


def test_documents_that_are_all_the_same_cannot_be_divided(tmp_path):
    path = write_csv(tmp_path / "t.csv", [("the same", f"summary {n}") for n in range(8)])
    own = data(tmp_path, train_file=str(path), test_file=str(path))
    with pytest.raises(SmolbenchError, match=r"A share of 0.1 .* 8 rows of 1 texts") as caught:
        own.hold_out(own.load_hub())
    assert "n_samples" not in str(caught.value)


def test_a_missing_column_and_too_few_rows(tmp_path):
    file = write_csv(tmp_path / "a.csv", PAIRS, header="text,headline")
    with pytest.raises(SmolbenchError, match=r"no column 'summary'.*--data\.summary_column"):
        data(tmp_path, train_file=file).split("train")
    few = write_csv(tmp_path / "b.csv", PAIRS[:2])
    with pytest.raises(SmolbenchError, match="would leave 1 of the 2 rows"):
        data(tmp_path, train_file=few).split("train")


def test_equal_files_are_pointed_out(tmp_path, caplog):
    file = write_csv(tmp_path / "a.csv", PAIRS)
    data(tmp_path, train_file=file, test_file=file).split("train")
    assert "train_file and test_file hold the same rows" in caplog.text
