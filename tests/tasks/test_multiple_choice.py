from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Callback, seed_everything

from smolbench.cli import main
from smolbench.data import HellaSwagDataModule, IMDbDataModule
from smolbench.errors import SmolbenchError
from smolbench.metrics.multiple_choice import Choices, multiple_choice_metrics
from smolbench.tasks import MultipleChoiceTask
from tests.helpers.command import config, results, weights
from tests.helpers.tiny import tiny_language_model
from tests.helpers.training import plain_trainer
from tests.models.pretrained.test_language_model import saved_adapter

TEST = [
    "--config=hellaswag_smollm2",
    "--config=tiny",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--data.limit_test=24",
]
FIT = [
    *TEST,
    "--model.warmup_steps=0",
    "--trainer.max_epochs=1",
    "--trainer.log_every_n_steps=1",
    "--data.limit_train=32",
    "--data.limit_val=16",
    "--data.batch_size=8",
    "--model.lr=3e-3",
]


def task(kind="llama", **options):
    options = {"dtype": "float32", **options}
    return MultipleChoiceTask(backbone=tiny_language_model(kind), **options)


def data(cache, **options):
    options = {"limit_train": 16, "limit_val": 8, "limit_test": 12, "batch_size": 4, **options}
    return HellaSwagDataModule(source="sample", cache_dir=str(cache), **options)


def scored(cache, made, **options):
    trainer = plain_trainer(cache)
    (found,) = trainer.test(made, data(cache, **options), verbose=False)
    return found, made.predictions()


# -- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neo", "opt"])
def test_shared_rows_change_nothing(tmp_path, kind):
    found = [scored(tmp_path, task(kind, shared_context=shared)) for shared in (True, False)]
    for number in range(4):
        one, other = (each[1][f"log_likelihood_{number}"] for each in found)
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-3)
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-4)


def test_what_is_reported_follows_from_the_predictions_file(tmp_path):
    found, columns = scored(tmp_path, task())
    read = {
        name: np.stack([columns[f"{name}_{number}"] for number in range(4)], axis=1)
        for name in ("log_likelihood", "length", "n_bytes", "n_tokens")
    }
    choices = Choices(read["log_likelihood"], read["length"], read["n_bytes"], read["n_tokens"])
    expected = multiple_choice_metrics(choices, columns["label"])
    for name, value in expected.items():
        assert found[f"test/{name}"] == pytest.approx(value, rel=1e-6), name
    assert (columns["prediction"] == read["log_likelihood"].argmax(axis=1)).all()
    assert columns["index"].tolist() == list(range(12))


@pytest.mark.parametrize(
    ("objective", "loss"), [("lm", "val/ending_loss"), ("choice", "val/choice_loss")]
)
def test_equal_checkpoints_are_told_apart_by_the_loss_that_is_learned(objective, loss):
    made = task(method="full", objective=objective)
    assert made.tie_breaker == loss
    assert made.tie_breaker.removeprefix("val/") in made.validated()


def test_conventions_word_and_divide_differently(tmp_path):
    found = {
        name: scored(tmp_path, task(convention=name))[1] for name in ("lm_eval", "smollm2", "llm_c")
    }
    assert (found["llm_c"]["length_0"] == found["llm_c"]["n_tokens_0"]).all()
    assert (found["lm_eval"]["length_0"] != found["lm_eval"]["n_tokens_0"]).all()
    for one, other in (("lm_eval", "smollm2"), ("smollm2", "llm_c"), ("lm_eval", "llm_c")):
        assert (found[one]["log_likelihood_0"] != found[other]["log_likelihood_0"]).any()


