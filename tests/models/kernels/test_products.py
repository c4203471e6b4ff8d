"""Products of bfloat16 matrices by way of float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from smolbench.models.choice import scoring_trials
from smolbench.models.choice.scoring import last_states
from smolbench.models.kernels import products
from smolbench.models.kernels.paths import ways_of
from smolbench.models.kernels.products import (
    MIN_ROWS,
    QuickLinear,
    product,
    products_are_right,
    use_quick_products,
)
from smolbench.models.pretrained.language_model import LanguageModel, load_language_model
from tests.helpers.tiny import tiny_language_model


@pytest.fixture
def wide(monkeypatch):
    """Counts the products that were widened."""
    calls = []
    by_float32 = products._by_float32
    monkeypatch.setattr(
        products, "_by_float32", lambda *given: (calls.append(given), by_float32(*given))[1]
    )
    return calls


def layer(dtype=torch.bfloat16, bias=True):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Sequential(nn.Linear(96, 40, bias=bias).to(dtype)))
    before = dict(network.named_parameters())
    use_quick_products(network)
    after = dict(network.named_parameters())
    assert list(before) == list(after)
    assert all(after[name] is parameter for name, parameter in before.items())
    return network[0][0]


@pytest.mark.parametrize("bias", [False, True])
def test_the_result_is_that_of_exact_products_rounded_once(wide, bias):
    made = layer(bias=bias)
    states = torch.randn(3, MIN_ROWS, 96).bfloat16()
    with torch.no_grad():
        found = made(states)
        exact = states.double() @ made.weight.double().T
        exact += made.bias.double() if bias else 0
    assert len(wide) == 1
    assert found.dtype == torch.bfloat16
    assert found.shape == (3, MIN_ROWS, 40)
    torch.testing.assert_close(found, exact.bfloat16(), rtol=2**-7, atol=1e-6)


def test_few_rows_other_formats_and_training_are_left_to_pytorch(wide):
    few = torch.randn(MIN_ROWS - 1, 96).bfloat16()
    many = torch.randn(MIN_ROWS, 96).bfloat16()
    quick, plain = layer(), layer(torch.float32)
    assert type(quick) is QuickLinear
    assert type(plain) is nn.Linear
    with torch.no_grad():
        quick(few)
        product(many.float(), quick.weight.float())
    quick(many).sum().backward()
    assert quick.weight.grad is not None
    assert not wide


def test_it_is_proven_and_given_up_where_it_is_less_exact(monkeypatch):
    assert products_are_right()
    by_float32 = products._by_float32
    monkeypatch.setattr(products, "_by_float32", lambda *given: 1.02 * by_float32(*given))
    assert not products_are_right()


def test_the_faster_way_is_found_by_trying_both(monkeypatch):
    seconds = {torch.bfloat16: 2.0, torch.float32: 1.0}
    clock = [0.0]
    linear = nn.functional.linear

    def timed(states, weight, bias=None):
        clock[0] += seconds[weight.dtype]
        return linear(states, weight, bias)

    monkeypatch.setattr(products.F, "linear", timed)
    monkeypatch.setattr(products.time, "perf_counter", lambda: clock[0])
    assert products.float32_is_faster.__wrapped__()
    seconds[torch.float32] = 1.9  # not worth it
    assert not products.float32_is_faster.__wrapped__()


# -- float32 --------------------------------------------------------------------------------------


def test_float32_products_are_exact_and_the_setting_is_put_back():
    assert products.onednn_is_exact()
    assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(RuntimeError), products.onednn_products():
        raise RuntimeError
    assert torch.get_float32_matmul_precision() == "highest"


def test_products_that_round_to_bfloat16_are_not_float32_products(monkeypatch):
    linear = nn.functional.linear

    def rounded(states, weight, bias=None):
        if torch.get_float32_matmul_precision() == "highest":
            return linear(states, weight, bias)
        return linear(states.bfloat16().float(), weight.bfloat16().float(), bias)

    monkeypatch.setattr(products.F, "linear", rounded)
    assert not products.onednn_is_exact()


@pytest.mark.parametrize("faster", [True, False])
def test_language_models_are_scored_by_the_faster_products(monkeypatch, faster):
    monkeypatch.setattr(scoring_trials, "onednn_is_faster", lambda: faster)
    folder = tiny_language_model("llama")
    model = load_language_model(LanguageModel(folder, None, "float32"), torch.float32)
    assert ways_of(model).onednn is faster
    seen = []
    model.model.norm.register_forward_hook(
        lambda *_: seen.append(torch.get_float32_matmul_precision())
    )
    ids = torch.tensor([[5, 9, 200, 31]])
    with torch.no_grad():
        last_states(model, {"input_ids": ids})
    last_states(model, {"input_ids": ids})  # where something is learned
    assert seen == ["medium" if faster else "highest", "highest"]
