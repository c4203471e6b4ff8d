"""SAMSum: its splits, its sample, and what is done about empty rows."""

from __future__ import annotations

import pytest
from datasets import Dataset

from smolbench.data import SAMSumDataModule
from smolbench.data.datasets import samsum
from smolbench.data.hub import Source
from smolbench.data.samples.samsum import SIZES, samsum_sample
from smolbench.errors import SmolbenchError

ROWS = {
    "id": ["1", "2", "3", "4"],
    "dialogue": ["A: hi\r\nB: hello", "", "A: ?", None],
    "summary": ["They greet.", "Nothing.", "A asks.", "B."],
}


def data(cache, **options):
    return SAMSumDataModule(source="sample", cache_dir=str(cache), **options)


def from_hub(monkeypatch, cache, **splits):
    whole = {name: Dataset.from_dict(ROWS) for name in ("train", "validation", "test")} | splits
    asked = {}

    def load(name, **options):
        asked.update(options, name=name)
        return Source({split: whole[split] for split in options["splits"]}, name, "abc")

    monkeypatch.setattr(samsum, "load_hub", load)
    return SAMSumDataModule(cache_dir=str(cache), revision="main"), asked


def test_official_splits_are_kept(tmp_path):
    made = data(tmp_path)
    sizes = {"train": len(made.split("train")), "val": len(made.split("val"))}
    assert sizes == {"train": SIZES["train"] - 1, "val": SIZES["validation"]}
    assert len(made.split("test")) == SIZES["test"]
    assert made.facts()["data/n_dropped_empty"] == 1
    assert sorted(made.split("test").examples.column_names) == ["document", "summary"]
    assert made.texts("test") == samsum_sample("test")["dialogue"]


def test_rows_without_a_dialogue_are_dropped_and_counted(monkeypatch, tmp_path):
    made, asked = from_hub(monkeypatch, tmp_path)
    assert made.texts("train") == ["A: hi\r\nB: hello", "A: ?"]
    assert made.facts()["data/n_dropped_empty"] == 6
    assert asked["name"] == "knkarthick/samsum"
    assert asked["revision"] == "main"


def test_rows_without_a_summary_are_dropped_too(monkeypatch, tmp_path):
    train = Dataset.from_dict({**ROWS, "dialogue": list("abcd"), "summary": ["x", " ", None, "y"]})
    made, _ = from_hub(monkeypatch, tmp_path, train=train)
    assert made.texts("train") == ["a", "d"]


def test_another_dataset_of_the_name_is_refused(monkeypatch, tmp_path):
    other = Dataset.from_dict({"text": ["a"], "summary": ["b"]})
    made, _ = from_hub(monkeypatch, tmp_path, train=other)
    with pytest.raises(SmolbenchError, match=r"train split .* has no column 'dialogue'; it has"):
        made.split("train")


def test_validation_rows_are_not_drawn(tmp_path):
    with pytest.raises(SmolbenchError, match=r"val_fraction 0\.3 .* validation rows of its own"):
        data(tmp_path, val_fraction=0.3)
    assert len(data(tmp_path, val_fraction=0).split("val")) == SIZES["validation"]


def test_the_sample_is_the_same_everywhere():
    rows = samsum_sample("train")
    assert rows == samsum_sample("train")
    assert rows["dialogue"] != samsum_sample("train", seed=1)["dialogue"]
    assert rows["dialogue"][1] == (
        "Emma: Hey, Hannah!\r\nHannah: Hello :)\r\nEmma: Let's go to the library on Friday.\r\n"
        "Hannah: Sorry, I can't.\r\nEmma: Too bad"
    )
    assert rows["summary"][1] == "Emma will go to the library on Friday. Hannah can't come along."


def test_the_sample_has_no_duplicates_and_is_about_its_dialogues():
    texts = [text for name in SIZES for text in samsum_sample(name)["dialogue"] if text]
    assert len(set(texts)) == len(texts) == sum(SIZES.values()) - 1
    for name, size in SIZES.items():
        rows = samsum_sample(name)
        assert len(rows["dialogue"]) == len(rows["id"]) == size
        assert not [text for text in rows["dialogue"] + rows["summary"] if "{" in text]
        for dialogue, summary in zip(rows["dialogue"], rows["summary"], strict=True):
            speakers = {line.split(":")[0] for line in dialogue.splitlines()}
            assert all(speaker in summary for speaker in speakers)
    with pytest.raises(ValueError, match="no split"):
        samsum_sample("other")
