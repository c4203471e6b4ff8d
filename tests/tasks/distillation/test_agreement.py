"""A teacher is compared with the labels before a student learns from it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForSequenceClassification

from smolbench.data import IMDbDataModule
from smolbench.errors import SmolbenchError
from smolbench.tasks import DistillationTask
from smolbench.tasks.distillation.agreement import agreement, require_agreement
from smolbench.tasks.distillation.classifying_teachers import HubTeacher
from tests.helpers.tiny import tiny_backbone, tiny_tokenizer
from tests.helpers.training import plain_trainer

NAMES = ["bad", "fair", "good"]


def answers(labels, right, seed=0, scale=4.0):
    """Logits whose likeliest class is the label in a share of rows, and any class elsewhere."""
    random = np.random.default_rng(seed)
    classes = int(labels.max()) + 1
    said = np.where(
        random.random(len(labels)) < right, labels, random.integers(0, classes, len(labels))
    )
    logits = random.normal(size=(len(labels), classes)).astype(np.float32)
    logits[np.arange(len(labels)), said] += scale
    return logits


def labels_of(n, shares=(1, 1, 1), seed=1):
    shares = np.array(shares) / sum(shares)
    return np.random.default_rng(seed).choice(len(shares), n, p=shares)


def asked(logits, labels, given=None):
    require_agreement(agreement(logits, labels), "t", NAMES[: logits.shape[1]], given)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 1, 0)])
@pytest.mark.parametrize("shares", [(1, 1, 1), (90, 5, 5)])
def test_the_order_that_fits_is_named_and_then_taken(order, shares):
    labels = labels_of(400, shares)
    right = answers(labels, 0.9)
    logits = right[:, list(order)]  # the teacher's output k is the class order[k]
    own = [NAMES[number] for number in order]
    if order == (0, 1, 2):
        asked(logits, labels)
        return
    with pytest.raises(SmolbenchError, match=r"in another order of its classes") as error:
        asked(logits, labels)
    assert f"--model.teacher_labels '{json.dumps(own)}'" in str(error.value)
    found = agreement(logits, labels)
    assert found.share == pytest.approx(np.mean(logits.argmax(1) == labels))
    assert found.best == pytest.approx(np.mean(right.argmax(1) == labels))
    ours = logits[:, [own.index(name) for name in NAMES]]
    asked(ours, labels, own)
    # another order than that which was named wrongly
    wrong = [own[1], own[0], own[2]]
    with pytest.raises(SmolbenchError) as error:
        asked(logits[:, [wrong.index(name) for name in NAMES]], labels, wrong)
    assert f"--model.teacher_labels '{json.dumps(own)}'" in str(error.value)


def test_rare_classes_in_the_wrong_order_are_seen():
    labels = labels_of(1000, (96, 2, 2))
    with pytest.raises(SmolbenchError, match="another order"):
        asked(answers(labels, 0.98)[:, [0, 2, 1]], labels)


def test_chance_is_refused_where_it_can_be_told(caplog):
    labels = labels_of(400)
    for logits in (answers(labels, 0, seed=5), np.zeros((400, 3), np.float32)):
        with pytest.raises(SmolbenchError, match="no more often than chance"):
            asked(logits, labels)
    asked(answers(labels, 0, seed=5), labels, NAMES)  # as it was asked for
    asked(answers(labels[:40], 0, seed=5), labels[:40])
    assert caplog.text.count("may have nothing to teach") == 2


def test_a_weak_a_sure_and_a_ranking_teacher_are_taken():
    labels = labels_of(400)
    asked(answers(labels, 0.3, seed=2), labels)
    asked(answers(labels, 1.0, scale=100), labels)
    rare = labels_of(400, (95, 5))
    ranks = np.stack([np.full(400, 4.0), 2.0 * rare], 1).astype(np.float32)
    assert set(ranks.argmax(1)) == {0}, "it never says the rare class, and knows it well"
    asked(ranks, rare)


# -- in a training --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier without names for its labels, whose first output is the second class."""
    folder = tmp_path_factory.mktemp("classifier")
    network = AutoModelForSequenceClassification.from_pretrained(tiny_backbone("bert")).eval()
    tokenizer = tiny_tokenizer("bert")
    examples = data().split("train").examples
    rows = tokenizer(list(examples["text"]), truncation=True, max_length=60).input_ids
    with torch.no_grad():
        features = torch.cat([network.bert(torch.tensor([row])).pooler_output for row in rows])
        fitted = LogisticRegression(C=1e4, max_iter=9999).fit(features, examples["label"])
        weight, bias = torch.from_numpy(fitted.coef_[0]), float(fitted.intercept_[0])
        network.classifier.weight.copy_(torch.stack([weight, -weight]) / 2)
        network.classifier.bias.copy_(torch.tensor([bias, -bias]) / 2)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def data():
    return IMDbDataModule(source="sample", limit_train=24, limit_val=8, limit_test=8, batch_size=8)


