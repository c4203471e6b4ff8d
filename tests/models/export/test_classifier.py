from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    pipeline,
)

from smolbench.data.batching import pad_rows
from smolbench.errors import SmolbenchError
from smolbench.models.export.check import Trial
from smolbench.models.pretrained.quantization import keep_gradients
from smolbench.tasks import FineTuneTask
from tests.helpers.tiny import PAD, TEXTS, tiny_backbone

LABELS = ["neg", "it's so-so", "pos"]
TRIAL = Trial({"text": TEXTS}, "known ones")
ON_THE_CARD = ["Two hours I will never get back.", "A gem."]
TEMPLATE = "Review: {text}\nIs it good?"


def trained(kind, **options):
    """A classifier whose trained weights are far from what they were drawn as."""
    options = {"backbone": tiny_backbone(kind), "dtype": "float32", "max_length": 60, **options}
    task = FineTuneTask(**options)
    task.label_names = LABELS
    task.configure_model()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in task.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return task.eval()


def own_logits(task, texts=TEXTS):
    rows = pad_rows(task.encode({"text": texts})["input_ids"], task._padding)
    with torch.inference_mode():
        return task(rows)


def exported(task, folder, **options):
    """The export, and what the task's model says of the texts."""
    expected = own_logits(task)
    folder.mkdir(exist_ok=True)
    return task.export(folder, trial=TRIAL, **options), expected


def plain_logits(model, folder, texts=TEXTS, **options):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = tokenizer(texts, truncation=True, padding=True, return_tensors="pt", **options)
    with torch.inference_mode():
        return model.eval()(**rows).logits


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (expected.std(dim=0) > 1e-2).all(), "the texts are told apart"


