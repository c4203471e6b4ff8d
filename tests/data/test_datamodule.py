from __future__ import annotations

import tempfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from sklearn.model_selection import train_test_split
from torch import nn

from smolbench.data import IMDbDataModule, TextDataModule
from smolbench.data.batching import BatchLoader
from smolbench.data.hub import Source
from smolbench.errors import SmolbenchError
from smolbench.tasks import ProbeTask
from tests.helpers.training import plain_trainer

NAMES = ["bad", "good", "odd"]
LABELS = [0] * 30 + [1] * 20 + [2] * 10  # ordered by label, as IMDb on the Hub
TEST_LABELS = [0, 1, 2] * 5


def dataset(labels, prefix, names=NAMES, **columns):
    kind = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    features = {"text": datasets.Value("string"), "label": kind}
    rows = {"text": [f"{prefix} {i}" for i in range(len(labels))], "label": labels, **columns}
    return datasets.Dataset.from_dict(
        rows, features=datasets.Features({key: features[key] for key in rows})
    )


class Toy(TextDataModule):
    """Data held in memory."""

    def __init__(self, train=None, test=None, **options):
        super().__init__(**{"source": "sample", "val_fraction": 0.2, "batch_size": 8, **options})
        self.train = train if train is not None else dataset(LABELS, "train")
        self.test = test if test is not None else dataset(TEST_LABELS, "test")

    def load_sample(self):
        return Source({"train": self.train, "test": self.test}, id="toy", revision=None)

    def load_hub(self):
        raise AssertionError("not asked for")


class Encoder:
    """Texts to the codes of their characters; counts what it encodes."""

    pad_token_id = 9

    def __init__(self, key=None):
        self.texts = []
        self.columns = set()
        if key is not None:
            self.key = key

    def __call__(self, examples):
        self.texts += examples["text"]
        self.columns |= set(examples)
        return {"input_ids": [[ord(c) for c in text] for text in examples["text"]]}


