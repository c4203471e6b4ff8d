from __future__ import annotations

import sys

import bitsandbytes as bnb
import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig

from smolbench.errors import SmolbenchError
from smolbench.models.pretrained.adaptation import (
    LoRAOptions,
    adapt,
    adapted_layers,
    linear_layers,
    parameter_count,
)
from smolbench.models.pretrained.backbone import Backbone
from smolbench.models.pretrained.classifier import (
    classify,
    load_classifier,
    skeleton,
)
from smolbench.models.pretrained.quantization import in_four_bits, keep_gradients
from tests.helpers.tiny import EOS, PAD, tiny_backbone

KINDS = ["llama", "mistral", "gpt2", "gpt_neo", "opt", "opt_350m", "bert", "roberta"]
LENGTHS = [3, 17, 1, 40]
CPU = torch.device("cpu")


def rows(pad=PAD, lengths=LENGTHS):
    """Right-padded random rows."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 300, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return torch.where(mask.bool(), ids, pad), mask


def loaded(kind, seed=0, classes=3, **options):
    return load_classifier(Backbone(tiny_backbone(kind), None, "float32"), classes, seed, **options)


def plain(kind, network):
    """The model as transformers loads it, with the same head."""
    found = AutoModelForSequenceClassification.from_pretrained(
        tiny_backbone(kind), dtype=torch.float32, num_labels=3
    )
    ours, theirs = dict(network.named_parameters()), dict(found.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        if name.startswith(("score", "classifier")):
            parameter.data = ours[name].data
        assert torch.equal(parameter, ours[name]), name
    return found.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(kind):
    network = loaded(kind).eval()
    ids, mask = rows()
    with torch.no_grad():
        found = classify(network, ids, mask, padding="unseen")
        expected = plain(kind, network)(input_ids=ids, attention_mask=mask).logits
    assert found.dtype == torch.float32
    assert found.shape == (len(LENGTHS), 3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "bert", "roberta"])
def test_scores_of_a_network_in_bfloat16_are_in_float32(kind):
    network, (ids, mask) = loaded(kind).eval(), rows()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = classify(network, ids, mask, padding="masked")
    assert (found != found.bfloat16().float()).any(), "not what bfloat16 can hold"
    with torch.no_grad():
        exact = classify(network, ids, mask, padding="masked")
    torch.testing.assert_close(found, exact, rtol=0, atol=0.05 * exact.std().item())


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in {"bert", "roberta"}])
def test_the_last_real_token_is_read_also_where_padding_is_a_real_token_too(kind):
    network = loaded(kind).eval()
    ids, mask = rows(pad=EOS)
    ids[1, LENGTHS[1] - 1] = EOS  # a text that ends in what pads
    alone = [ids[n : n + 1, :length] for n, length in enumerate(LENGTHS)]
    with torch.no_grad():
        found = classify(network, ids, mask, padding="unseen")
        expected = torch.cat([network(input_ids=row).logits for row in alone])
        naive = network.base_model(input_ids=alone[1]).last_hidden_state[:, -1]
        read = network.score(naive)
    torch.testing.assert_close(found[[0, 2, 3]], expected[[0, 2, 3]], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1:2], read, rtol=1e-4, atol=1e-4)


def test_only_one_position_goes_through_the_head():
    network = loaded("llama")
    shapes = []
    network.score.register_forward_hook(lambda *args: shapes.append(args[1][0].shape))
    classify(network, *rows(), padding="unseen")
    assert shapes == [(len(LENGTHS), 16)]


@pytest.mark.parametrize("kind", ["llama", "bert", "roberta", "opt_350m"])
def test_the_head_is_drawn_from_its_seed_alone(kind):
    before = torch.get_rng_state()
    one, same, other = loaded(kind, 1), loaded(kind, 1), loaded(kind, 2)
    assert torch.equal(torch.get_rng_state(), before)
    for name, parameter in one.named_parameters():
        pairs = dict(same.named_parameters())[name], dict(other.named_parameters())[name]
        assert torch.equal(parameter, pairs[0])
        fresh = name.startswith(("score", "classifier"))
        if parameter.ndim > 1:
            assert torch.equal(parameter, pairs[1]) != fresh, name
        elif fresh:
            assert not parameter.any()


@pytest.mark.parametrize("classes", [3, 5])
def test_a_trained_head_in_the_files_is_not_taken(tmp_path, classes):
    network = loaded("opt", seed=9)
    network.save_pretrained(tmp_path)
    found = load_classifier(Backbone(str(tmp_path), None, "float32"), classes, 1)
    assert found.score.weight.shape == (classes, 16)
    assert not torch.equal(found.score.weight[:3], network.score.weight)


def test_incomplete_weights_are_refused(tmp_path):
    network = loaded("opt")
    state = network.state_dict()
    del state["model.decoder.layers.0.fc1.weight"]
    network.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(SmolbenchError, match=r"incomplete.*fc1\.weight"):
        load_classifier(Backbone(str(tmp_path), None, "float32"), 2, 0)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_encoder_decoders_are_refused(kind):
    with pytest.raises(SmolbenchError, match="encoder-decoder"):
        loaded(kind)


def test_a_model_without_a_classifier_is_refused():
    with pytest.raises(SmolbenchError, match="transformers has no network that classifies"):
        loaded("mamba")


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_on(kind):
    assert all(module.training for module in loaded(kind).modules())


# -- 4 bits ---------------------------------------------------------------------------------------


def four_bit(kind, quantize="all", *, guard=True):
    backbone = Backbone(tiny_backbone(kind), None, "float32")
    options = in_four_bits(skeleton(backbone, 3), quantize, None, torch.float32, CPU)
    network = load_classifier(backbone, 3, 0, **options)
    adapt(network, "qlora", LoRAOptions(dropout=0.0), 0)
    if guard:
        keep_gradients(network)
    return network


def stored_in_4_bits(network):
    return {
        name.replace(".base_layer", "")
        for name, module in network.named_modules()
        if isinstance(module, bnb.nn.Linear4bit) and module.weight.dtype == torch.uint8
    }


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neo", "opt", "bert"])
def test_the_linear_layers_of_the_network_are_quantised_and_nothing_else(kind):
    bare = skeleton(Backbone(tiny_backbone(kind), None, "float32"), 3)
    every, targeted = set(linear_layers(bare)), set(adapted_layers(bare, None))
    network = four_bit(kind)
    assert stored_in_4_bits(network) == every
    assert stored_in_4_bits(four_bit(kind, "adapted")) == targeted < every
    adapters = sum(p.numel() for n, p in network.named_parameters() if "lora_" in n)
    assert parameter_count(network) == parameter_count(bare) + adapters
    head = network.score if hasattr(network, "score") else network.classifier
    assert head.weight.dtype == torch.float32
    (config,) = {
        (m.weight.quant_type, m.weight.quant_state.nested, m.compute_dtype)
        for m in network.modules()
        if isinstance(m, bnb.nn.Linear4bit)
    }
    assert config == ("nf4", True, torch.float32)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neo", "opt", "bert"])
def test_4_bit_logits_are_near_the_exact_ones(kind):
    ids, mask = rows()
    with torch.no_grad():
        exact = classify(loaded(kind).eval(), ids, mask, padding="unseen")
        found = classify(four_bit(kind).eval(), ids, mask, padding="unseen")
    assert not torch.equal(found, exact)
    correlation = torch.corrcoef(torch.stack([found.flatten(), exact.flatten()]))[0, 1]
    assert correlation > 0.6


def gradients_after_an_evaluation(network):
    ids, mask = rows()
    with torch.inference_mode():
        classify(network.eval(), ids, mask, padding="unseen")
    network.train()
    classify(network, ids, mask, padding="unseen").square().sum().backward()
    return {n: p.grad for n, p in network.named_parameters() if p.requires_grad}


@pytest.fixture
def repackable(tmp_path):
    """A 4-bit model whose layers have sizes that bitsandbytes' inference kernel takes."""
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    backbone = Backbone(str(tmp_path), None, "bfloat16")
    options = in_four_bits(skeleton(backbone, 2), "all", None, torch.bfloat16, CPU)
    network = load_classifier(backbone, 2, 0, **options)
    adapt(network, "qlora", LoRAOptions(dropout=0.0), 0)
    return network


