"""The model card of an exported run: a ``README.md`` made of its ``results.json``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from smolbench.models.export.exported import HERE, Exported
from smolbench.runs.record import RunRecord
from smolbench.runs.report.details import details_of
from smolbench.runs.report.markdown import escape, table_text
from smolbench.runs.report.summary import cost_lines, quality_lines
from smolbench.runs.settings import Settings, flatten

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_DATA = (
    ("dataset", "data/id"),
    ("its revision", "data/revision"),
    ("training examples", "data/n_train"),
    ("validation examples", "data/n_val"),
    ("test examples", "data/n_test"),
    ("seed of the split", "data/split_seed"),
    ("training texts that repeat another", "data/duplicates"),
    ("test texts seen in training", "data/overlap"),
    ("teacher", "teacher/id"),
)
_MACHINE = (
    ("hardware", "hardware/name"),
    ("threads", "hardware/threads"),
    ("processes", "hardware/world_size"),
    ("computed in", "model/dtype"),
    ("precision of what trains", "precision"),
    ("git revision", "git_revision"),
    ("digest of the settings", "config_digest"),
)
_METADATA_METRICS = ("accuracy", "f1_macro", "acc", "acc_norm", "rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class Origin:
    """What an export was made from.

    Attributes:
        record: The run.
        settings: Contents of its ``config.yaml``.
        labels: Names of the classes; none if it has no classes.
        checkpoint: Name of the checkpoint's file.
        scored: Whether the run's scores are this checkpoint's.
        version: Version of smolbench that exports it.
    """

    record: RunRecord
    settings: Settings
    labels: Sequence[str]
    checkpoint: str
    scored: bool
    version: str


def model_card(name: str, exported: Exported, origin: Origin, *, on_the_hub: bool = False) -> str:
    """Write a model card.

    Args:
        name: How the export is loaded: its folder, or its id on the Hub.
        exported: What was written.
        origin: What it was made from.
        on_the_hub: Whether the name is an id on the Hub.
    """
    record = origin.record
    method = record.text("method") or "unknown"
    base = record.text("model/id") or "unknown"
    parts = [
        f"# {name.rstrip('/').rpartition('/')[2]}",
        f"This is {exported.what}. It comes from a run of the recipe `{record.recipe}` of "
        f"smolbench {origin.version} (checkpoint `{origin.checkpoint}`): {escape(base)}, method "
        f"`{method}`, on {escape(record.dataset)}.",
        "## Use",
        f"```python\n{_usage(name, exported, on_the_hub).rstrip()}\n```",
        "## What it reads",
        _bullets(exported.reads),
    ]
    if origin.labels:
        parts += [
            "## Labels",
            _table(("number", "label"), [(str(n), label) for n, label in enumerate(origin.labels)]),
        ]
    parts += ["## Scores", *_scores(origin)]
    compared = [*exported.check.lines(), *_loaded_with(exported)]
    parts += ["## Compared with the run", _bullets(compared)]
    parts += ["## Cost", _table(("", "", "unit"), cost_lines(record.results))]
    parts += ["## Data", _table(("", ""), _facts(record, _DATA))]
    parts += ["## Method", _table(("setting", "value"), _options(origin.settings))]
    parts += ["## Limits", _bullets([*exported.limits, *_limits(record, exported)])]
    parts += ["## Made with", _table(("", ""), _versions(record, exported))]
    return _metadata(exported, origin) + "\n\n".join(part for part in parts if part) + "\n"


def _scores(origin: Origin) -> list[str]:
    results = origin.record.results
    if not origin.scored:
        return [
            f"`{origin.checkpoint}` was not scored: the run's scores are its best checkpoint's."
        ]
    tested = quality_lines(results, "test")
    if not tested:
        validated = quality_lines(results, "val")
        said = "It was not scored on the test split."
        if not validated:
            return [said]
        return [f"{said} On the validation split, by which it was chosen:", _scored(validated)]
    said = "On the test split; ± is the standard error over the examples."
    if (tokenizer := origin.record.text("rouge/tokenizer")) is not None:
        said += f" ROUGE counts the words of the tokenizer `{tokenizer}`."
    details = details_of(origin.record)
    tables = [
        ("Class by class:", details.classes),
        ("Confusion matrix (rows: true class):", details.confusion),
    ]
    return [
        said,
        _scored(tested),
        *(part for title, table in tables if table for part in (title, table_text(table).rstrip())),
    ]


def _loaded_with(exported: Exported) -> list[str]:
    """With which version of the library that reads it what was written was loaded."""
    library = {"sklearn": "scikit-learn", "smolbench": "transformers"}.get(
        exported.framework, exported.framework
    )
    return [f"It was loaded with {library} {version(library)}: no older one was tried with it."]


def _scored(lines: Sequence[tuple[str, str, str]]) -> str:
    return _table(("metric", "value", "±"), lines)


def _limits(record: RunRecord, exported: Exported) -> list[str]:
    said = [
        "What holds for the texts it was scored on need not hold for others: score it on your own "
        "before you rely on it."
    ]
    if (overlap := record.number("data/overlap")) is not None and overlap > 0:
        said.append(f"{overlap:,.0f} test texts also stand in the training set.")
    if wordless := record.number("test/n_without_tokens"):
        said.append(f"ROUGE sees no word in {wordless:,.0f} of the references it was scored on.")
    if (part := _part(record, "train")) is not None:
        said.append(f"It was trained on a part of the dataset: {part:,.0f} examples.")
    if record.out_of_time:
        said.append("Its training was cut: its time was up before it was at its end.")
    if record.metric is not None and (part := _part(record, "test")) is not None:
        said.append(f"It was scored on a part of the test set: {part:,.0f} examples.")
    if exported.base is not None:
        said.append(
            "Its pretrained network brings its own licence, and whatever it has learned before."
        )
    return said


def _part(record: RunRecord, split: str) -> float | None:
    """Examples of a split that a limit has cut; ``None`` if it has them all.

    A limit may be above what there is. Results that do not say how many there were, as earlier ones
    do not, are believed to be cut if as many examples as the limit were used.
    """
    used, limit = record.number(f"data/n_{split}"), record.number(f"data/limit_{split}")
    there = record.number(f"data/n_{split}_unlimited")
    if limit is None or (used is not None and used < limit):
        return None
    return None if there is not None and there <= limit else limit


def _options(settings: Settings) -> list[tuple[str, str]]:
    """What was chosen for the training: the model's options, the data's, the trainer's."""
    chosen = {
        name: value
        for name, value in flatten(settings).items()
        if value is not None
        and (
            name == "seed_everything"
            or name.startswith(("model.", "data."))
            or name.partition(".")[2] in {"max_epochs", "max_steps", "accumulate_grad_batches"}
        )
        and not name.endswith(("class_path", "cache_dir", "num_workers"))
    }
    return [
        (name, value if isinstance(value, str) and value.isprintable() else repr(value))
        for name, value in chosen.items()
    ]


