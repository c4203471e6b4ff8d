from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from smolbench.cli import main
from smolbench.data import AGNewsDataModule, IMDbDataModule, Sentiment140DataModule
from smolbench.errors import SmolbenchError
from smolbench.models.prompting.next_token import Prompted
from smolbench.tasks import PromptTask
from smolbench.utils import notices
from tests.helpers.tiny import tiny_language_model
from tests.helpers.training import plain_trainer

WORDS = {"neg": "bad", "pos": "good"}
TEMPLATE = "Review: {text}\nIt is"


def task(name="llama", **options):
    options = {"template": TEMPLATE, "label_words": WORDS, "dtype": "float32", **options}
    return PromptTask(backbone=tiny_language_model(name), max_length=120, **options)


def data(**options):
    return IMDbDataModule(source="sample", limit_test=12, batch_size=5, **options)


def scored(subject, tmp_path, module=None):
    trainer = plain_trainer(tmp_path)
    module = module or data()
    (metrics,) = trainer.test(subject, module, verbose=False)
    return metrics, module


# -- the rule of the report ------------------------------------------------------------------------


def test_top_k_counts_unknown_texts(tmp_path):
    # with all tokens looked through nothing is unknown; with none that matches all are
    metrics, _ = scored(task(rule="top_k", top_k=400), tmp_path)
    assert metrics["test/n_unknown"] == 0
    assert metrics["test/accuracy_unknown_wrong"] == metrics["test/accuracy"]
    subject = task(rule="top_k", top_k=1, unknown_as="pos")
    metrics, _ = scored(subject, tmp_path)
    found = subject.predictions()
    assert metrics["test/n_unknown"] == found["unknown"].sum() > 0
    assert (found["prediction"][found["unknown"]] == 1).all()
    right = (found["prediction"] == found["label"]) & ~found["unknown"]
    assert metrics["test/accuracy_unknown_wrong"] == pytest.approx(right.mean())
    assert metrics["test/accuracy"] == pytest.approx((found["prediction"] == found["label"]).mean())
    assert "test/ece" not in metrics  # the scores of a rank are no probabilities


# -- the verbalizer --------------------------------------------------------------------------------


def plainly(subject, prompts):
    """Log-probability of each label word behind each prompt, one whole row at a time."""
    model, tokenizer = subject._prompted[0].model, subject.backbone.tokenizer
    scores = np.zeros((len(prompts), 2))
    for n, prompt in enumerate(prompts):
        for c, word in enumerate(WORDS.values()):
            answer = tokenizer(" " + word)["input_ids"]
            row = torch.tensor([[*prompt, *answer]])
            with torch.no_grad():
                logs = model(input_ids=row).logits[0].log_softmax(dim=-1)
            for place, token in enumerate(answer, start=len(prompt) - 1):
                scores[n, c] += logs[place, token]
    return scores


@pytest.mark.parametrize("shots", [0, 2])
def test_the_verbalizer_equals_plain_forward_passes(tmp_path, shots):
    subject = task(num_shots=shots, shot_max_length=6 if shots else None)
    _, module = scored(subject, tmp_path)
    encoder = subject.encoders[0]
    texts = module.split("test").examples["text"][:]
    prompts = [[*encoder.shared_ids, *row] for row in encoder.encode(texts)["input_ids"]]
    scores = torch.tensor(plainly(subject, prompts)).softmax(dim=1)
    found = subject.predictions()
    assert found["score_neg"] == pytest.approx(scores[:, 0].numpy(), abs=1e-4)
    assert found["prediction"].tolist() == scores.argmax(dim=1).tolist()


def test_ties_are_told(tmp_path, monkeypatch):
    def tying(prompted, ids, lengths, answers):
        scores = torch.zeros(len(ids), len(answers))
        scores[::2, 1] = 1.0
        return scores

    notices.begin()
    monkeypatch.setattr(Prompted, "continuations", tying)
    subject = task()
    scored(subject, tmp_path)
    tied = int((subject.predictions()["score_neg"] == 0.5).sum())
    assert 0 < tied < 12
    (line,) = notices.gathered([], "test")
    assert line.startswith(f"test: {tied} of 12 texts have their highest score for more than one")
    assert not subject.predictions()["prediction"][subject.predictions()["score_neg"] == 0.5].any()


@pytest.mark.parametrize(("calibration", "said"), [("none", 1), ("pmi", 0)])
def test_a_word_that_begins_with_another_one_never_wins_and_this_is_told(
    tmp_path, calibration, said
):
    notices.begin()
    words = {"neg": "bad", "pos": "bad enough"}
    subject = task(label_words=words, calibration=calibration)
    scored(subject, tmp_path)
    lines = [line for line in notices.gathered([], "test") if "never the more likely" in line]
    assert len(lines) == said
    if said:
        assert not subject.predictions()["prediction"].any()


