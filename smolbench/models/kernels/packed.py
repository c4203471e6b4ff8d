"""Rows that branch, read on a CPU: one behind the other without padding, attention part by part.

In one tensor with a mask every token of a row is compared with every other one, although an ending
sees the context and itself only, and shorter rows are filled up. Here a row's context and its
endings are compared with what they can see; products with the weights know no rows and take the
tokens of all of them at once. A GPU is faster with the few large kernels of the padded form.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from smolbench.models.kernels.prefix import SharedPrefix

_NAME = "smolbench_packed"


@dataclass(frozen=True)
class Part:
    """Tokens of a row that are compared with others at once.

    Attributes:
        row: Where its row begins among all tokens.
        begin: Where its own tokens begin.
        end: Where they end; it sees no token of its row behind.
        mask: What is added to the scores, shape ``(end - begin, P + end - row)`` for ``P`` tokens
            in front of every row; ``None`` if every token sees all that stand before it.
    """

    row: int
    begin: int
    end: int
    mask: torch.Tensor | None


def packed_states(
    model: PreTrainedModel,
    batch: Mapping[str, torch.Tensor],
    seen: torch.Tensor,
    prefix: SharedPrefix | None = None,
) -> torch.Tensor:
    """What :func:`~smolbench.models.choice.scoring.last_states` gives; 0 in padding.

    Args:
        model: One that takes its attention from transformers' interface, not trained here.
        batch: ``input_ids``, ``position_ids`` and ``branch``, ``(R, T)``, and ``attention_mask``
            if there is padding, which stands on the right.
        seen: Which tokens each one sees, bool, shape ``(R, T, P + T)``, from
            :func:`~smolbench.models.choice.scoring.visible`.
        prefix: Keys and values in front of every row.
    """
    ids, positions = batch["input_ids"], batch["position_ids"]
    real = batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones_like(ids) > 0
    body: torch.nn.Module = model.base_model
    options = {"use_cache": False} if prefix is None else prefix.arguments(body, rows=1)
    with _attention_by_parts(model):
        output = body(
            input_ids=ids[real][None],
            position_ids=positions[real][None],
            packed_parts=_parts(batch["branch"], real, seen),
            **options,
        )
    found: torch.Tensor = output.last_hidden_state[0]
    states = found.new_zeros(*ids.shape, found.shape[-1])
    states[real] = found
    return states


def _parts(branch: torch.Tensor, real: torch.Tensor, seen: torch.Tensor) -> list[Part]:
    """Every row's context, and all its endings together."""
    parts: list[Part] = []
    row = 0
    before = seen.shape[2] - seen.shape[1]
    hidden = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
    contexts = ((branch == 0) & real).sum(dim=1).tolist()
    for number, (context, length) in enumerate(
        zip(contexts, real.sum(dim=1).tolist(), strict=True)
    ):
        mask = hidden[number, :context, : before + context] if before else None
        parts.append(Part(row, row, row + context, mask))
        if length > context:
            mask = hidden[number, context:length, : before + length]
            parts.append(Part(row, row + context, row + length, mask))
        row += length
    return parts


@contextmanager
def _attention_by_parts(model: PreTrainedModel) -> Iterator[None]:
    """Let a model attend by :func:`_attend`, which also keeps transformers from building a mask."""
    _register()
    usual = model.config._attn_implementation  # set in public, but only to be read here
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


@functools.cache
def _register() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # lazy: import cost

    ALL_ATTENTION_FUNCTIONS.register(_NAME, _attend)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed_parts: list[Part],
    scaling: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it.

    Computed in float32, whatever comes in: PyTorch's kernel for a CPU needs up to twice the time
    for short parts in bfloat16, and rounds more often.

    Args:
        module: The layer.
        query: Of all rows' tokens, shape ``(1, heads, N, head_dim)``.
        key: Behind the ``P`` tokens in front of every row, ``(1, groups, P + N, head_dim)``.
        value: Like ``key``.
        attention_mask: Nothing.
        packed_parts: Who sees whom.
        scaling: Factor of the scores; one over the root of ``head_dim`` if not given.

    Returns:
        Shape ``(1, N, heads, head_dim)``, and no weights.
    """
    before = key.shape[2] - query.shape[2]
    dtype = query.dtype
    query, key, value = query.float(), key.float(), value.float()
    found = []
    for part in packed_parts:
        own = slice(before + part.row, before + part.end)
        keys, values = (
            torch.cat([all_[:, :, :before], all_[:, :, own]], dim=2) if before else all_[:, :, own]
            for all_ in (key, value)
        )
        attended = F.scaled_dot_product_attention(
            query[:, :, part.begin : part.end],
            keys,
            values,
            attn_mask=part.mask,
            is_causal=part.mask is None,
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        found.append(attended.transpose(1, 2))
    return torch.cat(found, dim=1).to(dtype), None
