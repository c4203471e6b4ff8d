from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from smolbench.data.token_cache import encode_to_cache
from smolbench.models.choice import scoring
from smolbench.models.choice.rows import ChoiceRows
from smolbench.models.choice.scoring import last_states, log_likelihoods
from smolbench.models.kernels.paths import ways_of
from smolbench.models.kernels.prefix import shared_prefix
from smolbench.models.pretrained.language_model import LanguageModel, load_language_model
from tests.helpers.tiny import CAUSAL, tiny_language_model

BRANCHING = ["llama", "gpt2", "opt", "opt_350m", "qwen2", "qwen3", "gpt_neox"]
LABELS = np.array([2, 0, 3, 1, 1])


def load(kind, dtype=torch.float32):
    return load_language_model(LanguageModel(tiny_language_model(kind), None, "float32"), dtype)


def questions(context_tokens=(23, 4, 1, 31, 12), seed=0, prompt=()):
    """Contexts longer than GPT-Neo's window of 6, endings of different lengths."""
    draw = np.random.default_rng(seed)
    found = []
    for size in context_tokens:
        context = [*prompt, *draw.integers(5, 300, size).tolist()]
        endings = [draw.integers(5, 300, n).tolist() for n in draw.integers(1, 12, 4)]
        found.append((context, endings))
    return found


def rows(tmp_path, asked, max_length=128, labels=LABELS, **options):
    def encode(examples):
        chosen = [asked[number] for number in examples["number"]]
        sizes = [[len(ids) for ids in endings] for _, endings in chosen]
        return {
            "input_ids": [[*c, *(t for ids in e for t in ids)] for c, e in chosen],
            "ending_tokens": sizes,
            "lengths": sizes,
            "n_bytes": sizes,
            "shared": [0] * len(chosen),
        }

    table = encode_to_cache(
        tmp_path / "tokens",
        f"key{len(list(tmp_path.glob('tokens/*')))}",
        lambda start, stop: {"number": list(range(start, stop))},
        len(asked),
        encode,
        "test",
    )
    return ChoiceRows(table, labels[: len(asked)], max_length, **options)


def one_by_one(model, asked, max_length=128):
    """What four plain calls of the model say: the definition."""
    found = []
    for context, endings in asked:
        for ending in endings:
            ids = torch.tensor([[*context, *ending][-(max_length + 1) :]])
            with torch.no_grad():
                logs = model(input_ids=ids[:, :-1]).logits.float().log_softmax(-1)
            own = logs[0, -len(ending) :].gather(1, torch.tensor(ending)[:, None])
            found.append(own.sum().item())
    return torch.tensor(found).view(len(asked), -1)


def everything(rows):
    return rows.batch(np.arange(len(rows)))


@pytest.mark.parametrize("kind", BRANCHING)
def test_a_shared_row_is_equal_to_four_separate_ones(tmp_path, kind):
    model, asked = load(kind), questions()
    assert ways_of(model).branches
    expected = one_by_one(model, asked)
    shared, separate = rows(tmp_path, asked), rows(tmp_path, asked, shared=False)
    with torch.no_grad():
        found = log_likelihoods(model, everything(shared))
        alone = log_likelihoods(model, everything(separate))
    assert everything(shared)["input_ids"].shape[0] == 5
    assert everything(separate)["input_ids"].shape[0] == 20
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-4)
    assert expected.std() > 1  # the endings are told apart


@pytest.mark.parametrize("kind", BRANCHING)
@pytest.mark.parametrize("front", [0, 20])
def test_packed_rows_are_equal_to_padded_ones(tmp_path, kind, front):
    prompt = np.random.default_rng(9).integers(5, 300, front).tolist()
    model, asked = load(kind), questions(prompt=prompt)
    prefix = shared_prefix(model.base_model, prompt) if front else None
    batch = everything(rows(tmp_path, asked, prefix=front))
    real = batch["attention_mask"].bool()
    assert not real.all()
    padded = last_states(model, batch, prefix).detach()  # where gradients are asked for
    attention = model.config._attn_implementation
    with torch.no_grad():
        packed = last_states(model, batch, prefix)
    assert model.config._attn_implementation == attention
    torch.testing.assert_close(packed[real], padded[real], rtol=0, atol=1e-5)
    assert not packed[~real].any()


def test_a_pass_that_fails_leaves_the_attention_as_it_was(tmp_path):
    model, asked = load("llama"), questions()
    batch = everything(rows(tmp_path, asked))
    with torch.no_grad(), pytest.raises(IndexError):
        log_likelihoods(model, {**batch, "input_ids": batch["input_ids"] + 10**6})
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", BRANCHING)
def test_endings_do_not_see_each_other(tmp_path, kind):
    model, asked = load(kind), questions((9, 14))
    changed = [(context, [[7, 8, 9], *endings[1:]]) for context, endings in asked]
    with torch.no_grad():
        before, after = (
            log_likelihoods(model, everything(rows(tmp_path, each))) for each in (asked, changed)
        )
    torch.testing.assert_close(before[:, 1:], after[:, 1:], rtol=0, atol=1e-4)
    assert (before[:, 0] - after[:, 0]).abs().min() > 1e-3


