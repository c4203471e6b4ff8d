from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import LlamaConfig

from smolbench.errors import SmolbenchError
from smolbench.models.memory.footprint import cache_bytes_per_token, training_memory, weights_of
from smolbench.models.memory.live_bytes import LiveBytes
from smolbench.models.pretrained.adaptation import LoRAOptions, adapt, hold_frozen_in
from smolbench.models.pretrained.backbone import Backbone
from smolbench.models.pretrained.classifier import classify, load_classifier
from tests.helpers.tiny import tiny_backbone, tiny_language_model
from tests.helpers.zoo import LOADERS, ZOO, zoo_model

SMOLLM2 = {
    "135M": ((30, 9, 3, 576, 1536), 134_515_008, (269.03, 162.87, 109.78)),
    "360M": ((32, 15, 5, 960, 2560), 361_821_120, (723.65, 409.07, 251.79)),
    "1.7B": ((24, 32, 32, 2048, 8192), 1_711_376_384, (3422.76, 1812.14, 1006.84)),
}
"""Zwicker et al. (2024): the shapes of figure 2, the megabytes of figure 1."""


def smollm2(folder, size):
    layers, heads, kv_heads, width, hidden = SMOLLM2[size][0]
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)  # and no weights
    return Backbone(str(folder), None, "bfloat16")


@pytest.mark.parametrize("size", SMOLLM2)
def test_the_published_footprints(tmp_path, size):
    _, parameters, published = SMOLLM2[size]
    weights = weights_of(smollm2(tmp_path, size))
    assert weights.total == parameters
    assert weights.head == 0  # tied to the embeddings
    for bits, megabytes in zip((16, 8, 4), published, strict=True):
        assert weights.size(bits) / 1e6 == pytest.approx(megabytes, abs=0.02)
    # a scale of a byte per 64 weights, and little more
    assert weights.nf4 - weights.size(4) == pytest.approx(weights.linear / 64, rel=0.02)


def test_a_cached_token_of_smollm2(tmp_path):
    assert cache_bytes_per_token(smollm2(tmp_path, "135M")) == 2 * 30 * 3 * 64 * 2


@pytest.mark.parametrize(
    ("kind", "expected"),
    # keys and values of two layers in bfloat16; of llama one head of two; of T5 its own width
    [("llama", 2 * 2 * 8 * 2), ("gpt2", 2 * 2 * 16 * 2), ("opt", 2 * 2 * 16 * 2), ("mamba", 0)],
)
def test_a_cached_token(kind, expected):
    backbone = Backbone(tiny_language_model(kind), None, "float32")
    assert cache_bytes_per_token(backbone) == expected


def test_an_encoder_caches_nothing():
    assert cache_bytes_per_token(Backbone(tiny_backbone("bert"), None, "float32")) is None


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "opt_350m", "gpt_neo"])
def test_parts_are_those_of_the_loaded_model(kind):
    from transformers import AutoModelForCausalLM

    name = tiny_language_model(kind)
    weights = weights_of(Backbone(name, None, "float32"))
    model = AutoModelForCausalLM.from_pretrained(name)
    assert weights.total == sum(p.numel() for p in model.parameters())
    assert weights.other == sum(p.numel() for p in model.parameters() if p.ndim < 2)
    tied = model.config.tie_word_embeddings
    assert (weights.head == 0) == tied
    assert sum(weights.quantised) == weights.linear


