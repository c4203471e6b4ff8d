"""Adapters of peft, merged: they say what peft says with them beside their base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from smolbench.errors import SmolbenchError
from smolbench.models.pretrained.backbone import Backbone
from smolbench.models.pretrained.classifier import load_classifier, load_trained_classifier
from smolbench.models.pretrained.language_model import LanguageModel
from smolbench.models.summaries.summarizer import load_summarizer
from smolbench.tasks import FineTuneTask
from tests.helpers.tiny import CONFIGS, random_model, tiny_tokenizer
from tests.models.export import test_classifier as classifiers
from tests.models.export import test_language_model as language_models
from tests.models.export import test_probe as probes

CPU = torch.device("cpu")
IDS = torch.tensor([[0, 7, 9, 70, 80, 90]])
ADDED = torch.tensor([[0, 400, 9, 70, 401, 90]])


def tied_base(kind):
    config = CONFIGS[kind]()
    config.tie_word_embeddings = True
    loader = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    folder = random_model(f"tied-{kind}", config, loader)
    tiny_tokenizer(kind).save_pretrained(folder)
    return folder, loader


def trained(base, loader, config, folder, added=0, **options):
    """A trained adapter, saved by peft, and the model in memory that it was saved from."""
    model = loader.from_pretrained(base, dtype=torch.float32, **options)
    if added:
        model.resize_token_embeddings(model.config.vocab_size + added, mean_resizing=False)
        model.get_input_embeddings().weight.data[-added:] = 3
    torch.manual_seed(1)
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3)
    adapted.save_pretrained(folder)
    return adapted.eval()


def logits(model, ids=IDS):
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


def loaded(folder):
    return load_summarizer(LanguageModel(str(folder), None, "float32"), torch.float32)


LAYERS = {"llama": ("q_proj", "embed_tokens"), "gpt2": ("c_attn", "wte"), "t5": ("q", "shared")}
KINDS = {
    "inside": lambda q, _: LoraConfig(target_modules=[q]),
    "head": lambda q, _: LoraConfig(target_modules=[q, "lm_head"]),
    "embeddings": lambda _, e: LoraConfig(target_modules=[e]),
    "dora": lambda _, e: LoraConfig(target_modules=[e, "lm_head"], use_dora=True),
    "rslora": lambda *_: LoraConfig(target_modules=["lm_head"], use_rslora=True),
    "saved": lambda q, _: LoraConfig(target_modules=[q], modules_to_save=["lm_head"]),
    "saved twice": lambda q, e: LoraConfig(target_modules=[q], modules_to_save=[e, "lm_head"]),
    "tokens": lambda q, _: LoraConfig(target_modules=[q], trainable_token_indices=[7, 9]),
    "ia3": lambda q, _: IA3Config(target_modules=[q], feedforward_modules=[]),
}
ONE_TABLE = ("inside", "tokens", "ia3")
"""What leaves embeddings and head the same."""


@pytest.mark.parametrize(
    ("kind", "how"), [*(("llama", how) for how in KINDS), ("gpt2", "head"), ("t5", "saved twice")]
)
def test_merged_it_says_what_peft_says_unmerged(tmp_path, kind, how):
    base, loader = tied_base(kind)
    config = KINDS[how](*LAYERS[kind])
    config.task_type = "SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM"
    trained(base, loader, config, tmp_path)
    plain = loader.from_pretrained(base, dtype=torch.float32).eval()
    before = logits(plain)
    expected = logits(PeftModel.from_pretrained(plain, tmp_path).eval())
    model = loaded(tmp_path)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert (before - expected).abs().max() > 0.1
    shared = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert shared == (how in ONE_TABLE) == model.config.tie_word_embeddings
    model.save_pretrained(tmp_path / "whole")  # as an export does
    again = loader.from_pretrained(tmp_path / "whole", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("more", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}])
def test_added_tokens_come_with_the_adapter(tmp_path, more):
    base, loader = tied_base("llama")
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", **more)
    adapted = trained(base, loader, config, tmp_path, added=2)
    backbone = LanguageModel(str(tmp_path), None, "float32")
    assert len(backbone.tokenizer) == 400, "no tokenizer lies beside it"
    tokenizer = type(tiny_tokenizer("llama")).from_pretrained(base)
    tokenizer.add_tokens(["<new>", "<newer>"])
    tokenizer.save_pretrained(tmp_path)
    backbone = LanguageModel(str(tmp_path), None, "float32")
    assert backbone.tokenizer("<newer>").input_ids == [401]
    backbone.require_embeddings([401])
    torch.testing.assert_close(
        logits(loaded(tmp_path), ADDED), logits(adapted, ADDED), rtol=1e-4, atol=1e-4
    )


def test_tokens_without_embeddings_are_told(tmp_path):
    base, loader = tied_base("llama")
    trained(base, loader, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"), tmp_path)
    tokenizer = type(tiny_tokenizer("llama")).from_pretrained(base)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path)
    backbone = LanguageModel(str(tmp_path), None, "float32")
    with pytest.raises(SmolbenchError, match=r"'<new>' \(id 400\), but .* 400 tokens only"):
        backbone.require_embeddings(backbone.tokenizer("<new>").input_ids)


def test_a_tokenizer_with_a_template_in_it_is_not_put_into_another(tmp_path, caplog):
    from tokenizers import processors

    base, loader = tied_base("llama")
    trained(base, loader, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"), tmp_path)
    tokenizer = type(tiny_tokenizer("llama")).from_pretrained(base)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> <s> <s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.save_pretrained(tmp_path)
    backbone = LanguageModel(str(tmp_path), None, "float32")
    assert backbone.tokenizer("Dull.").input_ids == tiny_tokenizer("llama")("Dull.").input_ids
    assert "template of its own" in caplog.text


# -- files that do not fit -------------------------------------------------------------------------


def compiled(weights):
    return {n.replace(".model.", ".model._orig_mod.", 1): w for n, w in weights.items()}


def named(weights):
    return {n.replace(".weight", ".mine.weight"): w for n, w in weights.items()}


def half(weights):
    return {n: w for n, w in weights.items() if ".layers.0." in n}


def more(weights):
    return weights | {n.replace(".layers.1.", ".layers.2."): w + 1 for n, w in weights.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (compiled, r"lora_A.weight.* are missing; .*_orig_mod.* are left over"),
        (named, r"are missing; .*\.mine\.weight.* are left over"),
        (half, r"layers\.1\.[^;]* are missing\."),
        (more, r"layers\.2\.[^;]* are left over"),
    ],
)
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_weights_that_are_missing_or_left_over_are_named(tmp_path, change, said, ending):
    base, loader = tied_base("llama")
    trained(base, loader, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = change(load_file(file))
    if ending == "bin":
        file.unlink()
        torch.save(weights, tmp_path / "adapter_model.bin")
    else:
        save_file(weights, file)
    for load in (loaded, lambda folder: Backbone(str(folder), None, "float32").load(CPU)):
        with pytest.raises(SmolbenchError, match=f"does not fit .*{said}"):
            load(tmp_path)


def test_an_adapter_that_has_learned_nothing_is_told(tmp_path, caplog):
    base, loader = tied_base("llama")
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(loader.from_pretrained(base), config).save_pretrained(tmp_path)
    loaded(tmp_path)
    assert "changes nothing" in caplog.text


def test_what_cannot_be_merged_is_refused(tmp_path):
    base, loader = tied_base("llama")
    trained(base, loader, PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), tmp_path)
    with pytest.raises(SmolbenchError, match="only adapters that can be merged"):
        loaded(tmp_path)


def test_a_merge_that_says_something_else_is_refused(tmp_path, monkeypatch):
    base, loader = tied_base("llama")
    trained(base, loader, LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM"), tmp_path)
    monkeypatch.setattr("smolbench.models.pretrained.adapter_folder._untie", lambda *_: None)
    with pytest.raises(SmolbenchError, match="says something else than beside it"):
        loaded(tmp_path)


def test_a_model_beside_an_adapter_is_refused(tmp_path):
    base, loader = tied_base("llama")
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = trained(base, loader, config, tmp_path)
    model.get_base_model().config.save_pretrained(tmp_path)
    loaded(tmp_path)  # its settings alone do no harm
    loader.from_pretrained(base).save_pretrained(tmp_path)
    with pytest.raises(SmolbenchError, match=r"both an adapter .* and a model of its own"):
        Backbone(str(tmp_path), None, "float32")


# -- other tasks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loader", "task", "layer"),
    [
        (AutoModelForCausalLM, "CAUSAL_LM", "lm_head"),
        (AutoModelForCausalLM, None, "embed_tokens"),
        (AutoModel, "FEATURE_EXTRACTION", "embed_tokens"),
        (AutoModel, None, "up_proj"),
        (AutoModelForSequenceClassification, "SEQ_CLS", "up_proj"),
    ],
)
def test_whatever_it_was_trained_for_it_serves_every_task(tmp_path, loader, task, layer):
    base, _ = tied_base("llama")
    config = LoraConfig(target_modules=["q_proj", layer], task_type=task)
    options = {"num_labels": 3} if task == "SEQ_CLS" else {}
    adapted = trained(base, loader, config, tmp_path, **options)
    inner = adapted.get_base_model()
    with torch.no_grad():
        expected = inner.base_model(IDS)[0]
        probed = Backbone(str(tmp_path), None, "float32").load(CPU)
        torch.testing.assert_close(probed(IDS)[0], expected, rtol=1e-4, atol=1e-4)
        tuned = load_classifier(Backbone(str(tmp_path), None, "float32"), 5, 0)
        torch.testing.assert_close(tuned.base_model(IDS)[0], expected, rtol=1e-4, atol=1e-4)
        assert tuned.score.weight.shape == (5, 16)
        plain = load_classifier(Backbone(base, None, "float32"), 5, 0)
        assert torch.equal(tuned.score.weight, plain.score.weight), "the head is drawn anew"
        teacher = Backbone(str(tmp_path), None, "float32")
        if task == "SEQ_CLS":
            scored = load_trained_classifier(teacher)(IDS).logits
            torch.testing.assert_close(scored, adapted(IDS).logits, rtol=1e-4, atol=1e-4)
        else:
            with pytest.raises(SmolbenchError, match="no trained classification head"):
                load_trained_classifier(teacher)


def test_it_is_the_same_wherever_it_and_its_base_lie(tmp_path):
    base, loader = tied_base("llama")
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    trained(base, loader, config, tmp_path / "one")
    before = Backbone(str(tmp_path / "one"), None, "float32").revision
    (tmp_path / "one").rename(tmp_path / "two")
    moved = tmp_path / "base"
    moved.mkdir()
    for file in Path(base).iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    settings = tmp_path / "two" / "adapter_config.json"
    written = json.loads(settings.read_text()) | {"base_model_name_or_path": str(moved)}
    settings.write_text(json.dumps(written))
    assert Backbone(str(tmp_path / "two"), None, "float32").revision == before
    settings.write_text(json.dumps(written | {"lora_alpha": 99}))
    assert Backbone(str(tmp_path / "two"), None, "float32").revision != before
    settings.write_text(json.dumps(written | {"base_model_name_or_path": "/not/there"}))
    with pytest.raises(SmolbenchError, match="a folder that is not there"):
        Backbone(str(tmp_path / "two"), None, "float32")


def test_a_run_on_it_is_exported_whole_and_not_in_parts(tmp_path):
    base, loader = tied_base("llama")
    config = LoraConfig(target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    trained(base, loader, config, tmp_path / "adapter")
    options = {"backbone": str(tmp_path / "adapter"), "max_length": 60, "dtype": "float32"}
    for name in ("whole", "part", "head", "words"):
        (tmp_path / name).mkdir()
    writer = language_models.trained("llama", method="lora", backbone=options["backbone"])
    writer.export(tmp_path / "words")  # it compares itself with the run
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "words").eval()
    assert not written.config.tie_word_embeddings
    tuned = classifiers.trained("llama", method="lora", **options)
    assert tuned.facts()["model/id"] == options["backbone"]
    assert tuned.facts()["model/base"] == base
    tuned.export(tmp_path / "whole", trial=classifiers.TRIAL)
    with pytest.raises(SmolbenchError, match=r"itself an adapter .* leave out --adapter"):
        tuned.export(tmp_path / "part", trial=classifiers.TRIAL, adapter=True)
    with pytest.raises(SmolbenchError, match="an export of a head names its network"):
        probes.trained(**options).export(tmp_path / "head", trial=probes.TRIAL)
    with pytest.raises(SmolbenchError, match=r"weights in 4 bits .* cannot take in"):
        FineTuneTask(method="qlora", **options)