def test_an_evaluation_does_not_cut_the_gradient_of_4_bit_layers(repackable):
    network = repackable
    keep_gradients(network)
    before = {n: v.clone() for n, v in network.state_dict().items() if isinstance(v, torch.Tensor)}
    gradients = gradients_after_an_evaluation(network)
    assert all(gradient is not None for gradient in gradients.values())
    assert any(gradient.any() for name, gradient in gradients.items() if "lora_B" in name)
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_without_the_prevention_it_would(repackable):
    network = repackable
    repacks = any(getattr(m, "support_avx512bf16_for_cpu", False) for m in network.modules())
    if not repacks:
        pytest.skip("this processor has no AVX512-BF16: bitsandbytes never repacks")
    gradients = gradients_after_an_evaluation(network)
    assert any(gradient is None for gradient in gradients.values()), (
        "bitsandbytes has mended it: keep_gradients can go"
    )


def test_quantising_is_repeatable():
    one, other = four_bit("llama"), four_bit("llama")
    for name, value in one.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other.state_dict()[name]), name


def test_4_bits_are_refused_where_they_cannot_work(monkeypatch):
    backbone = Backbone(tiny_backbone("llama"), None, "float32")
    with pytest.raises(SmolbenchError, match="not on mps"):
        in_four_bits(skeleton(backbone, 2), "all", None, torch.float32, torch.device("mps"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(SmolbenchError, match="pip install bitsandbytes"):
        in_four_bits(skeleton(backbone, 2), "all", None, torch.float32, CPU)