@pytest.mark.parametrize(
    ("precision", "dtype", "expected"),
    [
        ("32-true", "float32", "float32"),
        ("bf16-mixed", "auto", "bfloat16"),
        ("bf16-mixed", "float32", None),
        ("bf16-true", "float32", None),
        ("16-true", "auto", None),
    ],
)
def test_what_is_scored_as_it_comes_computes_in_what_results_say(
    tmp_path, precision, dtype, expected
):
    made, trainer = task(dtype=dtype), plain_trainer(tmp_path, precision=precision)
    if expected is None:
        with pytest.raises(SmolbenchError, match="precision"):
            trainer.test(made, data(tmp_path), verbose=False)
        return
    trainer.test(made, data(tmp_path), verbose=False)
    assert made.facts()["model/dtype"] == expected
    assert {str(p.dtype) for p in made.parameters()} == {f"torch.{expected}"}


def test_long_contexts_are_counted(tmp_path, caplog):
    found, columns = scored(tmp_path, task("gpt2", max_length=60))
    assert 0 < found["test/n_truncated"] <= 12
    assert "lose their beginning" in caplog.text
    assert np.isfinite(columns["log_likelihood_0"]).all()
    whole, _ = scored(tmp_path, task("llama"))
    assert whole["test/n_truncated"] == 0


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_solved_examples_stand_in_front_and_are_read_once(tmp_path, kind):
    made = task(kind, num_fewshot=1, fewshot_seed=3)
    shared, columns = scored(tmp_path, made, limit_test=6)
    assert made.encoder.prompt.endswith("\n\n")
    # no score without examples stands on a board with this one
    assert made.facts()["convention"] == "lm_eval, 1-shot"
    assert task(kind).facts()["convention"] == "lm_eval"
    apart = task(kind, num_fewshot=1, fewshot_seed=3, shared_context=False)
    _, others = scored(tmp_path, apart, limit_test=6)
    assert shared["test/n_truncated"] == 0
    assert len(made._prefix_ids) > 16
    for number in range(4):
        one, other = (each[f"log_likelihood_{number}"] for each in (columns, others))
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-3)
    _, without = scored(tmp_path, task(kind), limit_test=6)
    assert (without["log_likelihood_0"] != columns["log_likelihood_0"]).all()
    _, another = scored(tmp_path, task(kind, num_fewshot=1, fewshot_seed=4), limit_test=6)
    assert (another["log_likelihood_0"] != columns["log_likelihood_0"]).any()


def test_solved_examples_come_from_the_training_split(tmp_path):
    made = task("gpt2", num_fewshot=2)
    dm = data(tmp_path)
    plain_trainer(tmp_path).test(made, dm, verbose=False)
    train = dm.split("train")
    rights = [
        endings[label].replace("[substeps] ", "")
        for endings, label in zip(train.examples["endings"], train.labels, strict=True)
    ]
    shots = made.encoder.prompt.strip().split("\n\n")
    assert len(shots) == 2
    assert all(any(shot.endswith(right) for right in rights) for shot in shots)


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["lm", "choice"])
@pytest.mark.parametrize(
    ("kind", "method"),
    [(kind, method) for kind in ("gpt2", "gpt_neo", "opt") for method in ("full", "lora")]
    + [("llama", "full"), ("llama", "lora"), ("llama", "qlora")],
)
def test_what_trains_changes_and_nothing_else(tmp_path, kind, method, objective):
    seed_everything(0)
    made = task(kind, method=method, objective=objective, lr=1e-2)
    before = {}

    class Watch(Callback):
        def on_train_start(self, trainer, module):
            before.update({name: p.detach().clone() for name, p in module.named_parameters()})
            assert all(m.training for m in module.modules() if m is not module)

    plain_trainer(tmp_path, max_epochs=2, callbacks=[Watch()]).fit(made, data(tmp_path))
    changed = {n for n, p in made.named_parameters() if not torch.equal(p, before[n])}
    trained = {n for n, p in made.named_parameters() if p.requires_grad}
    assert changed <= trained
    assert len(changed) > 0.8 * len(trained)
    if method != "full":
        assert all("lora_" in name for name in trained)


