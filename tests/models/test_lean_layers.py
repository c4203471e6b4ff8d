"""Layers that save memory in evaluation: same numbers, and training as transformers has it."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from smolbench.models.lean_layers import use_lean_layers
from tests.helpers.tiny import tiny_language_model

IDS = torch.tensor([[5, 9, 200, 31, 7, 7, 88], [3, 250, 17, 12, 199, 60, 4]])


def plain_and_lean(kind, dtype=torch.float32):
    plain = AutoModelForCausalLM.from_pretrained(tiny_language_model(kind), dtype=dtype).eval()
    lean = copy.deepcopy(plain)
    use_lean_layers(lean)
    return plain, lean


def replaced(model):
    return sum(type(module).__name__.startswith("Lean") for module in model.modules())


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_evaluation_gives_the_same_logits(kind):
    plain, lean = plain_and_lean(kind)
    per_layer = {"llama": 4, "qwen2": 3, "qwen3": 5}[kind]  # norms, feed-forward, Llama's attention
    assert replaced(lean) == per_layer * plain.config.num_hidden_layers + 1
    with torch.no_grad():
        torch.testing.assert_close(lean(IDS).logits, plain(IDS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_has_the_format_of_before_and_rounds_no_worse(autocast):
    exact, _ = plain_and_lean("llama")
    errors = []
    formats = []
    for model in plain_and_lean("llama", torch.float32 if autocast else torch.bfloat16):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = model(IDS).logits
        formats.append(found.dtype)
        with torch.inference_mode():
            errors.append((found.float() - exact(IDS).logits).square().mean().sqrt().item())
    assert formats == [torch.bfloat16, torch.bfloat16]
    assert 0 < errors[1] < 1.25 * errors[0]


def test_training_is_bitwise_as_before_also_under_autocast():
    gradients = []
    for model in plain_and_lean("llama"):
        with torch.autocast("cpu", torch.bfloat16):
            model(IDS, labels=IDS).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    plain, lean = gradients
    assert plain.keys() == lean.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, lean[name]), name


def test_a_cache_and_positions_of_ones_own_are_honoured():
    logits = []
    for model in plain_and_lean("llama"):
        with torch.no_grad():
            begun = model(IDS[:, :3], use_cache=True)
            positions = torch.tensor([[3, 4, 7, 8]]).expand(2, -1)
            logits.append(
                model(
                    IDS[:, 3:], past_key_values=begun.past_key_values, position_ids=positions
                ).logits
            )
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-5)


def test_inputs_are_left_as_they_were():
    _, lean = plain_and_lean("llama")
    layer = lean.model.layers[0]
    states = torch.randn(2, 3, lean.config.hidden_size)
    before = states.clone()
    with torch.no_grad():
        layer.input_layernorm(states)
        layer.mlp(states)
        places = lean.model.rotary_emb(states, torch.arange(3)[None])
        layer.self_attn(states, places)
    assert torch.equal(states, before)


def test_other_architectures_and_activations_stay_as_they_are():
    for kind in ("gpt2", "opt", "mistral"):
        _, model = plain_and_lean(kind)
        assert replaced(model) == 0
    plain, lean = plain_and_lean("llama")
    for model in (plain, lean):
        for layer in model.model.layers:
            layer.mlp.act_fn = torch.nn.GELU()
        model.config.hidden_act = "gelu"
    with torch.no_grad():
        torch.testing.assert_close(lean(IDS).logits, plain(IDS).logits, rtol=0, atol=1e-5)
