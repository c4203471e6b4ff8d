"""No score depends on its neighbours: the order of rows, the batches, or standing alone."""

from __future__ import annotations

import csv
import math
import random

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

from smolbench.data import HellaSwagDataModule, SAMSumDataModule, TextFilesDataModule
from smolbench.data.hub import Source
from smolbench.metrics.classification import classification_metrics
from smolbench.tasks import (
    ClassicalTask,
    DistillationTask,
    FineTuneTask,
    MultipleChoiceTask,
    NeuralBaselineTask,
    ProbeTask,
    PromptTask,
    SummarizationTask,
    classification,
    prompt,
)
from tests.helpers.training import plain_trainer

WORDS = {"bad": "poor dull awful", "fine": "okay fair average", "good": "great superb lovely"}
TINY = {"backbone": "tiny", "max_length": 48, "dtype": "float32"}  # 16 bits round by the batch
CLASSIFIERS = {
    **{
        name: lambda name=name: ClassicalTask(classifier=name, min_df=1)
        for name in ("naive_bayes", "logistic_regression", "random_forest", "linear_svm")
    },
    "cnn": lambda: NeuralBaselineTask(network="cnn", min_count=1),
    "lstm": lambda: NeuralBaselineTask(network="lstm", min_count=1),
    "probe": lambda: ProbeTask(**TINY, head="mlp"),
    "full": lambda: FineTuneTask(**TINY, method="full"),
    "lora": lambda: FineTuneTask(**TINY, method="lora"),
    "distill": lambda: DistillationTask(**TINY, teacher="tiny"),
    "verbalizer": lambda: PromptTask(**TINY, template="{text} It was"),
    "few_shot": lambda: PromptTask(**TINY, template="{text} It was", num_shots=2),
    "top_k": lambda: PromptTask(**TINY, template="{text} It was", rule="top_k"),
}


def write(path, shares, n, seed):
    draw = random.Random(seed)
    rows = []
    for number, label in enumerate(draw.choices(list(WORDS), shares, k=n)):
        words = draw.choices([*WORDS[label].split(), "the", "film"], k=1 + number % 9)
        rows.append((f"{' '.join(words)} {number}", label))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return rows


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three classes, of which "fine" has no training row; test rows reversed and without it."""
    folder = tmp_path_factory.mktemp("rows")
    rows = {
        "train": write(folder / "train.csv", [3, 1, 2], 90, 0),
        "test": write(folder / "test.csv", [3, 2, 2], 30, 1),
    }
    without = [row for row in rows["test"] if row[1] != "fine"]
    for name, chosen in (("reversed", rows["test"][::-1]), ("without", without)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *chosen])
    return folder, rows["test"]


def without_fine(data):
    """Leave no training row of one class."""
    source = data.load_hub()
    train = source.splits["train"]
    kept = [n for n, label in enumerate(train["label"]) if label != 1]
    return Source({**source.splits, "train": train.select(kept)}, source.id, source.revision)


def data_of(folder, test, batch_size, cache):
    data = TextFilesDataModule(
        train_file=str(folder / "train.csv"),
        test_file=str(folder / test),
        eval_batch_size=batch_size,
        batch_size=16,
        cache_dir=str(cache),
    )
    source = without_fine(data)
    data.load_hub = lambda: source
    return data


def exact(metrics):
    """Without what is drawn from the rows in their order."""
    return {k: v for k, v in metrics.items() if not k.endswith(("_stderr", "_low", "_high"))}


def as_scikit_learn(metrics, task, logits):
    """Metrics of unbalanced classes, one of which may be missing, are scikit-learn's."""
    predictions, tables = task.predictions(), task.facts()
    truth, called = predictions["label"], predictions["prediction"]
    expected = {"test/accuracy": (truth == called).mean()}
    for name, function in (
        ("precision", precision_score),
        ("recall", recall_score),
        ("f1", f1_score),
    ):
        options = {"zero_division": 0}
        each = function(truth, called, labels=range(3), average=None, **options)
        assert tables[f"test/class_{name}"] == pytest.approx(each, abs=1e-6)
        for average in ("macro", "weighted"):
            value = function(truth, called, average=average, **options)
            expected[f"test/{name}_{average}"] = value
    if getattr(task, "rule", None) == "top_k":  # it ranks nothing
        assert "test/auroc" not in metrics
    elif len(set(truth)) == 3:
        # probabilities of float32, as they are kept, tie where the scores do not
        (drawn,) = logits if isinstance(logits, list) else [logits]  # by one prompt
        p = drawn.double().softmax(dim=1).numpy()
        expected["test/auroc"] = np.mean([roc_auc_score(truth == n, p[:, n]) for n in range(3)])
    else:
        assert math.isnan(metrics["test/auroc"])
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(files, tmp_path, monkeypatch, name):
    seen = []
    for module in (classification, prompt):
        monkeypatch.setattr(
            module,
            "classification_metrics",
            lambda logits, *rest, **options: (
                seen.append(logits) or classification_metrics(logits, *rest, **options)
            ),
        )
    folder, rows = files
    task = CLASSIFIERS[name]()
    trainer = plain_trainer(tmp_path, max_epochs=1)
    if not isinstance(task, PromptTask):
        trainer.fit(task, data_of(folder, "test.csv", 8, tmp_path))
    found, metrics = [], []
    for test, size in (("test.csv", 1), ("test.csv", 7), ("reversed.csv", 30)):
        (said,) = trainer.test(task, data_of(folder, test, size, tmp_path), verbose=False)
        columns = task.predictions()
        scores = np.stack([columns[f"{task.score_name}_{label}"] for label in WORDS], axis=1)
        found.append(scores[::-1] if test == "reversed.csv" else scores)
        metrics.append(said)
        as_scikit_learn(said, task, seen[-1])
    (said,) = trainer.test(task, data_of(folder, "without.csv", 7, tmp_path), verbose=False)
    as_scikit_learn(said, task, seen[-1])
    data = data_of(folder, "test.csv", 4, tmp_path)
    data.predict_on([text for text, _ in rows[:6]])
    batches = trainer.predict(task, data)
    predicted = np.concatenate([batch["scores"].numpy() for batch in batches])
    order = np.concatenate([batch["index"].numpy() for batch in batches]).argsort()
    with torch.inference_mode():
        answer = task.eval().start_answering()
        alone = np.concatenate([answer([text]) for text, _ in rows[:6]])
    for scores in found[1:]:
        np.testing.assert_allclose(scores, found[0], atol=1e-5)
    np.testing.assert_allclose(predicted[order], found[0][:6], atol=1e-5)
    if isinstance(task, ClassicalTask):
        alone = task.shown_scores(torch.from_numpy(alone)).numpy()
        least = 0 if task.probabilistic else -np.inf
        assert (found[0][:, 1] == least).all(), "the class without training rows"
    np.testing.assert_allclose(alone, found[0][:6], atol=1e-5)
    for said in metrics[1:]:
        both = [exact(said), exact(metrics[0])]
        for one in both:
            one.pop("test/auroc", None)  # ranks of almost equal scores are rounding
        assert both[0] == pytest.approx(both[1], rel=1e-5, abs=1e-5)


