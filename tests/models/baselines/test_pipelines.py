from __future__ import annotations

import io
import typing

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer

from smolbench.data.samples.imdb import imdb_sample
from smolbench.errors import SmolbenchError
from smolbench.models.baselines.pipelines import (
    ClassicalOptions,
    Classifier,
    build_pipeline,
    class_scores,
    fit_pipeline,
    learned_numbers,
    pipeline_from_bytes,
    pipeline_of_version,
    pipeline_to_bytes,
    scores_on_trial,
)
from smolbench.utils import notices

CLASSIFIERS = typing.get_args(Classifier)
ROWS = imdb_sample("train")
TEXTS, LABELS = list(ROWS["text"])[::7][:80], np.array(ROWS["label"])[::7][:80]


def options(classifier="logistic_regression", **changed):
    settings = {
        "max_ngram": 2,
        "min_df": 2,
        "max_features": None,
        "sublinear_tf": True,
        "stop_words": None,
        "alpha": 1.0,
        "inverse_penalty": 1.0,
        "n_estimators": 10,
        "max_depth": None,
    }
    return ClassicalOptions(classifier=classifier, **{**settings, **changed})


def fitted(classifier="logistic_regression", labels=LABELS, **changed):
    pipeline = build_pipeline(options(classifier, **changed), seed=0)
    fit_pipeline(pipeline, TEXTS, labels)
    return pipeline


def test_the_pipeline_is_scikit_learns():
    plain = Pipeline(
        [
            ("tfidf", TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)),
            ("classifier", LogisticRegression(max_iter=1000)),
        ]
    ).fit(TEXTS, LABELS)
    found = class_scores(fitted(), TEXTS, 2)
    assert np.exp(found) == pytest.approx(plain.predict_proba(TEXTS), abs=1e-4)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_scores_predict_what_the_pipeline_predicts(classifier):
    pipeline = fitted(classifier)
    scores = class_scores(pipeline, TEXTS, 2)
    assert scores.shape == (80, 2)
    assert (scores < np.inf).all()
    assert (scores.max(axis=1) > -np.inf).all()
    assert (scores.argmax(axis=1) == pipeline.predict(TEXTS)).all()


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize("known", [[0, 2, 3], [1, 3]])
def test_a_class_without_examples_is_never_predicted(classifier, known):
    labels = np.array(known)[np.arange(80) % len(known)]
    pipeline = fitted(classifier, labels)
    scores = class_scores(pipeline, TEXTS, 5)
    assert scores.shape == (80, 5)
    assert set(scores.argmax(axis=1)) <= set(known)
    unknown = [number for number in range(5) if number not in known]
    assert (np.exp(scores[:, unknown]) == 0).all()
    alone = class_scores(pipeline, TEXTS[:1], 5)
    assert alone == pytest.approx(scores[:1]), "whatever else is scored"


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_bytes_hold_the_whole_pipeline(classifier):
    pipeline = fitted(classifier)
    again = pipeline_from_bytes(pipeline_to_bytes(pipeline))
    assert np.array_equal(class_scores(again, TEXTS, 2), class_scores(pipeline, TEXTS, 2))


def test_what_could_run_code_is_not_loaded():
    stranger = make_pipeline(FunctionTransformer(io.StringIO))
    with pytest.raises(SmolbenchError, match="it is not loaded, because it could run code"):
        pipeline_from_bytes(pipeline_to_bytes(stranger))


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"PK" * 9])
def test_a_damaged_pipeline_is_a_sentence(spoil):
    with pytest.raises(SmolbenchError, match="is damaged"):
        pipeline_from_bytes(spoil(pipeline_to_bytes(fitted())))


def test_no_words_left_is_a_sentence():
    pipeline = build_pipeline(options(min_df=50), seed=0)
    with pytest.raises(SmolbenchError, match="No word of the training texts is left"):
        fit_pipeline(pipeline, ["one", "two", "three"], np.array([0, 1, 0]))


@pytest.mark.parametrize(
    ("classifier", "count"),
    [("naive_bayes", lambda v: 3 * v + 2), ("logistic_regression", lambda v: 2 * v + 1)],
)
def test_learned_numbers(classifier, count):
    pipeline = fitted(classifier)
    assert learned_numbers(pipeline) == count(len(pipeline.named_steps["tfidf"].vocabulary_))


def versioned(monkeypatch, classifier="logistic_regression", **changed):
    """A pipeline as an older scikit-learn reads it, and what it said where it was fitted."""
    pipeline = fitted(classifier)
    saved, expected = pipeline_to_bytes(pipeline), scores_on_trial(pipeline, 2)
    monkeypatch.setattr("sklearn.base.__version__", "1.0.1")
    monkeypatch.setattr("sklearn.__version__", "1.0.1")
    notices.begin()
    return saved, expected


def test_another_scikit_learn_that_scores_alike_is_one_line(monkeypatch, recwarn):
    import sklearn

    fitted_with = sklearn.__version__
    saved, expected = versioned(monkeypatch)
    for version in (fitted_with, None):
        assert pipeline_of_version(saved, version, expected, 2) is not None
    (line,) = notices.gathered([], "fit")
    assert f"fitted with scikit-learn {fitted_with}, and 1.0.1 is installed" in line
    assert not [one for one in recwarn if "InconsistentVersion" in one.category.__name__]
    pipeline_of_version(saved, fitted_with, None, 2)
    assert "is not known" in notices.gathered([], "fit")[-1]


@pytest.mark.parametrize("fault", ["other scores", "an attribute"])
def test_another_scikit_learn_that_scores_otherwise_is_refused(monkeypatch, fault):
    saved, expected = versioned(monkeypatch)
    if fault == "other scores":
        expected = expected + 0.01
    else:
        monkeypatch.setattr(LogisticRegression, "predict_proba", lambda *_: _.multi_class)
    with pytest.raises(SmolbenchError, match=r"and 1\.0\.1 is installed.*fit it anew"):
        pipeline_of_version(saved, "1.9.0", expected, 2)