def _versions(record: RunRecord, exported: Exported) -> list[tuple[str, str]]:
    packages = [
        (key.removeprefix("packages/"), said)
        for key in record.results
        if key.startswith("packages/") and (said := record.text(key))
    ]
    base = []
    if exported.base is not None:
        name, revision = exported.base
        base = [("base model", name), ("its revision", revision or "a folder on one machine")]
    return [*base, *packages, *_facts(record, _MACHINE)]


def _facts(record: RunRecord, keys: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    found = []
    for label, key in keys:
        if (said := record.text(key)) is not None:
            found.append((label, said))
        elif (number := record.number(key)) is not None:
            found.append((label, f"{number:,.0f}"))
    return found


def _usage(name: str, exported: Exported, on_the_hub: bool) -> str:
    if on_the_hub and exported.framework in {"smolbench", "sklearn"}:  # these load from disk only
        fetched = exported.usage.replace(f'"{HERE}"', f'snapshot_download("{name}")')
        return f"from huggingface_hub import snapshot_download\n\n{fetched}"
    return exported.usage.replace(HERE, name)


def _bullets(said: Sequence[str]) -> str:
    return "\n".join(f"- {one}" for one in said)


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return ""
    rows = [headings, ["---"] * len(headings), *([escape(c) for c in line] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _metadata(exported: Exported, origin: Origin) -> str:
    """What the Hub reads of a card."""
    import yaml  # lazy: import cost

    record = origin.record
    said: dict[str, Any] = {"library_name": exported.framework, "tags": ["smolbench"]}
    if exported.pipeline is not None:
        said["pipeline_tag"] = exported.pipeline
    if exported.base is not None and not exported.base_is_local:
        said["base_model"] = exported.base[0]
        adapter = exported.framework == "peft"
        said["base_model_relation"] = "adapter" if adapter else "finetune"
    if _ID.fullmatch(record.dataset):
        said["datasets"] = [record.dataset]
    metrics = _measured(origin) if origin.scored else []
    if metrics and exported.pipeline is not None:
        said["model-index"] = [
            {
                "name": record.recipe,
                "results": [
                    {
                        "task": {"type": exported.pipeline},
                        "dataset": {
                            "name": record.dataset,
                            "type": record.dataset,
                            "split": "test",
                        },
                        "metrics": metrics,
                    }
                ],
            }
        ]
    return f"---\n{yaml.safe_dump(said, sort_keys=False, allow_unicode=True)}---\n\n"


def _measured(origin: Origin) -> list[Mapping[str, Any]]:
    tokenizer = origin.record.text("rouge/tokenizer")
    found: list[Mapping[str, Any]] = []
    for name in _METADATA_METRICS:
        if (value := origin.record.number(f"test/{name}")) is not None:
            metric: dict[str, Any] = {"type": name, "value": value}
            if name.startswith("rouge") and tokenizer not in (None, "rouge_score"):
                metric["args"] = {"tokenizer": tokenizer}  # not what others call ROUGE
            found.append(metric)
    return found
