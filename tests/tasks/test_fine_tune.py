from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything

from smolbench.cli import main
from smolbench.data import IMDbDataModule
from smolbench.data.token_cache import encode_to_cache
from smolbench.errors import SmolbenchError
from smolbench.models.pretrained.backbone import Backbone
from smolbench.tasks import FineTuneTask, ProbeTask
from tests.helpers.command import config, results, weights
from tests.helpers.tiny import BOS, EOS, PAD, TEXTS, tiny_backbone, tiny_tokenizer
from tests.helpers.training import plain_trainer

METHODS = ["full", "head", "lora", "qlora", "bitfit_added"]
RUN = [
    "--config=imdb_gpt2",
    "--config=tiny",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--trainer.max_epochs=1",
    "--model.max_length=48",
    "--data.limit_train=32",
    "--data.limit_val=16",
    "--data.limit_test=16",
    "--data.batch_size=8",
]


def task(kind="llama", **options):
    options = {"dtype": "float32", "max_length": 100, **options}
    return FineTuneTask(backbone=tiny_backbone(kind), **options)


def data(cache, **options):
    options = {"limit_train": 16, "limit_val": 8, "limit_test": 8, "batch_size": 4, **options}
    return IMDbDataModule(source="sample", cache_dir=str(cache), **options)


def built(kind="llama", **options):
    made = task(kind, num_classes=2, **options)
    made.configure_model()
    return made


def batch(texts=TEXTS, **columns):
    ids = [row["input_ids"][0] for row in ({"input_ids": [[5 + len(t) % 90, 7]]} for t in texts)]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.ones(len(ids), 2, dtype=torch.long),
        **columns,
    }


def snapshot(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


# -- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "bert"])
def test_rows_are_those_of_the_tokenizer(kind):
    made = task(kind)
    found = made.encode({"text": TEXTS})["input_ids"]
    assert list(map(list, found)) == [tiny_tokenizer(kind)(text)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("kind", ["roberta", "llama"])
def test_rows_are_padded_with_what_the_model_takes_for_padding(cache_free, kind):
    made = task(kind)
    table = encode_to_cache(
        cache_free / "tokens",
        "key",
        lambda start, stop: {"text": TEXTS[start:stop]},
        len(TEXTS),
        made.encode,
        "test",
    )
    rows = made.rows("test", table, np.zeros(len(TEXTS))).batch(np.arange(len(TEXTS)))
    padding = rows["attention_mask"] == 0
    assert padding.any()
    assert PAD != 0
    assert (rows["input_ids"][padding] == PAD).all()
    assert set(rows) == {"input_ids", "attention_mask", "labels", "index"}


def test_head_and_other_methods_do_not_share_token_caches():
    assert task("bert").encoder_key() != task("bert", method="head").encoder_key()
    assert task("bert").encoder_key() == task("bert", method="lora").encoder_key()


def test_rows_longer_than_the_model_reads_are_refused():
    with pytest.raises(SmolbenchError, match="positions for 128 tokens only"):
        built("gpt2", max_length=129)


# -- what trains ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (k, m)
        for k in ("gpt2", "gpt_neo", "opt", "opt_350m", "bert")
        for m in ("full", "lora", "bitfit")
    ]
    + [("llama", m) for m in METHODS]
    + [("gpt2", "qlora"), ("opt", "qlora"), ("gpt2", "head"), ("bert", "head")],
)
def test_what_trains_changes_and_nothing_else(cache_free, kind, method):
    seed_everything(0)
    made = task(kind, method=method, lr=1e-2, max_length=40)
    seen = {}

    class Watch(Callback):
        def on_train_start(self, trainer, module):
            seen.update(snapshot(module))
            expected = {m for m in module.modules() if m is not module}
            assert all(m.training for m in expected), "dropout must be on"

        def on_before_optimizer_step(self, trainer, module, optimizer):
            for name, p in module.named_parameters():
                assert (p.grad is not None) == p.requires_grad, name
                assert not p.requires_grad or p.dtype == p.grad.dtype == torch.float32, name

    trainer = plain_trainer(cache_free, max_epochs=2, callbacks=[Watch()])
    trainer.fit(made, data(cache_free))
    for name, parameter in made.named_parameters():
        same = torch.equal(parameter, seen[name])
        # the embedding of tokens that do not occur has no gradient; a bias may cancel out
        assert same or parameter.requires_grad, name
    trained = [n for n, p in made.named_parameters() if p.requires_grad]
    changed = [n for n in trained if not torch.equal(dict(made.named_parameters())[n], seen[n])]
    assert len(changed) > 0.8 * len(trained)
    assert made.trained_names() == set(trained) & set(made.state_dict())


