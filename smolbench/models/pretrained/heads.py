"""Classification heads for frozen features; no Lightning here."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

HeadName = Literal["mlp", "linear"]


def build_head(
    name: HeadName, width: int, classes: int, hidden_size: int, dropout: float, seed: int
) -> nn.Module:
    """A head with weights drawn from its own seed, whatever was drawn before.

    Args:
        name: ``mlp``: BatchNorm, Linear, GELU, Dropout, Linear. ``linear``: one Linear layer.
        width: Features per example, ``D``.
        classes: Number of classes, ``C``.
        hidden_size: Width between the two Linear layers of ``mlp``.
        dropout: Share of hidden units that are dropped in training (``mlp``).
        seed: Seed of the initial weights; the global random state is left untouched, so a run that
            had to fill a cache first starts from the same head as one that did not.

    Returns:
        A module that maps features ``(B, D)`` to logits ``(B, C)``.
    """
    # on the CPU, from its generator alone: the same weights whatever device they are moved to
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        if name == "linear":
            return score_in_float32(nn.Linear(width, classes))
        return nn.Sequential(
            nn.BatchNorm1d(width),
            nn.Linear(width, hidden_size),
            nn.GELU(),
            nn.Dropout(dropout),
            score_in_float32(nn.Linear(hidden_size, classes)),
        )


def score_in_float32(last: nn.Linear) -> nn.Linear:
    """Let the last product of a head be computed in float32 where autocast would take 16 bits.

    A logit in bfloat16 has three digits: texts share their scores, and those between two classes
    tie.

    Args:
        last: Features ``(B, D)`` to logits ``(B, C)``.

    Returns:
        The same layer.
    """
    last.register_forward_hook(_again_in_float32)
    return last


def _again_in_float32(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
) -> torch.Tensor:
    if output.dtype == torch.float32:
        return output
    assert isinstance(module, nn.Linear)
    bias = None if module.bias is None else module.bias.float()
    with torch.autocast(output.device.type, enabled=False):
        return nn.functional.linear(inputs[0].float(), module.weight.float(), bias)
