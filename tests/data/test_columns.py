from __future__ import annotations

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets

from smolbench.data.columns import (
    column_digest,
    column_numbers,
    column_values,
    first_bad_row,
)


def texts(*values):
    return Dataset.from_dict({"text": list(values)}, features=Features({"text": Value("string")}))


def parts():
    return concatenate_datasets(
        [Dataset.from_dict({"n": list(range(a, a + 3500))}) for a in (0, 3500)]
    )


@pytest.mark.parametrize("chosen", [None, [0, 2499, 2500, 6999], [6999, 3, 3, 2500], []])
def test_values_of_a_column_come_in_order(chosen):
    dataset = parts() if chosen is None else parts().select(chosen)
    expected = list(range(7000)) if chosen is None else chosen
    assert list(column_values(dataset, "n")) == expected
    numbers = column_numbers(dataset, "n")
    assert numbers.dtype == np.int64
    assert numbers.tolist() == expected


# -- digests --------------------------------------------------------------------------------------


def test_a_digest_does_not_depend_on_how_rows_are_stored():
    words = [f"wörd {i}" * (i % 3) for i in range(3000)]
    whole = texts(*words)
    expected = column_digest(whole, "text")
    pieces = concatenate_datasets([texts(*words[:7]), texts(), texts(*words[7:])])
    assert column_digest(pieces, "text") == expected
    chosen = texts("other", *words, "other").select(range(1, 3001))
    assert column_digest(chosen, "text") == expected
    every_second = concatenate_datasets([whole, texts(*["x"] * 3000)]).select(
        [row for i in range(3000) for row in (i, 3000 + i)]
    )
    assert column_digest(every_second.select(range(0, 6000, 2)), "text") == expected
    assert column_digest(texts(*words[::-1]).select(range(2999, -1, -1)), "text") == expected


def test_a_digest_tells_values_order_and_boundaries_apart():
    several = [
        texts(),
        texts(""),
        texts("", ""),
        texts("ab"),
        texts("a", "b"),
        texts("b", "a"),
        texts("ab", ""),
        texts("", "ab"),
        texts(None, "ab"),
        texts("a", "b").select([0]),
    ]
    assert len({column_digest(dataset, "text") for dataset in several}) == len(several)


def test_a_digest_of_numbers_is_of_their_values():
    assert column_digest(parts(), "n") == column_digest(parts().select(range(7000)), "n")
    assert column_digest(parts(), "n") != column_digest(parts().select(range(6999)), "n")


# -- rows that cannot be learned from -------------------------------------------------------------


def labelled(labels, words=None):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    words = words or [f"text {i}" for i in range(len(labels))]
    return Dataset.from_dict({"text": words, "label": labels}, features=features)


@pytest.mark.parametrize(
    ("dataset", "bad"),
    [
        (labelled([0, 1]), None),
        (labelled([]), None),
        (labelled([0, 1, 0], ["x", None, "z"]), (1, None, 1)),
        (labelled([0, None]), (1, "text 1", None)),
        (labelled([-1, 0]), (0, "text 0", -1)),
    ],
)
def test_the_first_bad_row_is_found(dataset, bad):
    assert first_bad_row(dataset, 2) == bad


def test_a_label_beyond_the_classes_is_bad():
    assert first_bad_row(labelled([0, 1]), 1) == (1, "text 1", 1)


def test_rows_that_are_not_chosen_may_be_bad():
    dataset = labelled([0, -1, 1, None])
    assert first_bad_row(dataset.select([0, 2]), 2) is None
    assert first_bad_row(dataset.select([2, 3]), 2) == (1, "text 3", None)
