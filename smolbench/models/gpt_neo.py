"""GPT-Neo's attention by PyTorch's fused kernels; transformers has the plain formula only."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn


def use_fused_attention(model: nn.Module) -> None:
    """Let all GPT-Neo attention layers of a model use ``scaled_dot_product_attention``.

    The model must then be given right-padded rows, and no cache: a layer masks what is behind a
    token or outside its window, by position, and nothing else. Or it is given as attention mask how
    far back each token sees each other one, integers of shape ``(B, 1, T, P + T)``, -1 where it
    does not; rows may then branch, and continue a cache of ``P`` tokens. Other models stay as they
    are.
    """
    from transformers.models.gpt_neo.modeling_gpt_neo import (  # lazy: import cost
        GPTNeoSelfAttention,
    )

    for module in model.modules():
        if type(module) is GPTNeoSelfAttention:
            module.__class__ = _fused_class()  # type: ignore[assignment] # a subclass of it


@functools.cache
def _fused_class() -> type[nn.Module]:
    from transformers.models.gpt_neo.modeling_gpt_neo import (  # lazy: import cost
        GPTNeoSelfAttention,
    )

    class FusedGPTNeoAttention(GPTNeoSelfAttention):
        """The same weights and result, without the ``T x T`` matrix in memory."""

        def _attn(
            self,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            attention_mask: torch.Tensor | None = None,
        ) -> tuple[torch.Tensor, None]:
            """Attention of queries, keys and values ``(B, heads, T, head_dim)``."""
            length = query.size(-2)
            window: torch.Tensor | None = None
            if attention_mask is not None and not attention_mask.is_floating_point():
                window = attention_mask >= 0
                if self.attention_type == "local":
                    window &= attention_mask < self.config.window_size
            else:
                assert key.size(-2) == length, "no cache"
                if self.attention_type == "local":  # its buffer is the causal band
                    window = self.bias[:, :, :length, :length]
            output = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=window,
                dropout_p=self.attn_dropout.p if self.training else 0.0,
                is_causal=window is None,
                scale=1.0,  # GPT-Neo was trained without the usual 1 / sqrt(head_dim)
            )
            return output, None

    return FusedGPTNeoAttention
