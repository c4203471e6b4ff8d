"""A fitted scikit-learn pipeline as a file of skops, which holds data and no code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from smolbench.models.baselines.pipelines import pipeline_from_bytes, pipeline_to_bytes
from smolbench.models.export.check import Expected, check_export
from smolbench.models.export.exported import HERE, Exported

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

FILE = "pipeline.skops"
_USAGE = f"""\
import json
from pathlib import Path

import skops.io

folder = Path("{HERE}")
# skops asks for every type beside scikit-learn's own; none of these runs code
trusted = %s
pipeline = skops.io.load(folder / "{FILE}", trusted=trusted)
labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
texts = ["Two hours I will never get back.", "A gem."]
"""
_PROBABILITIES = """\
for scores in pipeline.predict_proba(texts):
    best = scores.argmax()
    print(labels[pipeline.classes_[best]], scores[best])
"""
_CHOICES = """\
for number in pipeline.predict(texts):
    print(labels[number])
"""


def write_pipeline(
    pipeline: Pipeline,
    labels: Sequence[str],
    *,
    probabilistic: bool,
    expected: Expected,
    folder: Path,
) -> Exported:
    """Write a fitted pipeline and the names of its classes.

    Args:
        pipeline: A fitted one.
        labels: Names of the ``C`` classes; the pipeline predicts their numbers.
        probabilistic: Whether it has probabilities.
        expected: What the run's path says; it asks a pipeline.
        folder: An existing folder.

    Raises:
        SmolbenchError: If what was written cannot be read again, or says something else.
    """
    import skops.io  # lazy: only classical tasks need it

    saved = pipeline_to_bytes(pipeline)
    (folder / FILE).write_bytes(saved)
    names = json.dumps(list(labels), ensure_ascii=False)
    (folder / "labels.json").write_text(names + "\n", encoding="utf-8")
    trusted = sorted(skops.io.get_untrusted_types(data=saved))
    limits = ["skops loads it with the version of scikit-learn that it was fitted with; see below."]
    if not probabilistic:
        limits.append("It has no probabilities: its scores are margins.")
    return Exported(
        framework="sklearn",
        what="a TF-IDF vectoriser and a classifier of scikit-learn",
        usage=_USAGE % trusted + (_PROBABILITIES if probabilistic else _CHOICES),
        reads=["The text as it is: words, and sequences of them, are counted."],
        limits=limits,
        check=check_export(expected, folder, _load),
        pipeline="text-classification",
    )


def pipeline_probabilities(pipeline: Pipeline, texts: Sequence[str], classes: int) -> torch.Tensor:
    """Probabilities ``(N, C)`` by scikit-learn alone; none of a class it was not fitted to."""
    said = np.zeros((len(texts), classes), dtype=np.float32)
    said[:, pipeline.classes_] = pipeline.predict_proba(list(texts))
    return torch.from_numpy(said)


def _load(folder: Path, dtype: torch.dtype) -> Pipeline:
    return pipeline_from_bytes((folder / FILE).read_bytes())
