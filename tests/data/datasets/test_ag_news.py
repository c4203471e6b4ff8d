from __future__ import annotations

import numpy as np

from smolbench.data import AGNewsDataModule
from smolbench.data.datasets import ag_news
from smolbench.data.hub import Source
from smolbench.data.samples.ag_news import news_sample


def test_the_sample_has_the_form_of_the_dataset():
    dm = AGNewsDataModule(source="sample")
    assert dm.label_names == ["World", "Sports", "Business", "Sci/Tech"]
    assert dm.facts()["data/id"] == "sample/ag_news"
    test = dm.split("test")
    assert list(test.examples["text"]) == news_sample("test")["text"]
    assert test.labels.tolist() == news_sample("test")["label"]


def test_a_twentieth_of_train_is_for_validation_stratified_and_seeded():
    splits = [AGNewsDataModule(source="sample", split_seed=seed) for seed in (0, 0, 1)]
    train, val = splits[0].split("train"), splits[0].split("val")
    assert (len(train), len(val)) == (570, 30)
    assert np.bincount(train.labels).max() - np.bincount(train.labels).min() <= 1
    assert not set(train.examples["text"]) & set(val.examples["text"])
    assert list(val.examples["text"]) == list(splits[1].split("val").examples["text"])
    assert list(val.examples["text"]) != list(splits[2].split("val").examples["text"])


def test_the_hub_is_asked_for_the_revision(monkeypatch):
    asked = []

    def load(dataset_id, *, revision, splits):
        asked.append((dataset_id, revision, tuple(splits)))
        sample = AGNewsDataModule(source="sample").load_sample()
        return Source(sample.splits, dataset_id, "0" * 40)

    monkeypatch.setattr(ag_news, "load_hub", load)
    dm = AGNewsDataModule(revision="abc")
    assert len(dm.split("train")) == 570
    assert asked == [("fancyzhx/ag_news", "abc", ("train", "test"))]
    assert dm.facts()["data/revision"] == "0" * 40