# -- merged ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["{text}", TEMPLATE])
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("gpt2", "full"),
        ("opt", "full"),
        ("opt_350m", "full"),
        ("llama", "full"),
        ("gpt_neo", "full"),
        ("bert", "full"),
        ("roberta", "full"),
        ("gpt2", "lora"),
        ("llama", "lora"),
        ("bert", "lora"),
        ("gpt2", "bitfit"),
        ("opt", "bitfit"),
        ("llama", "bitfit_added"),
    ],
)
def test_plain_transformers_says_the_same_of_padded_texts(tmp_path, kind, method, template):
    made, expected = exported(trained(kind, method=method, template=template), tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert_same(plain_logits(model, tmp_path), expected)
    alone = torch.cat([plain_logits(model, tmp_path, [text]) for text in TEXTS])
    assert_same(alone, expected)
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id["pos"] == 2
    assert made.framework == "transformers"
    assert (template == TEMPLATE) == (TEMPLATE.split("\n")[0] in made.reads[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_long_texts_are_cut_and_the_template_is_not(tmp_path, side):
    task = trained("gpt2", template=TEMPLATE, max_length=32, truncation_side=side)
    long = [" ".join(TEXTS), *TEXTS]
    expected = own_logits(task, long)
    exported(task, tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert_same(plain_logits(model, tmp_path, long), expected)


def test_a_row_ends_at_its_last_token_that_is_no_padding(tmp_path):
    task = trained("gpt2")
    texts = ["It was fine", "It was fine<pad>"]
    expected = own_logits(task, texts)
    made, _ = exported(task, tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    found = plain_logits(model, tmp_path, texts)
    torch.testing.assert_close(found[:1], expected[:1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[1], expected[1], atol=1e-3), "as the card warns"
    assert any("<pad>" in limit and f"id {PAD}" in limit for limit in made.limits)
    assert model.config.pad_token_id == PAD


def test_the_pipeline_of_transformers_takes_it(tmp_path):
    _, expected = exported(trained("llama", template=TEMPLATE), tmp_path)
    label = pipeline("text-classification", model=str(tmp_path), device="cpu")
    found = label(TEXTS, truncation=True, padding=True, batch_size=4)
    assert [one["label"] for one in found] == [LABELS[n] for n in expected.argmax(dim=1)]


@pytest.mark.parametrize("adapter", [False, True])
def test_the_code_on_the_card_says_what_the_run_says(tmp_path, capsys, adapter):
    task = trained("llama", method="lora" if adapter else "full", template=TEMPLATE)
    expected = own_logits(task, ON_THE_CARD).softmax(dim=1)
    made, _ = exported(task, tmp_path, adapter=adapter)
    exec(made.usage.replace("FOLDER", str(tmp_path)), {})
    lines = [line.rpartition(" ") for line in capsys.readouterr().out.splitlines()]
    assert [label for label, _, _ in lines] == [LABELS[n] for n in expected.argmax(dim=1)]
    scores = [float(score) for _, _, score in lines]
    assert scores == pytest.approx(expected.max(dim=1).values.tolist(), abs=1e-5)


# -- what the base says of a task of its own ------------------------------------------------------


def base_of_another_task(kind, folder, problem_type, labels):
    """A model whose files are full of what it was once used for."""
    shutil.copytree(tiny_backbone(kind), folder)
    change(
        folder / "config.json",
        problem_type=problem_type,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: n for n, label in enumerate(labels)},
        finetuning_task="sts-b",
        task_specific_params={"text-classification": {"problem_type": "regression"}},
        prefix="classify: ",
        custom_pipelines={"text-classification": {"impl": "own.Pipeline"}},
    )
    change(
        folder / "tokenizer_config.json",
        truncation_side="left",
        padding_side="left",
        model_max_length=7,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        chat_template="{{ messages }}",
    )
    change(
        folder / "tokenizer.json",
        truncation={
            "max_length": 9,
            "strategy": "LongestFirst",
            "stride": 0,
            "direction": "Left",
        },
        padding={
            "strategy": {"Fixed": 16},
            "direction": "Left",
            "pad_to_multiple_of": None,
            "pad_id": 3,
            "pad_type_id": 1,
            "pad_token": "<unk>",
        },
    )
    return str(folder)


def change(file, **entries):
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


@pytest.mark.parametrize("template", ["{text}", TEMPLATE])
@pytest.mark.parametrize(
    ("kind", "problem_type", "labels"),
    [
        ("bert", "regression", ["score"]),
        ("bert", "multi_label_classification", ["pos", "neg", "it's so-so"]),
        ("llama", "single_label_classification", ["a", "b"]),
        ("gpt2", None, ["pos", "neg", "it's so-so"]),
    ],
)
def test_a_base_of_another_task_leaves_nothing_of_it(
    tmp_path, kind, problem_type, labels, template
):
    base = base_of_another_task(kind, tmp_path / "base", problem_type, labels)
    task = trained(kind, backbone=base, template=template, max_length=40)
    texts = [
        *TEXTS,
        " ".join(TEXTS),
        "Wie schön\u2026 \u4f60\u597d 😀\t!",
        "x " * 300,
        "\n\n",
        "<s>",
    ]
    texts += [""] if kind == "bert" else []  # the others have no token to read
    expected = own_logits(task, texts).softmax(dim=1)
    folder = tmp_path / "made"
    exported(task, folder)
    label = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    for batch_size in (1, 4):
        said = label(texts, truncation=True, batch_size=batch_size)
        for text, scores, row in zip(texts, said, expected, strict=True):
            if template == TEMPLATE and text in ("", "<s>"):
                continue  # other spaces than in training, as the card says
            found = {one["label"]: one["score"] for one in scores}
            assert found == pytest.approx(dict(zip(LABELS, row.tolist(), strict=True)), abs=1e-5)
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == "single_label_classification"
    assert config["id2label"] == {str(number): label for number, label in enumerate(LABELS)}
    assert config["label2id"] == {label: number for number, label in enumerate(LABELS)}
    assert not {"finetuning_task", "task_specific_params", "prefix", "custom_pipelines"} & {*config}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.model_max_length, tokenizer.chat_template) == (40, None)
    raw = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("x " * 300)
    assert len(raw.ids) == 40


def test_an_adapter_on_a_base_of_another_task(tmp_path, capsys):
    base = base_of_another_task("bert", tmp_path / "base", "multi_label_classification", ["a", "b"])
    task = trained("bert", backbone=base, method="lora")
    expected = own_logits(task, ON_THE_CARD).softmax(dim=1)
    made, _ = exported(task, tmp_path / "made", adapter=True)
    names: dict = {}
    exec(made.usage.replace("FOLDER", str(tmp_path / "made")), names)
    torch.testing.assert_close(names["scores"], expected, rtol=0, atol=1e-5)
    assert names["model"].config.problem_type == "single_label_classification"
    assert capsys.readouterr().out


def test_weights_rounded_in_training_are_exported_as_they_were_scored(tmp_path):
    made, _ = exported(trained("gpt2", method="lora", dtype="bfloat16"), tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    embeddings = model.transformer.wte.weight.data
    assert embeddings.dtype == torch.float32
    assert torch.equal(embeddings, embeddings.bfloat16().float())
    assert "merged" in made.what


@pytest.mark.parametrize("adapter", [False, True])
def test_a_run_in_bfloat16_is_compared_as_it_was_scored(tmp_path, adapter):
    task = trained("gpt2", method="lora", dtype="bfloat16")
    made, _ = exported(task, tmp_path, adapter=adapter)
    assert (made.check.run_dtype, made.check.export_dtype) == ("bfloat16", "float32")
    assert made.check.n == len(TEXTS) + 1, "and one that is cut"
    assert 1e-5 < made.check.difference <= made.check.allowed < 0.1


def test_mixed_precision_of_the_trainer_is_part_of_the_runs_path(tmp_path):
    task = trained("gpt2")
    made = task.export(tmp_path, trial=replace(TRIAL, mixed=torch.bfloat16))
    assert made.check.run_dtype == "bfloat16"
    assert 1e-5 < made.check.difference <= made.check.allowed < 0.1


@pytest.mark.parametrize("kind", ["gpt_neo", "mistral"])
def test_biases_that_have_no_place_are_refused(tmp_path, kind):
    with pytest.raises(SmolbenchError, match=r"has no place for .*bias"):
        exported(trained(kind, method="bitfit_added"), tmp_path)


def test_what_says_something_else_is_refused(tmp_path, monkeypatch):
    task = trained("gpt2")
    monkeypatch.setattr("smolbench.models.export.classifier.name_labels", spoil)
    with pytest.raises(SmolbenchError, match="says something else than the run's model"):
        exported(task, tmp_path)


def spoil(model, labels):
    with torch.no_grad():
        model.score.weight.add_(1.0)
        model.score.weight[0] += 1.0


def test_what_cannot_be_loaded_is_refused(tmp_path, monkeypatch):
    task = trained("gpt2")
    monkeypatch.setattr("smolbench.models.export.classifier.write_network", lambda *a: None)
    with pytest.raises(SmolbenchError, match="cannot be loaded again"):
        exported(task, tmp_path)


# -- adapters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt", "gpt_neo", "bert"])
def test_an_adapter_goes_onto_its_base_model(tmp_path, kind):
    made, expected = exported(trained(kind, method="lora"), tmp_path, adapter=True)
    base = AutoModelForSequenceClassification.from_pretrained(
        tiny_backbone(kind), num_labels=3, pad_token_id=PAD
    )
    assert_same(plain_logits(PeftModel.from_pretrained(base, tmp_path), tmp_path), expected)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_backbone(kind))
    assert config["task_type"] == "SEQ_CLS"
    assert made.framework == "peft"
    assert made.base_is_local
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("quantize", "dtype"), [("all", "float32"), ("adapted", "float32"), ("all", "bfloat16")]
)
def test_an_adapter_goes_onto_four_bits(tmp_path, quantize, dtype):
    task = trained("llama", method="qlora", quantize=quantize, dtype=dtype)
    made, expected = exported(task, tmp_path, adapter=True)
    assert (made.check.run_dtype, made.check.export_dtype) == (dtype, dtype)
    code = made.usage.partition("rows = ")[0].replace("FOLDER", str(tmp_path))
    names: dict = {}
    exec(code, names)
    assert names["base"].dtype == getattr(torch, dtype)
    if dtype == "bfloat16":
        return
    keep_gradients(names["model"])
    assert_same(plain_logits(names["model"], tmp_path), expected)
    held = {n for n, p in names["base"].named_parameters() if type(p).__name__ == "Params4bit"}
    assert any("q_proj" in name for name in held)
    assert any("up_proj" in name for name in held) == (quantize == "all")
    assert "score.weight" not in held
    assert isinstance(names["base"].config.quantization_config, BitsAndBytesConfig)
    assert not re.search(r"layers\\?\.[01]", made.usage), "layers are not named one by one"


def test_four_bits_are_not_merged(tmp_path):
    with pytest.raises(SmolbenchError, match=r"cannot be merged .* --adapter"):
        exported(trained("llama", method="qlora"), tmp_path)


def test_a_run_without_adapters_has_none_to_export(tmp_path):
    with pytest.raises(SmolbenchError, match="--adapter is for runs of the methods lora and qlora"):
        exported(trained("gpt2"), tmp_path, adapter=True)


def test_a_padding_token_without_an_embedding_is_not_exported(tmp_path):
    task = trained("llama")
    task.model.config.pad_token_id = None
    task.encoder.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert task.encoder.tokenizer.pad_token_id == task.backbone.config.vocab_size
    _, expected = exported(task, tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert_same(plain_logits(model, tmp_path), expected)
