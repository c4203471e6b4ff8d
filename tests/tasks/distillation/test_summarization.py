"""A student that learns summaries token by token from a teacher in the loop."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from smolbench.cli import main
from smolbench.data import SAMSumDataModule
from smolbench.errors import SmolbenchError
from smolbench.tasks import SummarizationTask, SummaryDistillationTask
from smolbench.tasks.distillation import summarization as distill_summaries
from tests.helpers.command import assert_equal_runs, results, weights
from tests.helpers.kill import die
from tests.helpers.tiny import tiny_summarizer
from tests.helpers.training import plain_trainer

RUN = [
    "--config=tiny",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--trainer.max_epochs=1",
    "--data.limit_train=16",
    "--data.limit_val=6",
    "--data.limit_test=5",
    "--data.batch_size=4",
    "--model.rouge_examples=0",
    "--model.samples=0",
    "--model.max_new_tokens=8",
    "--model.warmup_steps=0",
    "--model.dtype=float32",
]
TEACHER = ["--config=samsum_card_flan-t5-base", *RUN]
STUDENT = ["--config=samsum_distill_flan-t5-small", *RUN]


def data(cache, **options):
    options = {"limit_train": 12, "limit_val": 4, "batch_size": 4, **options}
    return SAMSumDataModule(source="sample", cache_dir=str(cache), **options)


def student(kind="t5", teacher=None, **options):
    options = {"dtype": "float32", "max_new_tokens": 8, "max_summary_length": 16, **options}
    options = {"max_length": 100, "samples": 0, "rouge_examples": 0, **options}
    named = str(teacher or tiny_summarizer(kind, seed=1))
    return SummaryDistillationTask(teacher=named, backbone=tiny_summarizer(kind), **options)


def fitted(cache, task, *, max_steps=2, **options):
    trainer = plain_trainer(cache, max_steps=max_steps, **options)
    trainer.fit(task, data(cache))
    return task


def by_hand(kind, batch, options):
    """The loss as a plain loop over rows has it, by transformers alone and in float64."""
    loader = AutoModelForCausalLM if kind == "gpt2" else AutoModelForSeq2SeqLM
    networks = [loader.from_pretrained(tiny_summarizer(kind, seed)).eval() for seed in (0, 1)]
    alpha, t = options["alpha"], options["temperature"]
    soft = hard = n = 0
    for row in range(len(batch["labels"])):
        real = batch["attention_mask"][row].bool()
        labels = batch["labels"][row]
        inputs = {"input_ids": batch["input_ids"][row][real][None]}
        if kind == "gpt2":
            places = (labels != -100).nonzero().flatten() - 1
        else:
            inputs["labels"] = labels[labels != -100][None]
            places = torch.arange((labels != -100).sum())
        with torch.no_grad():
            ours, theirs = (network(**inputs).logits[0, places].double() for network in networks)
        true = labels[labels != -100]
        p, log_q = (theirs / t).softmax(-1), (ours / t).log_softmax(-1)
        soft += float((p * (p.log() - log_q)).sum())
        smoothed = options.get("label_smoothing", 0.0)
        logs = ours.log_softmax(-1)
        hard -= float((1 - smoothed) * logs[range(len(true)), true].sum())
        hard -= float(smoothed * logs.mean(-1).sum())
        n += len(true)
    return (alpha * t**2 * soft + (1 - alpha) * hard) / n


@pytest.mark.parametrize("kind", ["t5", "bart", "gpt2"])
@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.5, "temperature": 2.0},
        {"alpha": 0.9, "temperature": 0.7, "label_smoothing": 0.1},
        {"alpha": 0.0, "temperature": 4.0},
        {"alpha": 1.0, "temperature": 1.0},
    ],
)
def test_the_loss_is_the_formula_at_every_token(tmp_path, kind, options):
    task, found = student(kind, **options), []

    class Look(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            module.eval()
            found.append((module.loss(batch).item(), by_hand(kind, batch, options)))
            module.train()

    fitted(tmp_path, task, max_steps=1, callbacks=[Look()])
    ((loss, expected),) = found
    assert loss == pytest.approx(expected, rel=2e-5)


def test_how_far_the_teacher_agrees_with_the_references_is_told(tmp_path, caplog):
    task, right = student("t5", teacher=tiny_summarizer("t5", seed=1)), []

    class Look(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            taught = module.teacher.start(module.device).logits(batch)
            right.append(taught.argmax(1) == batch["labels"][batch["labels"] != -100])

    fitted(tmp_path, task, max_steps=2, callbacks=[Look()])
    said = torch.cat(right)
    assert task.facts()["teacher/agreement"] == pytest.approx(float(said.float().mean()))
    assert task.facts()["teacher/agreement_n"] == len(said)
    assert "may have nothing to teach" in caplog.text


def test_a_teacher_at_chance_is_refused_unless_a_training_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(distill_summaries, "_COMPARED", 60)
    with pytest.raises(
        SmolbenchError, match=r"hardly more than their commonest token .* nothing to"
    ):
        fitted(tmp_path, student("t5"))
    monkeypatch.setattr(distill_summaries, "_NOTICEABLE", -1e3)  # as if it were a good one
    folder = tmp_path / "first"
    trainer = plain_trainer(folder, max_steps=1)
    trainer.fit(student("t5"), data(tmp_path))
    trainer.save_checkpoint(folder / "last.ckpt")
    assert "may have nothing to teach" not in caplog.text
    monkeypatch.setattr(distill_summaries, "_NOTICEABLE", 2.0)
    trainer = plain_trainer(folder, max_steps=3)
    trainer.fit(student("t5"), data(tmp_path), ckpt_path=folder / "last.ckpt")
    assert "hardly more than their commonest token" in caplog.text


def test_without_a_share_of_the_teacher_it_is_the_plain_training(tmp_path):
    task = fitted(tmp_path, student(alpha=0.0, lr=1e-2), max_steps=3)
    torch.manual_seed(0)
    plain = SummarizationTask(
        backbone=tiny_summarizer("t5"),
        **{name: task.hparams[name] for name in ("max_length", "max_summary_length", "lr")},
        dtype="float32",
        max_new_tokens=8,
        samples=0,
        rouge_examples=0,
    )
    both = []
    for one in (student(alpha=0.0, lr=1e-2), plain):
        torch.manual_seed(0)
        both.append(fitted(tmp_path, one, max_steps=3).state_dict())
    for name, value in both[1].items():
        torch.testing.assert_close(both[0][name], value, rtol=1e-4, atol=1e-5)


def test_the_teacher_is_frozen_and_no_part_of_the_student(tmp_path):
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            network = module._lecturer._task
            assert not any(one.training for one in network.modules())
            assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
            assert network not in list(module.modules())
            seen.append({name: p.clone() for name, p in network.model.state_dict().items()})

    task = fitted(tmp_path, student(method="lora", lr=1e-1), callbacks=[Look()])
    expected = AutoModelForSeq2SeqLM.from_pretrained(tiny_summarizer("t5", seed=1)).state_dict()
    for state in seen:
        assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert task._lecturer is None
    alone = SummarizationTask(method="lora", backbone=tiny_summarizer("t5"), max_length=100)
    alone.configure_model()
    assert set(task.state_dict()) == set(alone.state_dict())
    task.trainer.save_checkpoint(tmp_path / "student.ckpt")
    saved = torch.load(tmp_path / "student.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == alone.trained_names()


def test_tables_wider_than_the_vocabulary_are_compared_as_far_as_both_go(tmp_path):
    wide = tmp_path / "wide"
    shutil.copytree(tiny_summarizer("t5", seed=1), wide)
    model = AutoModelForSeq2SeqLM.from_pretrained(wide)
    model.resize_token_embeddings(model.config.vocab_size + 28, mean_resizing=False)
    model.save_pretrained(wide)
    losses = []
    for teacher in (None, wide):
        torch.manual_seed(0)
        task = student(teacher=teacher, lr=1e-2)
        fitted(tmp_path, task)
        losses.append(float(task.trainer.callback_metrics["train/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "teacher", "options", "words"),
    [
        ("t5", "tiny-t5", {}, "has another vocabulary"),
        ("t5", tiny_summarizer("gpt2"), {}, "is a causal one and the student .* encoder-decoder"),
        ("t5", "nobody/nothing", {}, "tried in vain"),
    ],
    # a folder made here is another one in each of pytest-xdist's workers
    ids=["other vocabulary", "other kind", "unknown"],
)
def test_a_teacher_that_cannot_be_followed_is_refused(tmp_path, kind, teacher, options, words):
    with pytest.raises(SmolbenchError, match=words):
        fitted(tmp_path, student(kind, teacher, **options))


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(SmolbenchError, match=r"model\.teacher is missing"):
        SummaryDistillationTask()
    with pytest.raises(SmolbenchError, match=r"model\.alpha must be in"):
        SummaryDistillationTask(teacher="x", alpha=1.1)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", *TEACHER, "--seed_everything=3", "--run_dir=teacher"]) == 0
    return folder


def test_a_student_of_a_run_is_killed_resumed_and_scored_alone(capsys, home, folder_here):
    shutil.copytree(home / "teacher", "teacher")
    run = ["fit", *STUDENT, "--model.teacher=teacher", "--trainer.max_epochs=2"]
    run += ["--checkpoint.every_minutes=1e-6"]
    assert main([*run, "--run_dir=whole"]) == 0
    for hook, n in (("on_train_batch_start", 3), ("on_train_batch_end", 6)):
        die([*run, f"--run_dir={hook}"], hook, n)
        assert main([*run, f"--run_dir={hook}", "--ckpt_path=last"]) == 0
        assert_equal_runs(Path("whole"), Path(hook))
    found = results(Path("whole"))
    assert found["method"] == "distill_full"
    assert found["teacher/run"] == str(folder_here / "teacher")
    assert found["teacher/same_rows"] is True
    taught = weights(Path("teacher"), "best")
    assert taught.keys() == weights(Path("whole"), "best").keys()
    shutil.rmtree("teacher")
    assert main(["test", "--run_dir=whole"]) == 0
    assert results(Path("whole"))["test/n"] == 5
    capsys.readouterr()
    assert main([*run, "--run_dir=whole", "--ckpt_path=last", "--trainer.max_epochs=3"]) == 2
    assert "model.teacher 'teacher' is no run's folder" in capsys.readouterr().err


def test_a_run_teaches_by_what_it_has_learned(home, folder_here):
    """Not by the weights that it began with, and whatever method has trained it."""
    run = [*TEACHER, "--model.method=lora", "--model.lr=1e-1", "--run_dir=lora"]
    assert main(["fit", *run]) == 0
    for teacher in (home / "teacher", Path("lora")):
        task = SummaryDistillationTask(
            teacher=str(teacher), backbone="tiny-t5", max_length=256, dtype="float32", samples=0
        )
        batches = []

        class Look(Callback):
            def on_train_batch_start(self, trainer, module, batch, batch_idx, kept=batches):
                kept.append((batch, module._lecturer.logits(batch)))

        module = SAMSumDataModule(source="sample", limit_train=8, limit_val=4, batch_size=4)
        trainer = plain_trainer(folder_here, max_steps=1, callbacks=[Look()])
        trainer.fit(task, module)
        ((batch, logits),) = batches
        made = SummarizationTask.load_from_checkpoint(teacher / "checkpoints" / "best.ckpt").eval()
        with torch.no_grad():
            names = ("input_ids", "attention_mask", "labels")
            expected = made.model(**{name: batch[name] for name in names}).logits
        torch.testing.assert_close(logits, expected[batch["labels"] != -100], rtol=1e-4, atol=1e-4)


def test_a_run_of_another_template_or_task_is_refused(capsys, home, folder_here):
    named = f"--model.teacher={home / 'teacher'}"
    assert main(["fit", *STUDENT, named, "--model.template=Sum up {text}"]) == 2
    assert "give the student the same model.template" in " ".join(capsys.readouterr().err.split())
    labels = ["--config=imdb_gpt2", *RUN[:9], "--model.max_length=32", "--run_dir=labels"]
    assert main(["fit", *labels]) == 0
    assert main(["fit", *STUDENT, "--model.teacher=labels"]) == 2
    assert "FineTuneTask, which cannot teach" in " ".join(capsys.readouterr().err.split())