def test_calibration_takes_off_what_the_words_have_without_a_text(tmp_path):
    raw, contextual = task(), task(calibration="contextual")
    metrics, _ = scored(raw, tmp_path)
    calibrated, _ = scored(contextual, tmp_path)
    assert calibrated["test/accuracy"] == metrics["test/accuracy_contextual"]
    assert metrics["test/accuracy"] == metrics["test/accuracy_uncalibrated"]
    encoder = raw.encoders[0]
    empty = [
        [*encoder.shared_ids, *row] for row in encoder.encode(["N/A", "", "[MASK]"])["input_ids"]
    ]
    each = torch.tensor(plainly(raw, empty)).softmax(dim=1).mean(dim=0)
    plain, shifted = raw.predictions(), contextual.predictions()
    odds = np.log(plain["score_pos"] / plain["score_neg"]) - float((each[1] / each[0]).log())
    assert np.log(shifted["score_pos"] / shifted["score_neg"]) == pytest.approx(odds, abs=1e-3)


def test_pmi_takes_off_what_the_words_have_behind_the_template_s_end(tmp_path):
    subject = task(calibration="pmi")
    metrics, _ = scored(subject, tmp_path)
    assert metrics["test/accuracy"] == metrics["test/accuracy_pmi"]
    encoder = subject.encoders[0]
    end = [*encoder.head_ids, *encoder.suffix_ids]
    odds = np.diff(plainly(subject, [end])[0])[0]
    offsets = subject._calibrator.offsets["pmi"][0]
    assert float(offsets[1] - offsets[0]) == pytest.approx(odds, abs=1e-4)


# -- prompts ---------------------------------------------------------------------------------------


def test_examples_are_balanced_and_depend_on_the_seed(tmp_path):
    subject = task(num_shots=4, shot_seeds=[3, 4], shot_max_length=5)
    scored(subject, tmp_path)
    prompts = [encoder.template for encoder in subject.encoders]
    for prompt in prompts:
        assert prompt.count("It is good\n\n") == prompt.count("It is bad\n\n") == 2
        assert prompt.endswith("Review: {text}\nIt is")
    assert prompts[0] != prompts[1]
    again = task(num_shots=4, shot_seeds=[3, 4], shot_max_length=5)
    scored(again, tmp_path)
    assert [encoder.template for encoder in again.encoders] == prompts


def test_drawn_examples_stand_beside_those_of_the_template(tmp_path):
    own = "Review: fine\nIt is good\nReview: dull\nIt is bad\n"
    subject = task(template=f"{own}{TEMPLATE}", num_shots=2, shot_max_length=5)
    scored(subject, tmp_path)
    prompt = subject.encoders[0].template
    assert prompt.startswith(own)
    assert prompt.count("Review: fine") == 1
    assert prompt.count("\nIt is ") == 4, "two of its own and two that were drawn"
    alone = task(num_shots=2, shot_max_length=5)
    scored(alone, tmp_path)
    assert prompt == f"{own}{alone.encoders[0].template}"


def test_examples_that_end_nowhere_are_refused(tmp_path):
    subject = task(template=f"Review: fine\nIt is odd\n{TEMPLATE}", num_shots=2)
    with pytest.raises(SmolbenchError, match="where its own examples end"):
        scored(subject, tmp_path)


def test_several_seeds_give_a_mean_and_a_spread(tmp_path):
    options = {"num_shots": 2, "shot_max_length": 8}
    tweets = Sentiment140DataModule(source="sample", limit_test=12)  # none of them is cut
    subject = task(shot_seeds=[0, 1], **options)
    both, _ = scored(subject, tmp_path, tweets)
    each = [
        scored(task(shot_seeds=[n], **options), tmp_path, tweets)[0]["test/loss"] for n in (0, 1)
    ]
    assert both["test/loss"] == pytest.approx(np.mean(each), rel=1e-5)
    assert both["test/loss_std"] == pytest.approx(np.std(each, ddof=1), rel=1e-4)
    rows = subject.predictions()
    draws = np.stack([rows["prediction"], rows["prediction_of_shots_1"]])
    share = (draws == rows["label"]).mean(axis=0)
    assert both["test/accuracy"] == pytest.approx(share.mean())
    assert both["test/accuracy_stderr"] == pytest.approx(share.std(ddof=1) / 12**0.5)
    assert both["test/n_draws"] == 2
    cells = np.array(subject.facts()["test/confusion"])
    assert cells.sum() == 24
    assert np.trace(cells) / 24 == pytest.approx(both["test/accuracy"]), "of all draws"


