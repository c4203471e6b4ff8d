from __future__ import annotations

import functools
import shutil

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from sklearn.linear_model import LogisticRegression
from torch import nn
from transformers import AutoModel, get_scheduler

from smolbench.data import IMDbDataModule
from smolbench.data.batching import BatchPlan
from smolbench.data.token_cache import encode_to_cache
from smolbench.errors import SmolbenchError
from smolbench.models.frozen import features as features_module
from smolbench.models.frozen.cache import tokens_at_once
from smolbench.models.pretrained.backbone import Backbone, layer_outputs
from smolbench.tasks import ProbeTask
from smolbench.utils.digest import digest
from tests.helpers.tiny import (
    BIDIRECTIONAL,
    CONFIGS,
    SPECIAL_TOKENS,
    TEXTS,
    tiny_backbone,
    tiny_tokenizer,
)
from tests.helpers.training import plain_trainer

PREFIX, SUFFIX, ANCHOR = "A review of a film:\n", "\nthe review was good, the review", "was"
TEMPLATE = f"{PREFIX}{{text}}{SUFFIX}"
UNTIL_ANCHOR = SUFFIX.partition(ANCHOR)[0] + ANCHOR
POOLINGS = ["anchor", "first", "last", "mean", "max"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SMOLBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def probe(name="llama", **options):
    if options.get("pooling") == "anchor":
        options["anchor"] = options.get("anchor") or ANCHOR
    options = {"template": TEMPLATE, "dtype": "float32", "max_length": 100, **options}
    return ProbeTask(backbone=tiny_backbone(name), **options)


def features(task, cache, texts=TEXTS):
    """Features as a fit gets them, shape (len(texts), D)."""
    task.trainer = plain_trainer(cache)
    table = encode_to_cache(
        cache / "tokens",
        digest({"encoder": task.encoder_key(), "texts": texts}),
        lambda start, stop: {"text": texts[start:stop]},
        len(texts),
        task.encode,
        "test",
    )
    return np.array(task.rows("train", table, None).arrays["features"])


# -- features are what the plain model says -------------------------------------------------------


@functools.cache
def plain_model(name):
    model = AutoModel.from_pretrained(tiny_backbone(name), dtype=torch.float32).eval()
    return model.get_encoder() if name in {"t5", "bart"} else model


def naive(name, text, pooling, layer, prefix=PREFIX, suffix=SUFFIX):
    """One text at a time, the whole row, no cache, no padding."""

    def ids(part):
        return tiny_tokenizer(name)(part, add_special_tokens=False)["input_ids"]

    head, tail = SPECIAL_TOKENS.get(name, ([], []))
    row = head + ids(prefix) + ids(text) + ids(suffix) + tail
    first = len(head + ids(prefix))
    stop = first + len(ids(text))
    options = {} if name in {"mamba", "lfm2", *BIDIRECTIONAL} else {"use_cache": False}
    with torch.no_grad():
        output = plain_model(name)(
            input_ids=torch.tensor([row]), output_hidden_states=True, **options
        )
    states = (output.last_hidden_state if layer == -1 else output.hidden_states[layer])[0]
    if pooling == "anchor":
        return states[stop + len(ids(UNTIL_ANCHOR)) - 1].numpy()
    if pooling in {"first", "last"}:
        return states[0 if pooling == "first" else -1].numpy()
    own = states[first:stop]
    return (own.mean(0) if pooling == "mean" else own.max(0).values).numpy()


@pytest.mark.parametrize("layer", [-1, 0, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_features_are_those_of_the_plain_model_on_each_whole_row(name, layer, cache):
    for pooling in POOLINGS:
        prefix = PREFIX
        if pooling == "first" and name not in BIDIRECTIONAL:
            if name.startswith("opt"):
                continue  # begins with a special token: refused, see below
            prefix = ""
        task = probe(
            name, pooling=pooling, layer=layer, template=f"{prefix}{{text}}{SUFFIX}", pass_tokens=90
        )
        found = features(task, cache)
        expected = np.stack([naive(name, text, pooling, layer, prefix) for text in TEXTS])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=pooling)
        if layer or pooling in {"mean", "max"}:
            assert len({row.tobytes() for row in np.round(found, 3)}) > 1, "no text matters"


@pytest.mark.parametrize("name", ["llama", "gpt_neo", "opt", "bert", "t5"])
def test_features_without_a_template(name, cache):
    for pooling in ("last", "mean"):
        found = features(probe(name, pooling=pooling, template="{text}"), cache)
        expected = [naive(name, text, pooling, -1, "", "") for text in TEXTS]
        np.testing.assert_allclose(found, np.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_features_of_truncated_texts(name, side, cache):
    tokenizer = tiny_tokenizer(name)
    text = ".,!?:;?!,."  # every character is a token, wherever the text is cut
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 10
    around = probe(name).encoder.max_length - probe(name).encoder.text_budget
    found = features(
        probe(name, max_length=around + 4, truncation_side=side), cache, [text, "?!", ".,:;"]
    )
    kept = text[-4:] if side == "left" else text[:4]
    for row, expected in zip(found, [kept, "?!", ".,:;"], strict=True):
        np.testing.assert_allclose(row, naive(name, expected, "mean", -1), atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "mamba", "bert"])
@pytest.mark.parametrize("pass_tokens", [1, 100, 100_000])
def test_features_do_not_depend_on_the_size_of_the_blocks(name, pass_tokens, cache):
    found = features(probe(name, pass_tokens=pass_tokens), cache)
    expected = [naive(name, text, "mean", -1) for text in TEXTS]
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-4, atol=1e-4)


def test_as_much_is_read_at_once_as_suits_the_device_unless_it_is_said(cache):
    reused, peaks = [], []
    for pass_tokens in (None, 1024, 4096):
        task = probe(pass_tokens=pass_tokens)
        features(task, cache)
        reused.append(task.facts()["cost/cache_reused"])
        peaks.append(task.facts()["cost/peak_rss_mib_fit"])
    assert reused == [False, True, False]
    assert peaks[0] == peaks[1], "as it was when the cache was filled"
    gpu = torch.device("cuda")
    assert tokens_at_once(gpu) > tokens_at_once(torch.device("cpu")) == 1024


def test_features_in_bfloat16_are_close_to_those_in_float32(cache):
    exact = features(probe(), cache)
    rounded = features(probe(dtype="bfloat16"), cache)
    assert not np.array_equal(exact, rounded)
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, exact, atol=0.15)