def fitted(teacher, tmp_path, **options):
    task = DistillationTask(
        teacher=str(teacher),
        backbone=tiny_backbone("opt"),
        dtype="float32",
        max_length=60,
        **options,
    )
    plain_trainer(tmp_path, max_steps=1).fit(task, data())
    return task


def test_a_teacher_of_another_order_is_refused_until_it_is_mapped(
    classifier, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("SMOLBENCH_CACHE", str(tmp_path / "cache"))
    caplog.set_level("INFO", "smolbench")
    for _ in range(2):  # its logits are cached then
        with pytest.raises(SmolbenchError, match=r'teacher_labels \'\["pos", "neg"\]\''):
            fitted(classifier, tmp_path)
    monkeypatch.setattr(HubTeacher, "fill", lambda *_: pytest.fail("they are cached"))
    task = fitted(classifier, tmp_path, teacher_labels=["pos", "neg"])
    facts = task.facts()
    assert facts["teacher/agreement"] > 0.8
    assert facts["teacher/agreement_n"] == 24
    assert f"agrees with {facts['teacher/agreement']:.4f} of the 24 training labels." in caplog.text
    assert task.signature()["teacher_labels"] == ["pos", "neg"]
    rows = task.trainer.train_dataloader.rows.batch(np.arange(24))
    right = rows["teacher_logits"].argmax(1) == rows["labels"]
    assert float(right.float().mean()) == pytest.approx(facts["teacher/agreement"])
    fitted(classifier, tmp_path, alpha=0.0)  # nothing is learned from it


def test_names_in_another_order_need_the_option(classifier, tmp_path, monkeypatch):
    monkeypatch.setenv("SMOLBENCH_CACHE", str(tmp_path / "cache"))
    named = tmp_path / "named"
    named.mkdir()
    for file in classifier.iterdir():
        (named / file.name).write_bytes(file.read_bytes())
    config = json.loads((named / "config.json").read_text())
    config |= {"id2label": {"0": "gut", "1": "schlecht"}, "label2id": {"gut": 0, "schlecht": 1}}
    (named / "config.json").write_text(json.dumps(config))
    with pytest.raises(SmolbenchError, match=r"knows the labels gut, schlecht.*teacher_labels"):
        fitted(named, tmp_path)
    fitted(named, tmp_path, teacher_labels=["pos", "neg"])
    with pytest.raises(SmolbenchError, match=r'teacher_labels \'\["pos", "neg"\]\''):
        fitted(named, tmp_path, teacher_labels=["neg", "pos"])


@pytest.mark.parametrize("given", [["pos"], ["pos", "pos"], ["pos", "neg", "new"], ["a", "b"]])
def test_an_order_names_every_class_once(classifier, tmp_path, given):
    with pytest.raises(SmolbenchError, match="name each of the data's classes once: neg, pos"):
        fitted(classifier, tmp_path, teacher_labels=given)


def test_the_built_in_teacher_has_no_order(tmp_path):
    with pytest.raises(SmolbenchError, match=r"leave out model.teacher_labels"):
        fitted("tiny", tmp_path, teacher_labels=["neg", "pos"])
