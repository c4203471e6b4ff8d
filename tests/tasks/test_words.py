from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import LightningDataModule, seed_everything

from smolbench.cli import main
from smolbench.data import AGNewsDataModule, IMDbDataModule, TextFilesDataModule
from smolbench.data.columns import column_values
from smolbench.errors import SmolbenchError
from smolbench.models.baselines.vocabulary import PAD_ID, UNKNOWN_ID, Vocabulary
from smolbench.tasks import NeuralBaselineTask
from smolbench.tasks import words as neural
from smolbench.utils.digest import file_digest
from tests.helpers.command import QUIET, results, weights
from tests.helpers.training import plain_trainer

NETWORKS = ["cnn", "lstm"]
SMALL = {"embedding_dim": 8, "lr": 1e-2, "max_length": 60}
RUN = [
    "--config=tiny",
    *QUIET,
    "--trainer.max_epochs=2",
    "--data.limit_train=200",
    "--data.limit_val=20",
    "--data.limit_test=40",
]


def task(network="cnn", **options):
    size = {"filters": 6} if network == "cnn" else {"hidden_size": 6}
    return NeuralBaselineTask(network=network, **{**SMALL, **size, **options})


def data(cache, kind=IMDbDataModule, **options):
    options = {"limit_train": 64, "limit_val": 8, "limit_test": 16, "batch_size": 16, **options}
    return kind(source="sample", cache_dir=str(cache), **options)


def trained(cache, network="cnn", epochs=1, **options):
    seed_everything(0)
    made = task(network, **options)
    trainer = plain_trainer(cache, max_epochs=epochs)
    trainer.fit(made, data(cache))
    return made, trainer


# -- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_are_the_words_numbers(tmp_path, side):
    made = task(truncation_side=side, max_length=3)
    made._vocabulary = Vocabulary(["a", "b"])
    rows = made.encode({"text": ["A b. c a!", "b", "..."]})["input_ids"]
    whole = [2, 3, UNKNOWN_ID, 2, UNKNOWN_ID]
    assert rows == [whole[:3] if side == "right" else whole[-3:], [3], [UNKNOWN_ID]]


def test_the_vocabulary_is_the_training_splits_and_is_counted_once(tmp_path, monkeypatch):
    made, trainer = trained(tmp_path, min_count=3, vocabulary_size=50)
    texts = column_values(trainer.datamodule.split("train").examples, "text")
    assert made.vocabulary.words == Vocabulary.of_texts(texts, 50, 3).words
    monkeypatch.setattr(Vocabulary, "of_texts", lambda *_: pytest.fail("counted again"))
    again, _ = trained(tmp_path, "lstm", min_count=3, vocabulary_size=50)
    assert again.vocabulary.words == made.vocabulary.words
    assert again.encoder_key() == made.encoder_key()  # and so they share encoded texts


def test_a_damaged_count_is_made_anew(tmp_path):
    made, _ = trained(tmp_path)
    (kept,) = (tmp_path / "vocabularies").iterdir()
    whole = kept.read_text()
    for damaged in (whole[:50], whole.replace('"words": "', '"words": "b'), "[]", '{"words": 1}'):
        kept.write_text(damaged)
        assert trained(tmp_path)[0].vocabulary.words == made.vocabulary.words
        assert kept.read_text() == whole


def test_other_texts_and_settings_have_other_vocabularies(tmp_path):
    keys = [trained(tmp_path, **options)[0].encoder_key() for options in ({}, {"min_count": 5})]
    made = task()
    plain_trainer(tmp_path, max_epochs=1).fit(made, data(tmp_path, AGNewsDataModule))
    keys += [made.encoder_key(), {**keys[0], "max_length": 1}]
    assert len({str(key) for key in keys}) == 4


def test_without_texts_there_is_no_vocabulary():
    made = task()
    with pytest.raises(SmolbenchError, match="takes its vocabulary from the training texts"):
        made.encode({"text": ["a"]})
    made._trainer = type("T", (), {"datamodule": LightningDataModule()})()
    with pytest.raises(SmolbenchError, match="of a smolbench DataModule or from a checkpoint"):
        made.encode({"text": ["a"]})


def test_another_encoder_is_refused(tmp_path):
    loader = data(tmp_path, encode=lambda examples: {"input_ids": [[1]] * len(examples["text"])})
    with pytest.raises(SmolbenchError, match="encodes examples itself"):
        plain_trainer(tmp_path, max_epochs=1).fit(task(), loader)


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_it_learns(tmp_path, network):
    seed_everything(0)
    made = task(network, max_length=250)
    trainer = plain_trainer(tmp_path, max_epochs=4)
    loader = data(tmp_path, limit_train=None, limit_test=None)
    trainer.fit(made, loader)
    (metrics,) = trainer.test(made, loader, verbose=False)
    assert metrics["test/accuracy"] > 0.7
    assert metrics["test/auroc"] > 0.75
    assert metrics["test/n"] == 200


