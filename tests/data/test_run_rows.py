"""A run's rows in a file that has changed since."""

from __future__ import annotations

import csv
import json
import logging
import random

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from smolbench.data import TextFilesDataModule, TextPairsDataModule
from smolbench.data.hub import stratified_split
from smolbench.data.run_rows import OfRun
from smolbench.errors import SmolbenchError
from smolbench.utils.notices import gathered

N = 120
SPLITS = ("train", "val", "test")
ROWS = [(f"text {i} of {N}", ("neg", "pos")[i % 2]) for i in range(N)]


def write(path, rows, columns=("text", "label")):
    if path.suffix == ".jsonl":
        path.write_text(
            "".join(json.dumps(dict(zip(columns, r, strict=True))) + "\n" for r in rows)
        )
        return
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


class Run:
    """Data that a run was made of, and the same data read again."""

    def __init__(self, folder, rows=ROWS, suffix=".csv", test=None, kind="text", **options):
        self.file, self.columns = folder / f"data{suffix}", ("text", "label")
        self.kind = TextFilesDataModule
        if kind == "pairs":
            self.kind, self.columns = TextPairsDataModule, ("text", "summary")
        self.options = {"train_file": str(self.file), "cache_dir": str(folder / "cache"), **options}
        if test is not None:
            self.options["test_file"] = str(folder / f"test{suffix}")
            write(folder / f"test{suffix}", test, self.columns)
        write(self.file, rows, self.columns)
        data = self.data()
        data._keep()
        self.kept = data.kept_rows()
        self.results = data.facts()
        self.train, self.val, self.test = map(
            self.pairs, (data, data, data), ("train", "val", "test")
        )
        data.split("test")
        self.digest = data.facts()["data/test_digest"]

    def data(self, **options):
        return self.kind(**{**self.options, **options})

    def again(self, other_test=False, goes_on=False, old=False, **options):
        data = self.data(**options)
        kept = None if old else self.kept
        data.of_run(OfRun(kept, self.results, goes_on=goes_on, other_test=other_test))
        return data

    def pairs(self, data, split):
        found = data.split(split).examples
        if self.columns[1] == "summary":
            return list(zip(found["document"], found["summary"], strict=True))
        names = found.features["label"].names
        return [(t, names[n]) for t, n in zip(found["text"], found["label"], strict=True)]


@pytest.fixture(params=["csv", "jsonl", "own test file", "pairs", "limited"])
def run(tmp_path, request):
    options = {
        "csv": {},
        "jsonl": {"suffix": ".jsonl"},
        "own test file": {"rows": ROWS[:90], "test": ROWS[90:]},
        "pairs": {"kind": "pairs", "rows": [(text, f"{label} {text}") for text, label in ROWS]},
        "limited": {"limit_train": 30, "limit_test": 12},
    }
    return Run(tmp_path, **options[request.param])


def files(run):
    """The file of the test rows, and its rows."""
    path = run.file.with_stem("test") if "test_file" in run.options else run.file
    if path.suffix == ".jsonl":
        lines = map(json.loads, path.read_text().splitlines())
        return path, [tuple(line[column] for column in run.columns) for line in lines]
    with path.open() as file:
        return path, [tuple(row) for row in list(csv.reader(file))[1:]]


def other_label(row):
    return (row[0], {"neg": "pos", "pos": "neg"}.get(row[1], "another"))


def test_nothing_has_changed(run):
    data = run.again()
    assert run.pairs(data, "test") == run.test
    assert data.facts() == {**run.results, **data.facts()}
    assert data.facts()["data/test_digest"] == run.digest
    assert run.pairs(data, "train") == run.train
    assert gathered([], "test") == []


def test_rows_are_shuffled(run):
    path, rows = files(run)
    random.Random(1).shuffle(rows)
    write(path, rows, run.columns)
    data = run.again()
    assert run.pairs(data, "test") == run.test
    assert data.facts()["data/test_digest"] == run.digest
    assert data.facts()["data/revision"] == run.results["data/revision"]
    assert run.pairs(run.again(), "val") == run.val
    assert gathered([], "test") == []