@pytest.mark.parametrize("name", ["llama", "bert", "opt"])
@pytest.mark.parametrize("template", ["{text}", TEMPLATE])
@pytest.mark.parametrize("pooling", ["mean", "max", "last"])
def test_an_empty_text_has_finite_features(name, template, pooling, cache):
    found = features(probe(name, template=template, pooling=pooling), cache, ["", "Dull.", " "])
    assert np.isfinite(found).all()
    assert not np.array_equal(found[0], found[1])


# -- when the network runs ------------------------------------------------------------------------


def test_nothing_is_loaded_when_everything_is_cached(cache, monkeypatch):
    first = features(probe(), cache)
    monkeypatch.setattr(Backbone, "load", lambda *_: pytest.fail("the weights were loaded"))
    assert np.array_equal(features(probe(), cache), first)


# one with a shared prefix, one whose first token says something, one whose last layer is narrower,
# one without keys and values, one that reads both ways
@pytest.mark.parametrize(
    ("name", "prefix"),
    [("llama", PREFIX), ("gpt2", ""), ("opt_350m", PREFIX), ("mamba", PREFIX), ("bert", PREFIX)],
)
def test_one_pass_keeps_what_every_layer_and_pooling_would_get_alone(
    name, prefix, cache, monkeypatch
):
    options = {"template": f"{prefix}{{text}}{SUFFIX}", "pass_tokens": 90}
    poolings = [p for p in POOLINGS if p != "first" or not prefix or name == "bert"]
    places = [(layer, pooling) for layer in (-1, 0, 1, 2) for pooling in poolings]
    features(probe(name, layers="all", anchor=ANCHOR, **options), cache)
    assert len(list((cache / "features").iterdir())) == len(places)
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "load", lambda *_: pytest.fail("the weights were loaded"))
        kept = {}
        for layer, pooling in places:
            task = probe(name, layer=layer, pooling=pooling, **options)
            kept[layer, pooling] = features(task, cache)
            assert task.facts()["cost/cache_reused"]
            sweep = probe(
                name, layer=layer, pooling=pooling, layers="all", anchor=ANCHOR, **options
            )
            assert np.array_equal(features(sweep, cache), kept[layer, pooling])
    shutil.rmtree(cache / "features")
    for (layer, pooling), found in kept.items():
        alone = features(probe(name, layer=layer, pooling=pooling, **options), cache)
        assert found.tobytes() == alone.tobytes(), (layer, pooling)
    assert len({found.tobytes() for found in kept.values()}) > len(poolings)