def test_weight_decay_is_for_matrices_only(cache_free):
    for method in ("full", "lora", "bitfit"):
        made = built("gpt2", method=method, weight_decay=0.3)
        made.trainer = plain_trainer(cache_free, max_epochs=1)
        optimizer = made.configure_optimizers()["optimizer"]
        for group in optimizer.param_groups:
            assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}
        counted = sum(p.numel() for g in optimizer.param_groups for p in g["params"])
        assert counted == sum(p.numel() for p in made.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", ["full", "lora", "qlora", "bitfit"])
def test_bfloat16_is_what_it_computes_in_and_not_what_it_trains_in(method):
    made = built("opt", method=method, dtype="bfloat16")
    kinds = []
    layer = next(m for n, m in made.named_modules() if n.endswith("fc1"))
    layer.register_forward_hook(lambda module, args, output: kinds.append(output.dtype))
    logits = made(batch())
    logits.square().sum().backward()
    assert logits.dtype == torch.float32
    assert kinds == [torch.bfloat16]
    for name, parameter in made.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32, name
            assert parameter.grad is not None, name
        elif parameter.ndim > 1 and parameter.is_floating_point():
            assert parameter.dtype == torch.bfloat16, name
    exact = built("opt", method=method, dtype="float32").eval()(batch())
    torch.testing.assert_close(made.eval()(batch()), exact, rtol=0.1, atol=0.3)


@pytest.mark.parametrize(
    ("precision", "dtype", "expected"),
    [
        ("32-true", "float32", torch.float32),
        ("32-true", "bfloat16", torch.bfloat16),
        ("bf16-mixed", "auto", torch.bfloat16),
        ("bf16-mixed", "float32", None),
        ("bf16-true", "auto", None),
        ("64-true", "auto", None),
    ],
)
def test_the_trainers_precision_and_dtype_agree_or_are_refused(
    cache_free, precision, dtype, expected
):
    made = task("gpt2", dtype=dtype, max_length=20)
    trainer = plain_trainer(cache_free, max_steps=1, precision=precision)
    if expected is None:
        with pytest.raises(SmolbenchError, match="precision"):
            trainer.fit(made, data(cache_free))
        return
    trainer.fit(made, data(cache_free))
    assert made.facts()["model/dtype"] == str(expected).removeprefix("torch.")
    assert {p.dtype for p in made.parameters()} == {torch.float32}


@pytest.mark.parametrize("method", ["full", "lora", "bitfit"])
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo", "opt", "bert"])
def test_gradient_checkpointing_gives_the_same_gradients(kind, method):
    gradients = []
    for option in (False, True):
        made = built(kind, method=method, gradient_checkpointing=option)
        layers = [m for m in made.modules() if getattr(m, "gradient_checkpointing", False)]
        assert bool(layers) == option
        torch.manual_seed(3)  # dropout is on, and must be the same in the second forward pass
        made(batch()).square().sum().backward()
        gradients.append({n: p.grad for n, p in made.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6, msg=name)


# -- head is the probe ----------------------------------------------------------------------------


def test_head_is_a_linear_probe_of_the_last_token(cache_free, monkeypatch):
    outcomes = []
    for make in (
        lambda: task("opt", method="head", max_length=40, lr=1e-2),
        lambda: ProbeTask(
            backbone=tiny_backbone("opt"),
            dtype="float32",
            head="linear",
            pooling="last",
            max_length=40,
            lr=1e-2,
        ),
    ):
        seed_everything(0)
        made = make()
        plain_trainer(cache_free, max_epochs=2).fit(made, data(cache_free))
        outcomes.append(made.head.state_dict())
        monkeypatch.setattr(Backbone, "load", lambda *_: pytest.fail("the network ran again"))
    for name, value in outcomes[0].items():
        assert torch.equal(value, outcomes[1][name])


# -- one by one -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "method"), [("llama", "lora"), ("roberta", "full"), ("opt", "head"), ("gpt2", "qlora")]
)
def test_answers_one_by_one_are_those_of_predict(cache_free, kind, method):
    made = task(kind, method=method, num_classes=2)
    loader = data(cache_free)
    loader.predict_on(TEXTS)
    batches = plain_trainer(cache_free).predict(made, loader)
    order = torch.cat([batch["index"] for batch in batches]).argsort()
    expected = torch.cat([batch["scores"] for batch in batches])[order]
    made.eval()
    with torch.inference_mode():
        answer = made.start_answering()
        alone = torch.cat([answer([text]) for text in TEXTS])
        together = answer(TEXTS)
    torch.testing.assert_close(alone, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(together, expected, rtol=1e-3, atol=1e-4)
    assert expected.std(dim=0).min() > 1e-4, "no text matters"


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "rank", "alpha"),
    [({}, 8, 16), ({"r": 4}, 4, 8), ({"r": 4, "lora_alpha": 4}, 4, 4), ({"lora_alpha": 4}, 8, 4)],
)
def test_alpha_is_twice_the_rank_unless_given(options, rank, alpha):
    made = task(method="lora", num_classes=2, **options)
    made.configure_model()
    adapted = [m for m in made.modules() if isinstance(getattr(m, "scaling", None), dict)]
    assert adapted
    for layer in adapted:
        assert layer.r == {"default": rank}
        assert layer.scaling == {"default": alpha / rank}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"r": 4}, "model.r is for the method lora or qlora, and model.method is 'full'"),
        ({"method": "head", "lora_dropout": 0.1}, "model.lora_dropout"),
        ({"method": "lora", "quantize": "all"}, "model.quantize is for the method qlora"),
        ({"method": "bitfit", "target_modules": ["q_proj"]}, "model.target_modules"),
        ({"pass_tokens": 5}, "model.pass_tokens is for the method head"),
        ({"method": "head", "gradient_checkpointing": True}, "gradient_checkpointing"),
        ({"method": "lora", "r": 0}, "positive"),
        ({"method": "lora", "lora_alpha": -1}, "positive"),
        ({"method": "lora", "lora_dropout": 1.0}, r"\[0, 1\)"),
        ({"method": "lora", "target_modules": []}, "not empty"),
    ],
)
def test_options_that_would_be_passed_over_are_refused(options, words):
    with pytest.raises(SmolbenchError, match=words):
        FineTuneTask(**options)