def test_rows_have_gone_changed_and_come(run):
    path, rows = files(run)
    gone, changed = run.test[0], run.test[1]
    rows = [other_label(row) if row == changed else row for row in rows if row != gone]
    rows[:0] = [("a new text", rows[0][1]), ("a second one", rows[1][1])]
    write(path, rows, run.columns)
    data = run.again()
    assert run.pairs(data, "test") == run.test[2:]
    (line,) = gathered([], "fit")
    n = len(run.test)
    assert line == (
        f"The data has changed since the run was trained: of its {n} test rows {n - 2} are still "
        "there and used; not used: 1 with another label now, 1 gone, 2 new."
    )


def test_white_space_around_texts_is_what_a_tokenizer_sees(run):
    path, rows = files(run)
    first = run.test[0]
    write(path, [(f"{a} ", b) if (a, b) == first else (a, b) for a, b in rows], run.columns)
    data = run.again()
    assert run.pairs(data, "test") == [(f"{first[0]} ", first[1]), *run.test[1:]]
    assert data.facts()["data/test_digest"] != run.digest
    n = len(run.test)
    assert gathered([], "fit") == [
        f"The data has changed since the run was trained: of its {n} test rows {n} are still there"
        " and used, 1 of them with other white space around."
    ]
    seen = ROWS[:90] if path != run.file else rows
    for order in (1, -1):
        changed = [(f"\n{a}", b) if a == run.train[0][0] else (a, b) for a, b in seen]
        write(run.file, changed[::order], run.columns)
        data = run.again(goes_on=True)
        with pytest.raises(SmolbenchError, match="rows 1 with other white space around"):
            data._keep()


def test_all_labels_are_swapped(run):
    path, rows = files(run)
    write(path, [other_label(row) for row in rows], run.columns)
    with pytest.raises(
        SmolbenchError, match=r"of its \d+ test rows none .* with another label now"
    ):
        run.again().split("test")


def test_no_row_that_was_trained_on_is_ever_tested(run):
    """Whatever the file is made into: a subset, doubled, with labels changed here and there."""
    path, rows = files(run)
    for seed in range(3):
        draw = random.Random(seed)
        changed = [other_label(row) if draw.random() < 0.2 else row for row in rows]
        write(path, draw.choices(changed, k=draw.randint(20, 200)), run.columns)
        for options in ({}, {"limit_test": 7}, {"limit_test": None}):
            tested = set(run.pairs(run.again(**options), "test"))
            assert not tested & {*run.train, *run.val}
            assert tested <= set(rows)


@pytest.mark.parametrize("limit", [5, None])
def test_another_limit_draws_from_the_rows_that_were_held_out(run, limit):
    path, rows = files(run)
    random.Random(1).shuffle(rows)
    write(path, rows, run.columns)
    tested = run.pairs(run.again(limit_test=limit), "test")
    assert not set(tested) & {*run.train, *run.val}
    assert len(tested) == (limit or len(run.kept.test))


def test_copies_of_a_test_row_are_new_rows(tmp_path):
    run = Run(tmp_path)
    write(run.file, [*ROWS, run.test[0], run.test[0]])
    assert run.pairs(run.again(), "test") == run.test
    assert "not used: 2 new." in gathered([], "test")[0]


def test_another_test_set_loses_what_was_trained_on(tmp_path):
    run = Run(tmp_path)
    new = [("never seen", "neg"), ("never seen either", "pos")]
    write(tmp_path / "other.csv", [run.train[0], *new, run.val[0], run.test[0]])
    data = run.again(other_test=True, test_file=str(tmp_path / "other.csv"))
    assert run.pairs(data, "test") == [*new, run.test[0]]
    assert "2 of 5 rows of the test set are left out" in gathered([], "test")[0]
    write(tmp_path / "seen.csv", [*run.train[:5], *run.val[:5]])
    with pytest.raises(SmolbenchError, match="trained or validated on all 10 rows"):
        run.again(other_test=True, test_file=str(tmp_path / "seen.csv")).split("test")


