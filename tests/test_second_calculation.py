"""Every figure of finished runs once more, by other means.

Tiny runs of every kind of task are finished; then whatever number stands in their ``results.json``,
their report (table, CSV, page) and a model card is computed again from predictions and files, by
scikit-learn, scipy, rouge_score, plain transformers and counting. A number that nothing here
computes fails the test.
"""

from __future__ import annotations

import copy
import csv
import functools
import json
import math
import re
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import sklearn.metrics as sk
import torch
import yaml
from rouge_score.rouge_scorer import RougeScorer
from scipy.special import log_softmax, logsumexp
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import smolbench.data
from smolbench.cli import main
from smolbench.metrics.table import METRICS
from smolbench.models.tiny.llama import tiny_model
from smolbench.runs.contract import contract, holds, pattern_of, table
from smolbench.utils.files import cache_root
from tests.helpers.command import QUIET

N = 24
FEW = ["--config=tiny", f"--data.limit_test={N}", "--latency.examples=2", *QUIET]
ONCE = ["--data.limit_val=16", "--trainer.max_epochs=1"]
KINDS = {
    "probe": ["--config=imdb_probe", "--data.limit_train=48", "--model.warmup_steps=0"],
    "fine_tune": [
        "--config=imdb_full_smollm2-135m",
        "--data.limit_train=32",
        "--data.batch_size=4",
        "--model.lr=1e-2",
    ],
    "classical": ["--config=imdb_naive_bayes", "--data.limit_train=64"],
    "svm": [
        "--config=ag_news_logistic_regression",
        "--model.classifier=linear_svm",
        "--data.limit_train=64",
    ],
    "neural": ["--config=imdb_cnn", "--data.limit_train=48"],
    "prompt": ["--config=ag_news_few_shot_smollm2-135m", "--model.shot_seeds=[0,1]"],
    "top_k": ["--config=imdb_zero_shot_smollm2-135m"],
    "choice": ["--config=hellaswag_full_smollm2-135m", "--data.limit_train=16"],
    "summaries": ["--config=samsum_flan-t5-base", "--data.limit_train=16"],
    "distilled": ["--config=sentiment140_distill_opt-125m", "--data.limit_train=32"],
    "distilled_summaries": ["--config=samsum_distill_flan-t5-small", "--data.limit_train=16"],
}
UNTRAINED = ("prompt", "top_k")
CALIBRATIONS = {"uncalibrated": "none", "contextual": "contextual", "pmi": "pmi"}


