"""Many architectures through the command line: what is scored is what plain transformers says.

Plain means: one text at a time, whole, with nothing in front of it that was computed before and
without a mask.
"""

from __future__ import annotations

import csv
import itertools
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from smolbench.cli import main
from smolbench.data import HellaSwagDataModule
from smolbench.models.choice.conventions import ChoiceEncoder
from smolbench.models.encoding.seams import special_tokens
from tests.helpers.command import results
from tests.helpers.tiny import TEXTS
from tests.helpers.zoo import ZOO, zoo_model

WHOLE = os.environ.get("SMOLBENCH_ZOO") == "whole"
"""Whether every architecture goes every way (`make test-zoo`), or each at least one."""
LABELS = ("neg", "pos")
PAIRS = [name for name, made in ZOO.items() if made.kind == "pair"]
WITHOUT_CLASSIFIER = ["granite", "cohere", "mamba", "falcon_mamba", "lfm2", "recurrent_gemma"]
"""Decoders that transformers has no sequence classification for."""
CLASSIFIERS = [name for name in ZOO if name not in PAIRS and name not in WITHOUT_CLASSIFIER]
DECODERS = [name for name, made in ZOO.items() if made.kind == "decoder" and not made.looks_ahead]
HALF_IN_FLOAT32 = ["mamba", "falcon_mamba", "gemma2", "recurrent_gemma", "gpt2", "bert"]
"""Those that compute a part in float32 whatever they are loaded in, and two that do not."""


def some(names, those):
    """All names, or in the usual test run only these of them."""
    return [name for name in names if WHOLE or name in those]


