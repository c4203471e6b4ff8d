"""Log-likelihoods by a causal language model: shared beginnings, and the head where it is needed.

A row may branch: behind a context stand several continuations, each of which sees the context and
itself but none of the others. The language-model head runs at the positions that are scored and
nowhere else, a few at a time, so no tensor of the size rows x tokens x vocabulary ever exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint

from smolbench.models.kernels.packed import packed_states
from smolbench.models.kernels.paths import ways_of
from smolbench.models.kernels.prefix import SharedPrefix
from smolbench.models.kernels.products import QuickLinear, onednn_products

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD_ROWS = 512
"""Positions that the head computes at once: 100 MB of float32 for 50,000 tokens."""
VOCABULARY_SLICE = 4096
"""Tokens of the vocabulary whose logits a CPU computes at once: 8 MB, which its caches hold."""


def log_likelihoods(
    model: PreTrainedModel, batch: Mapping[str, torch.Tensor], prefix: SharedPrefix | None = None
) -> torch.Tensor:
    """Sum of the log-probabilities of each continuation's tokens, in nats.

    Args:
        model: A causal language model.
        batch: From :meth:`~smolbench.models.choice.rows.ChoiceRows.batch`.
        prefix: Keys and values of the tokens in front of every row, from
            :func:`~smolbench.models.kernels.prefix.shared_prefix`.

    Returns:
        Float32, shape ``(B, C)``.
    """
    states = last_states(model, batch, prefix)
    scored = states[batch["row"], batch["place"]]
    logs = token_log_probs(model, scored, batch["token"])
    # by index, not by scattered addition, whose order differs between runs on CUDA
    return torch.cat([logs, logs.new_zeros(1)])[batch["spans"]].sum(dim=-1)


def last_states(
    model: PreTrainedModel, batch: Mapping[str, torch.Tensor], prefix: SharedPrefix | None = None
) -> torch.Tensor:
    """Output of a causal model's last layer for right-padded rows, shape ``(R, T, D)``.

    Of a model whose head is not known to be all that follows (``Ways.head``) they are its logits,
    which :func:`next_token_logits` takes as they are.

    Args:
        model: With its head, from
            :func:`~smolbench.models.pretrained.language_model.load_language_model`.
        batch: ``input_ids`` and, for rows that branch or continue a prefix, ``position_ids`` and
            ``branch``, all ``(R, T)``; and ``attention_mask``, if there is padding.
        prefix: Keys and values in front of every row.
    """
    ways = ways_of(model)
    body: torch.nn.Module = model.base_model if ways.head else model
    options: dict[str, object] = {"use_cache": False}
    if prefix is not None:
        options = prefix.arguments(body, len(batch["input_ids"]))
    if "branch" in batch and ways.branches:
        seen = visible(batch["branch"], 0 if prefix is None else prefix.length)
        if ways.packed and seen.is_cpu and not torch.is_grad_enabled():
            with _products(model):
                return packed_states(model, batch, seen, prefix)
        options["attention_mask"] = seen[:, None]
        options["position_ids"] = batch["position_ids"]
    elif not ways.unmasked and "attention_mask" in batch:
        options["attention_mask"] = batch["attention_mask"]  # nothing stands in front of such rows
    # else: causal rows never look at their padding, which stands on the right
    with _products(model):
        output = body(input_ids=batch["input_ids"], **options)
    states: torch.Tensor = output.last_hidden_state if ways.head else output.logits
    return states


def _products(model: PreTrainedModel) -> AbstractContextManager[None]:
    """How matrices are multiplied where nothing is learned."""
    on_cpu = model.device.type == "cpu" and not torch.is_grad_enabled()
    return onednn_products() if on_cpu and ways_of(model).onednn else nullcontext()


def visible(branch: torch.Tensor, before: int = 0) -> torch.Tensor:
    """Which tokens each one sees: those in front of it that are of the context or its own branch.

    Args:
        branch: 0 for the context, else the number of a branch, shape ``(R, T)``.
        before: Tokens in front of every row, which all see.

    Returns:
        Bool, shape ``(R, T, before + T)``.
    """
    length = branch.shape[1]
    behind = torch.ones(length, length, dtype=torch.bool, device=branch.device).tril()
    key, query = branch[:, None, :], branch[:, :, None]
    seen = behind & ((key == 0) | (key == query))
    return torch.nn.functional.pad(seen, (before, 0), value=True)


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
        else:
            with _products(model):
                part = some(*chunk) if head is None else _by_slices(model, head, *chunk)
        parts.append(part)
    return torch.cat(parts)


def _sliceable_head(model: PreTrainedModel) -> torch.nn.Linear | None:
    """The head if a part of its logits is a product with a part of its weights, on a CPU.

    A GPU is faster with few large products.
    """
    if not ways_of(model).slices:
        return None
    head = _head(model)
    if type(head) not in {torch.nn.Linear, QuickLinear} or head._forward_hooks:
        return None  # adapted, quantised, watched
    assert isinstance(head, torch.nn.Linear)
    return head if head.weight.is_cpu else None


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
        logits = _scaled(model, _part_of_logits(head, states, these))
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
        states: Of it, from :func:`last_states`, shape ``(S, D)``.
    """
    if not ways_of(model).head:
        return states.float()
    head = _head(model)
    with _products(model):
        if _rounds(head) and not torch.is_grad_enabled():
            assert isinstance(head, torch.nn.Linear), "what rounds is one"
            step = VOCABULARY_SLICE if states.is_cpu else 8 * VOCABULARY_SLICE
            logits = states.new_empty(len(states), head.out_features, dtype=torch.float32)
            for begin in range(0, head.out_features, step):
                these = slice(begin, begin + step)
                logits[:, these] = _part_of_logits(head, states, these)
        else:
            logits = head(_in_format_of(head, states)).float()
    return _scaled(model, logits)


def _rounds(head: torch.nn.Module) -> bool:
    """Whether a head is a product alone, and would round it to 16 bits."""
    if type(head) not in {torch.nn.Linear, QuickLinear} or head._forward_hooks:
        return False
    assert isinstance(head, torch.nn.Linear)
    return _format(head).itemsize == 2


def _format(head: torch.nn.Linear) -> torch.dtype:
    """What a head's weights are multiplied in."""
    device = head.weight.device.type
    return (
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
    )


def _part_of_logits(head: torch.nn.Linear, states: torch.Tensor, these: slice) -> torch.Tensor:
    """Logits of a part of the vocabulary, float32, shape ``(S, V')``.

    In 16 bits the product is not rounded: logits that differ by less than a hundredth part would be
    equal in bfloat16, and texts that are told apart by them would tie.
    """
    weight, bias = head.weight[these], None if head.bias is None else head.bias[these]
    if not _rounds(head):
        return torch.nn.functional.linear(_in_format_of(head, states), weight, bias).float()
    wide = weight.to(_format(head)).float(), None if bias is None else bias.float()
    # numbers of 16 bits are multiplied exactly by what is less exact for others
    with torch.autocast(states.device.type, enabled=False), onednn_products():
        return torch.nn.functional.linear(states.float(), *wide)


def _in_format_of(head: torch.nn.Module, states: torch.Tensor) -> torch.Tensor:
    """States as a head multiplies them: some models compute what is in front of it in float32."""
    weight = getattr(head, "weight", None)
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
        return states
    return states if torch.is_autocast_enabled(states.device.type) else states.to(weight.dtype)


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