class Reversed:
    """A few test rows, also in the other order."""

    turned = False

    def load_sample(self):
        source = super().load_sample()
        rows = source.splits["test"].select(range(9)[:: -1 if self.turned else 1])
        return Source({**source.splits, "test": rows}, source.id, source.revision)


class Choices(Reversed, HellaSwagDataModule):
    pass


class Dialogues(Reversed, SAMSumDataModule):
    pass


def assert_same(found):
    """Of tests with all rows: metrics and predictions, the last of which are in reverse."""
    (metrics, predictions), *others = found
    for number, (also, said) in enumerate(others, start=1):
        assert exact(also) == pytest.approx(exact(metrics), abs=1e-4, nan_ok=True)
        for name in set(predictions) - {"index"}:
            column = np.asarray(said[name])[:: -1 if number == len(others) else 1]
            if column.dtype.kind == "f":
                np.testing.assert_allclose(column, predictions[name], rtol=1e-5, atol=1e-5)
            else:
                assert column.tolist() == np.asarray(predictions[name]).tolist(), name


@pytest.mark.parametrize("convention", ["lm_eval", "smollm2", "llm_c"])
def test_multiple_choice(tmp_path, convention):
    task = MultipleChoiceTask(
        backbone="tiny", method="none", dtype="float32", convention=convention
    )
    found = []
    for size, turned in ((1, False), (5, False), (16, True)):
        data = Choices(source="sample", eval_batch_size=size, cache_dir=str(tmp_path))
        data.turned = turned
        (metrics,) = plain_trainer(tmp_path).test(task, data, verbose=False)
        found.append((metrics, task.predictions()))
    assert_same(found)


@pytest.mark.parametrize("backbone", ["tiny", "tiny-t5"])
def test_summaries(tmp_path, backbone):
    options = {"max_length": 60, "max_new_tokens": 8, "max_summary_length": 8, "num_beams": 2}
    task = SummarizationTask(
        backbone=backbone, method="none", dtype="float32", samples=0, **options
    )
    found = []
    for size, turned in ((1, False), (3, False), (16, True)):
        data = Dialogues(source="sample", eval_batch_size=size, cache_dir=str(tmp_path))
        data.turned = turned
        (metrics,) = plain_trainer(tmp_path).test(task, data, verbose=False)
        found.append((metrics, task.predictions()))
    assert_same(found)
