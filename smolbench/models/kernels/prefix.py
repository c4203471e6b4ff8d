"""A beginning that all rows share, run once: its keys and values stand in front of every row."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import DynamicCache


@dataclass(frozen=True)
class SharedPrefix:
    """Keys and values of a beginning of ``P`` tokens.

    Attributes:
        layers: Keys and values of each layer, each of shape ``(1, heads, P, head_dim)``.
        length: ``P``.
    """

    layers: Sequence[tuple[torch.Tensor, torch.Tensor]]
    length: int

    def cache(self, rows: int) -> DynamicCache:
        """A cache that gives the beginning to a batch; a forward pass may add to it.

        Without the model's configuration, so that every layer keeps all of its tokens: what a
        sliding window hides is left to the model's own mask.

        Args:
            rows: Rows of the batch, ``B``.
        """
        from transformers import DynamicCache  # lazy: import cost

        cache = DynamicCache()
        for number, states in enumerate(self.layers):
            keys, values = (part.expand(rows, -1, -1, -1) for part in states)
            cache.update(keys, values, number)
        return cache

    def arguments(self, model: nn.Module, rows: int) -> dict[str, Any]:
        """What a model's ``forward`` is given to go on behind the beginning."""
        return {cache_argument(model): self.cache(rows), "use_cache": True}


def cache_argument(model: nn.Module) -> str:
    """The name under which a model's ``forward`` takes keys and values; it changed in 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def keeps_all_tokens(model: PreTrainedModel) -> bool:
    """Whether a model's cache holds keys and values of tokens in each layer, and nothing else.

    Others keep states (Mamba), which cannot be put in front of several rows in this way.
    """
    from transformers import DynamicCache  # lazy: import cost
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    usual = DynamicCache(config=model.config).layers
    return bool(usual) and all(
        type(layer) in {DynamicLayer, DynamicSlidingWindowLayer} for layer in usual
    )


@torch.inference_mode()
def shared_prefix(model: PreTrainedModel, ids: Sequence[int]) -> SharedPrefix:
    """Run a beginning of rows once.

    Args:
        model: A causal model, with or without its head, that :func:`keeps_all_tokens`.
        ids: The beginning's token ids, ``P`` of them.
    """
    from transformers import DynamicCache  # lazy: import cost

    filled = DynamicCache()
    row = torch.tensor([list(ids)], device=model.device)
    model(input_ids=row, **{cache_argument(model): filled, "use_cache": True})
    layers: list[Any] = list(filled.layers)
    return SharedPrefix([(layer.keys, layer.values) for layer in layers], len(ids))