@pytest.mark.parametrize("kind", [kind for kind in CAUSAL if kind not in BRANCHING])
def test_models_that_cannot_branch_score_separate_rows(tmp_path, kind):
    model, asked = load(kind), questions()
    assert not ways_of(model).branches
    batch = everything(rows(tmp_path, asked, shared=False))
    assert "branch" not in batch
    with torch.no_grad():
        found = log_likelihoods(model, batch)
    torch.testing.assert_close(found, one_by_one(model, asked), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_a_prefix_that_all_contexts_share_is_read_once(tmp_path, kind):
    prompt = np.random.default_rng(9).integers(5, 300, 40).tolist()
    model, asked = load(kind), questions(prompt=prompt)
    prefix = shared_prefix(model.base_model, prompt)
    batch = everything(rows(tmp_path, asked, prefix=len(prompt)))
    assert batch["input_ids"].shape[1] < everything(rows(tmp_path, asked))["input_ids"].shape[1]
    expected = one_by_one(model, asked)
    with torch.no_grad():
        for _ in range(2):  # the prefix does not grow
            found = log_likelihoods(model, batch, prefix)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_a_context_too_long_loses_its_beginning_ending_by_ending(tmp_path, kind):
    model, asked = load(kind), questions((60, 10, 25, 26, 90))
    packed = rows(tmp_path, asked, max_length=30)
    batch = everything(packed)
    truncated = [len(c) + max(map(len, e)) - 1 > 30 for c, e in asked]
    assert batch["truncated"].tolist() == truncated == (~packed.fitting).tolist()
    assert {True, False} == set(truncated)
    with torch.no_grad():
        found = log_likelihoods(model, batch)
    torch.testing.assert_close(found, one_by_one(model, asked, 30), rtol=0, atol=1e-4)


def test_rows_say_how_many_tokens_they_hold(tmp_path):
    asked = questions((60, 10, 25, 26, 90))
    for options in ({}, {"only_right": True}, {"prefix": 5}):
        packed = rows(tmp_path, asked, **options)
        for number in range(len(asked)):
            held = packed.batch(np.array([number]))["attention_mask"].sum()
            assert held == packed.lengths[number]
    # batches of shared and of separate rows hold the same questions
    shared, separate = rows(tmp_path, asked), rows(tmp_path, asked, shared=False)
    assert shared.lengths.tolist() == separate.lengths.tolist()


def test_only_the_right_ending_is_read_where_it_is_learned(tmp_path):
    model, asked = load("llama"), questions()
    batch = everything(rows(tmp_path, asked, only_right=True))
    assert batch["input_ids"].shape[0] == 5
    assert "branch" not in batch
    with torch.no_grad():
        found = log_likelihoods(model, batch)
    expected = one_by_one(model, asked)[torch.arange(5), torch.from_numpy(LABELS)]
    torch.testing.assert_close(found[:, 0], expected, rtol=0, atol=1e-4)
    assert batch["ending_tokens"][:, 0].tolist() == [
        len(endings[label]) for (_, endings), label in zip(asked, LABELS, strict=True)
    ]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gradients_are_those_of_separate_rows(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(scoring, "HEAD_ROWS", 7)
    asked, gradients = questions(), []
    for shared in (True, False):
        model = load(kind)
        scores = log_likelihoods(model, everything(rows(tmp_path, asked, shared=shared)))
        torch.nn.functional.cross_entropy(scores, torch.from_numpy(LABELS)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5, msg=name)


def test_the_head_runs_at_scored_positions_only_and_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "HEAD_ROWS", 16)
    model, asked = load("llama"), questions()
    shapes = []
    head = model.get_output_embeddings()
    # a hook wants the whole output, so that the head's weights are not taken slice by slice
    head.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    batch = everything(rows(tmp_path, asked))
    with torch.no_grad():
        log_likelihoods(model, batch)
    scored = sum(len(ending) for _, endings in asked for ending in endings)
    assert sum(shape[0] for shape in shapes) == scored == len(batch["token"])
    assert max(shape[0] for shape in shapes) == 16
    assert len(shapes) == math.ceil(scored / 16)


@pytest.mark.parametrize("kind", ["llama", "opt"])
@pytest.mark.parametrize("bias", [False, True])
def test_no_logits_of_the_whole_vocabulary_are_needed(monkeypatch, kind, bias):
    model = load(kind)
    head = model.get_output_embeddings()
    if bias:
        head.bias = torch.nn.Parameter(torch.randn(head.out_features))
    model.config.final_logit_softcapping = 3.0  # what comes behind the head comes to each slice
    size = head.out_features
    states, tokens = torch.randn(20, head.in_features), torch.randint(size, (20,))
    tokens[:3] = torch.tensor([0, 99, size - 1])  # borders
    with torch.no_grad():
        expected = scoring.next_token_logits(model, states).log_softmax(-1)
        expected = expected.gather(1, tokens[:, None])[:, 0]
        widths = []
        linear = torch.nn.functional.linear

        def watched(states, weight, bias=None):
            widths.append(len(weight))
            return linear(states, weight, bias)

        monkeypatch.setattr(torch.nn.functional, "linear", watched)
        monkeypatch.setattr(scoring, "VOCABULARY_SLICE", 100)
        found = scoring.token_log_probs(model, states, tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert sum(widths) == size
    assert max(widths) == 100


def test_bfloat16_log_probabilities_are_summed_in_float32(tmp_path):
    asked = questions()
    with torch.no_grad():
        batch = everything(rows(tmp_path, asked))
        rough = log_likelihoods(load("llama", torch.bfloat16), batch)
        exact = log_likelihoods(load("llama"), batch)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=1.0)


@pytest.mark.parametrize("kind", ["llama", "opt"])
@pytest.mark.parametrize("mixed", [False, True])
def test_logits_of_sixteen_bits_are_not_rounded(kind, mixed):
    model = load(kind, torch.float32 if mixed else torch.bfloat16)
    head = model.get_output_embeddings()
    states = torch.randn(400, head.in_features, generator=torch.Generator().manual_seed(0))
    states = states.to(torch.bfloat16)
    tokens = torch.arange(400) % head.out_features
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        found = scoring.next_token_logits(model, states)
        logs = scoring.token_log_probs(model, states, tokens)
        rounded = torch.nn.functional.linear(states, head.weight.to(torch.bfloat16))
        exact = states.double() @ head.weight.to(torch.bfloat16).double().T
    assert rounded.dtype == torch.bfloat16
    assert len(found[:, 7].unique()) == 400 > len(rounded[:, 7].unique())
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-4)
    wanted = exact.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logs.double(), wanted, rtol=0, atol=1e-4)


