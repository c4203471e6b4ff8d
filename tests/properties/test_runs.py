"""Random tables through fit, test, predict and export of a fast task of each kind.

Whatever the texts, labels and files are: every row is used or told about, none that was trained on
is scored, a score depends on nothing but its text, and all commands say the same of it.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import event, given, note
from hypothesis import strategies as st

from smolbench.cli import main
from smolbench.data.kept_rows import read_kept_rows
from smolbench.data.tables import composed
from tests.helpers.command import QUIET, results
from tests.properties.drawn import Drawn, tables, writable
from tests.properties.effort import LONG, examples

COMMON = [*QUIET, "--data.num_workers=0"]
TRAINED = {
    "classical": ["--model=ClassicalTask"],
    "linear_svm": ["--model=ClassicalTask", "--model.classifier=linear_svm"],
    "cnn": ["--model=NeuralBaselineTask", "--model.embedding_dim=4"],
    "lstm": ["--model=NeuralBaselineTask", "--model.network=lstm", "--model.embedding_dim=4"],
    "probe": ["--model=ProbeTask", "--model.backbone=tiny", "--model.max_length=48"],
    "fine_tune": ["--model=FineTuneTask", "--model.backbone=tiny", "--model.max_length=48"],
}  # fmt: skip
PROMPT = ["--model=PromptTask", "--model.backbone=tiny", "--model.max_length=128"]
SUMMARIES = [
    "--model=SummarizationTask", "--model.backbone=tiny-t5", "--model.max_length=48",
    "--model.max_new_tokens=6", "--model.num_beams=2",
]  # fmt: skip
PLAIN = "--model.dtype=float32"
"""Of 16 bits neighbours change the last one, as they do in every library."""
CLOSE = 1e-4
SHORT_OF_ROWS = (
    "so that every class needs",
    "each part needs one row per class",
    "there must be two classes at least",
    "cannot be held out of",
    "No word of the training texts is left to learn from",
    "lower model.min_count",
)
"""What a table may be refused with that is drawn too small."""


def commanded(*arguments: str, may_refuse: tuple[str, ...] = ()) -> bool:
    """Whether a command has ended well; if not, it has said so in a sentence."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main(list(arguments))
    lines = said.getvalue().strip().splitlines()
    note(f"{arguments[0]} ended in {status}: {lines[-1] if lines else ''}")
    assert "Traceback" not in said.getvalue()
    if status == 0:
        return True
    assert status == 2, said.getvalue()
    assert lines[-1].startswith("smolbench: error: "), said.getvalue()
    assert any(words in lines[-1] for words in may_refuse), lines[-1]
    return False


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new working directory."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as made:
        os.chdir(made)
        try:
            yield Path(made)
        finally:
            os.chdir(before)


def written(drawn: Drawn, name: str, other: str = "label") -> str:
    path = f"{name}{drawn.ending}"
    drawn.write(Path(path), other)
    return path


def predicted(
    run: list[str], path: str, drawn: Drawn, *more: str, ending: str = ".jsonl"
) -> list[dict[str, Any]]:
    """What `predict` writes of a file, a row per row of the file."""
    options = [f"--{option}" for option in drawn.options]
    output = Path(f"said{ending}")
    assert commanded("predict", *run, f"--input={path}", *options, f"--output={output}", *more)
    if ending == ".parquet":
        said = pq.read_table(output).to_pylist()
    elif ending == ".csv":
        with output.open(encoding="utf-8", newline="") as file:
            said = list(csv.DictReader(file))
    else:
        said = [json.loads(line) for line in output.read_text("utf-8").split("\n") if line]
    assert [row["text"] for row in said] == drawn.texts, "a row in is a row out, in its order"
    return said


def scores_of(said: list[dict[str, Any]], names: list[str]) -> np.ndarray:
    scores = np.array([[float(row[f"score_{name}"]) for name in names] for row in said])
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-4)
    for row, values in zip(said, scores, strict=True):
        assert float(row[f"score_{row['label']}"]) >= values.max() - CLOSE
    return scores