def test_all_layers_are_kept_beside_one_that_was_there(cache):
    first = features(probe(layer=1), cache)
    task = probe(layer=1, layers="all")
    assert np.array_equal(features(task, cache), first)
    assert len(list((cache / "features").iterdir())) == 4 * 3


def test_texts_to_predict_are_read_for_one_layer_only(cache, tmp_path):
    task, trainer = fit(tmp_path, probe(max_length=60, layers="all"), max_epochs=1)
    fitted = len(list((cache / "features").iterdir()))
    assert fitted == 2 * 4 * 3  # splits, layers, poolings
    trainer.predict(task, data_to_predict())
    assert len(list((cache / "features").iterdir())) == fitted + 1


def entry(cache, texts=TEXTS, **options):
    """Name of the cache's entry that a probe makes or uses."""
    before = {path.name: path.stat().st_mtime_ns for path in (cache / "features").glob("*")}
    task = probe(**options)
    features(task, cache, texts)
    after = {path.name for path in (cache / "features").glob("*")}
    new = after - set(before)
    return new.pop() if new else None


def test_features_are_made_again_for_all_that_changes_them_and_for_nothing_else(cache, tmp_path):
    assert entry(cache)
    for unrelated in (
        {"head": "linear"},
        {"hidden_size": 7},
        {"dropout": 0.5},
        {"lr": 1.0},
        {"weight_decay": 0.5},
        {"warmup_steps": 5},
        {"schedule": "cosine"},
        {"num_classes": 5},
    ):
        assert entry(cache, **unrelated) is None, unrelated
    for changed in (
        {"name": "gpt2"},
        {"template": "{text}"},
        {"pooling": "last"},
        {"pooling": "anchor"},
        {"pooling": "anchor", "anchor": "review"},
        {"layer": 1},
        {"max_length": 80},
        {"truncation_side": "left"},
        {"dtype": "bfloat16"},
        {"pass_tokens": 100},
        {"texts": TEXTS[1:]},
        {"texts": TEXTS[::-1]},
    ):
        assert entry(cache, **changed), changed


def test_features_are_made_again_for_other_weights_under_the_same_name(cache, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_backbone("llama"), folder)
    before = features(at(folder), cache)
    shutil.rmtree(folder)
    shutil.copytree(tiny_backbone("llama", seed=1), folder)
    assert not np.allclose(before, features(at(folder), cache))


def at(folder):
    return ProbeTask(backbone=str(folder), template=TEMPLATE, dtype="float32", max_length=100)


# -- settings that make no sense ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "anchor", "anchor": None}, "needs an anchor word, and only it does"),
        ({"pooling": "mean", "anchor": "was"}, "needs an anchor word, and only it does"),
        ({"pooling": "anchor", "layers": "all"}, "needs an anchor word, and only it does"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\)"),
        ({"hidden_size": 0}, "hidden_size and pass_tokens positive"),
        ({"pass_tokens": 0}, "hidden_size and pass_tokens positive"),
    ],
)
def test_options_that_contradict_each_other_are_a_sentence(options, message):
    with pytest.raises(SmolbenchError, match=message):
        ProbeTask(backbone="tiny", **options)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_the_first_token_of_a_shared_beginning_is_refused_for_causal_backbones(name):
    template = TEMPLATE if name == "llama" else "{text}"  # OPT's rows begin with </s>
    with pytest.raises(SmolbenchError, match="every text would get the same features"):
        _ = probe(name, pooling="first", template=template).backbone_facts