class Plain(LightningModule):
    """Anybody's module: counts characters."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(1, 3)
        self.seen = []

    def logits(self, batch):
        return self.out(batch["attention_mask"].sum(1, keepdim=True).float())

    def training_step(self, batch, batch_idx):
        self.seen += batch["index"].tolist()
        return nn.functional.cross_entropy(self.logits(batch), batch["labels"])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.logits(batch), batch["labels"]))

    def test_step(self, batch, batch_idx):
        self.log("n", float(len(batch["labels"])), reduce_fx="sum", batch_size=1)

    def predict_step(self, batch, batch_idx):
        return batch["index"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class WithEncode(Plain):
    pad_token_id = 7

    def __init__(self):
        super().__init__()
        self.encoder = Encoder()

    def encode(self, examples):
        return self.encoder(examples)


class WithKey(WithEncode):
    def encoder_key(self):
        return {"encoder": "characters", "version": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SMOLBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "cache"


def temporary():
    return list(Path(tempfile.tempdir).iterdir())


def texts(dm, name):
    return list(dm.split(name).examples["text"])


# -- splits ---------------------------------------------------------------------------------------


def test_the_split_is_scikit_learn_s_stratified_one():
    dm = Toy()
    train, val = train_test_split(np.arange(60), test_size=0.2, stratify=LABELS, random_state=0)
    assert texts(dm, "train") == [f"train {i}" for i in sorted(train)]
    assert texts(dm, "val") == [f"train {i}" for i in sorted(val)]
    assert np.bincount(dm.split("train").labels).tolist() == [24, 16, 8]
    assert np.bincount(dm.split("val").labels).tolist() == [6, 4, 2]
    assert texts(dm, "test") == [f"test {i}" for i in range(15)]


def test_labels_belong_to_their_texts():
    dm = Toy(limit_train=20)
    for name in ("train", "val"):
        numbers = [int(text.split()[1]) for text in texts(dm, name)]
        assert dm.split(name).labels.tolist() == [LABELS[i] for i in numbers]


def test_the_split_depends_on_its_own_seed_only():
    first = texts(Toy(), "val")
    seed_everything(5)
    assert texts(Toy(), "val") == first
    assert texts(Toy(split_seed=1), "val") != first


def test_without_a_validation_share_all_rows_train():
    dm = Toy(val_fraction=0)
    assert texts(dm, "train") == [f"train {i}" for i in range(60)]
    assert texts(dm, "val") == []
    assert dm.val_dataloader() == []
    assert dm.facts()["data/n_val"] == 0


def test_a_stratified_limit_keeps_the_shares_and_the_first_rows_do_not():
    dm = Toy(limit_train=24, limit_val=6, limit_test=6)
    assert [np.bincount(dm.split(n).labels).tolist() for n in ("train", "val", "test")] == [
        [12, 8, 4],
        [3, 2, 1],
        [2, 2, 2],
    ]
    head = Toy(limit_train=30, limit_test=6, limit_mode="head")
    assert texts(head, "test") == [f"test {i}" for i in range(6)]
    assert texts(head, "train") == texts(Toy(), "train")[:30]


def test_a_limit_does_not_move_rows_between_the_splits():
    assert set(texts(Toy(limit_train=10), "train")) < set(texts(Toy(), "train"))
    assert texts(Toy(limit_train=10), "val") == texts(Toy(), "val")
    assert len(texts(Toy(limit_test=1000), "test")) == 15


def test_sizes_of_the_sample():
    dm = IMDbDataModule(source="sample", val_fraction=0.1)
    assert [len(dm.split(name)) for name in ("train", "val", "test")] == [540, 60, 200]


def test_label_names_are_the_data_s():
    assert Toy().label_names == NAMES


# -- what results say -----------------------------------------------------------------------------


def test_facts_say_on_what_it_was():
    train = dataset(LABELS, "train", text=["same", " same\n", *(f"x {i}" for i in range(58))])
    test = dataset([0, 1, 2], "test", text=["same", "x 1", "new"])
    dm = Toy(train, test, limit_test=2, split_seed=3, limit_mode="head")
    for name in ("train", "val", "test"):
        dm.split(name)
    facts = dm.facts()
    for name in ("data/test_digest", "data/test_rows"):
        assert isinstance(facts.pop(name), str)
    assert facts == {
        "data/id": "toy",
        "data/revision": None,
        "data/split_seed": 3,
        "data/duplicates": 1,
        "data/overlap": 2,
        "data/two_labels": 0,
        "data/limit_train": None,
        "data/limit_val": None,
        "data/limit_test": 2,
        "data/n_train": 48,
        "data/n_val": 12,
        "data/n_test": 2,
        "data/n_test_unlimited": 3,
    }


def test_the_test_digest_is_of_the_rows_that_are_tested():
    def digest(**options):
        dm = Toy(**options)
        dm.split("test")
        return dm.facts()["data/test_digest"]

    assert digest() == digest(split_seed=4, limit_train=20, val_fraction=0)
    others = [
        digest(limit_test=5),
        digest(limit_test=5, limit_mode="head"),
        digest(limit_test=5, split_seed=1),
        digest(test=dataset(TEST_LABELS, "other")),
        # the same texts as other rows
        digest(test=dataset(TEST_LABELS, "test", text=[f"test {14 - i}" for i in range(15)])),
    ]
    assert len({digest(), *others}) == 6


# -- plain Lightning ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["encode=", "encode= with key", "encode", "encode and key"])
def test_any_module_trains_validates_tests_and_predicts(way, tmp_path):
    encoder = Encoder({"my": "encoder"} if way == "encode= with key" else None)
    module = {"encode": WithEncode, "encode and key": WithKey}.get(way, Plain)()
    dm = Toy(encode=encoder if way.startswith("encode=") else None)
    trainer = plain_trainer(tmp_path, max_epochs=2)
    trainer.fit(module, dm)
    assert sorted(module.seen) == sorted([*range(48), *range(48)])
    assert "val_loss" in trainer.callback_metrics
    (validated,) = trainer.validate(module, dm, verbose=False)
    assert validated["val_loss"] > 0
    (tested,) = trainer.test(module, dm, verbose=False)
    assert tested["n"] == 15
    dm.predict_on(["one", "two", "three"])
    batches = trainer.predict(module, dm)
    assert sorted(torch.cat(batches).tolist()) == [0, 1, 2]


def test_batches_are_the_texts_padded(tmp_path):
    dm = Toy(encode=Encoder())
    dm.prepare_data()
    dm.setup("test")
    loader = dm.test_dataloader()
    assert isinstance(loader, BatchLoader)
    (first, second) = loader
    assert first["input_ids"].shape == (8, 7)
    for batch in (first, second):
        for row in range(len(batch["index"])):
            number = int(batch["index"][row])
            ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
            assert "".join(map(chr, ids)) == f"test {number}"
            assert batch["labels"][row] == TEST_LABELS[number]
            assert (batch["input_ids"][row][batch["attention_mask"][row] == 0] == 9).all()


def test_the_order_of_training_depends_on_seed_and_epoch(tmp_path):
    def order(seed, epochs=2):
        seed_everything(seed)
        module = WithKey()
        plain_trainer(tmp_path, max_epochs=epochs).fit(module, Toy())
        return module.seen

    first = order(1)
    assert order(1) == first
    assert order(2) != first
    assert first[:48] != first[48:]


def test_labels_may_change_without_encoding_anew(cache):
    Toy(encode=Encoder({"k": 1})).setup("test")
    again = Encoder({"k": 1})
    other = [(label + 1) % 3 for label in TEST_LABELS]
    dm = Toy(test=dataset(other, "test"), encode=again)
    dm.setup("test")
    assert again.texts == []
    assert torch.cat([b["labels"] for b in dm.test_dataloader()]).shape == (15,)
    assert dm.split("test").labels.tolist() == other


def test_encoding_is_done_anew_for_another_key_or_other_texts(cache):
    def encoded(key, **options):
        encoder = Encoder(key)
        Toy(encode=encoder, **options).setup("test")
        return len(encoder.texts)

    assert encoded({"k": 1}) == 15
    assert encoded({"k": 1}) == 0
    assert encoded({"k": 2}) == 15
    assert encoded({"k": 1}, limit_test=5) == 5
    assert encoded({"k": 1}, test=dataset(TEST_LABELS, "other")) == 15
    # the boundaries between texts count
    ab, a_b = ["ab", "c", "d"], ["a", "bc", "d"]
    assert encoded({"k": 1}, test=dataset([0, 1, 2], "", text=ab)) == 3
    assert encoded({"k": 1}, test=dataset([0, 1, 2], "", text=a_b)) == 3


class Longer(WithKey):
    """As another task encodes the same texts."""

    def encode(self, examples):
        return {"input_ids": [[1, *row] for row in super().encode(examples)["input_ids"]]}


class LongerKey(Longer):
    def encoder_key(self):
        return {"encoder": "characters", "version": 2}


class LongerWithout(Longer):
    encoder_key = None


@pytest.mark.parametrize("second", [LongerKey, LongerWithout])
@pytest.mark.parametrize("first", [WithKey, WithEncode])
def test_a_datamodule_encodes_anew_for_another_task(tmp_path, first, second):
    dm, alone = Toy(), Toy()
    plain_trainer(tmp_path, max_epochs=1).fit(first(), dm)
    plain_trainer(tmp_path, max_epochs=1).fit(second(), dm)
    plain_trainer(tmp_path, max_epochs=1).fit(second(), alone)
    for name in ("train", "val"):
        rows, expected = (iter(d._loader(name, 4, shuffle=False)) for d in (dm, alone))
        assert torch.equal(next(rows)["input_ids"], next(expected)["input_ids"])


def test_a_task_is_not_used_on_other_classes(tmp_path):
    task = ProbeTask(backbone="tiny")
    plain_trainer(tmp_path, max_epochs=1).fit(task, Toy())
    names = ["x", "y", "z"]
    other = Toy(dataset(LABELS, "a", names), dataset(TEST_LABELS, "b", names))
    with pytest.raises(SmolbenchError, match=r"for the classes .*, and the data has x, y, z"):
        plain_trainer(tmp_path, max_epochs=1).fit(task, other)


def test_the_encoder_does_not_see_labels_because_the_key_does_not():
    encoder = Encoder()
    Toy(encode=encoder).setup("fit")
    assert encoder.columns == {"text"}


def test_an_encoder_without_a_key_leaves_nothing_behind(cache, tmp_path):
    module, dm = Plain(), Toy(encode=Encoder())
    plain_trainer(tmp_path, max_epochs=1).fit(module, dm)
    assert temporary() == []
    assert not (cache / "tokens").exists()
    plain_trainer(tmp_path).test(module, dm, verbose=False)  # encodes again
    assert temporary() == []
    dm.setup("fit")
    assert temporary() != []
    dm.teardown("fit")
    assert temporary() == []


def test_an_encoder_without_a_key_leaves_nothing_behind_without_a_trainer(monkeypatch):
    at_exit = []
    monkeypatch.setattr(
        "smolbench.data.datamodule.atexit.register",
        lambda call, *args, **options: at_exit.append(lambda: call(*args, **options)),
    )
    Toy(encode=Encoder()).setup("fit")
    assert len(temporary()) == len(at_exit) == 2
    for call in at_exit:
        call()
    assert temporary() == []


def test_a_key_keeps_the_ids_for_the_next_run(cache, tmp_path):
    first, second = WithKey(), WithKey()
    plain_trainer(tmp_path, max_epochs=1).fit(first, Toy())
    plain_trainer(tmp_path, max_epochs=1).fit(second, Toy())
    assert len(first.encoder.texts) == 60
    assert second.encoder.texts == []
    assert (cache / "tokens").is_dir()
    assert temporary() == []


def test_ids_are_kept_where_the_user_says(tmp_path, cache):
    Toy(encode=Encoder({"k": 1}), cache_dir=str(tmp_path / "mine")).setup("test")
    assert any((tmp_path / "mine" / "tokens").iterdir())
    assert not cache.exists()


# -- mistakes -------------------------------------------------------------------------------------


def test_a_module_that_cannot_encode_is_a_sentence(tmp_path):
    with pytest.raises(SmolbenchError, match=r"Plain does not say how .* the argument encode="):
        plain_trainer(tmp_path).fit(Plain(), Toy())
    with pytest.raises(SmolbenchError, match="not attached to a Trainer yet"):
        Toy().setup("fit")


def test_a_task_for_another_kind_of_example_is_refused(tmp_path):
    class Summarizer(WithEncode):
        kind = "summarization"

    with pytest.raises(SmolbenchError, match="learns from summarization examples, but Toy has"):
        plain_trainer(tmp_path).fit(Summarizer(), Toy())


def test_two_encoders_are_refused_where_the_module_has_rows_of_its_own(tmp_path):
    dm = IMDbDataModule(source="sample", limit_train=20, encode=Encoder())
    with pytest.raises(SmolbenchError, match="leave out the argument encode="):
        plain_trainer(tmp_path).fit(ProbeTask(backbone="tiny", dtype="float32"), dm)


def test_predicting_without_texts_is_a_sentence(tmp_path):
    with pytest.raises(SmolbenchError, match="There is no text to predict"):
        Toy(encode=Encoder()).predict_on([])
    with pytest.raises(SmolbenchError, match=r"predict_on\(texts\) of Toy first"):
        plain_trainer(tmp_path).predict(Plain(), Toy(encode=Encoder()))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (dataset(LABELS, "a").remove_columns("text"), r"no column 'text'; it has 'label'"),
        (dataset(LABELS, "a").remove_columns("label"), r"no column 'label'; it has 'text'"),
        (dataset(LABELS, "a").rename_column("text", "review"), "it has 'review', 'label'"),
        (dataset(LABELS, "a", names=None), "name at least two classes .* it names none"),
        (dataset([0] * 9, "a", names=["x"]), "name at least two classes .* it names 'x'"),
        (dataset([0, 1, -1], "a"), "the label -1 in row 2; labels go from 0 to 2"),
        (dataset([0, None, 1], "a"), "the label None in row 1"),
        (dataset([0, 1, 2], "a", text=["a", "b", None]), "no text in row 2: None"),
        (dataset([1] * 9, "a"), "All 7 training examples of toy are of the class 'good'"),
        (dataset([0, 0, 0, 0, 1], "a"), "cannot be split off 5 rows"),
        (dataset([], "a"), "cannot be split off 0 rows|is empty"),
    ],
)
def test_data_that_cannot_be_learned_from_is_a_sentence(train, message):
    with pytest.raises(SmolbenchError, match=message):
        Toy(train).split("train")


def test_a_label_without_a_name_in_the_test_rows_is_a_sentence():
    with pytest.raises(SmolbenchError, match="The test split of toy has the label -1 in row 0"):
        _ = Toy(test=dataset([-1] * 5, "test")).label_names


def test_the_first_rows_of_data_that_is_ordered_by_label_are_refused_for_training():
    with pytest.raises(SmolbenchError, match="use limit_mode stratified"):
        Toy(limit_train=10, limit_mode="head").split("train")


def test_one_class_may_be_tested():
    assert len(Toy(test=dataset([1] * 5, "test")).split("test")) == 5


def test_an_empty_test_split_is_a_sentence():
    with pytest.raises(SmolbenchError, match="The test split of toy is empty"):
        Toy(test=dataset([], "test")).split("test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size must be at least 1, but is 0"),
        ({"eval_batch_size": 0}, r"data\.eval_batch_size must be at least 1"),
        ({"limit_train": 0}, r"data\.limit_train must be at least 1"),
        ({"limit_val": -3}, r"data\.limit_val must be at least 1"),
        ({"limit_test": 0}, r"data\.limit_test must be at least 1"),
        ({"val_fraction": 1.0}, r"data\.val_fraction must be in \[0, 1\)"),
        ({"val_fraction": -0.1}, r"data\.val_fraction must be in \[0, 1\)"),
        ({"num_workers": -1}, r"data\.num_workers must not be negative"),
    ],
)
def test_options_out_of_range_are_a_sentence(options, message):
    with pytest.raises(SmolbenchError, match=message):
        Toy(**options)


def test_empty_texts_are_read_by_a_probe(tmp_path):
    train = dataset(LABELS, "a", text=["", " ", *(f"x {i}" for i in range(58))])
    task = ProbeTask(backbone="tiny", dtype="float32", max_length=16)
    trainer = plain_trainer(tmp_path, max_epochs=1)
    trainer.fit(task, Toy(train))
    assert trainer.callback_metrics["val/n"] == 12
    dm = Toy()
    dm.predict_on(["", "a"])
    scores = torch.cat([batch["scores"] for batch in trainer.predict(task, dm)])
    assert scores.isfinite().all()


def test_a_probe_trains_without_validation(tmp_path):
    task = ProbeTask(backbone="tiny", dtype="float32", max_length=16)
    trainer = plain_trainer(tmp_path, max_epochs=1)
    trainer.fit(task, Toy(val_fraction=0))
    assert trainer.global_step == 8
    assert not any(name.startswith("val/") for name in trainer.callback_metrics)
