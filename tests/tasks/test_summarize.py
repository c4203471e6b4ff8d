"""Summarization: training, scores, samples, and the whole way on the command line."""

from __future__ import annotations

import json
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
from smolbench.data import IMDbDataModule, SAMSumDataModule
from smolbench.errors import SmolbenchError
from smolbench.metrics.rouge import sentences
from smolbench.tasks import SummarizationTask
from smolbench.tasks.pending import PendingRows
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


def test_summaries_end_after_the_most_tokens_allowed(tmp_path):
    _, columns = scored(tmp_path, task(method="none", max_new_tokens=3))
    assert columns["n_tokens"].max() == 3
    long, _ = scored(tmp_path, task(method="none", max_length=20))
    assert long["test/n_truncated"] == 10


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
    generated = made._generated

    def watched(batch, decoding, *encoded):
        if "index" in batch:
            written.append((made.current_epoch, decoding.num_beams, batch["index"].tolist()))
        return generated(batch, decoding, *encoded)

    made._generated = watched

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


def test_rows_wait_until_they_fill_a_batch():
    pending = PendingRows()
    first = {
        "input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]]),
        "labels": torch.tensor([[7, -100], [8, 9]]),
        "index": torch.tensor([5, 2]),
    }
    second = {
        "input_ids": torch.tensor([[1, 2]]),
        "labels": torch.tensor([[3]]),
        "index": torch.tensor([4]),
    }
    pending.add(first, torch.tensor([False, True]))
    assert pending.take(2) is None
    pending.add(second, torch.tensor([True]))
    found = pending.take(2)
    assert found["input_ids"].tolist() == [[4, 5, 6], [1, 2, 0]]
    assert found["labels"].tolist() == [[8, 9], [3, -100]]
    assert found["index"].tolist() == [2, 4]
    assert pending.take(1) is None


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
    shown = capsys.readouterr().out
    for label in ("ROUGE-Lsum", "cut off", "before training", "after training", "reference"):
        assert label in shown
    found = results(Path("run"))
    assert found["test/n"] == 10
    assert found["convention"] == "8 tokens, 2 beams"
    assert found["data/n_dropped_empty"] == 1
    assert found["test/rouge1_low"] <= found["test/rouge1"] <= found["test/rouge1_high"]
    assert found["cost/test_latency_n"] == 4
    assert found["rouge/splitter"].startswith("regex")
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
    assert main(["test", *TEST, "--ckpt_path=none", "--run_dir=run"]) == 0
    samples = json.loads(Path("run/samples.json").read_text())
    assert all(sample["before"] is not None and sample["after"] is None for sample in samples)
    assert "after training" not in capsys.readouterr().out


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


def test_a_label_and_a_summary_do_not_stand_side_by_side(capsys, folder_here):
    assert main(["fit", *FEW, ONE_EPOCH, "--run_dir=probe"]) == 0
    assert main(["predict", *TEST, "--ckpt_path=none", "--before=probe", "--text=Ann: Hi"]) == 2
    assert "labels texts and the other summarizes them" in capsys.readouterr().err


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
