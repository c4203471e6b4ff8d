from __future__ import annotations

import random

import pytest

from smolbench.data.samples.imdb import MAX_WORDS, MIN_WORDS, SIZES, imdb_sample
from smolbench.utils.digest import text_digest


def test_texts_are_the_same_on_every_machine_and_leave_the_global_generator_alone():
    random.seed(3)
    before = random.getstate()
    assert text_digest(imdb_sample("train")["text"]) == "49f2bcf2e28310847bb7"
    assert text_digest(imdb_sample("test")["text"]) == "0c308cc8d1ced1a408c4"
    assert random.getstate() == before


def test_another_seed_gives_other_reviews():
    assert not set(imdb_sample("test", seed=0)["text"]) & set(imdb_sample("test", seed=1)["text"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_form(split):
    sample = imdb_sample(split)
    half = SIZES[split] // 2
    assert list(sample) == ["text", "label"]
    assert sample["label"] == [0] * half + [1] * half
    lengths = [len(text.split()) for text in sample["text"]]
    assert len(lengths) == SIZES[split]
    assert min(lengths) >= MIN_WORDS
    assert max(lengths) <= MAX_WORDS
    assert min(lengths) < 40, "there are short reviews"
    assert max(lengths) > 180, "there are long reviews"
    assert not [text for text in sample["text"] if "{" in text or "  " in text]


def test_no_review_occurs_twice():
    texts = imdb_sample("train")["text"] + imdb_sample("test")["text"]
    assert len(set(texts)) == len(texts) == sum(SIZES.values())


def test_a_linear_model_separates_the_classes_well_but_not_perfectly():
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train, test = imdb_sample("train"), imdb_sample("test")
    model = make_pipeline(TfidfVectorizer(), LogisticRegression())
    accuracy = model.fit(train["text"], train["label"]).score(test["text"], test["label"])
    assert 0.80 <= accuracy <= 0.97


def test_unknown_split():
    with pytest.raises(ValueError, match="train, test"):
        imdb_sample("validation")
