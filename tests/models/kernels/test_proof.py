"""Libraries broken on purpose: paths that no longer hold are given up, and results stay right."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaModel

from smolbench.models.choice.rows import Packer
from smolbench.models.choice.scoring import log_likelihoods
from smolbench.models.frozen.features import FrozenFeatures
from smolbench.models.kernels.paths import Ways, ways_of
from smolbench.models.kernels.proof import as_exact, same
from smolbench.models.kernels.twin import VOCABULARY, twin_of
from smolbench.models.pretrained.backbone import Backbone
from smolbench.models.pretrained.language_model import LanguageModel, load_language_model
from smolbench.models.prompting.next_token import Prompted
from smolbench.models.summaries.summarizer import Decoding, generate_ids, load_summarizer
from tests.helpers.tiny import tiny_backbone, tiny_language_model, tiny_summarizer

CPU = torch.device("cpu")
FRONT, ROW = [7, 50, 60, 9, 11, 70, 80], [20, 21, 22, 23]
ALL = {"unmasked", "prefix", "branches", "packed", "head", "slices"}


def load(dtype=torch.float32, kind="llama"):
    return load_language_model(LanguageModel(tiny_language_model(kind), None, "float32"), dtype)


def taken(model):
    """The paths that a model is run by, without those that depend on the processor."""
    return {name for name, value in vars(ways_of(model)).items() if value} - {"products", "onednn"}


def without_cache(forward):
    """A library that has renamed an argument, and passes over the old name and the new."""

    def changed(self, input_ids=None, attention_mask=None, position_ids=None, **options):
        options = {k: v for k, v in options.items() if k not in {"past_key_values", "cache"}}
        return forward(self, input_ids, attention_mask, position_ids, **options)

    return changed


def sharper(module, query, key, value, attention_mask, scaling=None, **options):
    """Another formula for attention."""
    scale = 1.4 * (scaling or query.shape[-1] ** -0.5)
    found = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        is_causal=attention_mask is None and query.shape[2] > 1,
        scale=scale,
        enable_gqa=True,
    )
    return found.transpose(1, 2).contiguous(), None


def plain_choices(model, context, endings):
    """Log-likelihoods of endings behind a context, as the library itself computes them."""
    found = []
    for ending in endings:
        row = torch.tensor([[*context, *ending]])
        with torch.no_grad():
            logs = model(input_ids=row, use_cache=False).logits[0].log_softmax(dim=-1)
        places = torch.arange(len(context) - 1, row.shape[1] - 1)
        found.append(logs[places, torch.tensor(ending)].sum())
    return torch.stack(found)


def own_choices(model, context, endings):
    packer = Packer(512, 0)
    if ways_of(model).branches:
        spans = packer.add_tree(np.array(context), [np.array(ending) for ending in endings])
    else:
        spans = [packer.add_row(np.array(context), np.array(e), whole=True) for e in endings]
    batch = packer.tensors(branching=ways_of(model).branches)
    longest = max(end - begin for begin, end in spans)
    filled = torch.full((1, len(spans), longest), packer.scored)
    for number, (begin, end) in enumerate(spans):
        filled[0, number, : end - begin] = torch.arange(begin, end)
    with torch.no_grad():
        return log_likelihoods(model, {**batch, "spans": filled})[0]


def test_all_paths_hold_with_the_installed_libraries(caplog):
    with caplog.at_level(logging.WARNING, "smolbench"):
        assert taken(load()) == ALL
        assert taken(load(torch.bfloat16)) == ALL
    assert not caplog.records


def test_an_argument_that_is_passed_over_costs_the_shared_beginning(monkeypatch, caplog):
    monkeypatch.setattr(LlamaModel, "forward", without_cache(LlamaModel.forward))
    model = load()
    assert "prefix" not in taken(model)
    (line,) = (record.message for record in caplog.records)
    assert "beginning of all rows" in line
    found = Prompted(model, FRONT).next_token(torch.tensor([ROW]), torch.tensor([4]))
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([FRONT + ROW]), use_cache=False).logits[0, -1]
    torch.testing.assert_close(found[0], expected.log_softmax(dim=-1), rtol=0, atol=1e-4)


def test_an_argument_that_is_refused_costs_it_too(monkeypatch, caplog):
    forward = LlamaModel.forward

    def changed(self, input_ids=None, attention_mask=None, position_ids=None, **options):
        if options.get("cache") is not None or options.get("past_key_values") is not None:
            raise TypeError("forward() got an unexpected keyword argument")
        return forward(self, input_ids, attention_mask, position_ids, **options)

    monkeypatch.setattr(LlamaModel, "forward", changed)
    assert taken(load()) == ALL - {"prefix"}
    (line,) = (record.message for record in caplog.records)
    assert "TypeError" in line


def test_another_formula_of_attention_costs_packed_rows(monkeypatch):
    context, endings = [5, 9, 200, 31], [[7, 88], [3, 250, 17], [12]]
    usual = own_choices(load(), context, endings)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", sharper)
    model = load()
    assert taken(model) == ALL - {"packed"}
    expected = plain_choices(model, context, endings)
    torch.testing.assert_close(own_choices(model, context, endings), expected, rtol=0, atol=1e-4)
    assert not torch.allclose(expected, usual, rtol=0, atol=1e-4)


def test_a_head_that_does_more_is_run_as_the_library_runs_it(monkeypatch):
    forward = LlamaForCausalLM.forward

    def louder(self, **options):
        output = forward(self, **options)
        output.logits = 1.5 * output.logits
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", louder)
    model = load()
    assert taken(model) == {"unmasked", "prefix", "branches"}
    context, endings = [5, 9, 200, 31], [[7, 88], [3, 250, 17], [12]]
    expected = plain_choices(model, context, endings)
    torch.testing.assert_close(own_choices(model, context, endings), expected, rtol=0, atol=1e-4)


def features(cache, ids):
    """Features of one row behind the beginning, from a cache of one's own."""
    backbone = Backbone(tiny_backbone("llama"), None, "float32")
    encoder = backbone.template_encoder("one two three: {text}", 64, "right")
    frozen = FrozenFeatures(backbone, encoder, pooling="last")
    found = frozen.start_reading(CPU)({"input_ids": [ids], "text_length": [len(ids)]})
    return found[0], frozen.ways(CPU), encoder.shared_ids


