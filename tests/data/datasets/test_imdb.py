from __future__ import annotations

import datasets
import pytest

from smolbench.data import IMDbDataModule
from smolbench.data.datasets import imdb
from smolbench.data.hub import Source
from smolbench.data.samples.imdb import imdb_sample
from smolbench.errors import SmolbenchError


def test_the_sample_has_the_form_of_the_dataset():
    dm = IMDbDataModule(source="sample")
    assert dm.label_names == ["neg", "pos"]
    assert dm.facts()["data/id"] == "sample/imdb"
    assert dm.facts()["data/revision"] is None
    test = dm.split("test")
    assert list(test.examples["text"]) == imdb_sample("test")["text"]
    assert test.labels.tolist() == imdb_sample("test")["label"]


def test_html_line_breaks_are_kept(monkeypatch):
    text = 'It was "good".<br /><br />Was it?  '
    rows = datasets.Dataset.from_dict(
        {"text": [text] * 4, "label": [0, 0, 1, 1]},
        features=datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
        ),
    )
    asked = []

    def load(dataset_id, *, revision, splits):
        asked.append((dataset_id, revision, tuple(splits)))
        return Source({"train": rows, "test": rows}, dataset_id, "0" * 40)

    monkeypatch.setattr(imdb, "load_hub", load)
    dm = IMDbDataModule(revision="abc", val_fraction=0.5)
    assert set(dm.split("train").examples["text"]) == {text}
    assert asked == [("stanfordnlp/imdb", "abc", ("train", "test"))]
    assert dm.facts()["data/id"] == "stanfordnlp/imdb"
    assert dm.facts()["data/revision"] == "0" * 40
    assert (dm.facts()["data/duplicates"], dm.facts()["data/overlap"]) == (3, 4)


def test_without_network_and_cache_it_is_a_sentence():
    with pytest.raises(SmolbenchError, match="stanfordnlp/imdb"):
        _ = IMDbDataModule().label_names
