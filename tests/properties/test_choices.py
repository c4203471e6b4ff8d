"""Random questions: an ending's score is of its question alone, and every row is accounted for."""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

import numpy as np
from hypothesis import event, given
from hypothesis import strategies as st

from smolbench.data import HellaSwagDataModule
from smolbench.data.hub import Source
from smolbench.errors import SmolbenchError
from smolbench.tasks import MultipleChoiceTask
from tests.helpers.training import plain_trainer
from tests.properties.drawn import texts
from tests.properties.effort import examples

SUMS = {"log_likelihood": 1e-3, "length": 0, "n_bytes": 0, "n_tokens": 0}
"""Columns of the predictions, with how far they may differ by rounding."""


class Questions(HellaSwagDataModule):
    """Questions that were drawn, to train on (as examples of a prompt) and to test on."""

    rows: list[dict[str, Any]]
    solved: list[dict[str, Any]]

    def load_sample(self):
        from datasets import Dataset

        splits = {
            name: Dataset.from_list(rows)
            for name, rows in (("train", self.solved), ("test", self.rows))
        }
        return Source(splits, "sample/drawn", None)


@st.composite
def questions(draw):
    """A row as HellaSwag has them; parts of the context may be empty or blank."""
    part = st.one_of(texts(), st.sampled_from(["", " ", "[title] x", "a [b] c", "["]))
    first, second = draw(part), draw(part)
    return {
        "activity_label": draw(part),
        "ctx_a": first,
        "ctx_b": second,
        "ctx": f"{first} {second}",
        "endings": draw(st.lists(texts(), min_size=4, max_size=4)),
        "label": draw(st.integers(0, 3)),
        "source_id": draw(st.sampled_from(["activitynet~a", "wikihow~b", "wikihow~c"])),
    }


def scored(task, rows, solved, batch_size, cache):
    """Metrics, and the columns of each ending, shape ``(N, 4)``."""
    data = Questions(source="sample", eval_batch_size=batch_size, cache_dir=cache, val_fraction=0)
    data.rows, data.solved = rows, solved
    (metrics,) = plain_trainer(cache).test(task, data, verbose=False)
    table = task.predictions()
    assert metrics["test/n"] == data.facts()["data/n_test"] == len(table["label"]) == len(rows)
    assert table["label"].tolist() == [row["label"] for row in rows]
    return metrics, {
        name: np.stack([table[f"{name}_{n}"] for n in range(4)], axis=1) for name in SUMS
    }


@examples(short=2, long=120, slow=True)
@given(
    rows=st.lists(questions(), min_size=2, max_size=7),
    solved=st.lists(questions(), min_size=2, max_size=2),
    order=st.randoms(use_true_random=False),
    convention=st.sampled_from(["lm_eval", "smollm2", "llm_c"]),
    num_fewshot=st.integers(0, 2),
    max_length=st.sampled_from([96, 192, None]),
)
def test_an_ending_is_scored_behind_its_own_context_alone(rows, solved, order, **options):
    with tempfile.TemporaryDirectory() as cache, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning, about workers
        tasks = {
            shared: MultipleChoiceTask(
                backbone="tiny", dtype="float32", shared_context=shared, **options
            )
            for shared in (True, False)
        }
        try:
            metrics, found = scored(tasks[True], rows, solved, 8, cache)
        except SmolbenchError as error:
            if "where at least one and at most" not in str(error):  # of no or too many tokens
                raise
            event("refused")
            return
        chosen = found["log_likelihood"].argmax(axis=1)
        right = chosen == [row["label"] for row in rows]
        assert abs(metrics["test/acc"] - right.mean()) < 1e-6
        places = list(range(len(rows)))
        order.shuffle(places)
        turned = scored(tasks[False], [rows[n] for n in places], solved, 3, cache)
        alone = [scored(tasks[True], [row], solved, 1, cache) for row in rows]
        cut = sum(one["test/n_truncated"] for one, _ in alone)
        assert metrics["test/n_truncated"] == turned[0]["test/n_truncated"] == cut
        for name, close in SUMS.items():
            one_by_one = np.concatenate([columns[name] for _, columns in alone])
            np.testing.assert_allclose(one_by_one, found[name], atol=close, rtol=1e-5)
            np.testing.assert_allclose(turned[1][name], found[name][places], atol=close, rtol=1e-5)