def test_rows_longer_than_the_backbone_reads_are_refused():
    with pytest.raises(SmolbenchError, match=r"is 129, but .* for 128 tokens only"):
        _ = probe(max_length=129).encoder
    assert probe("t5", max_length=1000).encoder.max_length == 1000


def test_a_wrong_anchor_is_refused_before_anything_is_encoded():
    with pytest.raises(SmolbenchError, match="'nowhere', which does not stand behind"):
        _ = probe(pooling="anchor", anchor="nowhere").encoder


# -- training -------------------------------------------------------------------------------------


def data(**options):
    options = {"batch_size": 16, "val_fraction": 0.1, "limit_train": 100, **options}
    return IMDbDataModule(source="sample", limit_test=50, **options)


def fit(tmp_path, task=None, dm=None, **options):
    task = task or probe(max_length=60, lr=1e-2)
    trainer = plain_trainer(tmp_path, **{"max_epochs": 2, **options})
    trainer.fit(task, dm or data())
    return task, trainer


def weights(task):
    return {name: value.clone() for name, value in task.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_checkpoint_holds_the_head_and_nothing_else(tmp_path):
    task, trainer = fit(tmp_path)
    trainer.save_checkpoint(tmp_path / "probe.ckpt")
    state = torch.load(tmp_path / "probe.ckpt", weights_only=True)["state_dict"]
    assert set(state) == {
        "head.0.weight",
        "head.0.bias",
        "head.0.running_mean",
        "head.0.running_var",
        "head.0.num_batches_tracked",
        "head.1.weight",
        "head.1.bias",
        "head.4.weight",
        "head.4.bias",
    }
    assert state["head.0.num_batches_tracked"] == trainer.global_step
    assert same(state, weights(task))


class AtInit(Callback):
    """Keeps the weights that training starts from."""

    def on_fit_start(self, trainer, pl_module):
        self.weights = weights(pl_module)


def test_the_head_starts_from_the_seed_whatever_happened_before(tmp_path):
    starts = []
    for seed, draws in ((3, 0), (3, 5), (4, 0)):  # the first run fills the cache
        seed_everything(seed)
        torch.randn(draws)
        start = AtInit()
        fit(tmp_path, callbacks=[start], max_epochs=1)
        starts.append(start.weights)
    assert same(starts[0], starts[1])
    assert not same(starts[0], starts[2])


def test_a_run_that_fills_the_cache_ends_like_one_that_finds_it(tmp_path):
    ends = []
    for _ in range(2):
        seed_everything(3)
        ends.append(weights(fit(tmp_path)[0]))
    assert same(*ends)


class Modes(Callback):
    def __init__(self):
        self.train, self.val = set(), set()
        self.differences = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.train |= {module.training for module in pl_module.modules()}

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.val |= {module.training for module in pl_module.modules()}
        self.differences.append(torch.equal(pl_module(batch), pl_module(batch)))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        first, second = pl_module(batch), pl_module(batch)
        self.differences.append(not torch.equal(first, second))


def test_dropout_and_batchnorm_train_while_fitting_and_rest_while_evaluating(tmp_path):
    modes = Modes()
    task, trainer = fit(tmp_path, probe(dropout=0.5, max_length=60), callbacks=[modes])
    assert (modes.train, modes.val) == ({True}, {False})
    assert len(modes.differences) > 10
    assert all(modes.differences)
    before = weights(task)
    trainer.test(task, data(), verbose=False)
    trainer.predict(task, data_to_predict())
    assert same(before, weights(task))


def data_to_predict(texts=TEXTS):
    dm = data()
    dm.predict_on(texts)
    return dm


def arrays(dm):
    """Features of all splits."""
    loaders = (dm.train_dataloader(), dm.val_dataloader(), dm.test_dataloader())
    return [loader.rows.arrays["features"] for loader in loaders]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_the_precision_of_the_training_does_not_reach_the_features(precision, cache, tmp_path):
    dm = data()
    task, trainer = fit(tmp_path, dm=dm, precision=precision, max_epochs=1)
    (found,) = trainer.test(task, dm, verbose=False)
    assert np.isfinite(found["test/loss"])
    mixed = [np.array(features) for features in arrays(dm)]
    shutil.rmtree(cache / "features")
    plain = data()
    task, trainer = fit(tmp_path, dm=plain, max_epochs=1)
    trainer.test(task, plain, verbose=False)
    assert all(np.array_equal(a, b) for a, b in zip(mixed, arrays(plain), strict=True))


@pytest.mark.parametrize("head", ["mlp", "linear"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_fitting_is_the_loop_that_anyone_would_write(head, accumulate, tmp_path):
    seed_everything(5)
    options = {"lr": 1e-2, "weight_decay": 0.1, "warmup_steps": 3, "schedule": "cosine"}
    task = probe(head=head, dropout=0, hidden_size=12, max_length=60, **options)
    dm, start = data(), AtInit()
    fit(tmp_path, task, dm, callbacks=[start], accumulate_grad_batches=accumulate, max_epochs=3)

    rows = dm.train_dataloader().rows
    x, y = (
        torch.from_numpy(np.array(rows.arrays["features"])),
        torch.from_numpy(dm.split("train").labels),
    )
    mlp = nn.Sequential(
        nn.BatchNorm1d(16), nn.Linear(16, 12), nn.GELU(), nn.Dropout(0), nn.Linear(12, 2)
    )
    model = mlp if head == "mlp" else nn.Linear(16, 2)
    model.load_state_dict({k.removeprefix("head."): v for k, v in start.weights.items()})
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0}], lr=1e-2
    )
    plan = BatchPlan(len(x), 16, shuffle=True, seed=5)
    steps = -(-len(plan) // accumulate)
    scheduler = get_scheduler("cosine", optimizer, 3, 3 * steps)
    taken = 0
    for epoch in range(3):
        plan.set_epoch(epoch)
        for first in range(0, len(plan), accumulate):
            batches = plan.batches()[first : first + accumulate]
            for batch in batches:
                loss = nn.functional.cross_entropy(model(x[batch]), y[batch], reduction="sum")
                (loss / sum(map(len, batches))).backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            taken += 1
    assert taken == 3 * steps > 3
    for name, value in model.state_dict().items():
        torch.testing.assert_close(task.state_dict()[f"head.{name}"], value, rtol=1e-5, atol=1e-6)
        assert value.ndim == 0 or not torch.equal(value, start.weights[f"head.{name}"])


def test_a_linear_probe_is_as_good_as_logistic_regression(tmp_path):
    seed_everything(0)
    options = {"lr": 0.1, "weight_decay": 0, "schedule": "linear", "max_length": 128}
    task = ProbeTask(backbone="tiny", dtype="float32", head="linear", **options)
    dm = IMDbDataModule(source="sample", batch_size=64, val_fraction=0)
    trainer = plain_trainer(tmp_path, max_epochs=60)
    trainer.fit(task, dm)
    (found,) = trainer.test(task, dm, verbose=False)
    train, test = dm.train_dataloader().rows.arrays, dm.test_dataloader().rows.arrays
    regression = LogisticRegression(max_iter=2000).fit(train["features"], train["labels"])
    expected = regression.score(test["features"], test["labels"])
    assert expected > 0.6, "the features say nothing"
    assert found["test/accuracy"] == pytest.approx(expected, abs=0.05)


# -- checkpoints and settings ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    _, trainer = fit(folder, max_epochs=1)
    trainer.save_checkpoint(folder / "probe.ckpt")
    return folder / "probe.ckpt"


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ({"name": "gpt2"}, ["backbone was", "revision was"]),
        ({"name": "bert"}, ["encoder was", "in which this version of smolbench turns"]),
        ({"pooling": "last"}, ["pooling was 'mean', is 'last'"]),
        (
            {"pooling": "anchor", "layer": 1},
            ["pooling was 'mean', is 'anchor'", "anchor was None, is 'was'", "layer was -1, is 1"],
        ),
        ({"template": "{text}"}, ["template was 'A review of a film:", "is '{text}'"]),
        ({"max_length": 61}, ["max_length was 60, is 61"]),
        ({"truncation_side": "left"}, ["encoder was", "truncation_side was 'right', is 'left'"]),
        ({"head": "linear"}, ["head was 'mlp', is 'linear'", "hidden_size was 384, is None"]),
        ({"hidden_size": 8}, ["hidden_size was 384, is 8"]),
    ],
)
@pytest.mark.parametrize("way", ["test", "fit"])
def test_a_checkpoint_of_other_settings_is_refused(checkpoint, tmp_path, options, messages, way):
    task = probe(**{"max_length": 60, **options})
    with pytest.raises(SmolbenchError, match="trained with other settings") as error:
        getattr(plain_trainer(tmp_path, max_epochs=2), way)(task, data(), ckpt_path=checkpoint)
    for message in messages:
        assert message in str(error.value)