@pytest.mark.parametrize("network", NETWORKS)
def test_any_number_of_classes_and_workers(tmp_path, network):
    made = task(network)
    trainer = plain_trainer(tmp_path, max_epochs=1)
    loader = data(tmp_path, AGNewsDataModule, num_workers=2)
    trainer.fit(made, loader)
    trainer.test(made, loader, verbose=False)
    columns = made.predictions()
    scores = np.stack([columns[f"score_{name}"] for name in loader.label_names], axis=1)
    assert scores.shape == (16, 4)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_what_trains(tmp_path, network):
    made, _ = trained(tmp_path, network)
    before = task(network)
    before._vocabulary, before.label_names = made.vocabulary, ["neg", "pos"]
    before.build_model()
    drawn = dict(before.named_parameters())
    for name, parameter in made.named_parameters():
        assert parameter.requires_grad, name
        assert not torch.equal(parameter, drawn[name]), name
    assert not made.network.embedding.weight[PAD_ID].any()
    assert made.trained_names() == set(drawn)


def test_weights_are_drawn_from_the_seed_alone(monkeypatch):
    drawn = []
    for seed in (0, 0, 1):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        torch.rand(seed + len(drawn))
        state = torch.random.get_rng_state()
        made = task(num_classes=2)
        made._vocabulary = Vocabulary(["a", "b"])
        made.configure_model()
        assert torch.equal(torch.random.get_rng_state(), state)
        drawn.append(made.network.embedding.weight)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("frozen", [False, True])
def test_pretrained_vectors_are_where_training_starts(tmp_path, frozen):
    path = tmp_path / "vectors.txt.gz"
    path.write_bytes(
        gzip.compress(b"the 1 2 3 4 5 6 7 8\nfilm 8 7 6 5 4 3 2 1\nxyz 0 0 0 0 0 0 0 0\n")
    )
    options = {"vectors": str(path), "freeze_vectors": frozen, "lr": 1e-3}
    made, trainer = trained(tmp_path, **options)
    number = made.vocabulary.encode("film")[0]
    expected = torch.tensor([8.0, 7, 6, 5, 4, 3, 2, 1])
    vector = made.network.embedding.weight[number]
    torch.testing.assert_close(vector, expected, rtol=0, atol=0.05)
    assert torch.equal(vector, expected) == frozen
    facts = made.facts()
    assert (facts["model/vectors"], facts["model/vectors_words"]) == ("vectors.txt.gz", 2)
    assert facts["model/vectors_digest"] == file_digest([tmp_path / "vectors.txt.gz"])
    embedding = made.network.embedding.weight.numel()
    assert facts["model/total_params"] - facts["model/trainable_params"] == embedding * frozen
    # a checkpoint holds the vectors: their file may be gone
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    path.unlink()
    again = NeuralBaselineTask.load_from_checkpoint(tmp_path / "saved.ckpt")
    assert torch.equal(again.network.embedding.weight[number], vector)


# -- checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_a_checkpoint_is_enough(tmp_path, network):
    made, trainer = trained(tmp_path, network)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    again = NeuralBaselineTask.load_from_checkpoint(tmp_path / "saved.ckpt")
    texts = ["A warm and clever film!", "dull", "", "zzz"]
    answers = [one.eval().start_answering()(texts) for one in (made, again)]
    assert torch.equal(*answers)
    one_by_one = torch.cat([again.start_answering()([text]) for text in texts])
    torch.testing.assert_close(one_by_one, answers[0], rtol=1e-5, atol=1e-6)


def test_a_checkpoint_of_other_words_is_refused(tmp_path):
    _, trainer = trained(tmp_path)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    other = task()
    with pytest.raises(SmolbenchError, match="trained with other settings: vocabulary was"):
        plain_trainer(tmp_path, max_epochs=2).fit(
            other, data(tmp_path, limit_train=40), ckpt_path=tmp_path / "saved.ckpt"
        )
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    for lines in (None, "other\nwords"):
        saved["smolbench"]["vocabulary"] = lines
        with pytest.raises(SmolbenchError, match="vocabulary in the checkpoint is damaged"):
            task().before_data(saved)


