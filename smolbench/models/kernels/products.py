"""Products of matrices in the way that is fastest on a processor.

An instruction for bfloat16 is no promise of speed: many processors without matrix tiles (AMX), and
all that only emulate it, multiply float32 faster. A product of two bfloat16 numbers is exact in
float32, and both ways add them up in float32, so that the result is the same up to the order of the
additions, before it is rounded to bfloat16.

PyTorch multiplies float32 matrices on a CPU by MKL, which some processors are slow with; oneDNN
takes over where less than the highest precision is asked for. On processors with matrix tiles it
may then compute in bfloat16, so that its error is measured.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from smolbench.models.kernels.proof import as_exact

MIN_ROWS = 32
"""Rows from which on widening the weights costs less than it gains."""
_SIZE, _ROUNDS, _GAIN = 768, 5, 0.8
_EXACT = 1e-5
"""Largest error of a float32 product, of its largest number."""


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
    states, weight = (_random(_SIZE, _SIZE).to(torch.bfloat16) for _ in range(2))
    return _is_faster(lambda: _by_float32(states, weight, None), lambda: F.linear(states, weight))


@contextmanager
def onednn_products() -> Iterator[None]:
    """Multiply float32 matrices by oneDNN on a CPU, for as long as this lasts."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this processor multiplies float32 matrices faster by oneDNN; tried once."""
    states, weight = (_random(_SIZE, _SIZE) for _ in range(2))

    def by_onednn() -> torch.Tensor:
        with onednn_products():
            return F.linear(states, weight)

    return _is_faster(by_onednn, lambda: F.linear(states, weight))


def onednn_is_exact() -> bool:
    """Whether float32 products by oneDNN are float32 products."""
    for rows, inputs, outputs in ((1, 96, 40), (MIN_ROWS + 8, 576, 1536), (200, 1536, 576)):
        states, weight, bias = _random(rows, inputs), _random(outputs, inputs), _random(outputs)
        exact = F.linear(states.double(), weight.double(), bias.double())
        with onednn_products():
            found = F.linear(states, weight, bias).double()
        if float((found - exact).abs().max()) > _EXACT * float(exact.abs().max()):
            return False
    return True


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _is_faster(own: Callable[[], torch.Tensor], usual: Callable[[], torch.Tensor]) -> bool:
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with torch.inference_mode():
        for number in range(_ROUNDS + 1):
            for ours, compute in ((False, usual), (True, own)):
                begin = time.perf_counter()
                compute()
                if number:  # the first call also sets kernels up
                    seconds[ours].append(time.perf_counter() - begin)
    return min(seconds[True]) < _GAIN * min(seconds[False])