def test_a_test_file_that_was_moved_is_the_same_also_where_it_repeats_training_rows(tmp_path):
    run = Run(tmp_path, rows=ROWS, test=ROWS[:10])
    moved = tmp_path / "moved.csv"
    write(moved, ROWS[:10])
    data = run.again(other_test=True, test_file=str(moved))
    assert run.pairs(data, "test") == run.test
    assert data.facts()["data/overlap"] == 10


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: [*rows, ("new", "neg")], "still stand there, but among more or fewer others"),
        (lambda rows: rows[20:], "gone"),
        (lambda rows: [other_label(row) for row in rows], "with another label now"),
    ],
)
def test_a_training_goes_on_with_its_own_rows_only(run, change, said):
    rows = ROWS[:90] if "test_file" in run.options else files(run)[1]
    write(run.file, change(rows), run.columns)
    data = run.again(goes_on=True)
    with pytest.raises(SmolbenchError, match=f"not what this run has been trained on .*{said}"):
        data._keep()


@pytest.mark.parametrize("change", [lambda rows: rows[::-1], lambda rows: [*rows[1:], rows[0]]])
def test_a_training_goes_on_in_its_own_order(run, change):
    rows = ROWS[:90] if "test_file" in run.options else files(run)[1]
    write(run.file, change(rows), run.columns)
    data = run.again(goes_on=True)
    data._keep()
    assert data.kept_rows().digest == run.kept.digest
    assert run.pairs(data, "train") == run.train
    assert run.pairs(data, "val") == run.val
    assert data.facts() == {**run.results, **data.facts()}


def test_a_training_goes_on_where_only_the_test_file_has_changed(tmp_path):
    run = Run(tmp_path, rows=ROWS[:90], test=ROWS[90:])
    write(tmp_path / "test.csv", ROWS[95:])
    data = run.again(goes_on=True)
    data._keep()
    assert data.kept_rows().digest == run.kept.digest
    assert data.facts()["data/revision"] == run.results["data/revision"]


def test_runs_of_earlier_versions_are_split_as_they_were_and_say_what_is_not_known(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("smolbench"), "propagate", True)
    twice = [*ROWS, *ROWS[:60]]
    run = Run(tmp_path, rows=twice)
    labels = np.array([label == "pos" for _, label in twice], int)
    _, held_out = stratified_split(labels, 0.2, 0)
    data = run.again(old=True)
    assert run.pairs(data, "test") == [twice[place] for place in held_out]
    assert [line for line in gathered([], "fit") if "duplicates" not in line] == []
    write(run.file, ROWS)
    data = run.again(old=True)
    data.split("test")
    assert "that are scored cannot be verified" in gathered([], "fit")[-1]
    with pytest.raises(SmolbenchError, match=r"data/revision was .*, is "):
        run.again(old=True, goes_on=True)._keep()


# -- equal texts stay together --------------------------------------------------------------------


def test_equal_texts_are_on_one_side(tmp_path):
    rows = [*ROWS, *[(f" {text}\t", label) for text, label in ROWS[::2]], *ROWS[::3]]
    run = Run(tmp_path, rows=rows, val_fraction=0.2)
    sides = [{text.strip() for text, _ in part} for part in (run.train, run.val, run.test)]
    assert len(set.union(*sides)) == sum(map(len, sides)) == N
    assert len(run.train) + len(run.val) + len(run.test) == len(rows)
    assert run.results["data/overlap"] == 0
    assert run.results["data/duplicates"] > 0


def test_without_equal_texts_the_split_is_that_of_scikit_learn(tmp_path):
    run = Run(tmp_path, split_seed=3)
    labels = [label for _, label in ROWS]
    _, test = train_test_split(np.arange(N), test_size=0.2, stratify=labels, random_state=3)
    assert run.test == [ROWS[place] for place in sorted(test)]


def test_a_class_needs_as_many_texts_as_there_are_splits(tmp_path):
    rows = [*ROWS, *[("the only one", "rare")] * 5]
    with pytest.raises(SmolbenchError, match=r"every class needs 3 rows.*'rare' \(1\)"):
        Run(tmp_path, rows=rows)
