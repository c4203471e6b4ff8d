from __future__ import annotations

import random

import pytest

from smolbench.data.samples.ag_news import LABELS, SIZES, news_sample
from smolbench.data.samples.sentiment140 import tweet_sample
from smolbench.utils.digest import text_digest


def test_texts_are_the_same_on_every_machine_and_leave_the_global_generator_alone():
    random.seed(3)
    before = random.getstate()
    assert text_digest(news_sample("train")["text"]) == "1a64c8ffbd4ba90a72ce"
    assert text_digest(news_sample("test")["text"]) == "b19f1c91685a100639cc"
    assert text_digest(tweet_sample("train")["text"]) == "ad0d1b0b4434aa28caa7"
    assert text_digest(tweet_sample("test")["text"]) == "4117e978fecdf896c816"
    assert random.getstate() == before


def test_news_are_balanced_and_occur_once():
    both = [news_sample(split) for split in SIZES]
    for sample, size in zip(both, SIZES.values(), strict=True):
        assert [sample["label"].count(label) for label in range(4)] == [size // 4] * 4
        assert not [text for text in sample["text"] if "{" in text or "  " in text]
    texts = both[0]["text"] + both[1]["text"]
    assert len(set(texts)) == len(texts) == sum(SIZES.values())
    assert len(LABELS) == 4


def test_another_seed_gives_other_texts():
    assert not set(news_sample("test")["text"]) & set(news_sample("test", seed=1)["text"])
    assert tweet_sample("test")["text"] != tweet_sample("test", seed=1)["text"]


def test_tweets_have_the_labels_of_the_dataset():
    assert sorted(set(tweet_sample("train")["sentiment"])) == [0, 4]
    assert sorted(set(tweet_sample("test")["sentiment"])) == [0, 2, 4]
    assert not [text for text in tweet_sample("train")["text"] if "{" in text]


def test_a_linear_model_separates_the_topics_well_but_not_perfectly():
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train, test = news_sample("train"), news_sample("test")
    model = make_pipeline(TfidfVectorizer(), LogisticRegression())
    accuracy = model.fit(train["text"], train["label"]).score(test["text"], test["label"])
    assert 0.85 <= accuracy <= 0.98


@pytest.mark.parametrize("sample", [news_sample, tweet_sample])
def test_unknown_split(sample):
    with pytest.raises(ValueError, match="train, test"):
        sample("validation")