LOOKING_AHEAD = [name for name, made in ZOO.items() if made.looks_ahead]
PROMPT = "Review: {text}\nIt is"
WORDS = {"neg": "hours", "pos": "week"}
FINE_TUNED = {"method": "full", "max_length": 60, "lr": 1e-2}
PROBED = {"head": "linear", "pooling": "mean", "template": PROMPT, "max_length": 60, "lr": 1e-2}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of texts of one to some 40 tokens, and a recipe that reads them."""
    folder = tmp_path_factory.mktemp("zoo")
    texts = [f"{text} {n}" for n in range(3) for text in TEXTS]
    for split, chosen in (("train", texts[:16]), ("val", texts[9:13]), ("test", texts[14:21])):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label", "summary"])
            rows.writerows((text, LABELS[n % 2], text[:9]) for n, text in enumerate(chosen))
    recipe = {
        "data": {
            "init_args": {
                **{f"{split}_file": f"{folder}/{split}.csv" for split in ("train", "val", "test")},
                "batch_size": 8,
            },
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "latency": {"examples": 0},
    }
    for kind in ("TextFilesDataModule", "TextPairsDataModule"):
        recipe["data"]["class_path"] = kind
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def run(*arguments):
    assert main(list(map(str, arguments))) == 0, arguments


def texts_of(files, split="test"):
    with (files / f"{split}.csv").open() as file:
        return [row["text"] for row in csv.DictReader(file)]


def settings(task, name, options, dtype):
    options = {"backbone": zoo_model(name), "dtype": dtype, **options}
    return [f"--model={task}", *(f"--model.{key}={value}" for key, value in options.items())]


def trained(files, folder, task, name, options, dtype="float32"):
    """Fit, test in batches of 8, predict in batches of 1; returns what the last two say."""
    data = "TextPairsDataModule" if task == "SummarizationTask" else "TextFilesDataModule"
    given = settings(task, name, options, dtype)
    run("fit", f"--config={files}/{data}.yaml", *given, f"--run_dir={folder}/run")
    run("test", f"--run_dir={folder}/run")
    texts = [f"--text={text}" for text in texts_of(files)]
    output = folder / "predicted.parquet"
    run("predict", f"--run_dir={folder}/run", *texts, f"--output={output}", "--data.batch_size=1")
    return pq.read_table(folder / "run" / "predictions.parquet"), pq.read_table(output)


def exported(folder):
    run("export", folder / "run", folder / "export")
    return folder / "export"


def scores(table):
    columns = (table[f"score_{label}"].to_numpy() for label in LABELS)
    return torch.stack([torch.tensor(column).float() for column in columns], dim=1)


def assert_equal(found, plain):
    assert plain.std(dim=0).min() > 1e-3, "the texts are told apart"
    for one in found:
        torch.testing.assert_close(one, plain, rtol=0, atol=1e-4)


# -- classifiers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_fine_tuned(files, tmp_path, name):
    found = map(scores, trained(files, tmp_path, "FineTuneTask", name, FINE_TUNED))
    folder = exported(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        rows = [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts_of(files)]
        plain = torch.cat([model(input_ids=row).logits for row in rows]).softmax(dim=1)
    assert_equal(found, plain)


@pytest.mark.parametrize("name", WITHOUT_CLASSIFIER)
def test_what_transformers_has_no_classifier_for_is_refused(files, tmp_path, name, capsys):
    given = settings("FineTuneTask", name, FINE_TUNED, "float32")
    recipe = f"--config={files}/TextFilesDataModule.yaml"
    assert main(["fit", recipe, *given, f"--run_dir={tmp_path}/run"]) == 2
    assert "use ProbeTask" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", some(ZOO, [*PAIRS, *WITHOUT_CLASSIFIER, *LOOKING_AHEAD, "llama", "mistral", "bert"])
)
def test_probed(files, tmp_path, name):
    found = map(scores, trained(files, tmp_path, "ProbeTask", name, PROBED))
    folder = exported(tmp_path)
    known = json.loads((folder / "probe.json").read_text())
    head = load_file(folder / "probe.safetensors")
    model = AutoModel.from_pretrained(zoo_model(name)).eval()
    if ZOO[name].kind == "pair":
        model = model.get_encoder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = []
    for text in texts_of(files):
        ids = tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        row = tokenizer(PROMPT.format(text=text), return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            states = model(input_ids=row).last_hidden_state[0]
        first = len(known["head_ids"]) + len(tokenizer("Review:", add_special_tokens=False)[0])
        pooled = states[first : first + len(ids)].mean(dim=0)
        plain.append((head["weight"] @ pooled + head["bias"]).softmax(dim=0))
    assert_equal(found, torch.stack(plain))


@pytest.mark.parametrize("name", some(ZOO, HALF_IN_FLOAT32))
def test_trained_in_bfloat16(files, tmp_path, name):
    task, options = ("FineTuneTask", FINE_TUNED) if name in CLASSIFIERS else ("ProbeTask", PROBED)
    tested, predicted = trained(files, tmp_path, task, name, options, "bfloat16")
    assert results(tmp_path / "run")["model/dtype"] == "bfloat16"
    torch.testing.assert_close(scores(tested), scores(predicted), rtol=0, atol=0.1)


# -- language models -------------------------------------------------------------------------------


def plain_log_likelihoods(model, context, endings):
    """Of endings behind a context, each in a whole row of its own."""
    found = []
    for ending in endings:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*context, *ending]])).logits[0].float()
        logs = logits.log_softmax(dim=-1)
        places = range(len(context) - 1, len(context) + len(ending) - 1)
        found.append(
            sum(float(logs[place, token]) for place, token in zip(places, ending, strict=True))
        )
    return torch.tensor(found)


def prompted(files, folder, name, dtype):
    options = {"template": PROMPT, "label_words": json.dumps(WORDS), "max_length": 60}
    given = settings("PromptTask", name, options, dtype)
    recipe = f"--config={files}/TextFilesDataModule.yaml"
    run("test", recipe, *given, f"--run_dir={folder}/prompted")
    return scores(pq.read_table(folder / "prompted" / "predictions.parquet"))


def chosen(folder, name, dtype):
    given = settings("MultipleChoiceTask", name, {"num_fewshot": 1}, dtype)
    data = ["--data=HellaSwagDataModule", "--data.source=sample", "--data.limit_test=4"]
    data += ["--data.batch_size=2", "--latency.examples=0"]
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    run("test", *given, *data, *quiet, f"--run_dir={folder}/chosen")
    table = pq.read_table(folder / "chosen" / "predictions.parquet")
    return torch.tensor(
        [table[f"log_likelihood_{n}"].to_numpy().copy() for n in range(4)]
    ).T.float()


@pytest.mark.parametrize("name", DECODERS)
def test_prompted(files, tmp_path, name):
    found = prompted(files, tmp_path, name, "float32")
    model = AutoModelForCausalLM.from_pretrained(zoo_model(name)).eval()
    tokenizer = AutoTokenizer.from_pretrained(zoo_model(name))
    head, _ = special_tokens(tokenizer)
    answers = [tokenizer(f" {w}", add_special_tokens=False)["input_ids"] for w in WORDS.values()]
    plain = []
    for text in texts_of(files):
        ids = tokenizer(PROMPT.format(text=text), add_special_tokens=False)["input_ids"]
        plain.append(plain_log_likelihoods(model, [*head, *ids], answers).softmax(dim=0))
    assert_equal([found], torch.stack(plain))


@pytest.mark.parametrize("name", some(DECODERS, ["llama", "mistral", "gpt_neo", "opt", "mamba"]))
def test_multiple_choice(tmp_path, name):
    found = chosen(tmp_path, name, "float32")
    model = AutoModelForCausalLM.from_pretrained(zoo_model(name)).eval()
    tokenizer = AutoTokenizer.from_pretrained(zoo_model(name))
    data = HellaSwagDataModule(source="sample", limit_test=4)
    shot = int(np.random.default_rng(0).choice(len(data.split("train")), 1)[0])
    solved = {**data.split("train").examples[shot], "label": data.split("train").labels[shot]}
    encoder = ChoiceEncoder(tokenizer, "lm_eval", 512, [solved])
    encoded = encoder.encode(data.split("test").examples[:])
    for row, ids, sizes in zip(found, encoded["input_ids"], encoded["ending_tokens"], strict=True):
        ends = np.cumsum([len(ids) - sum(sizes), *sizes])
        endings = [ids[begin:end] for begin, end in itertools.pairwise(ends)]
        plain = plain_log_likelihoods(model, ids[: ends[0]], endings)
        torch.testing.assert_close(row, plain, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", some(DECODERS, HALF_IN_FLOAT32))
def test_scored_in_bfloat16(files, tmp_path, name):
    for found in (prompted(files, tmp_path, name, "bfloat16"), chosen(tmp_path, name, "bfloat16")):
        assert found.isfinite().all()
        assert found.std() > 1e-2


@pytest.mark.parametrize("name", LOOKING_AHEAD)
def test_what_looks_ahead_is_not_prompted(files, tmp_path, name, capsys):
    given = settings("PromptTask", name, {"template": PROMPT, "max_length": 60}, "float32")
    recipe = f"--config={files}/TextFilesDataModule.yaml"
    assert main(["test", recipe, *given, f"--run_dir={tmp_path}/run"]) == 2
    assert "looks at the words behind a word" in capsys.readouterr().err


# -- summaries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PAIRS, "gpt2", "mistral"])
def test_summarized(files, tmp_path, name):
    options = {"method": "full", "max_length": 60, "max_new_tokens": 6, "num_beams": 1}
    options |= {"max_summary_length": 12, "template": "So {text}\nIn short", "lr": 1e-2}
    tested, predicted = trained(files, tmp_path, "SummarizationTask", name, options)
    assert tested["summary"].to_pylist() == predicted["summary"].to_pylist()
    folder = exported(tmp_path)
    loader = AutoModelForSeq2SeqLM if name in PAIRS else AutoModelForCausalLM
    model, tokenizer = loader.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    plain = []
    for text in texts_of(files):
        row = tokenizer(text, return_tensors="pt")["input_ids"]
        written = model.generate(row, max_new_tokens=6, do_sample=False)[0]
        begin = 1 if name in PAIRS else row.shape[1]
        plain.append(tokenizer.decode(written[begin:], skip_special_tokens=True).strip())
    assert predicted["summary"].to_pylist() == plain
    assert len(set(plain)) > 1, "the texts are told apart"