def test_a_checkpoint_of_other_labels_is_refused(checkpoint, tmp_path):
    class Renamed(IMDbDataModule):
        label_names = ["bad", "good"]  # noqa: RUF012 - instead of a property

    dm = Renamed(source="sample", limit_test=50)
    with pytest.raises(SmolbenchError, match=r"labels was \['neg', 'pos'\], is \['bad', 'good'\]"):
        plain_trainer(tmp_path).test(probe(max_length=60), dm, ckpt_path=checkpoint)


def test_settings_that_do_not_touch_the_features_may_change(checkpoint, tmp_path):
    free = {"lr": 1.0, "dropout": 0.3, "pass_tokens": 50, "weight_decay": 0.1}
    task = probe(max_length=60, layers="all", anchor=ANCHOR, **free)
    (found,) = plain_trainer(tmp_path).test(task, data(), ckpt_path=checkpoint, verbose=False)
    assert found["test/n"] == 50


def test_load_from_checkpoint_knows_labels_and_settings(checkpoint, tmp_path):
    task = ProbeTask.load_from_checkpoint(checkpoint)
    assert task.label_names == ["neg", "pos"]
    assert same(weights(task), torch.load(checkpoint, weights_only=True)["state_dict"])
    batches = plain_trainer(tmp_path).predict(task, data_to_predict())
    whole = probe(max_length=60)
    again = plain_trainer(tmp_path).predict(whole, data_to_predict(), ckpt_path=checkpoint)
    assert all(torch.equal(a["scores"], b["scores"]) for a, b in zip(batches, again, strict=True))


