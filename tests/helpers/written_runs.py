"""Run folders written by hand, as finished runs leave them: no model, no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smolbench.runs.results import Results, write_results

CLASSIFICATION: Results = {
    "recipe": "imdb_probe",
    "config_digest": "0123456789abcdef",
    "series_digest": "fedcba9876543210",
    "git_revision": None,
    "status": "finished",
    "seed": 0,
    "started_at": "2026-01-01T12:00:00+00:00",
    "attempts": 1,
    "parent_run": None,
    "checkpoint": None,
    "task": "ProbeTask",
    "method": "probe",
    "convention": None,
    "model/id": "HuggingFaceTB/SmolLM2-135M",
    "model/revision": "main",
    "model/total_params": 134_740_000,
    "model/trainable_params": 225_026,
    "data/id": "stanfordnlp/imdb",
    "data/revision": "main",
    "training/max_epochs": 10,
    "data/n_train": 25_000,
    "data/n_test": 25_000,
    "data/limit_train": None,
    "data/limit_test": None,
    "data/split_seed": 0,
    "data/test_digest": "aaaaaaaaaaaaaaaa",
    "hardware/device": "cpu",
    "hardware/name": "AMD EPYC",
    "hardware/threads": 2,
    "hardware/world_size": 1,
    "precision": "32-true",
    "strategy": "SingleDeviceStrategy",
    "cost/fit_s": 100.0,
    "cost/cache_s": 800.0,
    "cost/cache_reused": False,
    "cost/cache_tokens_per_s": 9000.0,
    "cost/test_samples_per_s": 30.0,
    "cost/test_latency_ms_p50": 60.0,
    "cost/peak_rss_mib": 1500.0,
    "cost/checkpoint_mib": 0.9,
    "test/accuracy": 0.89,
    "test/accuracy_stderr": 0.002,
    "test/f1_macro": 0.889,
    "test/n": 25_000,
}
MULTIPLE_CHOICE: Results = {
    **{key: value for key, value in CLASSIFICATION.items() if not key.startswith("test/")},
    "recipe": "hellaswag_smollm2",
    "task": "MultipleChoiceTask",
    "method": "none",
    "convention": "lm_eval",
    "attempts": None,
    "model/trainable_params": 0,
    "data/id": "Rowan/hellaswag",
    "data/n_train": None,
    "data/n_test": 10_042,
    "data/test_digest": "bbbbbbbbbbbbbbbb",
    "cost/fit_s": None,
    "cost/cache_s": None,
    "cost/cache_tokens_per_s": None,
    "test/acc": 0.35,
    "test/acc_norm": 0.43,
    "test/acc_norm_stderr": 0.005,
    "test/n": 10_042,
}
SUMMARIES: Results = {
    **{key: value for key, value in CLASSIFICATION.items() if not key.startswith("test/")},
    "recipe": "samsum_flan-t5-base",
    "task": "SummarizationTask",
    "method": "full",
    "convention": "full",
    "model/id": "google/flan-t5-base",
    "data/id": "knkarthick/samsum",
    "training/max_epochs": 50,
    "data/n_train": 14_731,
    "data/n_test": 819,
    "data/test_digest": "cccccccccccccccc",
    "test/rouge1": 0.36,
    "test/rouge1_stderr": 0.006,
    "test/rouge2": 0.16,
    "test/n": 819,
}


def write_run(folder: Path, base: Results = CLASSIFICATION, **changes: Any) -> Path:
    """Write a run folder.

    Args:
        folder: The run folder.
        base: What its results are like.
        changes: What is different, with ``__`` for ``/``; a key that is ``...`` is left out.
    """
    changed = {name.replace("__", "/"): value for name, value in changes.items()}
    results = {key: value for key, value in {**base, **changed}.items() if value is not ...}
    write_results(folder, results)
    return folder