def plain_features(shared, ids):
    model = AutoModel.from_pretrained(tiny_backbone("llama"), dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([[*shared, *ids]])).last_hidden_state[0, -1]


@pytest.mark.parametrize("known", [False, True], ids=["first run", "found right by an earlier run"])
def test_a_probe_reads_whole_rows_where_the_beginning_would_be_lost(monkeypatch, tmp_path, known):
    monkeypatch.setenv("SMOLBENCH_CACHE", str(tmp_path))
    if known:
        _, ways, shared = features(tmp_path, ROW)
        assert ways == Ways(unmasked=True, prefix=True)
    monkeypatch.setattr(LlamaModel, "forward", without_cache(LlamaModel.forward))
    found, ways, shared = features(tmp_path, ROW)
    assert shared
    assert ways == Ways(unmasked=True, prefix=False)
    torch.testing.assert_close(found, plain_features(shared, ROW), rtol=0, atol=1e-4)


# -- what trials are made of ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt_350m", "mistral", "lfm2", "mamba"])
def test_a_twin_tells_a_beginning_from_none(kind):
    model = AutoModelForCausalLM.from_pretrained(tiny_language_model(kind), dtype=torch.bfloat16)
    state = torch.get_rng_state()
    twin = twin_of(model)
    assert torch.equal(state, torch.get_rng_state())
    assert {p.dtype for p in twin.parameters()} == {torch.float32}
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        whole, part = twin(input_ids=ids).logits[0, 35:], twin(input_ids=ids[:, 33:]).logits[0, 2:]
    assert (whole - part).abs().max() > 0.1


def test_a_twin_is_small():
    from transformers import MistralConfig

    config = MistralConfig(
        hidden_size=64,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=40,
        vocab_size=60_000,
        eos_token_id=59_999,
        sliding_window=4096,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    twin = twin_of(model)
    assert len(twin.model.layers) == 2
    assert twin.get_input_embeddings().weight.shape == (VOCABULARY, 64)
    assert twin.config.sliding_window == 8
    assert (config.num_hidden_layers, config.vocab_size, config.sliding_window) == (
        40,
        60_000,
        4096,
    )


def test_every_kind_of_layer_is_in_a_twin():
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(
        hidden_size=32,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_hidden_layers=12,
        vocab_size=100,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert set(twin_of(model).config.layer_types) == {"sliding_attention", "full_attention"}


def test_what_counts_as_the_same():
    exact = torch.linspace(-3, 3, 50)
    assert same(exact + 2e-4, exact)
    assert not same(exact + 4e-4, exact)
    assert not same(exact[:9], exact)
    assert not same(torch.full((50,), torch.nan), exact)
    rounded = exact.bfloat16()
    assert as_exact(rounded, rounded, exact)
    noise = (rounded.float() - exact) * 2
    assert not as_exact(exact + noise * 1.2, rounded, exact)


# -- summaries ------------------------------------------------------------------------------------


def interleaved_wrongly(self, repeats):
    for layer in self.layers:
        layer.keys = layer.keys.repeat(repeats, 1, 1, 1).flip(2)
        layer.values = layer.values.repeat(repeats, 1, 1, 1)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_beams_share_a_document_unless_that_changes_what_is_written(monkeypatch, kind):
    def load_one():
        return load_summarizer(LanguageModel(tiny_summarizer(kind), None, "float32"), torch.float32)

    assert ways_of(load_one()).beams
    batch = {"input_ids": torch.tensor([FRONT]), "attention_mask": torch.ones(1, len(FRONT)).long()}
    ends, decoding = frozenset({2}), Decoding(6, 3)
    usual = generate_ids(load_one(), batch, decoding, ends)
    # a method of caches that does something else than before
    monkeypatch.setattr(DynamicCache, "batch_repeat_interleave", interleaved_wrongly)
    model = load_one()
    monkeypatch.undo()
    assert not ways_of(model).beams
    assert torch.equal(generate_ids(model, batch, decoding, ends), usual)
