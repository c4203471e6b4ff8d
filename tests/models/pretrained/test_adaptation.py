from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    OPTConfig,
    T5Config,
)

from smolbench.errors import SmolbenchError
from smolbench.models.pretrained.adaptation import (
    LoRAOptions,
    adapt,
    adapted_layers,
    describe,
    head_names,
    hold_frozen_in,
    linear_layers,
    parameter_count,
)
from tests.helpers.tiny import CONFIGS

KINDS = ["llama", "mistral", "gpt2", "gpt_neo", "opt", "opt_350m", "bert", "roberta"]
HEADS = {
    "bert": {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    | {"classifier.weight", "classifier.bias"},
    "roberta": {
        f"classifier.{layer}.{kind}"
        for layer in ("dense", "out_proj")
        for kind in ("weight", "bias")
    },
}


def model(kind):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(CONFIGS[kind]())


def trained(network):
    return {name for name, p in network.named_parameters() if p.requires_grad}


def adapted(kind, method, **options):
    network = model(kind)
    adapt(network, method, LoRAOptions(**options), seed=0)
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_what_stands_behind_the_hidden_states(kind):
    assert head_names(model(kind)) == HEADS.get(kind, {"score.weight"})


@pytest.mark.parametrize("kind", KINDS)
def test_full_trains_everything(kind):
    network = adapted(kind, "full")
    assert trained(network) == {name for name, _ in network.named_parameters()}


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo", "opt", "opt_350m", "bert", "roberta"])
def test_bitfit_trains_all_biases_and_the_head_and_nothing_else(kind):
    before = {name for name, _ in model(kind).named_parameters()}
    network = adapted(kind, "bitfit")
    assert {name for name, _ in network.named_parameters()} == before, "nothing is added"
    expected = {name for name in before if name.endswith(".bias")} | head_names(network)
    assert trained(network) == expected
    norms = [n for n, m in network.named_modules() if isinstance(m, nn.LayerNorm)]
    assert norms
    assert all(f"{n}.bias" in expected and f"{n}.weight" not in expected for n in norms)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt_neo"])
def test_bitfit_added_puts_zeros_on_every_bare_linear_layer(kind):
    before = dict(model(kind).named_parameters())
    network = adapted(kind, "bitfit_added")
    after = dict(network.named_parameters())
    added = set(after) - set(before)
    assert added
    assert all(name.endswith("_proj.bias") and not after[name].any() for name in added)
    assert all(f"{name}.bias" in after for name in linear_layers(network))
    assert trained(network) == {n for n in after if n.endswith(".bias")} | {"score.weight"}


@pytest.mark.parametrize(
    ("kind", "method", "words"),
    [
        ("llama", "bitfit", ["has none", "bitfit_added", "lora"]),
        ("gpt2", "bitfit_added", ["none such", "bitfit"]),
        ("opt", "bitfit_added", ["none such", "bitfit"]),
    ],
)
def test_a_method_that_finds_nothing_to_train_is_refused(kind, method, words):
    with pytest.raises(SmolbenchError) as error:
        adapted(kind, method)
    assert all(word in str(error.value) for word in words)


LAYERS = {
    "llama": {"q_proj", "v_proj"},
    "mistral": {"q_proj", "v_proj"},
    "gpt2": {"c_attn"},
    "gpt_neo": {"q_proj", "v_proj"},
    "opt": {"q_proj", "v_proj"},
    "opt_350m": {"q_proj", "v_proj"},
    "bert": {"query", "value"},
    "roberta": {"query", "value"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_lora_trains_adapters_of_the_usual_layers_and_the_head(kind):
    network = adapted(kind, "lora", r=4)
    adapters = trained(network) - head_names(network)
    found = {tuple(name.split(".")[-4:-1]) for name in adapters}
    assert found == {
        (layer, part, "default") for layer in LAYERS[kind] for part in ("lora_A", "lora_B")
    }
    assert len(adapters) == 2 * 2 * len(LAYERS[kind]), "two layers, A and B"
    assert head_names(network) == HEADS.get(kind, {"score.weight"})


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapters_change_nothing_and_trained_ones_compute_as_the_paper_says(kind):
    plain, network = model(kind).eval(), adapted(kind, "lora", r=4, alpha=12).eval()
    row = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(network(row).logits, plain(row).logits)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
        merged = dict(plain.named_modules())
        for name, module in network.named_modules():
            if hasattr(module, "lora_A"):
                delta = module.lora_B["default"].weight @ module.lora_A["default"].weight * 3
                transposed = kind == "gpt2"  # Conv1D keeps W as (in, out)
                merged[name].weight += delta.T if transposed else delta
    torch.testing.assert_close(network(row).logits, plain(row).logits, rtol=1e-4, atol=1e-4)


def test_adapters_are_drawn_from_the_seed_alone():
    one = adapted("llama", "lora")
    other = model("llama")
    before = torch.get_rng_state()
    adapt(other, "lora", LoRAOptions(), seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    third = model("llama")
    adapt(third, "lora", LoRAOptions(), seed=1)
    first, same, different = (
        {n: p for n, p in network.named_parameters() if "lora_A" in n}
        for network in (one, other, third)
    )
    assert all(torch.equal(p, same[n]) for n, p in first.items())
    assert not any(torch.equal(p, different[n]) for n, p in first.items())


def test_targets_that_fit_nothing_are_refused_and_existing_ones_named():
    with pytest.raises(SmolbenchError, match=r"'wrong'.*down_proj, gate_proj, k_proj"):
        adapted_layers(model("llama"), ("q_proj", "wrong"))
    with pytest.raises(SmolbenchError, match=r"'score'.*no linear layer"):
        adapted_layers(model("llama"), ("score",))


def test_of_many_layers_the_first_are_named(monkeypatch):
    with pytest.raises(SmolbenchError, match=r"there are down_proj.*v_proj\.$"):
        adapted_layers(model("llama"), ("wrong",))
    monkeypatch.setattr("smolbench.models.pretrained.adaptation.NAMED", 2)
    with pytest.raises(SmolbenchError, match=r"there are down_proj, gate_proj \.\.\.\.$"):
        adapted_layers(model("llama"), ("wrong",))


def test_targets_are_whole_names():
    assert adapted_layers(model("llama"), ("layers.1.self_attn.k_proj",)) == [
        "model.layers.1.self_attn.k_proj"
    ]
    with pytest.raises(SmolbenchError):
        adapted_layers(model("llama"), ("_proj",))


def test_an_architecture_without_default_asks_for_targets():
    network = model("llama")
    network.config.model_type = "unheard_of"
    with pytest.raises(SmolbenchError, match=r"model\.target_modules.*q_proj"):
        adapted_layers(network, None)


def test_frozen_matrices_are_held_in_a_smaller_format_and_nothing_else():
    network = adapted("opt", "bitfit")
    hold_frozen_in(network, torch.bfloat16)
    for name, parameter in network.named_parameters():
        small = not parameter.requires_grad and parameter.ndim > 1
        assert parameter.dtype == (torch.bfloat16 if small else torch.float32), name


def test_what_trains_is_said_in_one_line():
    network = adapted("llama", "lora", r=2)
    said = describe(network, "lora", parameter_count(network))
    number = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert said.startswith(f"lora: {number:,} of {parameter_count(network):,} parameters train (")
    assert "layers.*.self_attn.q_proj.lora_A.default.weight" in said
    assert said.endswith("score.weight")
    assert "\n" not in said
    assert not re.search(r"\.\d", said.split("): ")[1])


def test_what_no_text_reaches_is_counted_apart():
    network = nn.Module()
    network.text = nn.Linear(3, 2, bias=False)
    network.tower = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    network.token = nn.Parameter(torch.zeros(4))
    network.text.requires_grad_(True)
    network.tower.requires_grad_(False)
    network.token.requires_grad_(False)
    unused = {name for name, _ in network.named_parameters() if name != "text.weight"}
    assert describe(network, "full", 24, unused) == (
        "full: 6 of 24 parameters train (25 %): text.weight; no text reaches 16, which stay as "
        "they are: tower, token"
    )


class Params4bit(nn.Parameter):
    """Called as that of bitsandbytes, which packs two weights into a byte on its first use."""


def test_four_bit_weights_are_two_to_a_stored_element():
    network = nn.Module()
    network.packed = Params4bit(torch.zeros(5, dtype=torch.uint8), requires_grad=False)
    network.not_yet = Params4bit(torch.zeros(70), requires_grad=False)
    network.bytes = nn.Parameter(torch.zeros(300, dtype=torch.uint8), requires_grad=False)
    network.usual = nn.Parameter(torch.zeros(1000))
    assert parameter_count(network) == 2 * 5 + 70 + 300 + 1000
    assert parameter_count(network, {"packed", "bytes"}) == 310
    assert parameter_count(network, set()) == 0


def test_adapters_begin_as_linear_layers_do():
    """Uniformly within one over the root of the layer's width, as peft and PyTorch have it."""
    for name, parameter in adapted("llama", "lora", r=64).named_parameters():
        if "lora_A" in name:
            assert 0.9 < parameter.abs().max() * parameter.shape[1] ** 0.5 <= 1, name


REAL = {
    "gpt2": GPT2Config(),
    "gpt_neo": GPTNeoConfig(
        hidden_size=768, num_layers=12, num_heads=12, attention_types=[[["global", "local"], 6]]
    ),
    "opt-125m": OPTConfig(),
    "opt-350m": OPTConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        ffn_dim=4096,
        word_embed_proj_dim=512,
        do_layer_norm_before=False,
    ),
    "smollm2": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    ),
    "bert": BertConfig(),
}


@pytest.mark.parametrize(
    ("name", "method", "behind", "head"),
    [
        # Ben Zaken et al. (2022): all biases
        ("gpt2", "bitfit", 102_144, 2 * 768),
        ("opt-125m", "bitfit", 102_144, 2 * 768),
        ("opt-350m", "bitfit", 270_336, 2 * 512),
        ("gpt_neo", "bitfit", 74_496, 2 * 768),
        ("bert", "bitfit", 12 * 8448 + 768, 768 * 768 + 768 + 2 * 768 + 2),
        ("smollm2", "bitfit_added", 30 * (576 + 192 + 192 + 576 + 1536 + 1536 + 576), 2 * 576),
        ("gpt_neo", "bitfit_added", 74_496 + 12 * 3 * 768, 2 * 768),
        # rank 8: 8 * (in + out) per layer
        ("smollm2", "lora", 30 * 8 * (576 + 576 + 576 + 192), 2 * 576),
        ("gpt2", "lora", 12 * 8 * (768 + 2304), 2 * 768),
        ("opt-350m", "lora", 24 * 2 * 8 * 2048, 2 * 512),
        ("bert", "lora", 12 * 2 * 8 * 1536, 768 * 768 + 768 + 2 * 768 + 2),
        ("smollm2", "full", 134_515_008, 2 * 576),
        ("gpt2", "full", 124_439_808, 2 * 768),
        ("opt-350m", "full", 331_196_416, 2 * 512),
    ],
)
def test_parameters_that_train_in_the_real_shapes(name, method, behind, head):
    with torch.device("meta"):
        network = AutoModelForSequenceClassification.from_config(REAL[name])
        adapt(network, method, LoRAOptions(), seed=0)
    trains = {n: p.numel() for n, p in network.named_parameters() if p.requires_grad}
    heads = head_names(network)
    assert sum(size for n, size in trains.items() if n in heads) == head
    assert sum(size for n, size in trains.items() if n not in heads) == behind


def test_t5_has_no_biases_either():
    with torch.device("meta"):
        network = AutoModelForSeq2SeqLM.from_config(
            T5Config(feed_forward_proj="gated-gelu", num_layers=2)
        )
    with pytest.raises(SmolbenchError, match="bitfit_added"):
        adapt(network, "bitfit", LoRAOptions(), seed=0)