# -- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_fit_test_and_predict_by_the_command_line(folder_here, capsys, monkeypatch, network):
    run = [f"--config=imdb_{network}", *RUN]
    assert main(["fit", *run]) == 0
    monkeypatch.setattr(Vocabulary, "of_texts", lambda *_: pytest.fail("counted again"))
    monkeypatch.setenv("SMOLBENCH_CACHE", str(folder_here / "nothing"))
    assert main(["test", *run]) == 0
    (folder,) = (path.parent for path in Path("runs").rglob("results.json"))
    found = results(folder)
    assert found["method"] == network
    assert found["model/id"] == f"words-{network}"
    assert found["model/trainable_params"] == found["model/total_params"]
    assert found["model/vocabulary_words"] > 300
    assert found["cost/train_tokens_per_s"] > 0
    assert found["cost/test_latency_n"] == 12
    assert found["cost/checkpoint_mib"] > 0
    assert found["test/n"] == 40
    assert pq.read_table(folder / "predictions.parquet").num_rows == 40
    capsys.readouterr()
    texts = ["--text=A wonderful film, warm and clever!", "--text=..."]
    assert main(["predict", *texts]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_untrained_it_can_be_scored(folder_here):
    assert (
        main(["test", "--config=imdb_cnn", *RUN[:-2], "--data.limit_test=40", "--ckpt_path=none"])
        == 0
    )


def test_a_resumed_run_needs_no_vectors(folder_here):
    Path("vectors.txt").write_text("the " + " ".join(["0.5"] * 32) + "\n")
    run = ["fit", "--config=imdb_cnn", *RUN, "--model.vectors=vectors.txt", "--run_dir=run"]
    assert main(run) == 0
    before = weights(Path("run"))
    Path("vectors.txt").unlink()
    assert main([*run, "--trainer.max_epochs=3", "--ckpt_path=last"]) == 0
    assert not torch.equal(
        before["network.output.weight"], weights(Path("run"))["network.output.weight"]
    )
    assert results(Path("run"))["model/vectors"] == "vectors.txt"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"network": "lstm", "filters": 5}, "model.filters is for the network cnn"),
        ({"network": "lstm", "filter_widths": [2]}, "model.filter_widths is for the network cnn"),
        ({"hidden_size": 5}, "model.hidden_size is for the network lstm"),
        ({"num_layers": 2}, "model.num_layers is for the network lstm"),
        ({"freeze_vectors": True}, "but there are none: give model.vectors"),
        ({"filter_widths": []}, "model.filter_widths must be at least 1"),
        ({"filter_widths": [3, 0]}, "model.filter_widths must be at least 1, but is 0"),
        ({"filters": 0}, "model.filters must be at least 1, but is 0"),
        ({"vocabulary_size": 0}, "model.vocabulary_size must be at least 1"),
        ({"min_count": 0}, "model.min_count must be at least 1"),
        ({"max_length": 0}, "model.max_length must be at least 1"),
        ({"embedding_dim": -1}, "model.embedding_dim must be at least 1, but is -1"),
        ({"dropout": 1.0}, r"model.dropout must be in \[0, 1\)"),
    ],
)
def test_settings_that_contradict_each_other(options, sentence):
    with pytest.raises(SmolbenchError, match=sentence):
        NeuralBaselineTask(**options)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--model.vectors=gone.txt", "model.vectors is gone.txt, which does not exist"),
        ("--model.vectors=three.txt", "three.txt have 3 values, but model.embedding_dim is 32"),
        ("--model.vectors=cut.txt", "cut.txt, line 2: 1 values stand behind the word, not 32"),
        ("--model.min_count=999999", "none occurs 999999 times: lower model.min_count"),
        ("--model.filter_widths=[]", "model.filter_widths must be at least 1"),
        ("--model.hidden_size=3", "model.hidden_size is for the network lstm"),
    ],
)
def test_what_cannot_be_trained_is_a_sentence(folder_here, capfd, option, sentence):
    Path("three.txt").write_text("the 1 2 3\n")
    Path("cut.txt").write_text("the " + "0 " * 31 + "0\nfilm 0")
    assert main(["fit", "--config=imdb_cnn", *RUN, option]) == 2
    said = " ".join(capfd.readouterr().err.split())
    assert sentence in said
    assert "Traceback" not in said


def test_words_are_cut_as_the_run_was_trained(tmp_path, monkeypatch):
    """A checkpoint of an earlier version, whose words ended at combining marks, is read by them."""
    rows = [f"{word} \u092b\u093f\u0932\u094d\u092e {n}" for n, word in enumerate(["a", "b"] * 20)]
    lines = [f"{text},{'xy'[n % 2]}\n" for n, text in enumerate(rows)]
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(lines), encoding="utf-8")

    def data():
        return TextFilesDataModule(train_file=str(tmp_path / "t.csv"), cache_dir=str(tmp_path))

    made = {}
    for split in ("words-1", "words-2"):
        monkeypatch.setattr(neural, "split_of", lambda *_, split=split: split)
        trainer = plain_trainer(tmp_path, max_epochs=1)
        trainer.fit(task(min_count=1), data())
        trainer.save_checkpoint(tmp_path / f"{split}.ckpt")
        (made[split],) = trainer.test(trainer.lightning_module, data(), verbose=False)
    monkeypatch.undo()
    for split, metrics in made.items():
        again = NeuralBaselineTask.load_from_checkpoint(tmp_path / f"{split}.ckpt")
        assert again.vocabulary.split == split
        assert ("\u092b" in again.vocabulary.words) == (split == "words-1")
        (found,) = plain_trainer(tmp_path).test(again, data(), verbose=False)
        assert found == metrics
