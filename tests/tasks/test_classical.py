from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import f1_score, recall_score
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline

from smolbench.cli import main
from smolbench.data import AGNewsDataModule, IMDbDataModule
from smolbench.errors import SmolbenchError
from smolbench.tasks import ClassicalTask
from tests.helpers.command import QUIET
from tests.helpers.training import plain_trainer

RUN = ["--config=imdb_naive_bayes", "--config=tiny", "--trainer.accelerator=cpu"]
RUN += ["--trainer.enable_progress_bar=false", "--data.limit_test=60"]


def results(folder):
    (file,) = folder.rglob("results.json")
    return json.loads(file.read_text())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fit_equals_scikit_learn(tmp_path, workers):
    data = IMDbDataModule(source="sample", val_fraction=0.2, limit_test=50, num_workers=workers)
    task = ClassicalTask(classifier="naive_bayes")
    trainer = plain_trainer(tmp_path, max_epochs=1)
    trainer.fit(task, data)
    assert "val/accuracy" in trainer.callback_metrics
    (metrics,) = trainer.test(task, data, verbose=False)
    train, test = data.split("train"), data.split("test")
    plain = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True), MultinomialNB()
    ).fit(train.examples["text"][:], train.labels)
    found = task.predictions()
    texts = test.examples["text"][:]
    assert found["prediction"].tolist() == plain.predict(texts).tolist()
    assert found["score_pos"] == pytest.approx(plain.predict_proba(texts)[:, 1], abs=1e-5)
    assert metrics["test/accuracy"] == pytest.approx(plain.score(texts, test.labels))
    assert trainer.global_step == 1


def test_any_number_of_classes(tmp_path):
    data = AGNewsDataModule(source="sample")
    task = ClassicalTask()
    trainer = plain_trainer(tmp_path, max_epochs=1)
    trainer.fit(task, data)
    (metrics,) = trainer.test(task, data, verbose=False)
    assert metrics["test/accuracy"] > 0.5
    assert metrics["test/auroc"] > 0.7


def test_margins_are_no_probabilities(tmp_path):
    data = IMDbDataModule(source="sample")
    task = ClassicalTask(classifier="linear_svm")
    trainer = plain_trainer(tmp_path, max_epochs=1)
    trainer.fit(task, data)
    assert "val/accuracy" in trainer.callback_metrics
    assert "val/loss" not in trainer.callback_metrics
    (metrics,) = trainer.test(task, data, verbose=False)
    assert metrics["test/auroc"] > 0.8
    assert not {"test/loss", "test/ece", "test/brier"} & set(metrics)
    rows = task.predictions()
    texts = data.split("test").examples["text"]
    margins = task.pipeline.decision_function([texts[row] for row in rows["index"]])
    assert rows["margin_pos"] == pytest.approx(margins, abs=1e-5)
    assert rows["margin_neg"] == pytest.approx(-margins, abs=1e-5)
    assert not [name for name in rows if name.startswith("score_")]


@pytest.mark.parametrize("options", [[], ["NeuralBaselineTask", "--model.embedding_dim=4"]])
def test_texts_without_a_word_that_is_known_are_counted(folder_here, capsys, options):
    nothing = ["\U0001f44d\U0001f3fd \U0001f389", "?!... :-)", "x", "unheard-of", "\u200b."]
    words = ["a good film", "a bad film", "the good one", "the bad one", "film film", "one one"]
    for name, texts in (("train", words * 4 + nothing[:2]), ("test", words[:3] + nothing)):
        rows = [f'"{text}",{"ny"[n % 2]}\n' for n, text in enumerate(texts)]
        (folder_here / f"{name}.csv").write_text("text,label\n" + "".join(rows), encoding="utf-8")
    task, *more = options or ["ClassicalTask"]
    files = [
        "--data=TextFilesDataModule",
        "--data.train_file=train.csv",
        "--data.test_file=test.csv",
    ]
    run = ["--run_dir=run", "--latency.examples=0", *QUIET]
    fit = ["--trainer.max_epochs=1", "--data.val_fraction=0"]
    assert main(["fit", f"--model={task}", *more, *files, *fit, *run]) == 0
    said = results(folder_here)["warnings"]
    assert any("2 of 26 training texts have no word that the model knows" in x for x in said)
    assert main(["test", *run]) == 0
    said = results(folder_here)["warnings"]
    assert any("test: 5 of 8 test texts have no word" in line for line in said)
    capsys.readouterr()
    assert (
        main(["predict", "--run_dir=run", "--text=\U0001f44d", "--text=a good film", *QUIET]) == 0
    )
    assert "1 of 2 texts have no word that the model knows" in capsys.readouterr().err


def test_fit_test_and_predict_by_the_command_line(folder_here, capsys):
    assert main(["fit", *RUN]) == 0
    assert main(["test", *RUN]) == 0
    found = results(folder_here / "runs")
    assert found["method"] == "naive_bayes"
    assert found["model/trainable_params"] == found["model/total_params"] > 1000
    assert found["test/n"] == 60
    assert found["test/accuracy"] > 0.7
    assert found["cost/fit_s"] > 0
    assert found["cost/test_latency_n"] == 12
    assert found["cost/checkpoint_mib"] > 0
    (predictions,) = folder_here.rglob("predictions.parquet")
    assert pq.read_table(predictions).num_rows == 60
    capsys.readouterr()
    assert main(["predict", "--text=a warm and clever film", "--text=dull and silly"]) == 0
    labels = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()[-2:]]
    assert labels == ["pos", "neg"]