def test_a_model_without_gradient_checkpointing_says_so(monkeypatch):
    from transformers import GPT2ForSequenceClassification

    monkeypatch.setattr(GPT2ForSequenceClassification, "supports_gradient_checkpointing", False)
    with pytest.raises(SmolbenchError, match="does not support gradient checkpointing"):
        built("gpt2", gradient_checkpointing=True)


# -- the whole way, on the command line -----------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_fit_test_and_predict_from_the_run_folder(capsys, folder_here, method):
    run = [*RUN, f"--model.method={method}"]
    assert main(["fit", *run, "--run_dir=run"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    found = results(Path("run"))
    trained = found["model/trainable_params"]
    total = found["model/total_params"]
    assert f"{method}: {trained:,} of {total:,} parameters train" in said
    assert found["task"] == "FineTuneTask"
    assert found["method"] == method
    assert found["model/id"] == "tiny"
    saved = weights(Path("run"), "best")
    assert sum(value.numel() for value in saved.values()) == trained
    size = Path("run/checkpoints/best.ckpt").stat().st_size
    assert size < 4 * trained + 800 * len(saved) + 6000, "nothing but what trained"
    scope = "cache" if method == "head" else "train"
    assert found[f"cost/{scope}_tokens_per_s"] > 0
    assert 0 <= found["cost/padding_share"] < 1
    assert found["cost/peak_rss_mib"] > 0
    trained_run = [*run, "--run_dir=run", "--ckpt_path=best"]
    assert main(["test", *trained_run]) == 0
    assert results(Path("run"))["test/n"] == 16
    assert Path("run/predictions.parquet").exists()
    few = ["--text", "A fine film.", "--output", "out.csv"]
    assert main(["predict", *trained_run, *few]) == 0
    with Path("out.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["text"] == "A fine film."


def test_a_trained_state_is_what_is_scored(folder_here):
    """Scores of the run folder's checkpoint are those of the network as it was trained."""
    for method in ("full", "lora", "qlora"):
        run = [*RUN, f"--model.method={method}", "--model.lr=3e-3"]
        assert main(["fit", *run, f"--run_dir={method}"]) == 0
        fitted = results(Path(method))["val/loss"]
        assert main(["validate", *run, f"--run_dir={method}", "--ckpt_path=best"]) == 0
        assert results(Path(method))["val/loss"] == pytest.approx(fitted, abs=1e-6)
        assert main(["validate", *run, "--ckpt_path=none", f"--run_dir={method}-untrained"]) == 0
        untrained = results(Path(f"{method}-untrained"))["val/loss"]
        assert abs(untrained - fitted) > 1e-4


def test_the_untrained_baseline_is_repeatable(folder_here):
    for name in ("one", "other"):
        assert main(["test", *RUN, "--ckpt_path=none", f"--run_dir={name}"]) == 0
    one, other = (results(Path(name)) for name in ("one", "other"))
    assert one["test/loss"] == other["test/loss"]
    assert main(["test", *RUN, "--ckpt_path=none", "--run_dir=x", "--seed_everything=1"]) == 0
    assert results(Path("x"))["test/loss"] != one["test/loss"]


def test_a_checkpoint_of_another_method_is_refused(capsys, folder_here):
    assert main(["fit", *RUN, "--model.method=lora", "--run_dir=run"]) == 0
    for changed in ("--model.method=full", "--model.r=4", "--model.max_length=40"):
        method = "--model.method=lora"
        run = ["test", *RUN, method, changed, "--ckpt_path=run/checkpoints/best.ckpt"]
        assert main(run) == 2, changed
        assert "other settings" in capsys.readouterr().err
    assert config(Path("run"))["model"]["init_args"]["method"] == "lora"


def test_a_checkpoint_loads_without_a_trainer(folder_here):
    for method in ("lora", "qlora", "full", "head"):
        assert main(["fit", *RUN, f"--model.method={method}", f"--run_dir={method}"]) == 0
        path = f"{method}/checkpoints/best.ckpt"
        made = FineTuneTask.load_from_checkpoint(path, map_location="cpu")
        assert made.label_names == ["neg", "pos"]
        state = made.state_dict()
        for name, value in weights(Path(method), "best").items():
            assert torch.equal(state[name], value), name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--model.method=bitfit", f"--model.backbone={tiny_backbone('llama')}"],
            ["has none", "bitfit_added"],
        ),
        (["--model.method=lora", "--model.target_modules=[nothing]"], ["'nothing'", "q_proj"]),
        (["--model.max_length=9000"], ["positions for 8192"]),
        (["--model.r=4"], ["model.r", "lora"]),
        (["--trainer.precision=bf16-true"], ["float32", "bf16-mixed"]),
        (["--model.method=magic"], ["magic"]),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(capsys, folder_here, arguments, words):
    try:
        status = main(["fit", *RUN, *arguments])
    except SystemExit as end:  # the option parser's own way
        status = end.code
    said = " ".join(capsys.readouterr().err.split())
    assert status == 2, said
    assert all(word in said for word in words), said
    assert "Traceback" not in said


def test_qlora_without_bitsandbytes_is_one_sentence(capsys, folder_here, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert main(["fit", *RUN, "--model.method=qlora"]) == 2
    assert "pip install bitsandbytes" in " ".join(capsys.readouterr().err.split())


def test_predictions_do_not_depend_on_the_batch(cache_free):
    made = built("gpt_neo").eval()
    assert {BOS, PAD, EOS} == {0, 1, 2}
    ids = np.random.default_rng(0).integers(5, 200, (3, 30))
    lengths = torch.tensor([30, 7, 13])
    mask = (torch.arange(30) < lengths[:, None]).long()
    together = made({"input_ids": torch.from_numpy(ids) * mask, "attention_mask": mask})
    for n, length in enumerate(lengths):
        alone = torch.from_numpy(ids[n : n + 1, :length])
        single = made({"input_ids": alone, "attention_mask": torch.ones_like(alone)})
        torch.testing.assert_close(together[n : n + 1], single, rtol=1e-4, atol=1e-4)


@pytest.fixture
def cache_free(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("SMOLBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path