class Run:
    """What a run has left."""

    def __init__(self, kind, path):
        self.kind, self.path = kind, path
        self.results = json.loads((path / "results.json").read_text())
        table = pyarrow.parquet.read_table(path / "predictions.parquet").to_pydict()
        self.columns = {name: np.array(values) for name, values in table.items()}

    @property
    def names(self):
        return self.results["test/labels"]

    @property
    def label(self):
        return self.columns["label"]

    @property
    def scores(self):
        return np.stack([self.columns[f"score_{name}"] for name in self.names], axis=1)

    @property
    def settings(self):
        return yaml.safe_load((self.path / "config.yaml").read_text())

    def data(self, **changes):
        given = self.settings["data"]
        options = {**given["init_args"], "cache_dir": None, **changes}
        return getattr(smolbench.data, given["class_path"].rpartition(".")[2])(**options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All runs, and the single draws of the prompt by every calibration."""
    folder = tmp_path_factory.mktemp("second")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind, (recipe, *options) in KINDS.items():  # options behind all files: they count
            if kind in UNTRAINED:
                assert main(["test", recipe, *FEW, *options, f"--run_dir=runs/{kind}"]) == 0
            else:
                assert main(["fit", recipe, *FEW, *ONCE, *options, f"--run_dir=runs/{kind}"]) == 0
                assert main(["test", f"--run_dir=runs/{kind}", *QUIET]) == 0
        for name, calibration in CALIBRATIONS.items():
            for seed in (0, 1):
                options = [*KINDS["prompt"][:1], *FEW, f"--model.calibration={calibration}"]
                options += [f"--model.shot_seeds=[{seed}]", f"--run_dir=draws/{name}-{seed}"]
                assert main(["test", *options]) == 0
        yield {kind: Run(kind, folder / "runs" / kind) for kind in KINDS}


def draws(run, calibration=None):
    """A prompt's draws, each by a command of its own; by the run's own calibration if not given."""
    own = {value: name for name, value in CALIBRATIONS.items()}
    calibration = calibration or own[run.settings["model"]["init_args"]["calibration"]]
    folder = run.path.parents[1] / "draws"
    return [Run("draw", folder / f"{calibration}-{seed}") for seed in (0, 1)]


# -- classification -------------------------------------------------------------------------------


def of_predictions(run):
    """What scikit-learn says of one draw."""
    label, said, names = run.label, run.columns["prediction"], run.names
    classes = list(range(len(names)))
    found = {"accuracy": sk.accuracy_score(label, said), "n": len(label)}
    cells = sk.confusion_matrix(label, said, labels=classes)
    known = [k for k in classes if cells[k].sum() + cells[:, k].sum()]
    for average in ("macro", "weighted"):
        values = sk.precision_recall_fscore_support(
            label, said, labels=known, average=average, zero_division=0
        )
        for name, value in zip(("precision", "recall", "f1"), values, strict=False):
            found[f"{name}_{average}"] = value
        each = [special(cells, k) for k in known]
        weights = cells.sum(axis=1)[known] if average == "weighted" else None
        found[f"specificity_{average}"] = np.average(each, weights=weights)
    if run.results["positive_label"] is not None:
        positive = names.index(run.results["positive_label"])
        one = sk.precision_recall_fscore_support(
            label, said, labels=[positive], average=None, zero_division=0
        )
        found |= dict(zip(("precision", "recall", "f1"), (v[0] for v in one), strict=False))
        found["specificity"] = special(cells, positive)
    if run.kind == "top_k":
        right = (label == said) & ~run.columns["unknown"]
        found["accuracy_unknown_wrong"] = right.mean()
        found["n_unknown"] = run.columns["unknown"].sum()
    elif f"score_{names[0]}" in run.columns:
        found |= of_scores(run.scores, label)
    else:
        margins = np.stack([run.columns[f"margin_{name}"] for name in names], axis=1)
        found["auroc"] = np.mean([sk.roc_auc_score(label == k, margins[:, k]) for k in classes])
    return found


def special(cells, k):
    """Specificity of a class."""
    rest = cells.sum() - cells[k].sum()
    return (rest - cells[:, k].sum() + cells[k, k]) / rest


def of_scores(scores, label):
    classes = scores.shape[1]
    if classes == 2:
        brier, auroc = (f(label, scores[:, 1]) for f in (sk.brier_score_loss, sk.roc_auc_score))
    else:
        brier = ((scores - np.eye(classes)[label]) ** 2).sum(axis=1).mean()
        auroc = np.mean([sk.roc_auc_score(label == k, scores[:, k]) for k in range(classes)])
    best, right = scores.max(axis=1), scores.argmax(axis=1) == label
    ece = sum(
        abs((right - best)[inside].sum()) / len(label)
        for low in range(15)
        if (inside := (best > low / 15) & (best <= (low + 1) / 15)).any()
    )
    loss = sk.log_loss(label, scores.astype(float), labels=range(classes))
    return {"brier": brier, "auroc": auroc, "ece": ece, "loss": loss}


def classified(run):
    """Metrics of a run, over its draws, each with spread and error."""
    several = run.kind == "prompt"
    each = [of_predictions(one) for one in (draws(run) if several else [run])]
    found = {name: np.mean([one[name] for one in each]) for name in each[0]}
    if several:
        found["n_draws"] = len(each)
        for name in CALIBRATIONS:
            values = [(d.label == d.columns["prediction"]).mean() for d in draws(run, name)]
            found[f"accuracy_{name}"] = np.mean(values)
            found[f"accuracy_{name}_std"] = np.std(values, ddof=1)
        for name in each[0]:
            if METRICS[name].averaged:
                found[f"{name}_std"] = np.std([one[name] for one in each], ddof=1)
    return found


def errors(run):
    """Standard errors: of means by their formula, of all others by resampling with other draws."""
    several = run.kind == "prompt"
    all_draws = draws(run) if several else [run]
    right = np.mean([d.label == d.columns["prediction"] for d in all_draws], axis=0)
    found = {"accuracy": mean_error(right)}
    if several:
        for name in CALIBRATIONS:
            of = np.mean([d.label == d.columns["prediction"] for d in draws(run, name)], axis=0)
            found[f"accuracy_{name}"] = mean_error(of)
    if run.kind == "top_k":
        found["accuracy_unknown_wrong"] = mean_error(
            (run.label == run.columns["prediction"]) & ~run.columns["unknown"]
        )
    elif f"score_{run.names[0]}" in run.columns:
        rows = np.arange(N)
        losses = [-np.log(d.scores.astype(float)[rows, d.label]) for d in all_draws]
        squares = [(d.scores - np.eye(len(run.names))[d.label]) ** 2 for d in all_draws]
        two = len(run.names) == 2
        brier = [s[:, 1] if two else s.sum(axis=1) for s in squares]
        found["loss"] = mean_error(np.mean(losses, axis=0))
        found["brier"] = mean_error(np.mean(brier, axis=0))
    return found


def mean_error(values):
    return np.std(np.asarray(values, dtype=float), ddof=1) / math.sqrt(len(values))


@functools.cache
def resampled(run):
    """Standard errors of all metrics by resampling whole rows, for all draws the same."""
    generator = np.random.default_rng(7)
    all_draws = draws(run) if run.kind == "prompt" else [run]
    found = []
    while len(found) < 50:
        rows = generator.integers(N, size=N)
        if len(set(run.label[rows])) < len(run.names):
            continue
        each = []
        for one in all_draws:
            part = copy.copy(one)
            part.columns = {key: column[rows] for key, column in one.columns.items()}
            each.append(of_predictions(part))
        found.append({name: np.mean([one[name] for one in each]) for name in each[0]})
    return {name: np.std([one[name] for one in found], ddof=1) for name in found[0]}


# -- multiple choice, summaries -------------------------------------------------------------------


def chosen(run):
    log_p, length, n_bytes, tokens = (
        np.stack([run.columns[f"{name}_{k}"] for k in range(4)], axis=1).astype(float)
        for name in ("log_likelihood", "length", "n_bytes", "n_tokens")
    )
    rows, label = np.arange(N), run.label
    found = {"n": N}
    scored = {"acc": log_p, "acc_norm": log_p / length, "acc_bytes": log_p / n_bytes}
    for name, values in scored.items():
        right = values.argmax(axis=1) == label
        found |= {name: right.mean(), f"{name}_stderr": mean_error(right)}
    found["choice_loss"] = -log_softmax(log_p, axis=1)[rows, label].mean()
    assert np.allclose(logsumexp(log_softmax(log_p, axis=1), axis=1), 0)
    found["ending_loss"] = -log_p[rows, label].sum() / tokens[rows, label].sum()
    found["n_truncated"] = 0  # the tiny model reads more than the samples have
    assert (n_bytes == length).all(), "the samples have no letter of two bytes"
    return found


def summarized(run):
    columns, found = run.columns, {"n": N}
    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer([*names, "rougeLsum"], use_stemmer=True)
    pairs = list(zip(columns["reference"], columns["summary"], strict=True))
    scores = [scorer.score(*pair) for pair in pairs]
    sentences = [re.sub(r"(?<=[.!?])\s+", "\n", text) for pair in pairs for text in pair]
    of_lines = [scorer.score(*sentences[2 * i : 2 * i + 2]) for i in range(len(pairs))]
    generator = np.random.default_rng(3)
    means = [generator.integers(N, size=N) for _ in range(2000)]
    for name in (*names, "rougeLsum"):
        source = of_lines if name == "rougeLsum" else scores
        values = np.array([one[name].fmeasure for one in source])
        low, high = np.quantile([values[rows].mean() for rows in means], [0.025, 0.975])
        found |= {name: values.mean(), f"{name}_stderr": mean_error(values)}
        found |= {f"{name}_low": low, f"{name}_high": high}
    found["gen_tokens"] = columns["n_tokens"].mean()
    found["truncated_share"] = 1 - columns["ended"].mean()
    found["n_without_tokens"] = sum(not re.search("[a-z0-9]", t.lower()) for t, _ in pairs)
    found["n_truncated"] = found["n_references_cut"] = 0
    return found


@functools.cache
def plain_loss(run):
    """Nats per token of the references, by transformers on what the run exports."""
    folder = run.path.parents[1] / f"{run.kind}-exported"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run.path.parents[1])
        assert main(["export", f"runs/{run.kind}", str(folder)]) == 0
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = run.data().split("test").examples
    total = tokens = 0.0
    for document, reference in zip(examples["document"], examples["summary"], strict=True):
        own = tokenizer(reference, add_special_tokens=False)["input_ids"]
        labels = torch.tensor([[*own, tokenizer.eos_token_id]])
        read = tokenizer(document, return_tensors="pt", truncation=True)["input_ids"]
        with torch.no_grad():
            total += float(model(input_ids=read, labels=labels).loss) * labels.shape[1]
        tokens += labels.shape[1]
    return total / tokens


def of_validation(run):
    """What scikit-learn says of the validation texts, as ``predict`` scores them."""
    texts = run.data().split("val")
    column = next(n for n in ("text", "document") if n in texts.examples.column_names)
    given = [f"--text={text}" for text in texts.examples.select_columns(column)[:][column]]
    if not given:
        return {}  # all of the training split is learned from
    output = run.path.parent / f"{run.kind}-val.parquet"
    assert main(["predict", f"--run_dir={run.path}", *given, f"--output={output}", *QUIET]) == 0
    columns = pyarrow.parquet.read_table(output).to_pydict()
    name = "score" if f"score_{run.names[0]}" in columns else "margin"
    scores = np.stack([columns[f"{name}_{label}"] for label in run.names], axis=1)
    label, said, classes = np.asarray(texts.labels), scores.argmax(axis=1), range(len(run.names))
    known = sorted({*label, *said})
    found = {
        "n": len(label),
        "accuracy": sk.accuracy_score(label, said),
        "accuracy_stderr": mean_error(label == said),
        "f1_macro": sk.f1_score(label, said, labels=known, average="macro", zero_division=0),
    }
    if name == "score":
        found["loss"] = sk.log_loss(label, scores.astype(float), labels=list(classes))
    return found


# -- everything ------------------------------------------------------------------------------------


def recomputed(run):
    if run.kind == "choice":
        return chosen(run)
    if "summary" in run.columns:
        return summarized(run)
    found, known = classified(run), errors(run)
    return found | {f"{name}_stderr": error for name, error in known.items()}


def of_tables(run):
    """Lists by classes."""
    all_draws = draws(run) if run.kind == "prompt" else [run]
    classes = range(len(run.names))
    cells = [sk.confusion_matrix(d.label, d.columns["prediction"], labels=list(classes))
             for d in all_draws]  # fmt: skip
    each = [sk.precision_recall_fscore_support(
        d.label, d.columns["prediction"], labels=list(classes), zero_division=0
    ) for d in all_draws]  # fmt: skip
    precision, recall, f1 = (np.mean([e[i] for e in each], axis=0) for i in range(3))
    return {
        "confusion": np.sum(cells, axis=0),
        "class_precision": precision,
        "class_recall": recall,
        "class_f1": f1,
        "class_n": np.bincount(run.label, minlength=len(classes)),
        "predicted_share": np.sum(cells, axis=(0, 1)) / np.sum(cells),
    }


def counted(run):
    """What is counted of data, model and files, and how large the files are."""
    results, init = run.results, run.settings["data"]["init_args"]
    found = {"schema": 1, "seed": run.settings["seed_everything"], "data/n_test": N}
    for split in ("train", "val", "test"):
        found[f"data/limit_{split}"] = init[f"limit_{split}"]
    found["data/split_seed"] = init["split_seed"]
    found["data/downsample"] = init.get("downsample")
    found["cost/test_latency_n"] = run.settings["latency"]["examples"]
    model = run.settings["model"]["init_args"]
    for key in ("num_shots", "num_fewshot", "max_new_tokens", "num_beams"):
        for group in ("prompt/", "generation/", ""):
            found[f"{group}{key}"] = model.get(key)
    whole = run.data(**dict.fromkeys(("limit_train", "limit_val", "limit_test")))
    for split in ("train", "val", "test"):
        found[f"data/n_{split}_unlimited"] = len(whole.split(split))
    data = run.data()
    for split in ("train", "val"):
        found[f"data/n_{split}"] = len(data.split(split))
    texts = {s: key_texts(data, s) for s in ("train", "val", "test")}
    fitted = texts["train"] + texts["val"]
    found["data/overlap"] = sum(text in set(fitted) for text in texts["test"])
    found["data/duplicates"] = len(fitted) - len(set(fitted))
    if "test/labels" in results:
        labels = [
            *data.split("train").labels,
            *(data.split("val").labels if init["val_fraction"] else ()),
        ]
        several: dict[str, set[int]] = {}
        for text, label in zip(fitted, labels, strict=True):
            several.setdefault(text, set()).add(int(label))
        found["data/two_labels"] = sum(len(known) > 1 for known in several.values())
    if run.kind not in UNTRAINED:
        best, last = (run.path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
        found["cost/checkpoint_mib"] = best.stat().st_size / 2**20
        if last.is_file():
            found["cost/resume_checkpoint_mib"] = last.stat().st_size / 2**20
        state = torch.load(best, weights_only=True)
        assert found["data/n_train"] > 0
        found |= {"best/step": state["global_step"], "best/epoch": state["epoch"]}
        if run.kind not in ("classical", "svm"):
            kept = state["state_dict"].items()  # a head's running statistics do not train
            sizes = [v.numel() for k, v in kept if v.is_floating_point() and "running_" not in k]
            found["model/trainable_params"] = sum(sizes)
            if run.kind == "probe":
                found["model/total_params"] = sum(sizes) + sum(
                    p.numel() for p in tiny().parameters()
                )
            if run.kind in ("fine_tune", "neural", "choice", "summaries"):  # all of it trains
                found["model/total_params"] = sum(sizes)
        found["training/max_epochs"] = found["attempts"] = 1
    else:
        found["training/max_epochs"] = None
        found["model/total_params"] = sum(p.numel() for p in tiny().parameters())
    for kind in ("rss",):
        peaks = [results[f"cost/peak_{kind}_mib_{s}"] for s in ("fit", "test")
                 if f"cost/peak_{kind}_mib_{s}" in results]  # fmt: skip
        found[f"cost/peak_{kind}_mib"] = max(peaks)
    return found


def key_texts(data, split):
    examples = data.split(split).examples
    name = next(n for n in ("text", "document", "ctx") if n in examples.column_names)
    column = examples.select_columns(name)[:][name]
    return [text.strip() for text in column]


def tiny():
    return AutoModelForCausalLM.from_pretrained(tiny_folder())


def tiny_folder():
    return tiny_model(cache_root() / "models")


MEASURED = (
    "cost/*_s",
    "cost/*_per_s",
    "cost/*_ms_p*",
    "cost/peak_*",
    "cost/rss_delta_mib",
    "cost/*padding_share",
    "hardware/*",
)
"""Time, memory and where: measured once, and within reason."""
ELSEWHERE = {
    "data/n_dropped_*": "tests/data, on the samples' own texts",
    "data/n_train_references_cut": "tests/tasks/test_summarize.py",
    "model/total_params": "tests/models/memory/test_footprint.py, where it is not computed here",
    "model/trainable_params": "tests/tasks/test_classical.py, of the classical baselines",
    "model/unused_params": "tests/models/pretrained/test_reach.py",
    "model/vocabulary_words": "tests/models/baselines/test_vocabulary.py",
    "teacher/agreement*": "tests/tasks/distillation/test_classification.py",
}
"""Numbers that need other data than these runs have to be seen to be wrong, and their tests."""


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_a_run(made, kind):
    run = made[kind]
    expected = counted(run)
    expected |= {f"test/{name}": value for name, value in recomputed(run).items()}
    of_class = of_tables(run) if "test/labels" in run.results else {}
    validated = last_validation(run)
    again_validated = of_validation(run) if of_class and run.kind not in UNTRAINED else {}
    missing = []
    for key, value in run.results.items():
        assert holds(key, value), f"{key} is no {contract().get(pattern_of(key) or '')}"
        name = key.partition("/")[2]
        if value is None or isinstance(value, (str, bool)) or key in ("warnings", "test/labels"):
            continue
        if key in expected:
            resampling = name.endswith(("_low", "_high"))
            close = {"abs": 0.01} if resampling else {"rel": 2e-3, "abs": 2e-5}
            assert value == pytest.approx(expected[key], **close), key
        elif name in of_class:
            assert np.asarray(value) == pytest.approx(of_class[name], abs=1e-5), key
        elif key.startswith("test/") and name.endswith("_stderr"):
            again = resampled(run)[name.removesuffix("_stderr")]
            assert value == pytest.approx(again, rel=0.35, abs=0.02), key
        elif key.startswith("test/") and run.kind in ("summaries", "distilled_summaries"):
            assert name == "loss"
            assert value == pytest.approx(plain_loss(run), rel=0.01), "in bfloat16, if native"
        elif key.startswith("val/"):
            assert value == pytest.approx(validated[key], rel=1e-5), key
            if again_validated:
                assert value == pytest.approx(again_validated[name], rel=2e-3, abs=2e-3), key
        elif any(fnmatchcase(key, pattern) for pattern in MEASURED):
            assert math.isfinite(value)
            assert value >= 0 or key == "cost/rss_delta_mib"
        elif not any(fnmatchcase(key, pattern) for pattern in ELSEWHERE):
            missing.append(key)
    assert not missing, "numbers that nothing has computed again"
    assert not {f"test/{name}" for name in recomputed(run)} - set(run.results)


def last_validation(run):
    """The line of ``metrics.csv`` at the step of the best checkpoint."""
    path = run.path / "metrics.csv"
    if not path.is_file():
        return {}
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if any(row[k] for k in row if "val/" in k)]
    return {k: float(v) for row in rows[-1:] for k, v in row.items() if k.startswith("val/") and v}


def test_the_documentation_has_the_contract():
    assert table() in (Path(__file__).parents[1] / "docs" / "results.md").read_text()


@pytest.mark.parametrize("kind", ["prompt", "top_k"])
def test_a_prompted_text_by_plain_transformers(made, kind):
    run = made[kind]
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_folder()), tiny().float()
    words = run.results["prompt/label_words"].split(", ")
    if kind == "prompt" and run.settings["model"]["init_args"]["calibration"] != "none":
        run = next(d for d in draws(run, "uncalibrated"))
    prompt = tokenizer(run.results["prompt/example"], add_special_tokens=False)["input_ids"]
    separator = run.settings["model"]["init_args"]["separator"]
    answers = [tokenizer(separator + word, add_special_tokens=False)["input_ids"] for word in words]
    with torch.no_grad():
        log_p = []
        for answer in answers:
            logits = model(torch.tensor([[*prompt, *answer[:-1]]])).logits[0, len(prompt) - 1 :]
            log_p.append(logits.log_softmax(1).gather(1, torch.tensor(answer)[:, None]).sum())
        scores = torch.stack(log_p).softmax(0)
    if kind == "prompt":
        assert run.scores[0] == pytest.approx(scores.numpy(), abs=5e-3)
    else:
        place = (logits[-1] > logits[-1, answers[int(run.scores[0].argmax())][0]]).sum()
        assert run.columns["unknown"][0] or place < 50


# -- report and card -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reported(made):
    folder = made["probe"].path.parents[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = ["--significance", "--csv=csv", "--markdown=report.md"]
        assert main(["report", "--runs_dir=runs", "--output=report.html", *options]) == 0
        assert main(["export", "runs/fine_tune", "card"]) == 0
    boards = {}
    for path in (folder / "csv").glob("*-leaderboard.csv"):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                boards.setdefault(path.stem, []).append(row)
    return folder, boards


def test_every_figure_of_a_leaderboard(made, reported):
    folder, boards = reported
    markdown, page = ((folder / f"report.{end}").read_text() for end in ("md", "html"))
    plots = json.loads(re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', page, re.S)[1])
    drawn = {row["name"]: row for plot in plots.values() for row in plot["rows"]}
    seen = []
    for rows in boards.values():
        mine = [row for row in rows if row["run"].partition("/")[2] in made or "/" in row["run"]]
        metric = next(name for name in METRICS if name in rows[0])
        p_values = holm(mine, made, metric)
        for row in mine:
            run = made[row["run"].partition("/")[2]]
            seen.append(run.kind)
            results, value = run.results, recomputed(run)[metric]
            assert float(row[metric]) == pytest.approx(value, abs=1e-4)
            better = [recomputed(made[o["run"].partition("/")[2]])[metric] for o in mine]
            assert int(row["rank"]) == 1 + sum(other > value + 1e-6 for other in better)
            assert float(row["± over examples"]) == results[f"test/{metric}_stderr"]
            shown = f"{float(row[metric]):.4f} ± {float(row['± over examples']):.4f}"
            assert shown in markdown
            assert shown in drawn[row["run"]]["said"]
            point = drawn[row["run"]]
            assert point["value"] == point["worth"] == results[f"test/{metric}"]
            assert point["spread"] == results[f"test/{metric}_stderr"]
            assert (point["kind"], point["method"]) == ("run", row["method"])
            if row.get("p to the best"):
                resampled = metric == "rouge1" or "prompt" in {o["run"][-6:] for o in mine}
                exact = {"abs": 0.05} if resampled else {"rel": 1e-9}
                assert float(row["p to the best"]) == pytest.approx(p_values[run.kind], **exact)
            fit = results.get("cost/fit_s", 0.0) + results.get("cost/cache_s", 0.0)
            costs = {
                "fit + cache, s": fit,
                "peak resident, MiB": results["cost/peak_rss_mib"],
                "trained tokens/s": results.get("cost/train_tokens_per_s"),
                "frozen tokens/s": results.get("cost/cache_tokens_per_s"),
                "training examples": results.get("data/n_train"),
                "trainable parameters": results.get("model/trainable_params"),
                "checkpoint, MiB": results.get("cost/checkpoint_mib"),
                "test samples/s": results["cost/test_samples_per_s"],
                "latency p50, ms": results.get("cost/test_latency_ms_p50"),
            }
            columns = [name for name in row if name in costs]
            labels = {c["key"]: c["label"] for plot in plots.values() for c in plot["costs"]}
            for key, cost in point["costs"].items():
                assert cost["value"] == pytest.approx(costs[labels[key]]), key
                shown = float(cost["said"].replace(",", ""))
                assert shown == pytest.approx(cost["value"], rel=0.05, abs=0.006), key
            for name in columns:
                assert (float(row[name]) if row[name] else None) == pytest.approx(costs[name]), name
            assert row["measured on"] == results["hardware/name"]
            assert row.get("computed in", "") == results.get("model/dtype", "")
            known = {"rank", metric, "± over examples", "± over draws", "run", "model", "method",
                     "seeds", "p to the best", "measured on", "computed in", "notes",
                     *columns}  # fmt: skip
            assert set(row) <= known, "a column that nothing has computed again"
            assert row["seeds"] == "1.0" or row["seeds"] == "1"
    assert sorted(seen) == sorted(made)


@pytest.mark.parametrize("kind", KINDS)
def test_every_table_of_a_run_on_the_page(made, reported, kind):
    page, run = (reported[0] / "report.html").read_text(), made[kind]
    name = f"{run.results['recipe']}/{kind}"
    tables = {
        title: [
            [float(value) for value in re.findall(r'data-value="([^"]+)"', line)]
            for line in re.findall(r"<tr>(.*?)</tr>", body, re.S)[1:]
        ]
        for title in ("class by class", "confusion")
        if (body := table_on(page, f"{title}, {name}"))
    }
    if "test/labels" not in run.results:
        assert not tables
        return
    again = of_tables(run)
    each = ("class_precision", "class_recall", "class_f1", "class_n", "predicted_share")
    columns = np.array([again[name] for name in each]).T
    assert np.array(tables["class by class"]) == pytest.approx(columns, abs=1e-4)
    assert np.array(tables["confusion"]) == pytest.approx(again["confusion"])


def table_on(page, label):
    found = re.search(rf'aria-label="{re.escape(label)}"><table>(.*?)</table>', page, re.S)
    return found and found[1]


def scored(run, metric):
    """What a run scores on each text."""
    if metric == "rouge1":
        return run.columns["rouge1"]
    all_draws = draws(run) if run.kind == "prompt" else [run]
    return np.mean([d.label == d.columns["prediction"] for d in all_draws], axis=0)


def holm(rows, made, metric):
    """P values of exact tests of a board's rows against its best, adjusted by hand."""
    best, *others = [made[row["run"].partition("/")[2]] for row in rows]
    found = {}
    for other in others:
        mine, theirs = (scored(one, metric) for one in (best, other))
        if metric == "rouge1" or "prompt" in (best.kind, other.kind):
            gap = mine - theirs
            rows = np.random.default_rng(9).integers(N, size=(4000, N))
            means = np.abs((gap - gap.mean())[rows].mean(axis=1))
            found[other.kind] = np.mean(means >= abs(gap.mean()) - 1e-12)
            continue
        wins, losses = (mine > theirs).sum(), (mine < theirs).sum()
        found[other.kind] = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    most, adjusted = 0.0, {}
    for place, kind in enumerate(sorted(found, key=found.get)):
        most = max(most, min(1.0, (len(found) - place) * found[kind]))
        adjusted[kind] = most
    return adjusted


def test_p_values_of_runs_that_differ_clearly(made, tmp_path, monkeypatch):
    whole = made["classical"]
    right_of = {"all": N, "most": 18, "some": 16, "few": 14}
    monkeypatch.chdir(tmp_path)
    for name, right in right_of.items():
        folder = tmp_path / "runs" / name
        shutil.copytree(whole.path, folder, ignore=shutil.ignore_patterns("checkpoints"))
        said = np.where(np.arange(N) < right, whole.label, 1 - whole.label)
        table = pyarrow.parquet.read_table(folder / "predictions.parquet")
        place = table.column_names.index("prediction")
        changed = table.set_column(place, "prediction", [said.astype(np.int64)])
        pyarrow.parquet.write_table(changed, folder / "predictions.parquet")
        facts = {**whole.results, "series_digest": name, "test/accuracy": right / N}
        (folder / "results.json").write_text(json.dumps(facts))
    assert main(["report", "--runs_dir=runs", "--significance", "--csv=csv"]) == 0
    with next((tmp_path / "csv").glob("*-leaderboard.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    # one coin for each text that the best run alone has right, times the tests still to come
    expected = ["", 3 * 2 * 0.5**10, 2 * 2 * 0.5**8, 2 * 0.5**6]
    by_rank = [rows[0]["p to the best"], *(row["p to the best"] for row in reversed(rows[1:]))]
    assert by_rank[0] == expected[0]
    assert [float(p) for p in by_rank[1:]] == pytest.approx(expected[1:])


def test_every_figure_of_a_card(made, reported):
    card = (reported[0] / "card" / "README.md").read_text()
    run = made["fine_tune"]
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", card, re.M | re.S))
    scores, _, by_class = sections["Scores"].partition("Class by class:")
    shown = re.findall(r"^\| ([A-Za-z][^|]*?) \| ([\d.,]+) \| ([\d.,]*) \|", scores, re.M)
    labels = {m.label: n for n, m in METRICS.items() if f"test/{n}" in run.results}
    exact = {**recomputed(run), **resampled(run)}
    known = recomputed(run)
    for label, value, error in shown:
        name = labels[re.sub(r" of '.*'$| \(nats\)$", "", label)]
        assert number(value) == pytest.approx(known[name], abs=2e-4), label
        if f"{name}_stderr" in known:
            assert number(error) == pytest.approx(known[f"{name}_stderr"], abs=2e-4), label
        elif error:
            assert number(error) == pytest.approx(exact[name], rel=0.35, abs=0.02), label
    assert len(shown) >= 12
    again = of_tables(run)
    classes, _, confusion = by_class.partition("Confusion matrix")
    each = ("class_precision", "class_recall", "class_f1", "class_n", "predicted_share")
    for n, name in enumerate(run.names):
        (row,) = re.findall(rf"^\| {name} +\|(.*)\|$", classes, re.M)
        assert [number(cell) for cell in row.split("|")] == pytest.approx(
            [again[column][n] for column in each], abs=1e-4
        )
        (row,) = re.findall(rf"^\| {name} +\|(.*)\|$", confusion, re.M)
        assert [number(cell) for cell in row.split("|")] == again["confusion"][n].tolist()
    metadata = yaml.safe_load(card.split("---")[1])
    for metric in metadata["model-index"][0]["results"][0]["metrics"]:
        assert metric["value"] == pytest.approx(known[metric["type"]], abs=1e-6)
    of_data = dict(re.findall(r"^\| ([a-z][^|]*?) \| ([\d,]+) \|", sections["Data"], re.M))
    counts = counted(run)
    for label, key in (
        ("training examples", "data/n_train"),
        ("validation examples", "data/n_val"),
        ("test examples", "data/n_test"),
        ("seed of the split", "data/split_seed"),
        ("training texts that repeat another", "data/duplicates"),
        ("test texts seen in training", "data/overlap"),
    ):
        assert number(of_data.pop(label)) == counts[key], label
    assert not of_data, "a figure that nothing has computed again"
    costs = re.findall(r"^\| (\w[^|]*?) \| ([\d.,]+) \| ([^|]*?) \|", sections["Cost"], re.M)
    results = run.results
    keys = {
        ("training", "s"): "cost/fit_s",
        ("training throughput", "samples/s"): "cost/train_samples_per_s",
        ("training throughput", "tokens/s"): "cost/train_tokens_per_s",
        ("test throughput", "samples/s"): "cost/test_samples_per_s",
        ("latency of a single text, median", "ms"): "cost/test_latency_ms_p50",
        ("latency of a single text, 95th percentile", "ms"): "cost/test_latency_ms_p95",
        ("peak resident memory", "MiB"): "cost/peak_rss_mib",
        ("trainable parameters", ""): "model/trainable_params",
        ("of all parameters", ""): "model/total_params",
        ("best checkpoint", "MiB"): "cost/checkpoint_mib",
    }
    for label, value, unit in costs:
        key = keys.pop((label, unit))
        assert number(value) == pytest.approx(counts.get(key, results[key]), rel=0.005), label
    assert not keys


def number(text):
    return float(text.strip().replace(",", ""))
