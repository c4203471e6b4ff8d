from __future__ import annotations

import numpy as np
import pytest

from smolbench.errors import SmolbenchError
from smolbench.models.baselines.pipelines import build_pipeline, fit_pipeline, pipeline_to_bytes
from smolbench.models.export.check import Trial
from smolbench.tasks import ClassicalTask
from tests.helpers.tiny import TEXTS

LABELS = ["neg", "it's so-so", "never seen", "pos"]
CLASSES = np.array([3, 0, 0, 1, 0, 3, 1])
TRIAL = Trial({"text": TEXTS}, "known ones")
ON_THE_CARD = ["Two hours I will never get back.", "A gem."]


def fitted(classifier, labels=CLASSES):
    task = ClassicalTask(classifier=classifier, min_df=1)
    task.label_names = LABELS
    task.pipeline = build_pipeline(task.options, seed=0)
    fit_pipeline(task.pipeline, TEXTS, labels)
    return task


@pytest.mark.parametrize(
    "classifier", ["naive_bayes", "logistic_regression", "random_forest", "linear_svm"]
)
def test_the_code_on_the_card_says_what_the_run_says(tmp_path, capsys, classifier):
    """Also of a class that no training text was of."""
    task = fitted(classifier)
    expected = task.start_answering()(ON_THE_CARD).softmax(dim=1)
    made = task.export(tmp_path, trial=TRIAL)
    assert (made.check.n, made.check.labels_differ) == (len(TEXTS), 0)
    assert made.check.difference < 1e-6
    exec(made.usage.replace("FOLDER", str(tmp_path)), {})
    lines = capsys.readouterr().out.splitlines()
    for line, row in zip(lines, expected, strict=True):
        label, _, score = line.rpartition(" ") if task.probabilistic else (line, "", "nan")
        assert label == LABELS[int(row.argmax())]
        if task.probabilistic:
            assert float(score) == pytest.approx(float(row.max()), abs=1e-6)


def test_another_pipeline_is_refused(tmp_path, monkeypatch):
    other = fitted("naive_bayes", CLASSES[::-1])
    monkeypatch.setattr(
        "smolbench.models.export.pipeline.pipeline_to_bytes",
        lambda pipeline: pipeline_to_bytes(other.pipeline),
    )
    with pytest.raises(SmolbenchError, match="on 7 texts, known ones, the probabilities differ"):
        fitted("naive_bayes").export(tmp_path, trial=TRIAL)
