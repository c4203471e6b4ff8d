"""Products of bfloat16 matrices on processors that are faster with float32.

An instruction for bfloat16 is no promise of speed: many processors without matrix tiles (AMX), and
all that only emulate it, multiply float32 faster. A product of two bfloat16 numbers is exact in
float32, and both ways add them up in float32, so that the result is the same up to the order of the
additions, before it is rounded to bfloat16.
"""

from __future__ import annotations

import functools
import time

import torch
import torch.nn.functional as F
from torch import nn

from smolbench.models.kernels.proof import as_exact

MIN_ROWS = 32
"""Rows from which on widening the weights costs less than it gains."""
_SIZE, _ROUNDS, _GAIN = 768, 5, 0.8


class QuickLinear(nn.Linear):
    """The same weights, multiplied by way of float32."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Map a tensor ``(..., D)`` to one ``(..., E)``."""
        return product(states, self.weight, self.bias)


def use_quick_products(model: nn.Module) -> None:
    """Exchange the linear layers of a bfloat16 model, on a CPU, for ones that multiply in float32.

    They hold the same weights. Only where no gradient is asked for: training goes on as PyTorch
    does it.
    """
    plain = [
        (name, module)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module.weight.dtype == torch.bfloat16
    ]
    for name, module in plain:
        parent, _, own = name.rpartition(".")
        quick = QuickLinear(
            module.in_features, module.out_features, module.bias is not None, device="meta"
        )
        quick.weight, quick.bias = module.weight, module.bias
        setattr(model.get_submodule(parent), own, quick.train(module.training))


def products_are_right() -> bool:
    """Whether products by way of float32 are as exact as PyTorch's own in bfloat16."""
    generator = torch.Generator().manual_seed(1)
    states, weight, bias = (
        torch.randn(*shape, generator=generator).to(torch.bfloat16)
        for shape in ((MIN_ROWS + 8, 96), (40, 96), (40,))
    )
    return all(
        as_exact(
            _by_float32(states, weight, added),
            F.linear(states, weight, added),
            F.linear(
                states.double(), weight.double(), None if added is None else added.double()
            ).float(),
        )
        for added in (None, bias)
    )


def product(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``states @ weight.T + bias`` like :func:`torch.nn.functional.linear`, by way of float32.

    Few rows, other formats, and whatever asks for a gradient are left to PyTorch.

    Args:
        states: Shape ``(..., D)``.
        weight: Shape ``(E, D)``.
        bias: Shape ``(E,)``.
    """
    quick = (
        states.dtype == weight.dtype == torch.bfloat16
        and states.device.type == "cpu"
        and not torch.is_grad_enabled()
        and states.numel() >= MIN_ROWS * states.shape[-1]
    )
    return _by_float32(states, weight, bias) if quick else F.linear(states, weight, bias)


def _by_float32(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    wide = F.linear(states.float(), weight.float(), None if bias is None else bias.float())
    return wide.to(states.dtype)


@functools.cache
def float32_is_faster() -> bool:
    """Whether this processor multiplies bfloat16 matrices faster when they are float32.

    Tried once in a process, in some hundredths of a second.
    """
    generator = torch.Generator().manual_seed(0)
    states, weight = (
        torch.randn(_SIZE, _SIZE, generator=generator).to(torch.bfloat16) for _ in range(2)
    )
    native, wide = [], []
    with torch.inference_mode():
        for number in range(_ROUNDS + 1):
            begin = time.perf_counter()
            F.linear(states, weight)
            between = time.perf_counter()
            _by_float32(states, weight, None)
            end = time.perf_counter()
            if number:  # the first call also sets kernels up
                native.append(between - begin)
                wide.append(end - between)
    return min(wide) < _GAIN * min(native)
