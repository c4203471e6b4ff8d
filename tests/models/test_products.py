"""Products of bfloat16 matrices by way of float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from smolbench.models import products
from smolbench.models.products import MIN_ROWS, QuickLinear, product, use_quick_products


@pytest.fixture
def wide(monkeypatch):
    """This processor is faster with float32; counts the products that were widened."""
    calls = []
    by_float32 = products._by_float32
    monkeypatch.setattr(products, "float32_is_faster", lambda: True)
    monkeypatch.setattr(
        products, "_by_float32", lambda *given: (calls.append(given), by_float32(*given))[1]
    )
    return calls


def layer(dtype=torch.bfloat16, bias=True):
    torch.manual_seed(0)
    made = nn.Linear(96, 40, bias=bias).to(dtype)
    use_quick_products(nn.Sequential(made))
    return made


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


def test_a_processor_faster_with_bfloat16_is_left_to_it(wide, monkeypatch):
    monkeypatch.setattr(products, "float32_is_faster", lambda: False)
    states = torch.randn(MIN_ROWS, 96).bfloat16()
    made = layer()
    with torch.no_grad():
        assert torch.equal(made(states), nn.functional.linear(states, made.weight, made.bias))
    assert not wide


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