def test_load_from_checkpoint_refuses_a_foreign_one(checkpoint, tmp_path):
    foreign = torch.load(checkpoint, weights_only=True)
    del foreign["smolbench"]
    torch.save(foreign, tmp_path / "foreign.ckpt")
    with pytest.raises(SmolbenchError, match="not written by smolbench"):
        ProbeTask.load_from_checkpoint(tmp_path / "foreign.ckpt")


# -- what results say -----------------------------------------------------------------------------


def test_facts_count_the_backbone_and_time_the_frozen_passes(tmp_path):
    task, trainer = fit(tmp_path)
    facts = task.facts()
    head = 2 * 16 + (16 * 384 + 384) + (384 * 2 + 2)
    backbone = sum(p.numel() for p in plain_model("llama").parameters())
    assert facts["model/trainable_params"] == head
    assert facts["model/total_params"] == head + backbone
    assert facts["model/id"] == tiny_backbone("llama")
    assert facts["model/revision"] == Backbone(tiny_backbone("llama"), None, "float32").revision
    assert facts["model/dtype"] == "float32"
    assert facts["cost/cache_reused"] is False
    assert facts["cost/cache_s"] > 0
    assert facts["cost/cache_samples_per_s"] == pytest.approx(160 / facts["cost/cache_s"])
    assert "cost/test_cache_s" not in facts
    assert task.read_ahead("test") is None
    trainer.test(task, data(), verbose=False)
    ahead = task.read_ahead("test")
    own = task.encode({"text": trainer.datamodule.texts("test")})["input_ids"]
    assert (ahead.samples, ahead.tokens) == (50, sum(map(len, own)))
    assert 0 < ahead.seconds < task.facts()["cost/test_cache_s"], "loading is not in it"

    again, _ = fit(tmp_path)
    assert again.facts()["cost/cache_reused"] is True
    assert again.facts()["cost/cache_s"] == facts["cost/cache_s"]
    plain_trainer(tmp_path).test(again, data(), verbose=False)
    assert again.read_ahead("test") == ahead, "as it was when the network read them"


