"""What a run was made of, and whether two records of it are the same for a purpose.

A record is flat: the run's settings by their dotted names (``model.lr``), and what came of them by
the keys of ``results.json`` (``data/train_rows``, ``model/revision``, ``packages/torch``). Whoever
asks whether two runs, datasets or models are the same asks :func:`compare` or :func:`key`, for a
named purpose; :data:`KINDS` is the whole of the rules, and ``docs/identity.md`` shows them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Literal, get_args

from smolbench.utils.digest import digest

Purpose = Literal["resume", "score", "teach", "cache", "average", "compare"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
Rule = Literal["equal", "told", "free"]
"""What a field must be: the same; the same, or its difference is told; anything."""
Record = Mapping[str, Any]

_RULES: dict[str, Rule] = {"=": "equal", "~": "told", ".": "free"}
_MISSING = object()


@dataclass(frozen=True)
class Kind:
    """Fields for which the same rules hold.

    Attributes:
        says: What they are.
        fields: Their names; ``*`` stands for any characters. Of several kinds the first counts.
        rules: For each of :data:`PURPOSES` a sign: ``=`` equal, ``~`` told, ``.`` free.
    """

    says: str
    fields: tuple[str, ...]
    rules: str

    def rule(self, purpose: Purpose) -> Rule:
        """What a purpose asks of these fields."""
        return _RULES[self.rules[PURPOSES.index(purpose)]]


KINDS = (
    Kind(
        "how fast it is done, what is shown and how often saved; where caches and teachers lie",
        (
            "data.num_workers",
            "data.cache_dir",
            *(f"trainer.{name}" for name in ("logger", "logger.*", "profiler", "profiler.*")),
            *(f"trainer.enable_{name}" for name in ("progress_bar", "model_summary")),
            "trainer.default_root_dir",
            "latency.*",
            "checkpoint.every_minutes",
            "model.teacher_backbone",
        ),
        "......",
    ),
    Kind(
        "how long it may train, and whether that ended it",
        ("trainer.max_time", "trainer.max_time.*", "training/out_of_time"),
        "....=.",
    ),
    Kind("how many test rows are scored", ("data.limit_test",), ".~..=."),
    Kind(
        "which rows are held out",
        tuple(
            f"data.{name}"
            for name in ("split_seed", "val_fraction", "test_fraction", "downsample", "clean")
        ),
        "==~.=.",
    ),
    Kind("other options of the data", ("data.*",), "=~..=."),
    Kind("the seed", ("seed_everything",), "=~...."),
    Kind(
        "options of the trainer that change a score",
        ("trainer.precision", "trainer.fast_dev_run"),
        "=~..=.",
    ),
    Kind(
        "other options of the trainer and of checkpoints (`max_epochs` and `max_steps` may rise)",
        ("trainer.*", "checkpoint.*"),
        "=...=.",
    ),
    Kind("options of the model", ("model.*",), "=~..=."),
    Kind("the dataset's name", ("data/id",), "=~=.=="),
    Kind("rows trained and validated on", ("data/train_rows", "data/val_rows"), "=.~.=."),
    Kind("rows tested on", ("data/test_rows", "data/test_digest"), ".~..=="),
    Kind("the dataset's commit or the digest of its files", ("data/revision",), "=~~.=."),
    Kind(
        "weights that the training began with, its teacher's, the trained state's own settings",
        ("model/revision", "model/vectors_digest", "teacher/digest", "signature.*"),
        "==.==.",
    ),
    Kind("forward paths that computed it", ("paths/*",), "...=~."),
    Kind("versions of libraries", ("packages/*",), "~~.=~."),
    Kind(
        "the machine, its precision and strategy", ("hardware/*", "precision", "strategy"), "....=."
    ),
    Kind("what was measured, and by which rule", ("metric", "convention"), "....=="),
    Kind("what a cache was computed from, and anything else", ("*",), "=~~==="),
)


@dataclass(frozen=True)
class Differences:
    """How two records differ for a purpose: by field, the value before and the value now.

    Attributes:
        refused: Fields that would have to be equal.
        told: Fields that may differ, if it is said.
    """

    refused: dict[str, tuple[Any, Any]]
    told: dict[str, tuple[Any, Any]]


@lru_cache(maxsize=4096)  # a report asks for every key of every run
def kind_of(field: str) -> Kind:
    """The kind of a field; what is not named must be the same for every purpose."""
    return next(
        kind for kind in KINDS if any(fnmatchcase(field, pattern) for pattern in kind.fields)
    )


def made_of(results: Record) -> dict[str, Any]:
    """The part of a run's results that says what it was made of, and where.

    Left out is what a test alone was run with (``hardware/name_test``).
    """
    return {
        field: value
        for field, value in results.items()
        if kind_of(field) is not KINDS[-1] and not field.endswith(("_test", "_validate"))
    }


def compare(purpose: Purpose, before: Record, now: Record) -> Differences:
    """Compare two records for a purpose.

    Args:
        purpose: What the answer is for.
        before: A run's record, or a part of it.
        now: The same fields of another one; a field that only one has differs.
    """
    found = Differences({}, {})
    for field in sorted({*before, *now}):
        if before.get(field, _MISSING) == now.get(field, _MISSING):
            continue
        rule = kind_of(field).rule(purpose)
        values = (before.get(field), now.get(field))
        if rule == "equal":
            found.refused[field] = values
        elif rule == "told":
            found.told[field] = values
    return found


def key(purpose: Purpose, record: Record) -> str:
    """Digest of what must be equal for a purpose: equal for records that are the same for it."""
    return digest({f: v for f, v in record.items() if kind_of(f).rule(purpose) == "equal"})


def said(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """Differences as a part of a sentence."""
    return "; ".join(f"{name} was {old!r}, is {new!r}" for name, (old, new) in differences.items())


def table(kinds: Iterable[Kind] = KINDS) -> str:
    """The rules as a table in Markdown."""
    lines = [
        f"| what | fields | {' | '.join(PURPOSES)} |",
        f"| --- | --- | {' | '.join('---' for _ in PURPOSES)} |",
    ]
    for kind in kinds:
        fields = " ".join(f"`{field}`" for field in kind.fields)
        rules = " | ".join(kind.rule(purpose) for purpose in PURPOSES)
        lines.append(f"| {kind.says} | {fields} | {rules} |")
    return "\n".join(lines) + "\n"
