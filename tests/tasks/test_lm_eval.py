"""HellaSwag as lm-evaluation-harness scores it: every log-likelihood, prediction and metric."""

from __future__ import annotations

import datasets
import numpy as np
import pytest

from smolbench.data import HellaSwagDataModule
from smolbench.data.samples.hellaswag import hellaswag_sample
from smolbench.tasks import MultipleChoiceTask
from tests.helpers.tiny import tiny_language_model
from tests.helpers.training import plain_trainer

pytest.importorskip("lm_eval", reason="lm_eval, the reference, is not installed")

ROWS = 40
KINDS = ["llama", "gpt2", "gpt_neo", "opt"]


def harness(kind, folder, max_length=None):
    """Log-likelihoods (N, 4), chosen endings and metrics of lm_eval's own task."""
    from lm_eval import evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks.hellaswag.utils import process_docs

    files = {}
    for split in ("train", "validation"):
        rows = datasets.Dataset.from_dict(hellaswag_sample(split))
        files[split] = str(folder / f"{split}.parquet")
        rows.select(range(ROWS)).to_parquet(files[split])
    task = ConfigurableTask(
        config={
            "task": "hellaswag",
            "dataset_path": "parquet",
            "dataset_kwargs": {"data_files": files},
            "output_type": "multiple_choice",
            "training_split": "train",
            "validation_split": "validation",
            "process_docs": process_docs,
            "doc_to_text": "{{query}}",
            "doc_to_target": "{{label}}",
            "doc_to_choice": "choices",
            "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes")],
        }
    )
    model = HFLM(
        pretrained=tiny_language_model(kind),
        device="cpu",
        dtype="float32",
        batch_size=16,
        max_length=max_length,
    )
    found = evaluate(lm=model, task_dict={"hellaswag": task}, log_samples=True, bootstrap_iters=0)
    samples = sorted(found["samples"]["hellaswag"], key=lambda sample: sample["doc_id"])
    likelihoods = [[answer[0] for answer in sample["filtered_resps"]] for sample in samples]
    chosen = [(sample["acc"], sample["acc_norm"]) for sample in samples]
    metrics = {
        name: found["results"]["hellaswag"][f"{name},none"]
        for name in ("acc", "acc_norm", "acc_bytes")
    }
    return np.array(likelihoods, dtype=np.float64), np.array(chosen), metrics


@pytest.mark.parametrize(("kind", "max_length"), [*((kind, None) for kind in KINDS), ("opt", 70)])
def test_scores_are_those_of_lm_eval(tmp_path, monkeypatch, kind, max_length):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    likelihoods, chosen, expected = harness(kind, tmp_path, max_length)
    task = MultipleChoiceTask(
        backbone=tiny_language_model(kind), dtype="float32", max_length=max_length
    )
    data = HellaSwagDataModule(
        source="sample", limit_test=ROWS, limit_mode="head", cache_dir=str(tmp_path)
    )
    (metrics,) = plain_trainer(tmp_path).test(task, data, verbose=False)
    found = task.predictions()
    for number in range(4):
        np.testing.assert_allclose(
            found[f"log_likelihood_{number}"], likelihoods[:, number], rtol=0, atol=1e-3
        )
    assert ((found["prediction"] == found["label"]) == chosen[:, 0]).all()
    assert ((found["prediction_norm"] == found["label"]) == chosen[:, 1]).all()
    assert (found["prediction"] == likelihoods.argmax(axis=1)).all()
    for name, value in expected.items():
        assert metrics[f"test/{name}"] == pytest.approx(value, abs=1e-6), name
    assert (metrics["test/n_truncated"] > 0) == (max_length is not None)