def test_a_text_is_cut_and_the_template_never(tmp_path):
    subject = task()
    scored(subject, tmp_path)
    (text, *_) = data().split("test").examples["text"]
    example = subject.facts()["prompt/example"]
    assert text[:40] in example
    assert text not in example
    assert example.startswith("Review: ")
    assert example.endswith("\nIt is")


def test_every_class_of_any_dataset(tmp_path):
    words = {"World": "the", "Sports": "film", "Business": "plot", "Sci/Tech": "again"}
    subject = task(label_words=words, num_shots=4, shot_max_length=3)
    module = AGNewsDataModule(source="sample", limit_test=8)
    metrics, _ = scored(subject, tmp_path, module)
    assert metrics["test/n"] == 8
    assert all(word in subject.encoders[0].template for word in words.values())


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rule": "top_k", "calibration": "pmi"}, "for the rule 'verbalizer'"),
        ({"top_k": 5}, "for the rule 'top_k'"),
        ({"shot_seeds": [1]}, "examples of num_shots"),
        ({"shot_seeds": [], "num_shots": 2}, "examples of num_shots"),
        ({"shot_max_length": 20}, "shot_max_length is for the examples of num_shots"),
        ({"shot_separator": "; "}, "shot_separator is for the examples of num_shots"),
        ({"num_shots": 2, "shot_seeds": [1, 1]}, "repeat themselves"),
        ({"num_shots": -1}, "must not be negative"),
        ({"num_shots": 2, "shot_seeds": [0, -1]}, "must not be negative"),
        ({"template": "{text}: "}, "ends in white space"),
    ],
)
def test_settings_that_contradict_each_other(options, sentence):
    with pytest.raises(SmolbenchError, match=sentence):
        task(**options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"template": "no slot"}, "must hold {text} exactly once"),
        ({"label_words": {"pos": "good"}}, "give a word for each"),
        ({"label_words": {"neg": "good", "pos": "Good"}}, "not all different"),
        ({"rule": "top_k", "unknown_as": "who"}, "none of the classes"),
        ({"num_shots": 2, "shot_max_length": 80}, "raise max_length"),
        ({"num_shots": 2000}, "too few training examples"),
    ],
)
def test_what_does_not_fit_the_data_is_a_sentence(tmp_path, options, sentence):
    with pytest.raises(SmolbenchError, match=sentence):
        scored(task(**options), tmp_path)


@pytest.mark.parametrize(
    ("precision", "dtype", "expected"),
    [
        ("bf16-mixed", "auto", "bfloat16"),
        ("bf16-mixed", "float32", None),
        ("bf16-true", "float32", None),
    ],
)
def test_the_trainers_precision_and_dtype_agree_or_are_refused(
    tmp_path, precision, dtype, expected
):
    subject, trainer = task(dtype=dtype), plain_trainer(tmp_path, precision=precision)
    if expected is None:
        with pytest.raises(SmolbenchError, match="precision"):
            trainer.test(subject, data(), verbose=False)
        return
    trainer.test(subject, data(), verbose=False)
    assert subject.facts()["model/dtype"] == expected
    assert str(subject._prompted[0].model.dtype) == f"torch.{expected}"


def test_only_causal_models_are_prompted(tmp_path):
    with pytest.raises(SmolbenchError, match="causal language model"):
        scored(task("bert"), tmp_path)


# -- by the command line ---------------------------------------------------------------------------


def test_a_prompt_is_tested_without_a_checkpoint(folder_here, capsys):
    run = ["--config=imdb_few_shot_smollm2-135m", "--config=tiny", "--data.limit_test=20"]
    run += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert main(["test", *run]) == 0
    assert "unknown" in capsys.readouterr().err
    (file,) = folder_here.rglob("results.json")
    found = json.loads(file.read_text())
    assert found["convention"] == "top_50"
    assert found["cost/test_latency_n"] == 12
    assert found["checkpoint"] is None
    assert isinstance(found["test/n_unknown"], int)
    assert found["prompt/example"].startswith("Movie Review: I loved this movie ! So good plot !")
    predictions = pq.read_table(file.parent / "predictions.parquet")
    assert predictions.num_rows == 20
    assert main(["predict", *run, "--text=a film"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split("\t")[0] in {"neg", "pos"}
    assert main(["predict", *run, "--text=a film", "--before=none"]) == 2
    assert "is the same model" in capsys.readouterr().err
    assert main(["fit", *run]) == 2
    assert "has nothing to train" in capsys.readouterr().err
