from __future__ import annotations

import numpy as np
import pytest

from smolbench.data import HellaSwagDataModule
from smolbench.data.datasets import hellaswag
from smolbench.data.hub import Source
from smolbench.data.samples.hellaswag import hellaswag_sample
from smolbench.errors import SmolbenchError


def module(**changed):
    """A DataModule over the sample, some columns of its training rows changed."""
    import datasets

    splits = {}
    for name in ("train", "validation"):
        columns = hellaswag_sample(name)
        if name == "train":
            columns |= changed
            columns = {column: values for column, values in columns.items() if values is not None}
        splits[name] = datasets.Dataset.from_dict(columns)
    dm = HellaSwagDataModule(source="sample")
    dm.load_sample = lambda: hellaswag._official(Source(splits, "toy", None))
    return dm


def column(name, row, value):
    values = list(hellaswag_sample("train")[name])
    values[row] = value
    return {name: values}


def test_the_official_validation_split_is_the_test():
    dm = HellaSwagDataModule(source="sample")
    sample = hellaswag_sample("validation")
    test = dm.split("test")
    assert list(test.examples["ctx"]) == sample["ctx"]
    assert test.labels.tolist() == list(map(int, sample["label"]))
    assert dm.facts()["data/n_test"] == 200
    assert dm.facts()["data/overlap"] == 0
    assert dm.kind == "multiple_choice"


def test_no_source_is_on_both_sides_of_the_validation_split():
    splits = [HellaSwagDataModule(source="sample", split_seed=seed) for seed in (0, 0, 1)]
    train, val = splits[0].split("train"), splits[0].split("val")
    assert len(train) + len(val) == 600
    assert len(val) == 30  # a twentieth of the sources, two rows each
    assert not set(train.examples["source_id"]) & set(val.examples["source_id"])
    again, other = (list(dm.split("val").examples["ctx"]) for dm in splits[1:])
    assert list(val.examples["ctx"]) == again
    assert again != other


def test_a_limit_keeps_the_shares_of_the_sources_or_takes_the_first_rows():
    whole = HellaSwagDataModule(source="sample").split("test").examples["source_id"]
    share = np.mean([name.startswith("wikihow") for name in whole])
    limited = HellaSwagDataModule(source="sample", limit_test=40).split("test")
    found = [name.startswith("wikihow") for name in limited.examples["source_id"]]
    assert abs(sum(found) - 40 * share) <= 1
    first = HellaSwagDataModule(source="sample", limit_test=7, limit_mode="head").split("test")
    assert list(first.examples["ctx"]) == hellaswag_sample("validation")["ctx"][:7]


def test_the_digest_is_over_contexts_and_endings():
    digests = set()
    for changed in ({}, {"limit_test": 199, "limit_mode": "head"}):
        dm = HellaSwagDataModule(source="sample", **changed)
        dm.split("test")
        digests.add(dm.facts()["data/test_digest"])
    dm = HellaSwagDataModule(source="sample")
    sample = hellaswag_sample("validation")
    sample["endings"][3] = ["other", *sample["endings"][3][1:]]
    import datasets

    rows = datasets.Dataset.from_dict(sample)
    dm.load_sample = lambda: hellaswag._official(
        Source({"train": rows, "validation": rows}, "sample/hellaswag", None)
    )
    dm.split("test")
    digests.add(dm.facts()["data/test_digest"])
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (column("endings", 5, ["one", "two", "three"]), "has 3 endings.* in row 5"),
        (column("endings", 6, None), "has no endings.* in row 6"),
        (column("endings", 7, ["a", "b", None, "d"]), "an ending that is no text .* in row 7"),
        (column("label", 8, "4"), "the label 4, .* in row 8"),
        (column("label", 9, "-1"), "the label -1, .* in row 9"),
        (column("label", 10, ""), "the label '' in row 10"),
        (column("ctx_a", 11, None), "no text in the column 'ctx_a' in row 11"),
        ({"ctx_b": None}, "no column 'ctx_b'"),
        ({"label": None}, "no column 'label'"),
    ],
)
def test_bad_rows_are_named(changed, words):
    with pytest.raises(SmolbenchError, match=f"train split of toy.*{words}"):
        module(**changed).split("train")


def test_the_hub_is_asked_for_the_labelled_splits(monkeypatch):
    asked = []

    def load(dataset_id, *, revision, splits):
        asked.append((dataset_id, revision, tuple(splits)))
        import datasets

        rows = {name: datasets.Dataset.from_dict(hellaswag_sample(name)) for name in splits}
        return Source(rows, dataset_id, "0" * 40)

    monkeypatch.setattr(hellaswag, "load_hub", load)
    dm = HellaSwagDataModule(revision="abc")
    assert len(dm.split("train")) == 570
    assert asked == [("Rowan/hellaswag", "abc", ("train", "validation"))]
    assert dm.facts()["data/revision"] == "0" * 40
