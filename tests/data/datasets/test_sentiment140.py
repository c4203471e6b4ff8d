from __future__ import annotations

import re

import datasets
import numpy as np
import pyarrow as pa
import pytest

from smolbench.data import Sentiment140DataModule
from smolbench.data.datasets import sentiment140
from smolbench.data.datasets.sentiment140 import clean_tweets
from smolbench.data.hub import Source
from smolbench.data.samples.sentiment140 import tweet_sample
from smolbench.errors import SmolbenchError


def plainly(text):
    """The same, a row and a step at a time."""
    text = text.lower()
    text = re.sub(r"https?://\S*|\bwww\.[^\W_]\S*", "", text)
    text = re.sub(r"[@#]\w+", "", text)
    return "".join(c for c in text if c.isalnum() or c.isspace()).strip()


ODD = [
    "I can't sleep... us...for me, DON'T!",
    "@Anna_K hi@tom and @ alone",
    "Awww... awww.so sweet www.Example.org/x?y=1 www... end",
    "http://bit.ly/a#b@c http:// HTTPS://X.Y\u00a0next",
    "#SwineFlu #1 # #ünder_score no#space",
    "snake_case &quot;x&quot; &lt;3 \U0001f600\u2764\ufe0f caf\u00e9 \u00bd \u0664 \u4f60\u597d",
    "tab\tnew\nline\x0bv\x85n\u2003em\u200bzero",
    "@only #marks http://x.y !!!",
    "",
    "   ",
]


def test_cleaning_is_that_of_plain_python():
    texts = ODD + tweet_sample("train")["text"]
    found = clean_tweets(pa.chunked_array([texts[:7], texts[7:]])).to_pylist()
    assert found == [plainly(text) for text in texts]


def test_rows_in_many_chunks_are_cleaned_at_once():
    """As `select` leaves them; each pattern would be compiled for each chunk, for minutes."""
    texts = tweet_sample("train")["text"]
    cleaned = clean_tweets(pa.chunked_array([[text] for text in texts]))
    assert cleaned.num_chunks == 1
    assert cleaned.to_pylist() == [plainly(text) for text in texts]
    assert clean_tweets(pa.chunked_array([], type=pa.string())).to_pylist() == []


def test_cleaning_by_hand():
    """As in figure 1 of the report: `usfor`, `dont`; nothing takes a mark's place."""
    found = clean_tweets(pa.chunked_array([ODD])).to_pylist()
    assert found[0] == "i cant sleep usfor me dont"
    assert found[1] == "hi and  alone"
    assert found[2] == "awww awwwso sweet  www end"
    assert found[7:] == ["", "", ""]


def hub(monkeypatch, train, test=((), ())):
    features = datasets.Features(
        {"text": datasets.Value("string"), "sentiment": datasets.Value("int32")}
    )
    splits = {
        name: datasets.Dataset.from_dict({"text": t, "sentiment": s}, features=features)
        for name, (t, s) in {"train": train, "test": test}.items()
    }
    monkeypatch.setattr(sentiment140, "load_hub", lambda name, **_: Source(splits, name, "0" * 40))


def numbered(n):
    """Half of each label, sorted; every tenth tweet is nothing but a mention."""
    texts = [f"@user{k}" if k % 10 == 3 else f"Tweet no. {k}!" for k in range(n)]
    return texts, [0] * (n // 2) + [4] * (n // 2)


def all_of(dm):
    return {name: dm.split(name) for name in ("train", "val", "test")}


def test_eighty_ten_ten_after_a_stratified_subset(monkeypatch):
    hub(monkeypatch, numbered(4000))
    dm = Sentiment140DataModule(downsample=1000)
    splits, facts = all_of(dm), dm.facts()
    dropped = facts["data/n_dropped_empty"]
    assert 50 < dropped < 150, "the subset is drawn first, and then cleaned"
    sizes = [len(split) for split in splits.values()]
    assert sum(sizes) == 1000 - dropped
    assert sizes[1] == pytest.approx(sizes[0] / 8, abs=1)
    assert sizes[2] == pytest.approx(sizes[0] / 8, abs=1)
    texts = [text for split in splits.values() for text in split.examples["text"]]
    assert len(set(texts)) == len(texts)
    for split in splits.values():
        assert split.labels.mean() == pytest.approx(0.5, abs=0.02)
        for text, label in zip(split.examples["text"], split.labels, strict=True):
            assert label == (int(text.split()[-1]) >= 2000)
    assert facts["data/downsample"] == 1000
    assert dm.label_names == ["neg", "pos"]


def test_the_split_is_that_of_its_seed(monkeypatch):
    hub(monkeypatch, numbered(400))
    texts = [
        list(Sentiment140DataModule(split_seed=seed).split("test").examples["text"])
        for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("downsample", [None, 50_000])
def test_all_tweets_are_kept_where_there_are_no_more(monkeypatch, downsample):
    hub(monkeypatch, numbered(400))
    assert sum(map(len, all_of(Sentiment140DataModule(downsample=downsample)).values())) == 360


def test_the_official_test_set_leaves_neutral_tweets_out(monkeypatch):
    test = (["Bad :(", "so so", "@x", "GOOD!", "@y"], [0, 2, 2, 4, 4])
    hub(monkeypatch, numbered(400), test)
    held_out = Sentiment140DataModule()
    official = Sentiment140DataModule(test_set="official")
    assert list(official.split("test").examples["text"]) == ["bad", "good"]
    assert official.split("test").labels.tolist() == [0, 1]
    assert official.facts()["data/n_dropped_neutral_test"] == 2
    assert official.facts()["data/n_dropped_empty_test"] == 1
    # one model can be scored on either
    for name in ("train", "val"):
        assert list(official.split(name).examples["text"]) == list(
            held_out.split(name).examples["text"]
        )


def test_tweets_as_they_are(monkeypatch):
    texts, sentiments = numbered(400)
    hub(monkeypatch, ([*texts[:-1], "  "], sentiments))
    splits = all_of(Sentiment140DataModule(clean=False))
    kept = [text for split in splits.values() for text in split.examples["text"]]
    assert sorted(kept) == sorted(texts[:-1])


def test_an_unknown_sentiment_is_a_sentence(monkeypatch):
    hub(monkeypatch, (["a", "b"], [0, 1]))
    with pytest.raises(SmolbenchError, match="sentiment 1"):
        Sentiment140DataModule().split("train")


@pytest.mark.parametrize(
    "options", [{"downsample": 0}, {"test_fraction": 0.0}, {"test_fraction": 1.0}]
)
def test_options_out_of_range(options):
    with pytest.raises(SmolbenchError, match=next(iter(options))):
        Sentiment140DataModule(**options)


def test_the_sample_goes_the_same_way():
    dm = Sentiment140DataModule(source="sample")
    splits, facts = all_of(dm), dm.facts()
    assert facts["data/id"] == "sample/sentiment140"
    assert sum(map(len, splits.values())) == 600 - facts["data/n_dropped_empty"]
    assert facts["data/n_dropped_empty"] > 0
    assert all(np.unique(split.labels).tolist() == [0, 1] for split in splits.values())
    official = Sentiment140DataModule(source="sample", test_set="official")
    rows = len(official.split("test"))
    assert rows + official.facts()["data/n_dropped_empty_test"] == 60
