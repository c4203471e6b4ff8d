from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from smolbench.errors import SmolbenchError
from smolbench.metrics.classification import classification_metrics, validation_metrics
from smolbench.tasks import ClassificationTask
from tests.helpers.training import plain_trainer

N, CLASSES = 23, 3


class Linear(ClassificationTask):
    method = "toy"

    def __init__(self, **options):
        super().__init__(**options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.out = nn.Linear(4, CLASSES)

    def encode(self, examples):
        return {}

    def encoder_key(self):
        return {}

    def forward(self, batch):
        return self.out(batch["features"])


def rows(seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(N, 4, generator=generator)
    labels = torch.randint(CLASSES, (N,), generator=generator)
    return [{"features": features[i], "labels": labels[i], "index": i} for i in range(N)]


def loader(order=None, batch_size=5):
    examples = rows()
    return DataLoader([examples[i] for i in order or range(N)], batch_size=batch_size)


def task(**options):
    return Linear(**{"num_classes": CLASSES, **options})


class Data:
    def __init__(self, label_names):
        self.label_names = label_names


class Stub:
    """A trainer as far as the labels need one."""

    def __init__(self, datamodule=None):
        self.datamodule = datamodule


def named_by(label_names, **options):
    linear = Linear(**options)
    linear._trainer = Stub(Data(label_names))
    return linear


def test_labels_are_named_by_the_data_or_numbered():
    assert named_by(["a", "b"]).label_names == ["a", "b"]
    assert named_by(["a", "b"], num_classes=2).label_names == ["a", "b"]
    assert named_by(None, num_classes=3).label_names == ["0", "1", "2"]
    assert task().label_names == ["0", "1", "2"]
    assert named_by(["a", "b"]).signature() == {"labels": ["a", "b"]}


def test_unknown_labels_are_a_sentence():
    for linear in (Linear(), named_by(None), named_by([])):
        with pytest.raises(SmolbenchError, match=r"give model\.num_classes"):
            _ = linear.label_names


def test_another_number_of_classes_than_the_data_s_is_a_sentence():
    with pytest.raises(SmolbenchError, match=r"is 3, but the data has 2 classes \(a, b\)"):
        _ = named_by(["a", "b"], num_classes=3).label_names


def test_given_labels_win():
    linear = named_by(["a", "b"])
    linear.label_names = ["x", "y"]
    assert linear.label_names == ["x", "y"]


def whole(linear):
    examples = rows()
    with torch.no_grad():
        logits = linear({"features": torch.stack([r["features"] for r in examples])})
    return logits, torch.stack([r["labels"] for r in examples])


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_metrics_are_of_the_whole_split_whatever_the_batches(tmp_path, batch_size):
    linear = task()
    order = torch.randperm(N).tolist()
    expected = classification_metrics(*whole(linear))
    trainer = plain_trainer(tmp_path)
    (tested,) = trainer.test(linear, loader(order, batch_size), verbose=False)
    (validated,) = trainer.validate(linear, loader(order, batch_size), verbose=False)
    assert tested == pytest.approx({f"test/{k}": v for k, v in expected.items()}, abs=1e-6)
    quick = validation_metrics(*whole(linear))
    assert validated == pytest.approx({f"val/{k}": v for k, v in quick.items()}, abs=1e-6)


def test_a_test_leaves_tables_until_training_goes_on(tmp_path):
    linear = task()
    linear.label_names = ["a", "b", "c"]
    trainer = plain_trainer(tmp_path, max_epochs=1)
    assert not [key for key in linear.facts() if key.startswith("test/")]
    trainer.test(linear, loader(), verbose=False)
    logits, labels = whole(linear)
    facts = linear.facts()
    assert facts["test/labels"] == ["a", "b", "c"]
    assert [sum(row) for row in facts["test/confusion"]] == labels.bincount(minlength=3).tolist()
    right = (logits.argmax(1) == labels).sum().item()
    assert sum(facts["test/confusion"][k][k] for k in range(3)) == right
    trainer.fit(linear, loader())
    assert not [key for key in linear.facts() if key.startswith("test/")]


def test_predictions_are_in_the_order_of_the_split(tmp_path):
    linear = task()
    linear.label_names = ["a", "b", "c"]
    assert linear.predictions() is None
    plain_trainer(tmp_path).test(linear, loader(torch.randperm(N).tolist()), verbose=False)
    logits, labels = whole(linear)
    found = linear.predictions()
    assert list(found) == ["index", "label", "prediction", "score_a", "score_b", "score_c"]
    assert found["index"].tolist() == list(range(N))
    assert found["label"].tolist() == labels.tolist()
    assert found["prediction"].tolist() == logits.argmax(1).tolist()
    scores = np.stack([found[f"score_{name}"] for name in "abc"], axis=1)
    np.testing.assert_allclose(scores, logits.softmax(1), atol=1e-6)


def test_predict_gives_probabilities_and_row_numbers(tmp_path):
    linear = task()
    batches = plain_trainer(tmp_path).predict(linear, loader())
    scores = torch.cat([batch["scores"] for batch in batches])
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(N))
    torch.testing.assert_close(scores, whole(linear)[0].softmax(1))


def test_training_minimises_the_cross_entropy_and_logs_it(tmp_path):
    linear = task(lr=0.1)
    logits, labels = whole(linear)
    trainer = plain_trainer(tmp_path, max_epochs=20)
    logged = []
    linear.on_train_batch_end = lambda *_: logged.append(dict(trainer.callback_metrics))
    trainer.fit(linear, DataLoader(rows(), batch_size=N))
    assert logged[0]["train/loss"].item() == pytest.approx(F.cross_entropy(logits, labels).item())
    assert logged[0]["train/lr"].item() == pytest.approx(0.1)
    assert logged[-1]["train/loss"] < 0.8 * logged[0]["train/loss"]


def test_validation_while_fitting_is_of_the_whole_split_each_time(tmp_path):
    linear = task(lr=0.1)
    trainer = plain_trainer(tmp_path, max_epochs=2, val_check_interval=1, num_sanity_val_steps=0)
    counts = []

    original = linear.on_validation_epoch_end

    def keep():
        original()
        counts.append(int(trainer.callback_metrics["val/n"]))

    linear.on_validation_epoch_end = keep
    trainer.fit(linear, loader(batch_size=12), loader())
    assert counts == [N] * 4


def test_rows_of_all_ranks_are_gathered(monkeypatch):
    examples = rows()
    ranks = [task(), task()]
    for rank, linear in enumerate(ranks):
        linear._trainer = Stub()
        linear._trainer.world_size = 2
        for batch in DataLoader([examples[i] for i in range(rank, N, 2)], batch_size=5):
            linear.test_step(batch, 0)
    parts = [linear._gathered for linear in ranks]

    def all_gather(found, own):
        assert own is parts[0]
        found[:] = parts

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather)
    index, logits, labels = ranks[0]._gather()
    expected_logits, expected_labels = whole(ranks[0])
    assert index.tolist() == list(range(N))
    torch.testing.assert_close(logits, expected_logits)
    assert torch.equal(labels, expected_labels)
    assert ranks[0]._gathered == []
