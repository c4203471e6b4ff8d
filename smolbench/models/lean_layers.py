"""Llama's layers with fewer passes over memory, for evaluation on a CPU."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_FAMILIES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
"""Architectures with these layers, and how their classes' names begin in transformers."""


def use_lean_layers(model: nn.Module) -> None:
    """Let a model's layers reuse memory wherever no gradient is asked for.

    transformers writes a tensor for every step of a formula, and on a CPU a good part of the time
    goes into moving them. The result is the same up to rounding. Other models stay as they are.
    """
    family = getattr(getattr(model, "config", None), "model_type", None)
    if family not in _FAMILIES:
        return
    lean = _lean_classes(family)
    for module in model.modules():
        if type(module) in lean:
            module.__class__ = lean[type(module)]


def _saves(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.is_grad_enabled()


@functools.cache
def _lean_classes(family: str) -> dict[type[nn.Module], type[nn.Module]]:
    """Subclasses for classes of an architecture."""
    # lazy: import cost
    library = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    norm, mlp, attention = (
        getattr(library, _FAMILIES[family] + part) for part in ("RMSNorm", "MLP", "Attention")
    )

    class LeanRMSNorm(norm):  # type: ignore[misc, valid-type] # found by name
        """The same weights and formula in three passes instead of six."""

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            """Normalise the last dimension of a tensor of any shape."""
            if not _saves(states) or states.dtype != self.weight.dtype:
                result: torch.Tensor = super().forward(states)
                return result
            # squares of 16-bit numbers overflow: their sum is taken in float32
            length = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=torch.float32)
            mean = length.square_().div_(states.shape[-1])
            result = states * mean.add_(self.variance_epsilon).rsqrt_()
            return result.to(states.dtype).mul_(self.weight)

    class LeanMLP(mlp):  # type: ignore[misc, valid-type] # found by name
        """The same weights and formula, with one tensor of the inner width less in memory."""

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            """Map a tensor ``(..., D)`` to one of the same shape."""
            if not _saves(states) or self.config.hidden_act != "silu":
                result: torch.Tensor = super().forward(states)
                return result
            inner = F.silu(self.gate_proj(states), inplace=True).mul_(self.up_proj(states))
            result = self.down_proj(inner)
            return result

    class LeanAttention(attention):  # type: ignore[misc, valid-type] # found by name
        """The same weights and formula; queries and keys are turned to their positions in place."""

        def forward(
            self,
            hidden_states: torch.Tensor,
            position_embeddings: tuple[torch.Tensor, torch.Tensor],
            attention_mask: torch.Tensor | None = None,
            past_key_values: Any = None,  # noqa: ANN401 - a Cache, which is untyped
            **options: Any,  # noqa: ANN401 - the attention function's
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            """Attend from all tokens of ``(B, T, D)``; see transformers."""
            if not _saves(hidden_states) or self.training:
                result: tuple[torch.Tensor, torch.Tensor | None] = super().forward(
                    hidden_states,
                    position_embeddings,
                    attention_mask,
                    past_key_values=past_key_values,
                    **options,
                )
                return result
            query, key, value = (
                project(hidden_states).unflatten(-1, (-1, self.head_dim))
                for project in (self.q_proj, self.k_proj, self.v_proj)
            )
            for turned in (query, key):
                _turn(turned, *position_embeddings)
            query, key, value = (each.transpose(1, 2) for each in (query, key, value))
            if past_key_values is not None:
                key, value = past_key_values.update(key, value, self.layer_idx)
            attend = library.ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, library.eager_attention_forward
            )
            states, weights = attend(
                self, query, key, value, attention_mask, scaling=self.scaling, **options
            )
            return self.o_proj(states.flatten(2)), weights

    lean: dict[type[nn.Module], type[nn.Module]] = {norm: LeanRMSNorm, mlp: LeanMLP}
    if family == "llama":  # the others' attention has norms or windows of its own
        lean[attention] = LeanAttention
    return lean


def _turn(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> None:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in place.

    Args:
        states: Queries or keys, shape ``(B, T, heads, head_dim)``; the first half of the last
            dimension holds one coordinate of each pair, the second half the other.
        cosine: Of the angles, shape ``(B, T, head_dim)``.
        sine: Like ``cosine``.
    """
    half = states.shape[-1] // 2
    x, y = states[..., :half], states[..., half:]
    cosine, sine = cosine[:, :, None], sine[:, :, None]
    turned = (x * cosine[..., :half]).addcmul_(y, sine[..., :half], value=-1)
    y.mul_(cosine[..., half:]).addcmul_(x, sine[..., half:])
    x.copy_(turned)
