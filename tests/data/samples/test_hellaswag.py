from __future__ import annotations

import pytest

from smolbench.data.samples.hellaswag import SIZES, hellaswag_sample


def test_rows_have_the_schema_of_the_dataset():
    for name, size in SIZES.items():
        columns = hellaswag_sample(name)
        assert list(columns) == [
            "ind",
            "activity_label",
            "ctx_a",
            "ctx_b",
            "ctx",
            "endings",
            "source_id",
            "split",
            "split_type",
            "label",
        ]
        assert {len(values) for values in columns.values()} == {size}
        assert all(len(set(endings)) == 4 for endings in columns["endings"])
        assert set(columns["label"]) == {"0", "1", "2", "3"}
        marked = ["[header]" in text for text in columns["ctx"]]
        assert 0.3 < sum(marked) / size < 0.7


def test_rows_are_the_same_every_time_and_nowhere_twice():
    assert hellaswag_sample("train") == hellaswag_sample("train")
    assert hellaswag_sample("train") != hellaswag_sample("train", seed=1)
    texts = [text for name in SIZES for text in hellaswag_sample(name)["ctx"]]
    assert len(set(texts)) == len(texts) == sum(SIZES.values())
    sources = [set(hellaswag_sample(name)["source_id"]) for name in SIZES]
    assert not sources[0] & sources[1]
    assert hellaswag_sample("train")["ctx"][0].startswith(("A", "["))


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'test'"):
        hellaswag_sample("test")