@pytest.mark.parametrize("objective", ["lm", "choice"])
def test_the_loss_is_that_of_the_definition(tmp_path, objective):
    seed_everything(0)
    made = task("llama", method="full", objective=objective)
    losses, batches = [], []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            losses.append(float(outputs["loss"]))
            batches.append(batch["index"].tolist())

    dm = data(tmp_path)
    trainer = plain_trainer(tmp_path, max_steps=1, callbacks=[Watch()], num_sanity_val_steps=0)
    trainer.fit(made, dm)
    # as it was before the step: the same rows, scored one by one by the task that trains nothing
    reference = task("llama", shared_context=False)
    train = dm.split("train")
    rows = train.examples.select(batches[0])
    encoded = reference.encode({name: rows[name] for name in rows.column_names if name != "label"})
    reference.configure_model()
    total, tokens, per_choice = 0.0, 0, []
    for number, row in enumerate(batches[0]):
        sizes = encoded["ending_tokens"][number]
        ids = encoded["input_ids"][number]
        context = ids[: len(ids) - sum(sizes)]
        scores, start = [], len(context)
        for size in sizes:
            ending = ids[start : start + size]
            start += size
            with torch.no_grad():
                logs = reference.model(torch.tensor([[*context, *ending]])).logits.log_softmax(-1)
            places = torch.arange(len(context) - 1, len(context) + size - 1)
            scores.append(logs[0, places, torch.tensor(ending)].sum())
        label = int(train.labels[row])
        total, tokens = total - float(scores[label]), tokens + sizes[label]
        per_choice.append(float(-torch.stack(scores).log_softmax(0)[label]))
    expected = total / tokens if objective == "lm" else float(np.mean(per_choice))
    assert losses[0] == pytest.approx(expected, rel=1e-4)


def test_adapters_in_front_of_four_bits_learn_after_a_validation(tmp_path):
    """bitsandbytes would repack its weights in the first validation, and gradients would end."""
    made = task("llama", method="qlora", quantize="adapted", dtype="bfloat16")
    gradients = []

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
            assert all(p.grad is not None for _, p in named)
            gradients.append(max(float(p.grad.abs().max()) for n, p in named if "lora_B" in n))

    trainer = plain_trainer(
        tmp_path, max_epochs=2, callbacks=[Watch()], num_sanity_val_steps=2, val_check_interval=1
    )
    trainer.fit(made, data(tmp_path))
    assert len(gradients) == 8
    assert min(gradients) > 0
    kinds = {type(m).__name__ for n, m in made.named_modules() if n.endswith("gate_proj")}
    assert kinds == {"Linear"}, "only what gets an adapter is held in 4 bits"


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"r": 4}, "model.r is for the method lora or qlora"),
        ({"objective": "lm"}, "model.objective is for the method full or lora or qlora"),
        ({"method": "lora", "quantize": "all"}, "model.quantize is for the method qlora"),
        ({"gradient_checkpointing": True}, "model.gradient_checkpointing"),
        ({"num_fewshot": -1}, "must not be negative"),
        ({"fewshot_seed": 3}, "no examples to draw"),
        ({"max_length": 1}, "at least 2"),
        ({"method": "lora", "lora_alpha": 0}, "positive"),
    ],
)
def test_options_that_would_be_passed_over_are_refused(options, words):
    with pytest.raises(SmolbenchError, match=words):
        MultipleChoiceTask(**options)


def test_an_adapter_cannot_be_put_onto_four_bits(tmp_path):
    saved_adapter(tmp_path)
    with pytest.raises(SmolbenchError, match="cannot take in"):
        MultipleChoiceTask(backbone=str(tmp_path), method="qlora")


