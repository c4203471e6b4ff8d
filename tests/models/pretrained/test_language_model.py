from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from smolbench.errors import SmolbenchError
from smolbench.models.pretrained.adaptation import LoRAOptions, adapt, adapted_layers, linear_layers
from smolbench.models.pretrained.language_model import (
    LanguageModel,
    language_model_skeleton,
    load_language_model,
)
from smolbench.models.pretrained.quantization import in_four_bits
from tests.helpers.tiny import tiny_backbone, tiny_language_model

CPU = torch.device("cpu")
IDS = torch.arange(5, 25)[None]


def load(name, **options):
    return load_language_model(LanguageModel(name, None, "float32"), torch.float32, **options)


@pytest.mark.parametrize(
    "kind", ["llama", "gpt2", "gpt_neo", "opt", "opt_350m", "mistral", "mamba"]
)
def test_logits_are_those_of_transformers(kind):
    folder = tiny_language_model(kind)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(
            load(folder)(IDS).logits, plain(IDS).logits, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_models_that_look_ahead_are_refused(kind):
    with pytest.raises(SmolbenchError, match="causal language models"):
        load(tiny_backbone(kind) if kind == "t5" else tiny_language_model(kind))


def test_weights_without_a_head_are_incomplete():
    with pytest.raises(SmolbenchError, match="lm_head"):
        load(tiny_backbone("llama"))


def test_a_model_reads_as_many_tokens_as_it_has_positions():
    assert LanguageModel(tiny_language_model("gpt2"), None, "float32").reads == 512
    assert LanguageModel(tiny_language_model("mamba"), None, "float32").reads == 2048


# -- what trains ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neo", "opt"])
def test_lora_trains_adapters_and_nothing_of_the_head(kind):
    model = load(tiny_language_model(kind))
    adapt(model, "lora", LoRAOptions(), 0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("quantize", ["all", "adapted"])
def test_the_head_is_not_held_in_four_bits(kind, quantize):
    backbone = LanguageModel(tiny_language_model(kind), None, "float32")
    bare = language_model_skeleton(backbone)
    assert not any("lm_head" in name for name in linear_layers(bare))
    options = in_four_bits(bare, quantize, None, torch.float32, CPU)
    model = load_language_model(backbone, torch.float32, **options)
    small = {name for name, m in model.named_modules() if type(m).__name__ == "Linear4bit"}
    expected = linear_layers(bare) if quantize == "all" else adapted_layers(bare, None)
    assert small == set(expected)


# -- adapters -------------------------------------------------------------------------------------


def saved_adapter(folder, kind="llama", base=None):
    """What peft's users have: a folder with a trained adapter and the name of its base."""
    from peft import LoraConfig, get_peft_model

    path = tiny_language_model(kind)
    torch.manual_seed(5)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = path if base is None else base
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return model.eval()


def test_an_adapter_folder_is_its_base_model_with_the_adapter(tmp_path):
    adapted = saved_adapter(tmp_path)
    backbone = LanguageModel(str(tmp_path), None, "float32")
    assert backbone.name == tiny_language_model("llama")
    assert backbone.given == str(tmp_path)
    model = load_language_model(backbone, torch.float32)
    with torch.no_grad():
        expected = adapted(IDS).logits
        torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-4)
        plain = load(tiny_language_model("llama"))(IDS).logits
    assert (plain - expected).abs().max() > 0.1
    assert backbone.revision != LanguageModel(backbone.name, None, "float32").revision
    (tmp_path / "adapter_model.safetensors").touch()
    assert LanguageModel(str(tmp_path), None, "float32").revision == backbone.revision


def test_an_adapter_that_does_not_fit_is_one_sentence(tmp_path):
    saved_adapter(tmp_path, base=tiny_language_model("gpt2"))
    with pytest.raises(SmolbenchError, match=r"cannot be put onto"):
        load(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(SmolbenchError, match="does not name the model"):
        LanguageModel(str(tmp_path), None, "float32")
    (Path(tmp_path) / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    with pytest.raises(SmolbenchError, match="names no base model"):
        LanguageModel(str(tmp_path), None, "float32")