@pytest.mark.parametrize(
    ("name", "pass_tokens"), [("llama", 1), ("llama", 90), ("llama", 9999), ("bert", 90)]
)
def test_padding_is_what_the_backbone_reads_beside_the_texts(name, pass_tokens, cache, monkeypatch):
    read = []

    def spy(model, layers, ids, mask, prefix):
        read.append(ids.numel())
        return layer_outputs(model, layers, ids, mask, prefix)

    monkeypatch.setattr(features_module, "layer_outputs", spy)
    task = probe(name, pass_tokens=pass_tokens)
    features(task, cache)
    assert read.pop(0) in read, "one block is read twice, to warm up"
    own = task.encode({"text": TEXTS})["input_ids"]
    # only a causal backbone reads the beginning that all rows share but once
    shared = len(task.encoder.shared_ids) if name == "bert" else 0
    share = task.facts()["cost/padding_share"]
    assert share == pytest.approx(1 - sum(len(row) + shared for row in own) / sum(read))
    assert (share > 0) == (pass_tokens > 1)

    reused = probe(name, pass_tokens=pass_tokens)
    features(reused, cache)
    assert reused.facts()["cost/cache_reused"]
    assert reused.facts()["cost/padding_share"] == share


def test_an_interrupted_evaluation_leaves_nothing_behind(tmp_path):
    task, _ = fit(tmp_path, max_epochs=1)

    class Stop(Callback):
        def on_test_batch_end(self, *args):
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        plain_trainer(tmp_path, callbacks=[Stop()]).test(task, data(), verbose=False)
    (found,) = plain_trainer(tmp_path).test(task, data(), verbose=False)
    assert found["test/n"] == 50


# -- one by one -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["anchor", "mean"])
@pytest.mark.parametrize("name", ["llama", "opt", "bert", "mamba"])
def test_answers_one_by_one_are_those_over_the_cache(name, pooling, cache, monkeypatch):
    task = probe(name, pooling=pooling, num_classes=2)
    expected_features = torch.from_numpy(features(task, cache))
    task.configure_model()
    task.eval()
    expected = task({"features": expected_features}).softmax(dim=1)
    monkeypatch.setattr(features_module, "cached_outputs", lambda *_, **__: pytest.fail("cached"))
    with torch.inference_mode():
        answer = task.start_answering()
        alone = torch.cat([answer([text]) for text in TEXTS])
        together = answer(TEXTS)
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)
    assert expected.std(dim=0).min() > 1e-4, "no text matters"


@pytest.mark.parametrize(
    ("options", "rows"),
    [({"batch_size": 1}, 6), ({"batch_size": "auto", "effective_batch_size": 1}, 6)],
)
def test_a_head_that_normalises_over_a_batch_refuses_batches_of_one(tmp_path, options, rows):
    data = IMDbDataModule(source="sample", val_fraction=0, limit_train=rows, **options)
    with pytest.raises(SmolbenchError, match=r"holds one example.*BatchNorm"):
        plain_trainer(tmp_path, max_epochs=1).fit(probe(head="mlp"), data)
    plain_trainer(tmp_path, max_epochs=1).fit(probe(head="linear"), data)


@pytest.mark.parametrize("rows", [5, 9])
def test_no_last_batch_of_an_epoch_has_one_example(tmp_path, rows):
    data = IMDbDataModule(source="sample", val_fraction=0, limit_train=rows, batch_size=4)
    plain_trainer(tmp_path, max_epochs=2).fit(probe(head="mlp"), data)