def kept_by_test(run: str, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores that `test` has kept, whose tables are those of its results."""
    table = pq.read_table(f"{run}/predictions.parquet").to_pydict()
    found = results(Path(run))
    labels, calls = np.array(table["label"]), np.array(table["prediction"])
    assert found["test/n"] == found["data/n_test"] == len(labels)
    assert found["test/labels"] == names
    assert found["test/accuracy"] == pytest.approx(float((labels == calls).mean()), abs=1e-6)
    confusion = np.zeros((len(names), len(names)), int)
    np.add.at(confusion, (labels, calls), 1)
    assert found["test/confusion"] == confusion.tolist()
    return labels, np.stack([table[f"score_{name}"] for name in names], axis=1)


def in_order(drawn: Drawn) -> list[str]:
    names = {composed(label) for label in drawn.labels}
    numeric = all(name.lstrip("-").isdecimal() for name in names)
    return sorted(names, key=int if numeric else None)


def exported(kind: str, names: list[str], texts: list[str]) -> np.ndarray | None:
    """Scores of the exported folder, loaded without smolbench, shape ``(N, C)``."""
    if kind in ("classical", "linear_svm"):
        import skops.io

        pipeline = skops.io.load("exported/pipeline.skops", trusted=[])
        assert json.loads(Path("exported/labels.json").read_text("utf-8")) == names
        if not hasattr(pipeline, "predict_proba"):
            return None
        return pipeline.predict_proba(texts)
    if kind == "probe":
        spec = importlib.util.spec_from_file_location("exported_probe", "exported/probe.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        said = module.Probe.load(Path("exported"), device="cpu")(texts)
    else:
        from transformers import pipeline

        label = pipeline("text-classification", "exported", top_k=None, device="cpu")
        said = [
            {one["label"]: one["score"] for one in scores}
            for scores in label(texts, truncation=True)
        ]
    return np.array([[scores[name] for name in names] for scores in said])


@pytest.mark.parametrize("kind", TRAINED if LONG else ["classical", "probe"])
@examples(short=2, long=60, slow=True)
@given(
    drawn=tables(min_rows=24, max_rows=40, told_apart=True),
    own_test=st.one_of(st.none(), tables(min_rows=3, max_rows=8)),
    order=st.randoms(use_true_random=False),
    limit=st.sampled_from([[], [], ["limit_train=4"], ["limit_train=6", "limit_mode=head"]]),
    ending=st.sampled_from([".csv", ".jsonl", ".parquet"]),
)
def test_a_run_of_any_table_is_right_or_refused(kind, drawn, own_test, order, limit, ending):
    with folder():
        names = in_order(drawn)
        data = [
            "--data=TextFilesDataModule",
            f"--data.train_file={written(drawn, 'rows')}",
            "--data.val_fraction=0.25",
            "--data.batch_size=8",
            f"--data.cache_dir={Path.cwd() / 'cache'}",
            *(f"--data.{option}" for option in [*drawn.options, *limit]),
        ]
        asked = drawn
        if own_test is None:
            data.append("--data.test_fraction=0.25")
        else:  # in the same format, which the options are of
            rows = [(text, drawn.labels[n]) for n, text in enumerate(own_test.texts)]
            asked = writable(drawn.with_rows(rows))
            data.append(f"--data.test_file={written(asked, 'test')}")
        model = TRAINED[kind] + ([PLAIN] if kind in ("probe", "fine_tune") else [])
        run = ["--run_dir=run"]
        fitted = commanded(
            "fit", *model, *data, *COMMON, *run, "--trainer.max_epochs=1", "--latency.examples=0",
            may_refuse=SHORT_OF_ROWS,
        )  # fmt: skip
        event(f"{kind}: {'fitted' if fitted else 'refused'}")
        if not fitted:
            return

        # every row is used, and on one side
        assert commanded("test", *run, "--latency.examples=0")
        found = results(Path("run"))
        used = found["data/n_train"] + found["data/n_val"]
        if limit:
            assert found["data/n_train"] == found["data/limit_train"]
            used = len(drawn.rows) - (found["data/n_test"] if own_test is None else 0)
        if own_test is None:
            assert used + found["data/n_test"] == len(drawn.rows)
            kept = read_kept_rows(Path("run"))
            assert not set(kept.seen.texts) & set(kept.test.texts)
            assert found["data/overlap"] == 0
        else:
            assert used == len(drawn.rows)
            assert found["data/n_test"] == len(asked.rows)
            seen = {text.strip() for text in drawn.texts}
            again = sum(text.strip() in seen for text in asked.texts)
            assert found["data/overlap"] <= again if limit else found["data/overlap"] == again
            again = found["data/overlap"]
            assert bool(again) == any("also stands in" in said for said in found["warnings"])
        labels, scores = kept_by_test("run", names)

        # predict says what test says
        file = "rows" if own_test is None else "test"
        said = predicted(run, f"{file}{drawn.ending}", asked)
        assert [composed(str(row["input_label"])) for row in said] == asked.labels
        whole = scores_of(said, names)
        truth = [names.index(composed(label)) for label in asked.labels]
        if own_test is not None:
            assert labels.tolist() == truth
            np.testing.assert_allclose(whole, scores, atol=CLOSE)
        else:
            there = Counter(zip(truth, map(tuple, whole.round(3)), strict=True))
            missing = Counter(zip(labels.tolist(), map(tuple, scores.round(3)), strict=True))
            lost = missing - there
            # at a rounding's edge
            for label, values in lost:
                same = [w for t, w in zip(truth, whole, strict=True) if t == label]
                assert min(abs(w - values).max() for w in same) < 1.1e-3

        # nothing depends on order, batch size and neighbours
        shuffled = list(asked.rows)
        order.shuffle(shuffled)
        some = asked.with_rows(shuffled[: max(2, len(shuffled) // 2)])
        alone = predicted(run, written(some, "some"), some, "--data.batch_size=1", ending=ending)
        by_text = dict(zip(asked.texts, whole, strict=True))
        expected = np.stack([by_text[text] for text in some.texts])
        np.testing.assert_allclose(scores_of(alone, names), expected, atol=CLOSE)
        written(asked.with_rows(shuffled), file)
        shutil.copytree("run", "again")
        assert commanded("test", "--run_dir=again", "--latency.examples=0")
        again = results(Path("again"))
        for key in ("test/accuracy", "test/f1_macro", "test/loss", "test/n", "test/auroc"):
            assert again.get(key) == pytest.approx(found.get(key), abs=1e-5, nan_ok=True), key
        if own_test is None:
            assert again["data/test_digest"] == found["data/test_digest"]

        # nor on what else the file has got since
        if own_test is None:
            more = [("a new row", drawn.labels[0]), *shuffled, ("another", drawn.labels[1])]
            written(drawn.with_rows(more), "rows")
            assert commanded("test", "--run_dir=again", "--latency.examples=0")
            assert results(Path("again"))["data/test_digest"] == found["data/test_digest"]

        # what is exported says the same
        if kind in ("cnn", "lstm"):
            return
        written(asked, file)
        assert commanded("export", "run", "exported")
        outside = exported(kind, names, asked.texts)
        if outside is not None:
            np.testing.assert_allclose(outside, whole, atol=1e-4)


@examples(short=2, long=60, slow=True)
@given(drawn=tables(min_rows=4, max_rows=12), order=st.randoms(use_true_random=False))
def test_a_prompt_around_any_text_answers_for_that_text_alone(drawn, order):
    if max("".join(drawn.labels)) > "\uffff":  # YAML, as which options are read, has no such escape
        drawn = replace(drawn, numbers=False, dressed="plain").with_rows(
            (text, f"class {drawn.labels.index(label)}") for text, label in drawn.rows
        )
    with folder():
        names = in_order(drawn)
        path = written(drawn, "rows")
        run = [
            *PROMPT, PLAIN, "--data=TextFilesDataModule", "--ckpt_path=none", *COMMON,
            *(f"--data.{split}_file={path}" for split in ("train", "val", "test")),
            *(f"--data.{option}" for option in drawn.options),
        ]  # fmt: skip
        words = {name: f"{'abcdefgh'[n]} word" for n, name in enumerate(names)}
        run.append(f"--model.label_words={json.dumps(words)}")
        own = [*run, "--data.batch_size=8", "--run_dir=run"]
        assert commanded("test", *own, "--latency.examples=0")
        labels, scores = kept_by_test("run", names)
        assert [names[n] for n in labels] == drawn.labels
        np.testing.assert_allclose(
            scores_of(predicted(own, path, drawn), names), scores, atol=CLOSE
        )
        places = list(range(len(drawn.rows)))
        order.shuffle(places)
        some = drawn.with_rows(drawn.rows[n] for n in places[:-1])
        alone = predicted(run, written(some, "some"), some, "--data.batch_size=1")
        np.testing.assert_allclose(scores_of(alone, names), scores[places[:-1]], atol=CLOSE)


@examples(short=1, long=30, slow=True)
@given(
    drawn=tables(min_rows=8, max_rows=14, told_apart=True), order=st.randoms(use_true_random=False)
)
def test_a_summary_is_of_its_text_alone(drawn, order):
    pairs = [(text, drawn.texts[n - 1][:40]) for n, text in enumerate(drawn.texts)]
    pairs = [(text, summary if summary.strip() else "plain") for text, summary in pairs]
    drawn = replace(writable(drawn.with_rows(pairs)), dressed="plain", numbers=False, told=True)
    with folder():
        path = written(drawn, "pairs", "summary")
        data = [
            "--data=TextPairsDataModule", "--data.val_fraction=0.25", "--data.batch_size=4",
            *(f"--data.{split}_file={path}" for split in ("train", "test")),
            *(f"--data.{option}" for option in drawn.options),
        ]  # fmt: skip
        run = ["--run_dir=run"]
        options = [*COMMON, "--trainer.max_epochs=1", "--latency.examples=0"]
        if not commanded("fit", *SUMMARIES, PLAIN, *data, *options, *run, may_refuse=SHORT_OF_ROWS):
            return
        assert commanded("test", *run, "--latency.examples=0")
        found = results(Path("run"))
        assert found["test/n"] == found["data/n_test"] == len(drawn.rows)
        assert found["data/n_train"] + found["data/n_val"] == len(drawn.rows)
        kept = pq.read_table("run/predictions.parquet").to_pydict()
        said = [row["summary"] for row in predicted(run, path, drawn)]
        assert said == kept["summary"]
        places = list(range(len(drawn.rows)))
        order.shuffle(places)
        some = drawn.with_rows(drawn.rows[n] for n in places[:-1])
        alone = predicted(run, written(some, "some", "summary"), some, "--data.batch_size=1")
        assert [row["summary"] for row in alone] == [said[n] for n in places[:-1]]