def test_data_of_another_kind_is_refused(tmp_path):
    with pytest.raises(SmolbenchError, match="multiple_choice examples, but IMDbDataModule has"):
        plain_trainer(tmp_path).test(
            task(), IMDbDataModule(source="sample", cache_dir=str(tmp_path)), verbose=False
        )


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["fit", *FIT], "there is nothing to train"),
        (["fit", *FIT, "--model.method=full", "--model.num_fewshot=1"], "num_fewshot is for scor"),
        (["predict", *TEST, "--ckpt_path=none", "--text=x"], "summarizes texts, which Multiple"),
        (["test", *TEST, "--model.method=lora"], "There is no run with a best checkpoint"),
        (["test", *TEST, "--model.max_length=9000"], "positions for 8192"),
        (["test", *TEST, "--model.num_fewshot=700"], "570 training examples only"),
        (["test", *TEST, "--model.max_length=3"], "tokens, where at least one"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(capsys, folder_here, command, words):
    assert main(command) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said, said
    assert "Traceback" not in said


# -- the whole way, on the command line -----------------------------------------------------------


def test_a_model_is_scored_as_it_comes(capsys, folder_here):
    assert main(["test", *TEST, "--run_dir=run"]) == 0
    shown = capsys.readouterr().err
    assert "scored as in" in shown
    assert "lm_eval" in shown
    found = results(Path("run"))
    assert found["convention"] == "lm_eval"
    assert found["method"] == "none"
    assert found["task"] == "MultipleChoiceTask"
    assert found["test/n"] == 24
    assert found["test/n_truncated"] == 0
    assert {"test/acc", "test/acc_norm", "test/acc_bytes_stderr"} <= set(found)
    assert found["model/trainable_params"] == 0
    assert found["cost/test_samples_per_s"] > 0
    table = pq.read_table("run/predictions.parquet")
    assert table.num_rows == 24
    # the first rows, as lm_eval's --limit
    assert main(["test", *TEST, "--run_dir=head", "--data.limit_mode=head"]) == 0
    assert results(Path("head"))["data/test_digest"] != found["data/test_digest"]


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_fit_and_test_from_the_run_folder(capsys, folder_here, method):
    run = [*FIT, f"--model.method={method}", "--run_dir=run"]
    assert main(["fit", *run]) == 0
    fitted = results(Path("run"))
    saved = weights(Path("run"), "best")
    assert sum(value.numel() for value in saved.values()) == fitted["model/trainable_params"]
    assert fitted["objective"] == "lm"
    assert main(["validate", *run, "--ckpt_path=best"]) == 0
    assert results(Path("run"))["val/ending_loss"] == pytest.approx(
        fitted["val/ending_loss"], abs=1e-5
    )
    assert main(["test", "--run_dir=run"]) == 0
    assert results(Path("run"))["test/n"] == 24
    # the folder is a run's, no model's
    assert main(["test", *TEST, "--model.backbone=run"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"`smolbench test --run_dir {folder_here / 'run'}`" in said
    # another convention is another score, in a folder of its own
    trained = ["test", "--ckpt_path=run/checkpoints/best.ckpt", "--config=run/config.yaml"]
    assert main([*trained, "--model.convention=llm_c", "--run_dir=other"]) == 0
    other = results(Path("other"))
    assert other["convention"] == "llm_c"
    assert other["parent_run"] == str(Path("run").resolve())
    assert config(Path("run"))["model"]["init_args"]["convention"] == "lm_eval"
    made = MultipleChoiceTask.load_from_checkpoint("run/checkpoints/best.ckpt", map_location="cpu")
    for name, value in saved.items():
        assert torch.equal(made.state_dict()[name], value), name


def test_an_adapter_folder_is_scored(folder_here):
    saved_adapter(folder_here / "adapter")
    base = tiny_language_model("llama")
    for name, backbone in (("base", base), ("adapted", str(folder_here / "adapter"))):
        run = ["test", *TEST, f"--model.backbone={backbone}", f"--run_dir={name}"]
        assert main([*run, "--model.max_length=500", "--model.dtype=float32"]) == 0
    adapted, plain = results(Path("adapted")), results(Path("base"))
    assert adapted["model/base"] == base
    assert adapted["model/id"].endswith("adapter")
    assert adapted["model/revision"] != plain["model/revision"]
    assert adapted["test/choice_loss"] != plain["test/choice_loss"]
