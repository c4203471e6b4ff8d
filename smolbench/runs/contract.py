"""The keys of ``results.json``: what each holds, and of what type it is.

Outside scripts rely on them. ``docs/results.md`` is made from this, and a test holds the runs of
every kind of task against it.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Literal

from smolbench.metrics.table import METRICS

Type = Literal["text", "number", "whole", "truth", "list"]
_TYPES: dict[Type, tuple[type, ...]] = {
    "text": (str,),
    "number": (int, float),
    "whole": (int,),
    "truth": (bool,),
    "list": (list,),
}
_GENERAL: dict[str, tuple[Type, str]] = {
    "schema": ("whole", "rises when a key changes its meaning"),
    "recipe": ("text", "stems of the configuration files"),
    "config_digest": ("text", "of all settings"),
    "series_digest": ("text", "of the settings, equal where nothing but the seed differs"),
    "git_revision": ("text", "of smolbench's checkout, if it runs from one"),
    "status": ("text", "running, finished, interrupted or failed"),
    "resumable": ("truth", "false where a stopped run has to begin anew; elsewhere missing"),
    "seed": ("whole", "of everything that is drawn"),
    "started_at": ("text", "in ISO 8601"),
    "attempts": ("whole", "trainings, resumed ones included"),
    "parent_run": ("text", "the run whose checkpoint a test in a folder of its own has scored"),
    "checkpoint": ("text", "that checkpoint"),
    "warnings": ("list", "what has to be known of the numbers, at most ten lines"),
    "headline": ("text", "the metric that runs on this data are ranked by"),
    "positive_label": ("text", "the class of precision, recall, specificity and f1"),
    "training/ended": ("text", "why the training came to its end"),
    "training/out_of_time": ("truth", "true where time has cut it; elsewhere missing"),
    "training/max_epochs": ("whole", "epochs that it was to have; null where steps were counted"),
    "task": ("text", "class of the task"),
    "method": ("text", "how the model was adapted"),
    "convention": ("text", "how answers were found or scored"),
    "objective": ("text", "what a model of multiple choice was trained by"),
    "num_fewshot": ("whole", "solved examples in front of a question"),
    "model/id": ("text", "name or folder of the pretrained model"),
    "model/base": ("text", "of an adapter, the model that it was made for"),
    "model/revision": ("text", "commit, or digest of the folder's files"),
    "model/trust_remote_code": ("truth", "whether code among the model's files could run"),
    "model/total_params": ("whole", "parameters"),
    "model/trainable_params": ("whole", "of them, those that train"),
    "model/unused_params": ("whole", "of them, those that no text reaches"),
    "model/dtype": ("text", "number format that it computes in"),
    "model/tokens": ("text", "what classical baselines count"),
    "model/vectors": ("text", "file of pretrained word vectors"),
    "model/vectors_words": ("whole", "words of the vocabulary that it has"),
    "model/vocabulary_words": ("whole", "words that a neural baseline knows"),
    "prompt/*": ("text", "what a prompted model read"),
    "prompt/num_shots": ("whole", "examples that were drawn"),
    "data/id": ("text", "name of the dataset"),
    "data/revision": ("text", "commit, or digest of the files"),
    "data/batch_size": ("whole", "examples of a batch, where it was searched for"),
    "data/n_*": ("whole", "examples of a split, before its limit, or dropped"),
    "data/limit_*": ("whole", "the limit of a split"),
    "data/split_seed": ("whole", "seed of what is held out"),
    "data/downsample": ("whole", "rows drawn before the split"),
    "data/test_set": ("text", "which of several test sets"),
    "data/*_rows": ("text", "digest of a split's texts and labels, in their order"),
    "data/test_digest": ("text", "of the test texts and their indices: equal is comparable"),
    "data/duplicates": ("whole", "training rows that repeat an earlier text"),
    "data/overlap": ("whole", "test rows whose text stands in training or validation"),
    "data/two_labels": ("whole", "training texts with several labels"),
    "teacher/*": ("text", "whom a student learned from"),
    "teacher/test_*": ("number", "how good that was"),
    "teacher/same_rows": ("truth", "whether it was kept from the rows that are scored"),
    "teacher/agreement": ("number", "share of the training labels (tokens) that it agrees with"),
    "teacher/agreement_n": ("whole", "of how many"),
    "generation/*": ("number", "how summaries were written"),
    "rouge/*": ("text", "tokenizer and sentence splitter of ROUGE"),
    "hardware/device*": ("text", "cpu, cuda or mps; *_test if a test ran elsewhere"),
    "hardware/name*": ("text", "of the processor or GPU"),
    "hardware/threads*": ("whole", "of a CPU"),
    "hardware/world_size*": ("whole", "processes"),
    "precision*": ("text", "of what trains"),
    "strategy*": ("text", "how several processes work together"),
    "packages/*": ("text", "versions of libraries"),
    "paths/*": ("truth", "which fast paths computed it"),
    "paths/under": ("text", "libraries and processor that they were found right with"),
    "best/step": ("whole", "optimiser step of the best checkpoint"),
    "best/epoch": ("whole", "its epoch, from 0"),
    "cost/*_per_s": ("number", "of samples or real tokens"),
    "cost/*_s": ("number", "wall seconds"),
    "cost/*_ms_p*": ("number", "milliseconds, a quantile"),
    "cost/*_mib*": ("number", "MiB"),
    "cost/*_method": ("text", "how a memory was measured"),
    "cost/*padding_share": ("number", "of the tokens that were computed"),
    "cost/test_latency_n": ("whole", "texts whose latency was measured"),
    "cost/cache_reused": ("truth", "whether frozen passes were there before"),
    "val/*": ("number", "a metric of the best checkpoint on the validation split"),
    "val/rouge_n": ("number", "documents that ROUGE was computed on"),
    "test/labels": ("list", "names of the classes"),
    "test/confusion": ("list", "rows per true class, by predicted class"),
    "test/class_*": ("list", "precision, recall, F1, examples of each class"),
    "test/predicted_share": ("list", "share of the texts that were called each class"),
}
_ENDINGS = {
    "": "{label}",
    "_stderr": "standard error of {name} ({error})",
    "_std": "standard deviation of {name} over a prompt's draws of examples",
    "_low": "lower end of a bootstrap interval of {name}",
    "_high": "its upper end",
}


@cache
def contract() -> dict[str, tuple[Type, str]]:
    """Type and meaning of every key; ``*`` stands for any characters, whole names come first."""
    found = dict(_GENERAL)
    for name, metric in METRICS.items():
        for ending, says in _ENDINGS.items():
            error = metric.error if ending == "_stderr" else True
            interval = ending not in ("_low", "_high") or name.startswith("rouge")
            if error is not None and interval and (metric.averaged or not ending):
                unit = f", {metric.unit}" if metric.unit and not ending else ""
                whole: Type = "number" if metric.averaged else "whole"
                meaning = says.format(label=metric.label, name=name, error=metric.error) + unit
                found[f"test/{name}{ending}"] = (whole, meaning)
    return dict(sorted(found.items(), key=lambda item: "*" in item[0]))


def pattern_of(key: str) -> str | None:
    """The line of the contract that a key is under; ``None`` if it is under none."""
    return next((pattern for pattern in contract() if fnmatchcase(key, pattern)), None)


def holds(key: str, value: Any) -> bool:  # noqa: ANN401 - from JSON
    """Whether a value is of the type that the contract says; ``null`` is of any."""
    pattern = pattern_of(key)
    if pattern is None:
        return False
    kind, _ = contract()[pattern]
    if isinstance(value, bool) and kind != "truth":
        return False
    return value is None or isinstance(value, _TYPES[kind])


def table() -> str:
    """The contract as a table in Markdown."""
    lines = ["| key | type | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{key}` | {kind} | {says} |" for key, (kind, says) in sorted(contract().items())]
    return "\n".join(lines) + "\n"
