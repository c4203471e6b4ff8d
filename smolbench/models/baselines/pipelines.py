"""Classical text classifiers: TF-IDF and what scikit-learn learns from it."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from smolbench.errors import SmolbenchError
from smolbench.models.baselines.words import Split, Tokens, sklearn_pattern
from smolbench.utils.notices import warn

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

Classifier = Literal["naive_bayes", "logistic_regression", "random_forest", "linear_svm"]
PROBABILISTIC: tuple[Classifier, ...] = ("naive_bayes", "logistic_regression", "random_forest")
_ALLOWED = ("numpy.dtype", "sklearn.tree._tree.Tree", "scipy.sparse._csr.csr_matrix")
"""Types beside scikit-learn's own that a checkpoint may hold; none of them runs code."""


@dataclass(frozen=True)
class ClassicalOptions:
    """Settings of a pipeline; see :class:`~smolbench.tasks.classical.ClassicalTask`."""

    classifier: Classifier
    max_ngram: int
    min_df: int
    max_features: int | None
    sublinear_tf: bool
    stop_words: Literal["english"] | None
    alpha: float
    inverse_penalty: float
    n_estimators: int
    max_depth: int | None
    tokens: Tokens = "auto"


def build_pipeline(options: ClassicalOptions, seed: int, split: Split = "words-2") -> Pipeline:
    """A TF-IDF vectoriser and a classifier, not yet fitted.

    Args:
        options: Which classifier, and its settings.
        seed: Of what is random in it.
        split: What its tokens are; sequences of characters are up to twice as long as of words.
    """
    from sklearn.ensemble import RandomForestClassifier  # lazy: import cost
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import Pipeline
    from sklearn.svm import LinearSVC

    vectorizer = TfidfVectorizer(
        token_pattern=sklearn_pattern(split),
        ngram_range=(1, options.max_ngram * (2 if split == "characters-2" else 1)),
        min_df=options.min_df,
        max_features=options.max_features,
        sublinear_tf=options.sublinear_tf,
        stop_words=options.stop_words,
        dtype=np.float32,
    )
    penalty = options.inverse_penalty
    classifier: Any
    if options.classifier == "naive_bayes":
        classifier = MultinomialNB(alpha=options.alpha)
    elif options.classifier == "logistic_regression":
        classifier = LogisticRegression(C=penalty, max_iter=1000, random_state=seed)
    elif options.classifier == "linear_svm":
        classifier = LinearSVC(C=penalty, random_state=seed)
    else:
        classifier = RandomForestClassifier(
            n_estimators=options.n_estimators,
            max_depth=options.max_depth,
            n_jobs=-1,
            random_state=seed,
        )
    return Pipeline([("tfidf", vectorizer), ("classifier", classifier)])


def fit_pipeline(pipeline: Pipeline, texts: Sequence[str], labels: np.ndarray) -> None:
    """Fit in place.

    Args:
        pipeline: From :func:`build_pipeline`.
        texts: ``N`` texts.
        labels: Classes, shape ``(N,)``.

    Raises:
        SmolbenchError: If no word is left to learn from.
    """
    try:
        pipeline.fit(list(texts), labels)
    except ValueError as error:
        said = str(error)
        if any(sign in said for sign in ("vocabulary", "no terms remain", "documents than min_df")):
            raise SmolbenchError(
                "No word of the training texts is left to learn from "
                f"({' '.join(said.split())}): lower model.min_df, or leave out model.stop_words."
            ) from error
        raise


def class_scores(pipeline: Pipeline, texts: Sequence[str], classes: int) -> np.ndarray:
    """Scores of texts, the highest for the class that is predicted, float32, shape ``(N, C)``.

    Log-probabilities where the classifier has probabilities, else its margins. Classes that
    training had no example of have minus infinity, which is a probability of 0.

    Args:
        pipeline: A fitted one.
        texts: ``N`` texts.
        classes: Number of classes, ``C``.
    """
    classifier = pipeline.named_steps["classifier"]
    if hasattr(classifier, "predict_proba"):
        with np.errstate(divide="ignore"):  # a forest is often certain
            known = np.log(pipeline.predict_proba(list(texts)))
    else:
        margins = pipeline.decision_function(list(texts))
        known = margins if margins.ndim == 2 else np.stack([-margins / 2, margins / 2], axis=1)
    scores = np.full((len(texts), classes), -np.inf, dtype=np.float32)
    scores[:, classifier.classes_] = known
    return scores


def without_words(pipeline: Pipeline, texts: Iterable[str]) -> int:
    """In how many texts a fitted pipeline finds none of its words: they are all scored alike."""
    vectorizer = pipeline.named_steps["tfidf"]
    known, words = vectorizer.vocabulary_, re.compile(vectorizer.token_pattern).finditer
    prepared, analyzed = vectorizer.build_preprocessor(), vectorizer.build_analyzer()

    def nothing(text: str) -> bool:
        if any(word[0] in known for word in words(prepared(text))):
            return False  # of most texts after a word or two
        return not any(feature in known for feature in analyzed(text))

    return sum(map(nothing, texts))