def test_a_head_that_learns_is_the_library_s_own():
    model = load("llama", torch.bfloat16)
    states = torch.randn(3, 16).to(torch.bfloat16).requires_grad_()
    expected = model.get_output_embeddings()(states).float()
    torch.testing.assert_close(scoring.next_token_logits(model, states), expected, rtol=0, atol=0)


def test_a_head_takes_states_of_a_wider_format_where_it_learns():
    """As OPT-350m's and others', whose last norm computes in float32."""
    model = load("llama", torch.bfloat16)
    states = torch.randn(3, 16).to(torch.bfloat16).requires_grad_()
    expected = scoring.next_token_logits(model, states)
    assert torch.equal(scoring.next_token_logits(model, states.float()), expected)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("logits_scaling", 4.0, lambda logits: logits / 4),  # Granite
        ("logit_scale", 0.25, lambda logits: logits * 0.25),  # Cohere
        ("final_logit_softcapping", 0.5, lambda logits: 0.5 * torch.tanh(logits / 0.5)),  # Gemma 2
    ],
)
def test_what_comes_behind_a_head(option, value, expected):
    model = load("llama")
    states = torch.randn(5, 16)
    bare = scoring.next_token_logits(model, states)
    setattr(model.config, option, value)
    torch.testing.assert_close(scoring.next_token_logits(model, states), expected(bare))


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_log_probabilities_are_negative_losses(learns, smoothing):
    model = load("llama")
    states, tokens = torch.randn(7, 16, requires_grad=learns), torch.arange(7)
    logs = model.get_output_embeddings()(states).log_softmax(-1)
    expected = (1 - smoothing) * logs.gather(1, tokens[:, None])[:, 0] + smoothing * logs.mean(1)
    with torch.set_grad_enabled(learns):
        found = scoring.token_log_probs(model, states, tokens, smoothing)
    torch.testing.assert_close(found, expected)
    assert found.requires_grad == learns


def test_what_a_token_sees():
    """The context and its own branch as far as it stands behind them, whatever their order."""
    seen = scoring.visible(torch.tensor([[0, 0, 2, 2, 1]]), before=1)[0].int().tolist()
    assert seen == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_rows_are_packed_where_that_was_decided_and_nothing_is_learned(
    tmp_path, monkeypatch, learns, packed
):
    model, batch = load("llama"), everything(rows(tmp_path, questions()))
    ways = dataclasses.replace(ways_of(model), packed=packed, onednn=packed)
    monkeypatch.setattr(scoring, "ways_of", lambda _: ways)
    calls = []

    def watched(name):
        whole = getattr(scoring, name)
        return lambda *args: calls.append(name) or whole(*args)

    for name in ("packed_states", "onednn_products"):
        monkeypatch.setattr(scoring, name, watched(name))
    with torch.set_grad_enabled(learns):
        log_likelihoods(model, batch)
    assert set(calls) == ({"packed_states", "onednn_products"} if packed and not learns else set())


def test_no_keys_and_values_of_a_row_are_kept(tmp_path):
    model, batch = load("llama"), everything(rows(tmp_path, questions(), shared=False))
    asked = []
    model.base_model.register_forward_pre_hook(
        lambda *call: asked.append(call[2]["use_cache"]), with_kwargs=True
    )
    log_likelihoods(model, batch)
    assert asked == [False]