def test_4_bit_sizes_are_those_of_bitsandbytes():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from smolbench.models.memory.footprint import Weights

    for shape in ((7, 9), (64, 64), (300, 577)):
        elements = shape[0] * shape[1]
        data, state = bitsandbytes.functional.quantize_4bit(
            torch.randn(shape), quant_type="nf4", compress_statistics=True
        )
        held = (data, state.absmax, state.state2.absmax, state.offset)
        measured = sum(tensor.numel() * tensor.element_size() for tensor in held)
        assert Weights(0, elements, 0, 0, (elements,)).nf4 == measured


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "bert"])
@pytest.mark.parametrize("method", ["full", "lora", "biases"])
def test_training_memory_is_that_of_a_real_step(kind, method):
    if method == "biases":
        method = "bitfit_added" if kind == "llama" else "bitfit"
    backbone = Backbone(tiny_backbone(kind), None, "bfloat16")
    found = training_memory(backbone, method, 3, 20)

    model = load_classifier(backbone, 2, seed=0)
    adapt(model, method, LoRAOptions(), seed=0)
    hold_frozen_in(model, torch.bfloat16)
    kept: dict[int, torch.UntypedStorage] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    rows = torch.ones(3, 20, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        loss = classify(model, rows, torch.ones_like(rows), padding="unseen").logsumexp(dim=1).sum()
    activations = sum(storage.nbytes() for storage in kept.values())
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    averages = [v for s in optimizer.state.values() for k, v in s.items() if k != "step"]
    assert found.trainable == sum(p.numel() for p in trained)
    assert found.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    assert found.gradients == sum(p.grad.numel() * p.grad.element_size() for p in trained)
    assert found.optimizer == sum(v.numel() * v.element_size() for v in averages)
    # what differs at this size: masks that are written out, and the format of norms' statistics
    assert found.activations == pytest.approx(activations, rel=0.1)


@pytest.mark.parametrize(
    ("kind", "method"),
    [("llama", "full"), ("llama", "lora"), ("llama", "bitfit_added"), ("opt", "full"),
     ("opt", "lora"), ("opt", "bitfit")],
)  # fmt: skip
def test_a_steps_most_is_that_of_a_real_step(kind, method):
    backbone = Backbone(tiny_backbone(kind), None, "bfloat16")
    found = training_memory(backbone, method, 3, 40)
    model = load_classifier(backbone, 2, seed=0)
    adapt(model, method, LoRAOptions(), seed=0)
    hold_frozen_in(model, torch.bfloat16)
    rows = torch.ones(3, 40, dtype=torch.long)
    mask = torch.ones_like(rows)
    own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers(), rows, mask]}
    with LiveBytes(own) as live:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = classify(model, rows, mask, padding="unseen").logsumexp(dim=1).sum()
        loss.backward()
    # what differs at this size: masks that are written out
    assert found.step == pytest.approx(live.peak, rel=0.15)
    assert found.total == found.weights + found.optimizer + found.step
    assert found.step >= max(found.activations, found.gradients)


def test_what_trains_is_in_float32_whatever_the_files_hold(tmp_path):
    model = smollm2(tmp_path, "135M")
    model.config.dtype = torch.bfloat16
    found = training_memory(model, "full", 1, 8)
    assert found.weights == 4 * found.trainable
    assert found.step >= 4 * found.trainable, "all gradients"


def test_layers_that_are_dropped_at_random_count(tmp_path):
    folders = [tiny_backbone("opt"), tmp_path / "model"]
    shutil.copytree(*folders)
    config = json.loads((folders[1] / "config.json").read_text())
    (folders[1] / "config.json").write_text(json.dumps(config | {"layerdrop": 0.9}))
    plain, dropped = (
        training_memory(Backbone(str(f), None, "bfloat16"), "full", 3, 20) for f in folders
    )
    assert dropped.step == pytest.approx(plain.step, abs=8), "but for the number that was drawn"


def test_memory_grows_with_the_batch_and_falls_with_the_method():
    backbone = Backbone(tiny_backbone("llama"), None, "bfloat16")
    full, lora, qlora = (training_memory(backbone, m, 4, 32) for m in ("full", "lora", "qlora"))
    assert full.total > lora.total > qlora.total
    assert qlora.activations == lora.activations
    twice = training_memory(backbone, "lora", 8, 32)
    assert twice.activations > 1.8 * lora.activations
    assert twice.weights == lora.weights


def test_rows_longer_than_the_model_reads_are_refused():
    with pytest.raises(SmolbenchError, match="positions for 128 tokens only"):
        training_memory(Backbone(tiny_backbone("gpt2"), None, "bfloat16"), "full", 1, 129)


