"""Log-likelihoods by a causal language model: shared beginnings, and the head where it is needed.

A row may branch: behind a context stand several continuations, each of which sees the context and
itself but none of the others. The language-model head runs at the positions that are scored and
nowhere else, a few at a time, so no tensor of the size rows x tokens x vocabulary ever exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint

from smolbench.models.packed_rows import packed_states
from smolbench.models.products import QuickLinear, product

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

HEAD_ROWS = 512
"""Positions that the head computes at once: 100 MB of float32 for 50,000 tokens."""
VOCABULARY_SLICE = 4096
"""Tokens of the vocabulary whose logits a CPU computes at once: 8 MB, which its caches hold."""
BRANCHING = frozenset({"llama", "gpt2", "opt", "qwen2", "qwen3", "gpt_neox"})
"""Architectures whose branching rows have been found equal to separate ones."""


def can_branch(model: PreTrainedModel) -> bool:
    """Whether a model reads branching rows right.

    Others ignore the mask in some of their layers (sliding windows by row, states instead of
    attention); for them every continuation must stand in a row of its own.
    """
    config = model.config
    sliding = getattr(config, "sliding_window", None) is not None
    by_fused_kernels = config._attn_implementation == "sdpa"  # others add the mask to the scores
    return config.model_type in BRANCHING and not sliding and by_fused_kernels


def log_likelihoods(
    model: PreTrainedModel, batch: Mapping[str, torch.Tensor], prefix: Cache | None = None
) -> torch.Tensor:
    """Sum of the log-probabilities of each continuation's tokens, in nats.

    Args:
        model: A causal language model.
        batch: From :meth:`~smolbench.models.choice_rows.ChoiceRows.batch`.
        prefix: Keys and values of the tokens in front of every row, from
            :func:`~smolbench.models.backbone.shared_prefix`.

    Returns:
        Float32, shape ``(B, C)``.
    """
    states = last_states(model, batch, prefix)
    scored = states[batch["row"], batch["place"]]
    logs = token_log_probs(model, scored, batch["token"])
    # by index, not by scattered addition, whose order differs between runs on CUDA
    return torch.cat([logs, logs.new_zeros(1)])[batch["spans"]].sum(dim=-1)


def last_states(
    model: PreTrainedModel, batch: Mapping[str, torch.Tensor], prefix: Cache | None = None
) -> torch.Tensor:
    """Output of a causal model's last layer for right-padded rows, shape ``(R, T, D)``.

    Args:
        model: With or without its head.
        batch: ``input_ids`` and, for rows that branch or continue a prefix, ``position_ids`` and
            ``branch``, all ``(R, T)``; then also ``attention_mask``, if there is padding.
        prefix: Keys and values in front of every row.
    """
    options: dict[str, object] = {}
    if "branch" in batch:
        before = 0 if prefix is None else prefix.get_seq_length()
        gaps = distances(batch["position_ids"], batch["branch"], before)
        if gaps.device.type == "cpu" and not torch.is_grad_enabled():
            return packed_states(model, batch, gaps, prefix)
        options["attention_mask"] = gaps >= 0
        options["position_ids"] = batch["position_ids"]
    if prefix is not None:
        options["past_key_values"] = prefix
    # causal rows never look at their padding, which stands on the right
    output = model.base_model(input_ids=batch["input_ids"], use_cache=False, **options)
    states: torch.Tensor = output.last_hidden_state
    return states


def distances(positions: torch.Tensor, branch: torch.Tensor, before: int = 0) -> torch.Tensor:
    """How far back each token sees each other one; -1 where it does not.

    Args:
        positions: Positions of tokens, shape ``(R, T)``.
        branch: 0 for the context, else the number of a branch, shape ``(R, T)``.
        before: Tokens in front of every row, which all see.

    Returns:
        int32, shape ``(R, 1, T, before + T)``.
    """
    length = branch.shape[1]
    behind = torch.ones(length, length, dtype=torch.bool, device=branch.device).tril()
    key, query = branch[:, None, :], branch[:, :, None]
    seen = behind & ((key == 0) | (key == query))
    here = positions.int()
    gaps = torch.where(seen, here[:, :, None] - here[:, None, :], -1)
    if before:
        front = torch.arange(before, dtype=torch.int32, device=branch.device)
        gaps = torch.cat([here[:, :, None] - front, gaps], dim=2)
    return gaps[:, None]


def token_log_probs(
    model: PreTrainedModel, states: torch.Tensor, tokens: torch.Tensor, smoothing: float = 0.0
) -> torch.Tensor:
    """Log-probability of a token at each position, float32, shape ``(S,)``.

    Where a gradient is asked for, logits are computed again in the backward pass, not kept.

    Args:
        model: A causal language model.
        states: Output of its last layer at the positions, shape ``(S, D)``.
        tokens: The tokens that follow, shape ``(S,)``.
        smoothing: Share of each token's weight that goes to all tokens of the vocabulary alike.
    """

    def some(states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        logits = next_token_logits(model, states)
        return -torch.nn.functional.cross_entropy(
            logits, tokens, reduction="none", label_smoothing=smoothing
        )

    learns = torch.is_grad_enabled() and states.requires_grad
    head = None if learns or smoothing else _sliceable_head(model)
    parts = []
    for begin in range(0, len(states), HEAD_ROWS):
        chunk = states[begin : begin + HEAD_ROWS], tokens[begin : begin + HEAD_ROWS]
        if learns:
            # nothing random happens in there
            part = checkpoint(some, *chunk, use_reentrant=False, preserve_rng_state=False)
        elif head is not None:
            part = _by_slices(model, head, *chunk)
        else:
            part = some(*chunk)
        parts.append(part)
    return torch.cat(parts)


def _sliceable_head(model: PreTrainedModel) -> torch.nn.Linear | None:
    """The head if a part of its logits is a product with a part of its weights, on a CPU.

    A GPU is faster with few large products.
    """
    head = _head(model)
    if type(head) not in {torch.nn.Linear, QuickLinear} or head._forward_hooks:
        return None  # adapted, quantised, watched
    assert isinstance(head, torch.nn.Linear)
    return head if head.weight.device.type == "cpu" else None


def _by_slices(
    model: PreTrainedModel, head: torch.nn.Linear, states: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """What :func:`token_log_probs` gives, slice by slice of the vocabulary.

    No logit is written to memory: the sum over the vocabulary grows with each slice.
    """
    total = torch.full(tokens.shape, -torch.inf)
    wanted = torch.zeros(tokens.shape)
    for begin in range(0, head.out_features, VOCABULARY_SLICE):
        these = slice(begin, begin + VOCABULARY_SLICE)
        bias = None if head.bias is None else head.bias[these]
        logits = product(states, head.weight[these], bias).float()
        logits = _scaled(model, logits)
        total = torch.logaddexp(total, logits.logsumexp(dim=1))
        place = tokens - begin
        inside = (place >= 0) & (place < logits.shape[1])
        found = logits.gather(1, torch.where(inside, place, 0)[:, None])[:, 0]
        wanted = torch.where(inside, found, wanted)
    return wanted - total


def next_token_logits(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """The head's logits, float32, shape ``(S, V)``, with what some models do to them behind it.

    Args:
        model: A causal language model.
        states: Output of its last layer, shape ``(S, D)``.
    """
    logits: torch.Tensor = _head(model)(states).float()
    return _scaled(model, logits)


def _head(model: PreTrainedModel) -> torch.nn.Module:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert isinstance(head, torch.nn.Module), "every causal language model has one"
    return head


def _scaled(model: PreTrainedModel, logits: torch.Tensor) -> torch.Tensor:
    """What some models do to logits behind their head, each by itself."""
    config = model.config
    if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
        logits = logits / divisor
    if (factor := getattr(config, "logit_scale", None)) is not None:  # Cohere
        logits = logits * factor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2
        logits = cap * torch.tanh(logits / cap)
    return logits
