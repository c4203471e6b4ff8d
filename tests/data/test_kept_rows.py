from __future__ import annotations

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from smolbench.data.kept_rows import (
    FILE_NAME,
    KeptRows,
    Repeats,
    RowKeys,
    among,
    read_kept_rows,
    text_keys,
)
from smolbench.errors import SmolbenchError


def keys(texts, labels=None, names=("neg", "pos")):
    if labels is None:
        return RowKeys.of(Dataset.from_dict({"text": texts}), ("text",))
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
    rows = {"text": texts, "label": [names.index(label) for label in labels]}
    return RowKeys.of(Dataset.from_dict(rows, features=features), ("text",))


def kept(train, val, test, drawn=None):
    drawn = np.arange(len(test)) if drawn is None else np.array(drawn)
    return KeptRows(train, val, test, drawn, len(train) + len(val) + len(test))


def test_keys_that_lie_close_together_are_found():
    high = np.array([2**64 - 1, 2**64 - 3, 2**63], dtype=np.uint64)
    assert among(high, high[:2]).tolist() == [True, True, False]
    assert not among(high, high[:0]).any()


def test_white_space_around_a_text_does_not_count_and_everything_else_does():
    texts = ["a", " a\n", "A", "a a", "", "é", "e\u0301", "\ud83d"]  # the last is half a character
    found = text_keys(texts)
    assert found[0] == found[1]
    assert len(set(found.tolist())) == len(texts) - 1


def test_a_label_counts_by_its_name_not_by_its_number():
    one = keys(["a", "b"], ["pos", "neg"])
    other = keys(["a", "b"], ["pos", "neg"], ("also", "neg", "pos"))
    swapped = keys(["a", "b"], ["neg", "pos"])
    assert one.digest == other.digest
    assert np.array_equal(one.texts, swapped.texts)
    assert not np.isin(one.rows, swapped.rows).any()


def test_columns_count_by_their_order_and_lists_by_their_items():
    def of(**columns):
        rows = Dataset.from_dict({name: [value] for name, value in columns.items()})
        return RowKeys.of(rows, tuple(columns)).rows[0]

    found = [
        of(a="x", b="y"),
        of(a="y", b="x"),
        of(a="xy", b=""),
        of(a="x", b=["y", "z"]),
        of(a="x", b=["z", "y"]),
        of(a="x", b=["y z"]),
    ]
    assert len(set(found)) == len(found)


def test_of_equal_rows_as_many_are_found_as_there_are():
    there = keys(["b", "a", "a", "c"])
    assert keys(["a", "x", "a", "a", "b"]).places_in(there).tolist() == [1, -1, 2, -1, 0]
    assert keys(["a"]).places_in(keys([])).tolist() == [-1]
    assert keys([]).places_in(there).tolist() == []


@pytest.mark.parametrize("n", [1, 7, 500])
def test_a_shuffle_is_found_again(n):
    generator = np.random.default_rng(n)
    texts = [str(number) for number in generator.integers(n, size=n)]
    order = generator.permutation(n)
    before, now = keys(texts), keys([texts[place] for place in order])
    places = before.places_in(now)
    assert sorted(places) == list(range(n))
    assert [texts[order[place]] for place in places] == texts


def test_white_space_around_a_text_tells_copies_apart_and_is_counted():
    before, now = keys(["a", " a", "b", "c"]), keys(["c ", " a", "x", "a", "b"])
    places = before.places_in(now)
    assert places.tolist() == [3, 1, 4, 0]
    assert before.n_respaced(now, places) == 1
    old = RowKeys(before.texts, before.rows)
    assert old.places_in(now).tolist() == [1, 3, 4, 0]
    assert old.n_respaced(now, places) == 0


def test_what_stands_more_than_once():
    seen = keys(["a", "b ", "\nb", "b", "A", "c"], ["pos", "pos", "pos", "neg", "pos", "pos"])
    test = keys([" a", "a", "x", "b"], ["neg", "pos", "pos", "pos"])
    found = Repeats.among(seen, test)
    assert found == Repeats(duplicates=2, overlap=3, two_labels=1, n_seen=6, n_test=4)
    assert found.said(labelled=True) == (
        "3 of 4 test rows have a text that also stands in the training rows; 2 of 6 training rows "
        "are duplicates of an earlier text; 1 training texts stand there with several labels."
    )
    assert "labels" not in found.said(labelled=False)
    assert Repeats.among(keys(["a"]), keys(["b"])).said(labelled=True) is None
    assert Repeats.among(keys([]), keys([])).said(labelled=True) is None


def test_the_file_says_what_was_written(tmp_path):
    rows = kept(keys(["a", "b"], ["neg", "pos"]), keys([]), keys(["c", "d"], ["neg", "pos"]), [1])
    assert read_kept_rows(tmp_path) is None
    rows.write(tmp_path)
    found = read_kept_rows(tmp_path)
    assert (found.digest, found.digests, found.n_all) == (rows.digest, rows.digests, 4)
    assert found.drawn.tolist() == [1]
    assert found.train.exact.tolist() == rows.train.exact.tolist()
    old = kept(*(RowKeys(part.texts, part.rows) for part in (rows.train, rows.val, rows.test)))
    old.write(tmp_path)
    assert read_kept_rows(tmp_path).digest == old.digest != rows.digest
    rows.write(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]
    content = (tmp_path / FILE_NAME).read_bytes()
    for damaged in (b"", content[:-40], content[:100], b"\0" * 200):
        (tmp_path / FILE_NAME).write_bytes(damaged)
        with pytest.raises(SmolbenchError, match=r"rows\.npz, which says what the run was .*dama"):
            read_kept_rows(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        kept(keys(["b", "a"]), keys(["c"]), keys(["d", "e"])),
        kept(keys(["a"]), keys(["b", "c"]), keys(["d", "e"])),
        kept(keys(["a", "b"]), keys(["x"]), keys(["d", "e"])),
        kept(keys(["a", "b"]), keys(["c"]), keys(["d", "e"]), [0]),
        kept(keys(["a", "b"]), keys(["c"]), keys(["d", "e", "f"]), [0, 1]),
    ],
)
def test_other_rows_have_another_digest(other):
    assert other.digest != kept(keys(["a", "b"]), keys(["c"]), keys(["d", "e"])).digest