# -- every architecture ---------------------------------------------------------------------------


def cached_by_the_loaded(model, length):
    """Bytes in bfloat16 that a real decoder keeps of so many tokens."""
    ids = torch.ones(1, length, dtype=torch.long)
    read, more = model, {}
    if model.config.is_encoder_decoder:
        width = model.get_input_embeddings().embedding_dim
        read, more = model.get_decoder(), {"encoder_hidden_states": torch.zeros(1, 4, width)}
    with torch.no_grad():
        output = read(input_ids=ids, use_cache=True, **more)
    cache = getattr(output, "cache", getattr(output, "past_key_values", None))
    cache = getattr(cache, "self_attention_cache", cache)
    kept = [getattr(layer, name, None) for layer in getattr(cache, "layers", [])
            for name in ("keys", "values")]  # fmt: skip
    return 2 * sum(tensor.numel() for tensor in kept if tensor is not None)


@pytest.mark.parametrize("name", ZOO)
def test_any_architecture_is_counted_as_it_is_loaded(name):
    folder, made = zoo_model(name), ZOO[name]
    backbone = Backbone(folder, None, "float32")
    weights = weights_of(backbone)
    model = LOADERS[made.kind].from_pretrained(folder).eval()
    assert weights.total == sum(p.numel() for p in model.parameters())
    linear = {id(m.weight): m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    head = model.get_output_embeddings()
    own = {id(head.weight)} - tables if isinstance(head, torch.nn.Module) else set()
    if own:
        assert weights.head == sum(p.numel() for p in head.parameters())
    expected = sum(p.numel() for key, p in linear.items() if key not in tables | own)
    assert weights.linear == sum(weights.quantised)
    # Conv1D is linear, too; quantisation leaves routers, poolers and all that belongs to heads
    if made.kind != "encoder" and name not in ("gpt2", "switch_transformers", "modernbert_decoder"):
        assert weights.linear == expected
    if made.kind == "encoder":
        assert cache_bytes_per_token(backbone) is None
    elif name in ("recurrent_gemma", "switch_transformers"):
        with pytest.raises(SmolbenchError, match="cannot be counted"):
            cache_bytes_per_token(backbone)
    else:
        grown = cached_by_the_loaded(model, 5) - cached_by_the_loaded(model, 4)
        assert cache_bytes_per_token(backbone) == grown


def test_a_head_of_its_own_is_counted_though_transformers_ties_it(tmp_path):
    model = LOADERS["pair"].from_pretrained(zoo_model("t5"))
    tied = sum(p.numel() for p in model.parameters())
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.save_pretrained(tmp_path)
    loaded = LOADERS["pair"].from_pretrained(tmp_path)
    head = loaded.lm_head.weight.numel()
    assert sum(p.numel() for p in loaded.parameters()) == tied + head

    def counted():
        weights = weights_of(Backbone(str(tmp_path), None, "float32"))
        assert weights.size(4) == weights.linear / 2 + 2 * (weights.total - weights.linear)
        return weights.total, weights.head

    assert counted() == (tied + head, head)  # by its files
    (tmp_path / "model.safetensors").unlink()
    assert counted() == (tied, 0)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": False}))
    assert counted() == (tied + head, head)  # by its configuration, as Flan-T5's


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float32])
def test_a_mixture_of_experts_is_trained_without_data_as_with_it(compute):
    backbone = Backbone(zoo_model("mixtral"), None, "float32")
    found = training_memory(backbone, "full", 3, 40, compute)
    model = load_classifier(backbone, 2, seed=0)
    rows = torch.ones(3, 40, dtype=torch.long)
    mask = torch.ones_like(rows)
    own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers(), rows, mask]}
    with LiveBytes(own) as live:
        with torch.autocast("cpu", dtype=compute, enabled=compute != torch.float32):
            loss = classify(model, rows, mask, padding="unseen").logsumexp(dim=1).sum()
        loss.backward()
    assert found.step == pytest.approx(live.peak, rel=0.15)
