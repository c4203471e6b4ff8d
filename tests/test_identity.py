"""Every field of a record, changed in turn, for every purpose."""

from __future__ import annotations

from pathlib import Path

import pytest

from smolbench.identity import KINDS, PURPOSES, compare, key, kind_of, made_of, table
from tests.helpers.written_runs import CLASSIFICATION

RECORD = {
    "seed_everything": 0,
    "trainer.max_epochs": 3,
    "trainer.max_time": None,
    "training/out_of_time": True,
    "trainer.logger.class_path": "CSVLogger",
    "trainer.precision": None,
    "trainer.limit_test_batches": None,
    "model.class_path": "ProbeTask",
    "model.lr": 0.1,
    "model.teacher_backbone": None,
    "data.class_path": "IMDbDataModule",
    "data.train_file": "a.csv",
    "data.num_workers": 0,
    "data.limit_train": None,
    "data.limit_test": None,
    "data.split_seed": 0,
    "data.test_fraction": 0.2,
    "checkpoint.every_minutes": 10.0,
    "checkpoint.monitor": None,
    "latency.examples": 48,
    "data/id": "imdb",
    "data/revision": "a",
    "data/train_rows": "a",
    "data/val_rows": "a",
    "data/test_rows": "a",
    "data/test_digest": "a",
    "model/revision": "a",
    "model/vectors_digest": "a",
    "teacher/digest": "a",
    "signature.labels": ["neg", "pos"],
    "paths/prefix": True,
    "packages/torch": "2.13",
    "hardware/name": "CPU",
    "precision": "32-true",
    "strategy": "SingleDeviceStrategy",
    "metric": "accuracy",
    "convention": None,
    "an option of tomorrow": 1,
}
# by purpose, what must be equal and what is told; everything else is free
EXPECTED = {
    "resume": (
        "seed_everything trainer.max_epochs trainer.precision trainer.limit_test_batches "
        "model.class_path model.lr data.class_path data.train_file data.limit_train "
        "data.split_seed data.test_fraction checkpoint.monitor data/id data/revision "
        "data/train_rows data/val_rows model/revision model/vectors_digest teacher/digest "
        "signature.labels",
        "packages/torch",
    ),
    "score": (
        "data.split_seed data.test_fraction model/revision model/vectors_digest teacher/digest "
        "signature.labels",
        "seed_everything trainer.precision model.class_path model.lr data.class_path "
        "data.train_file data.limit_train data.limit_test data/id data/revision data/test_rows "
        "data/test_digest packages/torch",
    ),
    "teach": (
        "data/id",
        "data.split_seed data.test_fraction data/revision data/train_rows data/val_rows",
    ),
    "cache": (
        "model/revision model/vectors_digest teacher/digest signature.labels paths/prefix "
        "packages/torch",
        "",
    ),
    "average": (
        "trainer.max_epochs trainer.max_time training/out_of_time trainer.precision "
        "trainer.limit_test_batches model.class_path model.lr data.class_path data.train_file "
        "data.limit_train data.limit_test "
        "data.split_seed data.test_fraction checkpoint.monitor data/id data/revision "
        "data/train_rows data/val_rows data/test_rows data/test_digest model/revision "
        "model/vectors_digest teacher/digest signature.labels hardware/name precision strategy "
        "metric convention",
        "paths/prefix packages/torch",
    ),
    "compare": ("data/id data/test_rows data/test_digest metric convention", ""),
}
UNKNOWN = "an option of tomorrow"


@pytest.mark.parametrize("purpose", PURPOSES)
def test_every_field_counts_as_the_purpose_wants(purpose):
    refused, told = (set(names.split()) for names in EXPECTED[purpose])
    assert compare(purpose, RECORD, dict(RECORD)) == compare(purpose, {}, {})
    for field, value in RECORD.items():
        for now in ({**RECORD, field: "another"}, {k: v for k, v in RECORD.items() if k != field}):
            found = compare(purpose, RECORD, now)
            other = (value, now.get(field))
            if field == UNKNOWN:  # nothing differs unseen
                assert {**found.refused, **found.told} == {field: other}
                continue
            assert found.refused == ({field: other} if field in refused else {}), field
            assert found.told == ({field: other} if field in told else {}), field
            same = key(purpose, now) == key(purpose, RECORD)
            assert same == (field not in refused), field


def test_every_kind_is_tried_and_every_fact_of_a_run_is_of_a_kind():
    assert {kind_of(field).says for field in RECORD} == {kind.says for kind in KINDS}
    said = made_of({**CLASSIFICATION, "hardware/name_test": "GPU", "test/accuracy": 1.0})
    assert set(said) >= {"data/id", "data/revision", "model/revision", "hardware/name", "precision"}
    assert not set(said) & {"test/accuracy", "cost/fit_s", "hardware/name_test", "status"}


def test_the_table_in_the_documentation_is_that_of_the_code():
    page = Path(__file__).parents[1] / "docs" / "identity.md"
    assert table() in page.read_text(encoding="utf-8")
