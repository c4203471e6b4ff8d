"""Summarization: training, scores, samples, and the whole way on the command line."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import FSDPStrategy
from rouge_score.rouge_scorer import RougeScorer

from smolbench.cli import main
from smolbench.data import IMDbDataModule, SAMSumDataModule, TextPairsDataModule
from smolbench.errors import SmolbenchError
from smolbench.metrics.rouge_tokens import sentences
from smolbench.tasks import ProbeTask, SummarizationTask
from smolbench.utils import notices
from tests.helpers.command import FEW, ONE_EPOCH, assert_equal_runs, results, rows, weights
from tests.helpers.kill import die
from tests.helpers.tiny import tiny_summarizer
from tests.helpers.training import plain_trainer

TEST = [
    "--config=samsum_flan-t5-base",
    "--config=tiny",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--data.limit_train=24",
    "--data.limit_val=12",
    "--data.limit_test=10",
    "--data.batch_size=4",
    "--model.rouge_examples=6",
    "--model.max_new_tokens=8",
    "--model.warmup_steps=0",
]
FIT = [*TEST, "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1"]


def task(kind="t5", **options):
    options = {"dtype": "float32", "max_new_tokens": 8, "max_summary_length": 16, **options}
    if "max_length" not in options:
        options["max_length"] = 100
    return SummarizationTask(backbone=tiny_summarizer(kind), **options)


def data(cache, **options):
    options = {"limit_train": 16, "limit_val": 9, "limit_test": 10, "batch_size": 4, **options}
    return SAMSumDataModule(source="sample", cache_dir=str(cache), **options)


def scored(cache, made, **options):
    trainer = plain_trainer(cache)
    (found,) = trainer.test(made, data(cache, **options), verbose=False)
    return found, made.predictions()


# -- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t5", "bart", "gpt2"])
def test_scores_follow_from_the_predictions_file(tmp_path, kind):
    found, columns = scored(tmp_path, task(kind, method="none"))
    references = data(tmp_path).split("test").examples["summary"]
    assert columns["reference"] == list(references)
    assert columns["index"].tolist() == list(range(10))
    scorer = RougeScorer(["rouge1", "rougeLsum"], use_stemmer=True)
    pairs = zip(columns["reference"], columns["summary"], strict=True)
    scores = [scorer.score(sentences(one), sentences(other)) for one, other in pairs]
    for name in ("rouge1", "rougeLsum"):
        expected = [score[name].fmeasure for score in scores]
        assert columns[name].tolist() == pytest.approx(expected)
        assert found[f"test/{name}"] == pytest.approx(np.mean(expected), rel=1e-6)
    assert found["test/gen_tokens"] == pytest.approx(columns["n_tokens"].mean())
    assert found["test/truncated_share"] == pytest.approx(1 - columns["ended"].mean())
    assert found["test/n"] == 10


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_summaries_and_losses_do_not_depend_on_the_batch_size(tmp_path, kind):
    one, other = (scored(tmp_path, task(kind, method="none"), batch_size=n) for n in (1, 7))
    assert one[1]["summary"] == other[1]["summary"]
    assert one[0]["test/loss"] == pytest.approx(other[0]["test/loss"], rel=1e-5)
    assert one[0]["test/rouge1"] == other[0]["test/rouge1"]


def test_presets_are_conventions():
    found = {preset: SummarizationTask(generation=preset) for preset in ("card", "full")}
    assert [made.convention for made in found.values()] == ["card", "full"]
    assert (found["card"].decoding.max_new_tokens, found["card"].decoding.num_beams) == (20, 1)
    assert (found["full"].decoding.max_new_tokens, found["full"].decoding.num_beams) == (128, 4)
    assert SummarizationTask(num_beams=2).convention == "128 tokens, 2 beams"
    same = SummarizationTask(generation="full", max_new_tokens=20, num_beams=1)
    assert same.convention == "card"


def test_the_tokenizer_of_rouge_is_a_convention():
    made = SummarizationTask(rouge_tokenizer="unicode")
    assert made.convention == "full, unicode tokenizer"


@pytest.mark.parametrize(
    ("tokenizer", "rouge", "wordless", "said"),
    [
        ("rouge_score", 0.0, 3, "3 (60.0%) have no token, so that their ROUGE is 0"),
        ("unicode", 1.0, 0, None),
    ],
)
def test_summaries_in_another_script(
    tmp_path, monkeypatch, caplog, tokenizer, rouge, wordless, said
):
    """What the references hold is looked at before a validation and before a test."""
    summaries = ["Анна купила торт.", "Она ушла в 8 утра.", "Anna"]
    for name, chosen in (("train", [0, 1, 2]), ("test", [0, 0, 0, 1, 2])):
        lines = [f"Чат {number},{summaries[which]}" for number, which in enumerate(chosen)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,summary", *lines]), encoding="utf-8")
    files = {f"{name}_file": str(tmp_path / f"{name}.csv") for name in ("train", "test")}
    dm = TextPairsDataModule(**files, val_file=files["train_file"], val_fraction=0)
    made = task("gpt2", method="none", rouge_tokenizer=tokenizer, samples=0, max_summary_length=60)
    monkeypatch.setattr(made, "_texts", lambda ids: [summaries[0]] * len(ids))
    trainer = plain_trainer(tmp_path)
    (validated,) = trainer.validate(made, dm, verbose=False)
    assert validated["val/n_without_tokens"] == (1 if said else 0)
    before = caplog.text
    assert ("references (val)" in before) == (said is not None)
    (found,) = trainer.test(made, dm, verbose=False)
    assert found["test/n_without_tokens"] == wordless
    assert made.predictions()["rouge1"][0] == rouge
    facts = made.facts()
    assert facts["rouge/tokenizer"] == tokenizer
    assert ("terminals of Unicode" in facts["rouge/splitter"]) == (said is None)
    last = caplog.text.removeprefix(before)
    if said is None:
        assert "references" not in last
        return
    assert said in last
    assert "Of 5 references (test)" in last
    assert "1 (20.0%) lose over half of their letters" in last
    assert "--model.rouge_tokenizer unicode" in last


def test_summaries_end_after_the_most_tokens_allowed(tmp_path):
    _, columns = scored(tmp_path, task(method="none", max_new_tokens=3))
    assert columns["n_tokens"].max() == 3
    long, _ = scored(tmp_path, task(method="none", max_length=20))
    assert long["test/n_truncated"] == 10


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_references_that_are_cut_are_counted_and_said(tmp_path, caplog, monkeypatch, kind):
    monkeypatch.setattr(logging.getLogger("smolbench"), "propagate", True)
    notices.begin()
    model = task(kind, max_summary_length=5)
    trainer = plain_trainer(tmp_path, max_epochs=1)
    trainer.fit(model, data(tmp_path))
    (metrics,) = trainer.test(model, data(tmp_path), verbose=False)
    assert metrics["test/n_references_cut"] == metrics["test/n"]
    assert model.facts()["data/n_train_references_cut"] == len(data(tmp_path).split("train"))
    assert "references (train) are longer than the 5 tokens" in caplog.text
    assert "learns to stop there" in caplog.text
    assert "references (test) are longer" in caplog.text


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "method"),
    [(kind, method) for kind in ("t5", "bart", "gpt2") for method in ("full", "lora")]
    + [("t5", "qlora"), ("llama", "qlora")],
)
def test_exactly_the_methods_weights_learn(tmp_path, kind, method):
    made = task(kind, method=method, lr=1e-2, rouge_examples=4, label_smoothing=0.1)
    made.configure_model()
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    trained = {name for name, p in made.named_parameters() if p.requires_grad}
    if method == "full":
        assert trained == before.keys()
    else:
        assert trained
        assert all("lora_" in name for name in trained)
    losses = []

    class Watch(Callback):
        def on_validation_epoch_end(self, trainer, module):
            if not trainer.sanity_checking:
                losses.append(float(trainer.callback_metrics["train/loss"]))
                assert not module.model.training

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            assert all(m.training for m in module.modules() if m is not module)

    plain_trainer(tmp_path, max_epochs=4, callbacks=[Watch()]).fit(made, data(tmp_path))
    changed = {n for n, p in made.named_parameters() if not torch.equal(p, before[n])}
    assert changed <= trained
    assert len(changed) > 0.8 * len(trained)
    assert losses[-1] < losses[0]


def test_the_validation_loss_is_a_mean_over_tokens_without_smoothing(tmp_path):
    made = task(method="full", label_smoothing=0.3)
    dm = data(tmp_path)
    (found,) = plain_trainer(tmp_path).validate(made, dm, verbose=False)
    batch = dm.val_dataloader().rows.batch(np.arange(9))
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        expected = made.model.eval()(**inputs).loss  # Lightning has switched dropout on again
    assert found["val/loss"] == pytest.approx(float(expected), rel=1e-5)
    assert found["val/n"] == 9


def test_a_fixed_part_of_the_validation_is_summarized_every_few_epochs(tmp_path):
    made = task(method="full", rouge_every=2, rouge_examples=5)
    written, seen = [], []
    write = made._write

    def watched(batch, decoding, *encoded):
        written.append((made.current_epoch, decoding.num_beams, batch["index"].tolist()))
        write(batch, decoding, *encoded)

    made._write = watched

    class Watch(Callback):
        def on_validation_end(self, trainer, module):
            if not trainer.sanity_checking:
                seen.append({k for k in trainer.callback_metrics if k.startswith("val/rouge")})

    plain_trainer(tmp_path, max_epochs=4, callbacks=[Watch()]).fit(made, data(tmp_path))
    assert {epoch for epoch, _, _ in written} == {1, 3}
    assert {beams for _, beams, _ in written} == {1}
    of_epoch = [
        sorted(row for epoch, _, rows in written if epoch == wanted for row in rows)
        for wanted in (1, 3)
    ]
    assert of_epoch[0] == of_epoch[1]
    assert len(set(of_epoch[0])) == 5
    assert [len(names) for names in seen] == [0, 5, 0, 5]  # never an earlier epoch's


class Gradients(Callback):
    """Of every step, without dropout."""

    def __init__(self):
        self.steps = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        module.eval()

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.steps.append({n: p.grad.clone() for n, p in module.named_parameters()})


def gradients(cache, kind, **options):
    looked = Gradients()
    accumulate = options.pop("accumulate", 1)
    trainer = plain_trainer(
        cache, max_epochs=1, callbacks=[looked], accumulate_grad_batches=accumulate
    )
    made = task(kind, max_summary_length=60, samples=0, rouge_examples=0, lr=1e-9)
    trainer.fit(made, data(cache, limit_val=1, **options))
    return looked.steps, trainer.train_dataloader


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_an_accumulated_step_is_that_of_one_large_batch(tmp_path, kind):
    """Each token weighs alike, although the small batches hold different numbers of them."""
    (expected,), _ = gradients(tmp_path, kind, limit_train=8, batch_size=8)
    (found,), loader = gradients(tmp_path, kind, limit_train=8, batch_size=2, accumulate=4)
    counts = [int((batch["labels"] != -100).sum()) for batch in loader]
    assert len(set(counts)) > 1
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6)


def test_the_last_step_of_an_epoch_is_the_mean_of_what_it_holds(tmp_path):
    """Of five batches the fifth is a step by itself, though four make one."""
    steps, loader = gradients(tmp_path, "t5", limit_train=10, batch_size=2, accumulate=4)
    assert len(steps) == 2
    last = list(loader)[-1]
    made = task("t5", max_summary_length=60)
    made.configure_model()
    made.eval().loss(last).backward()
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(steps[1][name], parameter.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_the_heaviest_batch_has_the_longest_documents_and_summaries(tmp_path, kind):
    made = task(kind, max_summary_length=60)
    trainer = plain_trainer(tmp_path, max_steps=1)
    trainer.fit(made, data(tmp_path))
    rows_ = trainer.train_dataloader.rows
    heavy = rows_.heaviest(4)
    every = [rows_.batch(np.array([row])) for row in range(16)]
    summaries = sorted((int((one["labels"] != -100).sum()) for one in every), reverse=True)
    documents = sorted((len(ids) for ids in rows_.table.ragged["input_ids"]), reverse=True)
    assert sorted((heavy["labels"] != -100).sum(1).tolist(), reverse=True) == summaries[:4]
    read = heavy["attention_mask"].sum(1)
    if kind == "gpt2":
        read = read - (heavy["labels"] != -100).sum(1)
        known = heavy["labels"] != -100
        assert torch.equal(heavy["input_ids"][known], heavy["labels"][known])
    assert read.tolist() == documents[:4]
    assert made.loss(heavy).isfinite()


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"r": 4}, "model.r is for the method lora or qlora"),
        ({"method": "none", "label_smoothing": 0.1}, "model.label_smoothing is for the method"),
        ({"label_smoothing": 1.0}, r"must be in \[0, 1\)"),
        ({"max_new_tokens": 0}, "model.max_new_tokens must be at least 1"),
        ({"num_beams": 0}, "model.num_beams must be at least 1"),
        ({"rouge_every": 0}, "model.rouge_every must be at least 1"),
        ({"max_summary_length": 1}, "model.max_summary_length must be at least 2"),
    ],
)
def test_impossible_options_are_refused(options, words):
    with pytest.raises(SmolbenchError, match=words):
        SummarizationTask(**options)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("gpt2", {"max_length": 500}, "positions for 512 tokens only, of which a summary of up to"),
        ("gpt2", {"max_new_tokens": 600}, "no room for a summary of 600"),
        ("bart", {"max_length": 129}, "max_length is 129, .* positions for 128 tokens only"),
        ("t5", {"max_length": 3}, "the template alone takes"),
        ("t5", {"template": "no slot"}, "must hold {text} exactly once"),
    ],
)
def test_what_does_not_fit_is_one_sentence(kind, options, words):
    with pytest.raises(SmolbenchError, match=words):
        task(kind, **options).configure_model()


def test_a_causal_models_documents_get_what_the_summary_leaves():
    made = SummarizationTask(backbone=tiny_summarizer("gpt2"), max_new_tokens=100)
    assert made.max_length == 512 - 128  # what is learned from is longer than what is written
    assert SummarizationTask(backbone=tiny_summarizer("t5")).max_length == 512


def test_half_precision_that_overflows_is_refused(tmp_path):
    made = task("t5")
    made._trainer = plain_trainer(tmp_path)
    made._trainer.__class__ = type("Half", (type(made._trainer),), {"precision": "16-mixed"})
    with pytest.raises(SmolbenchError, match="exceed what float16 holds"):
        made.configure_model()


def test_weights_spread_over_processes_are_refused():
    made = task("t5")
    made._trainer = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(SmolbenchError, match="use the strategy ddp instead of fsdp"):
        made.configure_callbacks()


def test_data_of_another_kind_is_refused(tmp_path):
    with pytest.raises(SmolbenchError, match="summarization examples, but IMDbDataModule has"):
        plain_trainer(tmp_path).test(
            task(), IMDbDataModule(source="sample", cache_dir=str(tmp_path)), verbose=False
        )


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["fit", *FIT, "--model.method=none"], "there is nothing to train"),
        (["test", *TEST], "There is no run with a best checkpoint"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(capsys, folder_here, command, words):
    assert main(command) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said, said
    assert "Traceback" not in said


# -- the whole way, on the command line -----------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_fit_and_test_from_the_run_folder(capsys, folder_here, method):
    run = [*FIT, f"--model.method={method}", "--run_dir=run"]
    assert main(["fit", *run]) == 0
    fitted, saved = results(Path("run")), weights(Path("run"), "best")
    assert sum(value.numel() for value in saved.values()) == fitted["model/trainable_params"]
    samples = json.loads(Path("run/samples.json").read_text())
    assert [set(sample) for sample in samples] == [{"document", "reference", "before", "after"}] * 3
    assert all(sample["before"] is not None and sample["after"] is None for sample in samples)
    capsys.readouterr()
    assert main(["test", "--run_dir=run"]) == 0
    shown = capsys.readouterr().err
    for label in ("ROUGE-Lsum", "cut off", "before training", "after training", "reference"):
        assert label in shown
    found = results(Path("run"))
    assert found["test/n"] == 10
    assert found["convention"] == "8 tokens, 2 beams"
    assert found["data/n_dropped_empty"] == 1
    assert found["test/rouge1_low"] <= found["test/rouge1"] <= found["test/rouge1_high"]
    assert found["cost/test_latency_n"] == 4
    assert found["rouge/splitter"].startswith("regex")
    assert (found["rouge/tokenizer"], found["test/n_without_tokens"]) == ("rouge_score", 0)
    after = json.loads(Path("run/samples.json").read_text())
    assert [{**sample, "after": None} for sample in after] == samples
    table = pq.read_table("run/predictions.parquet").to_pydict()
    for sample in after:
        (row,) = (n for n, text in enumerate(table["reference"]) if text == sample["reference"])
        assert table["summary"][row] == sample["after"]
    made = SummarizationTask.load_from_checkpoint("run/checkpoints/best.ckpt", map_location="cpu")
    for name, value in saved.items():
        assert torch.equal(made.state_dict()[name], value), name


def test_the_untrained_model_is_scored_and_shown(capsys, folder_here):
    unicode = "--model.rouge_tokenizer=unicode"
    assert main(["test", *TEST, "--ckpt_path=none", "--run_dir=run", unicode]) == 0
    assert results(Path("run"))["convention"] == "8 tokens, 2 beams, unicode tokenizer"
    samples = json.loads(Path("run/samples.json").read_text())
    assert all(sample["before"] is not None and sample["after"] is None for sample in samples)
    assert "after training" not in capsys.readouterr().err


def test_texts_are_summarized(capsys, folder_here):
    text = "Tom: Shall we go to the gym tonight?\nAnn: Sure!"
    run = ["predict", *TEST, "--ckpt_path=none"]
    assert main([*run, f"--text={text}", "--text=Ann: Hi"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    summary, said = first.split("\t")
    assert said == text.replace("\n", " ")
    assert second.endswith("\tAnn: Hi")
    assert main(["fit", *FIT, "--run_dir=run"]) == 0
    beside = ["predict", "--run_dir=run", "--before=none"]
    assert main([*beside, f"--text={text}", "--output=a.jsonl"]) == 0
    (row,) = (json.loads(line) for line in Path("a.jsonl").read_text().splitlines())
    assert list(row) == ["text", "summary_before", "summary"]
    assert " ".join(row["summary_before"].split()) == summary
    assert row["summary"] != row["summary_before"]


def test_a_label_and_a_summary_do_not_stand_side_by_side(capsys, folder_here, monkeypatch):
    """That is found out before either of the two is loaded."""
    assert main(["fit", *FEW, ONE_EPOCH, "--run_dir=probe"]) == 0
    assert main(["fit", *FIT, "--run_dir=run"]) == 0
    for kind in (ProbeTask, SummarizationTask):
        monkeypatch.setattr(kind, "build_model", lambda self: pytest.fail("a model is loaded"))
    for model in ([*TEST, "--ckpt_path=none"], ["--run_dir=run"]):
        capsys.readouterr()
        assert main(["predict", *model, "--before=probe", "--text=Ann: Hi"]) == 2
        assert "labels texts and the other summarizes them" in capsys.readouterr().err


def test_a_sample_says_if_it_was_written_otherwise_before(tmp_path):
    made = task(max_new_tokens=8, num_beams=1)
    trainer = plain_trainer(tmp_path, max_steps=1)
    trainer.fit(made, data(tmp_path))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    for num_beams, expected in ((1, {None}), (2, {"8 tokens, 1 beams"})):
        other = task(max_new_tokens=8, num_beams=num_beams, rouge_tokenizer="unicode")
        plain_trainer(tmp_path).test(
            other, data(tmp_path), ckpt_path=str(tmp_path / "a.ckpt"), verbose=False
        )
        samples = other.samples()
        assert {sample.get("before_convention") for sample in samples} == expected
        assert all(sample["after"] is not None for sample in samples)
        assert [s["before"] for s in samples] == [s["before"] for s in made.samples()]


def test_settings_of_the_models_own_are_in_the_results(tmp_path):
    folder = tmp_path / "bart"
    shutil.copytree(tiny_summarizer("bart"), folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {"no_repeat_ngram_size": 3, "length_penalty": 2.0}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    made = SummarizationTask(backbone=str(folder), method="none", max_length=100, num_beams=2)
    made.configure_model()
    facts = made.facts()
    found = {name: facts[name] for name in facts if name.startswith("generation/")}
    assert found == {
        "generation/max_new_tokens": 128,
        "generation/num_beams": 2,
        "generation/no_repeat_ngram_size": 3,
        "generation/length_penalty": 2.0,
        "generation/forced_eos_token_id": 2,
    }


@pytest.mark.parametrize(
    ("hook", "n"),
    [("on_train_batch_start", 4), ("on_train_batch_end", 9), ("on_validation_batch_start", 2)],
)
def test_a_killed_run_ends_like_one_that_never_was(undisturbed, folder_here, hook, n):
    run = ["fit", *LONG, "--run_dir=run"]
    die(run, hook, n)
    before = json.loads(Path("run/samples.json").read_text())
    assert main([*run, "--ckpt_path=last"]) == 0
    assert_equal_runs(undisturbed, Path("run"))
    assert json.loads(Path("run/samples.json").read_text()) == before
    assert before == json.loads((undisturbed / "samples.json").read_text())


LONG = [
    *FIT[:-2],
    "--trainer.max_epochs=3",
    "--trainer.log_every_n_steps=1",
    "--model.rouge_every=2",
    "--checkpoint.every_minutes=1e-6",
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", *LONG, "--run_dir=run"]) == 0
    validations = [row for row in rows(folder / "run") if row["val/loss"]]
    assert [bool(row["val/rouge1"]) for row in validations] == [False, True, False]
    return folder / "run"
