"""A task object that is given another DataModule keeps nothing of the first one's."""

from __future__ import annotations

import pytest
import torch

from smolbench.data import (
    AGNewsDataModule,
    HellaSwagDataModule,
    IMDbDataModule,
    SAMSumDataModule,
    Sentiment140DataModule,
)
from smolbench.errors import SmolbenchError
from smolbench.tasks import (
    ClassicalTask,
    DistillationTask,
    FineTuneTask,
    MultipleChoiceTask,
    NeuralBaselineTask,
    ProbeTask,
    PromptTask,
    SummarizationTask,
    SummaryDistillationTask,
)
from tests.helpers.tiny import tiny_language_model, tiny_summarizer
from tests.helpers.training import plain_trainer


def made(name: str):
    """A task by its name, always with the same weights."""
    torch.manual_seed(0)
    small = {"backbone": tiny_language_model("llama"), "dtype": "float32", "max_length": 120}
    words = {"neg": "bad", "pos": "good"}
    short = {"max_length": 40, "max_summary_length": 8}
    return {
        "student": lambda: DistillationTask(**small, teacher="tiny", method="full"),
        "writing student": lambda: SummaryDistillationTask(
            backbone=tiny_summarizer("gpt2"),
            teacher=str(tiny_summarizer("gpt2", seed=1)),
            **short,
            method="full",
            rouge_examples=0,
        ),
        "probe": lambda: ProbeTask(**small, head="linear"),
        "full": lambda: FineTuneTask(**small, method="full"),
        "words": lambda: NeuralBaselineTask(network="cnn", embedding_dim=6, filters=6),
        "classical": lambda: ClassicalTask(),
        "prompt": lambda: PromptTask(**small, label_words=words, num_shots=1),
        "endings": lambda: MultipleChoiceTask(**small, num_fewshot=1),
        "summaries": lambda: SummarizationTask(
            **{**small, "max_length": 40}, method="full", rouge_examples=0, max_summary_length=8
        ),
    }[name]()


def run(task, data, folder):
    trainer = plain_trainer(folder, max_epochs=1)
    if isinstance(task, (PromptTask, MultipleChoiceTask)):
        trainer.test(task, data, verbose=False)
    else:
        trainer.fit(task, data)


def few(kind, folder, **options):
    options = {"limit_train": 16, "limit_val": 4, "limit_test": 4, "batch_size": 8, **options}
    return kind(source="sample", cache_dir=str(folder / "cache"), **options)


@pytest.mark.parametrize("name", ["probe", "full", "words", "classical"])
def test_other_classes_are_refused(tmp_path, name):
    task = made(name)
    run(task, few(IMDbDataModule, tmp_path), tmp_path)
    with pytest.raises(SmolbenchError, match=r"is for the classes neg, pos.*make a new one"):
        run(task, few(AGNewsDataModule, tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("words", Sentiment140DataModule, "has the vocabulary of other training rows"),
        ("prompt", Sentiment140DataModule, "has examples in its prompt of other training rows"),
        ("endings", HellaSwagDataModule, "has solved examples of other training rows"),
    ],
)
def test_what_was_drawn_from_other_rows_is_refused(tmp_path, name, kind, said):
    task = made(name)
    other = IMDbDataModule if kind is Sentiment140DataModule else HellaSwagDataModule
    run(task, few(other, tmp_path), tmp_path)
    run(task, few(other, tmp_path), tmp_path)  # the same rows may come again
    with pytest.raises(SmolbenchError, match=said):
        run(task, few(kind, tmp_path, limit_train=12), tmp_path)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("probe", IMDbDataModule, Sentiment140DataModule),
        ("full", IMDbDataModule, Sentiment140DataModule),
        ("classical", IMDbDataModule, Sentiment140DataModule),
        ("summaries", SAMSumDataModule, SAMSumDataModule),
    ],
)
def test_a_task_scores_the_second_data_as_a_new_one_does(tmp_path, name, first, second):
    """With the weights of the first training, which a second one goes on with."""
    task, options = made(name), {"limit_test": 6}
    run(task, few(first, tmp_path), tmp_path)
    fresh = made(name)
    run(fresh, few(second, tmp_path, **options), tmp_path)
    if name == "classical":  # it is fitted anew
        run(task, few(second, tmp_path, **options), tmp_path)
    else:
        fresh.load_state_dict(task.state_dict())
    scores = [
        plain_trainer(tmp_path).test(one, few(second, tmp_path, **options), verbose=False)[0]
        for one in (task, fresh)
    ]
    assert scores[0] == scores[1]
    assert scores[0]["test/n"] == 6


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("student", IMDbDataModule, Sentiment140DataModule),
        ("writing student", SAMSumDataModule, SAMSumDataModule),
    ],
)
def test_a_student_learns_from_the_second_data_as_a_new_one_does(tmp_path, name, first, second):
    """Also what its teacher says: a built-in one is fitted to the rows that it teaches."""
    task, fresh = made(name), made(name)
    run(task, few(first, tmp_path), tmp_path)
    if name == "student":
        fresh.label_names = task.label_names
    fresh.configure_model()
    fresh.load_state_dict(task.state_dict())
    for one in (task, fresh):
        torch.manual_seed(1)
        run(one, few(second, tmp_path, limit_train=12), tmp_path)
    again = fresh.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in task.state_dict().items())
    told = [{k: v for k, v in one.facts().items() if "teacher" in k} for one in (task, fresh)]
    assert told[0] == told[1]