def fraud_files(folder):
    """One in six rows is of the class that is looked for, which is not the last by its name."""
    for name, n in (("train", 120), ("test", 60)):
        rows = [
            f"{'fraud' if i % 6 == 0 else 'legit'},"
            f"{'urgent wire gift' if i % 12 == 0 else 'invoice order thanks'} number {i % 7}\n"
            for i in range(n)
        ]
        (folder / f"{name}.csv").write_text("label,text\n" + "".join(rows))
    given = ["--config=text_files_probe", "--model=ClassicalTask", "--trainer.max_epochs=1"]
    files = [f"--data.{name}_file={folder}/{name}.csv" for name in ("train", "test")]
    return [*given, *files, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@pytest.mark.parametrize(
    ("positive", "headline"), [(None, "f1_macro"), ("fraud", "f1"), (" legit", "f1")]
)
def test_what_figures_are_of_which_class(folder_here, capfd, positive, headline):
    chosen = [] if positive is None else [f"--data.positive_label={positive}"]
    assert main(["fit", *fraud_files(folder_here), *chosen, "--run_dir=r"]) == 0
    fitted = results(folder_here)
    assert fitted["headline"] == headline
    assert fitted["best/epoch"] == 0
    assert main(["test", "--run_dir=r"]) == 0
    said = "".join(capfd.readouterr())
    found = results(folder_here)
    table = pq.read_table("r/predictions.parquet")
    truth, called = (np.array(table[name]) for name in ("label", "prediction"))
    assert found["headline"] == headline
    if positive is None:
        assert found["positive_label"] is None
        assert not {"test/precision", "test/recall", "test/f1", "test/specificity"} & set(found)
        assert " of 'legit'" not in said
    else:
        name = positive.strip()
        number = found["test/labels"].index(name)
        assert found["positive_label"] == name
        assert found["test/recall"] == recall_score(truth == number, called == number)
        assert found["test/f1"] == pytest.approx(f1_score(truth == number, called == number))
        assert f"test F1 of '{name}'" in said
        assert found["val/f1"] is not None
    assert found["test/f1_macro"] == pytest.approx(f1_score(truth, called, average="macro"))
    assert main(["runs", "--json", "--runs_dir=."]) == 0
    (listed,) = json.loads(capfd.readouterr().out)
    assert (listed["metric"], listed["value"]) == (headline, found[f"test/{headline}"])


def test_a_positive_class_that_is_none_is_a_sentence(folder_here, capfd):
    assert main(["fit", *fraud_files(folder_here), "--data.positive_label=Fraud"]) == 2
    assert "its classes are 'fraud', 'legit'" in capfd.readouterr().err


def test_there_is_nothing_to_go_on_with(folder_here, capsys):
    assert main(["fit", *RUN]) == 0
    assert main(["fit", *RUN, "--ckpt_path=last"]) == 2
    assert "there is nothing to go on with" in capsys.readouterr().err


def test_a_stopped_fit_says_to_repeat_it(folder_here, capsys):
    stop = ["--trainer.callbacks=tests.helpers.signals.SignalAt", "--trainer.callbacks.batch=0"]
    assert main(["fit", *RUN, *stop]) == 130
    said = " ".join(capsys.readouterr().err.split())
    assert "cannot be gone on with: repeat the command." in said
    assert "--ckpt_path" not in said
    assert results(folder_here)["resumable"] is False


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--trainer.max_epochs=2", "fitted in one step"),
        ("--model.min_df=999999", "No word of the training texts is left"),
    ],
)
def test_what_cannot_be_fitted_is_a_sentence(folder_here, capfd, option, sentence):
    assert main(["fit", *RUN, option]) == 2
    assert sentence in " ".join(capfd.readouterr().err.split())


def test_several_processes_are_refused():
    task = ClassicalTask()
    task._trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), world_size=2, max_epochs=1)
    with pytest.raises(SmolbenchError, match="is fitted by one process"):
        task.configure_callbacks()


def test_untrained_it_has_no_opinion(folder_here):
    assert main(["test", *RUN, "--ckpt_path=none"]) == 0
    assert results(folder_here)["test/predicted_share"] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"alpha": 0.1}, "is for naive_bayes"),
        ({"classifier": "naive_bayes", "inverse_penalty": 2.0}, "is for logistic_regression"),
        ({"classifier": "linear_svm", "n_estimators": 5}, "is for random_forest"),
        ({"inverse_penalty": 0.0}, "must be positive"),
        ({"max_ngram": 0}, "must be positive"),
    ],
)
def test_settings_that_contradict_each_other(options, sentence):
    with pytest.raises(SmolbenchError, match=sentence):
        ClassicalTask(**options)