def learned_numbers(pipeline: Pipeline) -> int:
    """How many numbers the classifier and the vectoriser have learned from the texts."""
    vectorizer, classifier = pipeline.named_steps["tfidf"], pipeline.named_steps["classifier"]
    arrays = [vectorizer.idf_]
    for name in ("feature_log_prob_", "class_log_prior_", "coef_", "intercept_"):
        if (array := getattr(classifier, name, None)) is not None:
            arrays.append(array)
    for tree in getattr(classifier, "estimators_", []):
        arrays += [tree.tree_.threshold, tree.tree_.feature, tree.tree_.value]
    return sum(int(np.size(array)) for array in arrays)


def pipeline_to_bytes(pipeline: Pipeline) -> bytes:
    """A fitted pipeline in a form that holds data and no code."""
    import skops.io  # lazy: only checkpoints of classical tasks need it

    # a vocabulary is mostly repetition
    saved: bytes = skops.io.dumps(pipeline, compression=zipfile.ZIP_DEFLATED)
    return saved


def sklearn_version() -> str:
    """The version of scikit-learn that is installed."""
    import sklearn  # lazy: import cost

    return str(sklearn.__version__)


def scores_on_trial(pipeline: Pipeline, classes: int) -> np.ndarray:
    """Scores of texts made of its own words, always the same ones, float32, shape ``(16, C)``.

    Another version of scikit-learn that gives the same may go on with the pipeline.
    """
    numbers = pipeline.named_steps["tfidf"].vocabulary_
    step = max(1, len(numbers) // 640)
    terms = sorted(term for term, number in numbers.items() if number % step == 0)
    return class_scores(pipeline, [" ".join(terms[n::16]) for n in range(16)], classes)


def pipeline_of_version(
    saved: bytes, version: str | None, expected: np.ndarray | None, classes: int
) -> Pipeline:
    """Read what :func:`pipeline_to_bytes` has written, perhaps with another scikit-learn.

    Args:
        saved: What was written.
        version: Of scikit-learn that fitted it, if that is known.
        expected: What :func:`scores_on_trial` said there.
        classes: Number of classes, ``C``.

    Raises:
        SmolbenchError: As :func:`pipeline_from_bytes`, or if this version scores in another way.
    """
    from sklearn.exceptions import InconsistentVersionWarning  # lazy: import cost

    here = sklearn_version()
    failure: Exception | None = None
    with warnings.catch_warnings(
        record=True
    ) as caught:  # one sentence instead of one for each part
        warnings.simplefilter("always", InconsistentVersionWarning)
        try:
            pipeline = pipeline_from_bytes(saved)
            found = scores_on_trial(pipeline, classes)
        except Exception as error:  # whatever another version lacks
            failure = error
    for one in caught:
        if isinstance(one.message, InconsistentVersionWarning):
            version = version or str(one.message.original_sklearn_version)
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if version in (None, here):
        if failure is not None:
            raise failure
        return pipeline
    between = f"fitted with scikit-learn {version}, and {here} is installed"
    remedy = f'install that version (pip install "scikit-learn=={version}"), or fit it anew'
    if failure is not None:
        raise SmolbenchError(
            f"The pipeline was {between}, which cannot use it ({type(failure).__name__}: "
            f"{' '.join(str(failure).split())}): {remedy}."
        ) from failure
    if expected is None:
        warn("The pipeline was %s: whether it scores alike is not known.", between)
    elif not np.allclose(found, expected, rtol=1e-5, atol=1e-6):
        raise SmolbenchError(f"The pipeline was {between}, which scores otherwise: {remedy}.")
    else:
        warn("The pipeline was %s; texts made of its words are scored alike.", between)
    return pipeline


def pipeline_from_bytes(saved: bytes) -> Pipeline:
    """Read what :func:`pipeline_to_bytes` has written.

    Raises:
        SmolbenchError: If it is damaged, or holds anything but a pipeline's own types.
    """
    import skops.io  # lazy: see above

    try:
        strangers = set(skops.io.get_untrusted_types(data=saved)) - set(_ALLOWED)
        if not strangers:
            pipeline: Pipeline = skops.io.loads(saved, trusted=list(_ALLOWED))
            return pipeline
    except Exception as error:  # whatever a damaged archive makes of its reader
        raise SmolbenchError(
            f"The fitted pipeline in the checkpoint is damaged ({type(error).__name__}): fit it "
            "anew."
        ) from error
    raise SmolbenchError(
        f"The checkpoint holds {', '.join(sorted(strangers))}, which no fitted pipeline of "
        "smolbench does; it is not loaded, because it could run code."
    )
