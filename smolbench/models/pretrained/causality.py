"""What a network sees of padding and of what stands behind a token.

Measured on a few random tokens, not read off a name or a configuration.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

    _States = Callable[..., torch.Tensor]

Padding = Literal["unseen", "masked", "seen"]
"""What padding behind a row does to what a network says of it.

``unseen``: nothing, with or without a mask. ``masked``: nothing, given a mask. ``seen``: something,
mask or not, where a layer mixes neighbours whatever the mask says (ConvBERT, MobileBERT, FNet).
"""
_LENGTH = 32
_WITHOUT_VOCABULARY = 256
"""Ids of networks that read characters, whose configuration names no vocabulary."""


def is_causal(model: PreTrainedModel) -> bool:
    """Whether no token's state depends on the tokens behind it.

    Two rows with the same first half are read, each alone and in evaluation mode. The last layer's
    states of that half must be equal to the last bit. The doubt is on the safe side: a mask for
    padding that was not needed costs time, one that is missing makes scores depend on a text's
    neighbours. So a causal mixture of experts may be taken for a network that looks ahead, because
    what its experts multiply together depends on all of a row's tokens.

    Args:
        model: A pretrained network with or without a head, not on the meta device; an encoder-
            decoder model is asked by its encoder alone.
    """
    first, second = (trial_rows(model, 1, _LENGTH, seed=seed) for seed in (0, 1))
    half = first.shape[1] // 2
    second[:, :half] = first[:, :half]
    with _asking(model) as states:
        return torch.equal(states(first)[:, :half], states(second)[:, :half])


def effect_of_padding(model: PreTrainedModel) -> Padding:
    """What padding behind a row does to the states of its tokens.

    Args:
        model: See :func:`is_causal`.
    """
    if is_causal(model):
        return "unseen"
    row = trial_rows(model, 1, _LENGTH)
    fill = getattr(model.config.get_text_config(), "pad_token_id", None) or 0
    padded = torch.nn.functional.pad(row, (0, row.shape[1] // 4), value=fill)
    mask = (torch.arange(padded.shape[1], device=row.device) < row.shape[1]).long()[None]
    with _asking(model) as states:
        alone = states(row, torch.ones_like(row)).float()
        beside = states(padded, mask)[:, : row.shape[1]].float()
    exact = all(p.dtype == torch.float32 for p in model.parameters())
    rounding = (1e-4 if exact else 3e-2) * float(alone.abs().max())
    return "masked" if bool(((alone - beside).abs() <= rounding).all()) else "seen"


@contextmanager
def _asking(model: PreTrainedModel) -> Generator[_States]:
    """Last layer's states of rows, with dropout off; afterwards the model is as it was."""
    base: Any = model.base_model

    def states(input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        found: torch.Tensor = base(input_ids=input_ids, attention_mask=attention_mask)[0]
        return found

    training = base.training
    base.eval()
    try:
        # not inference_mode: what a layer keeps for later, training will use
        with torch.no_grad():
            yield states
    finally:
        base.train(training)


def trial_rows(model: PreTrainedModel, rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random token ids of plain words, the same for the same seed.

    Special tokens are left out: some stand for padding or for a picture that is not there.

    Args:
        model: Where they are to be read.
        rows: How many rows, ``R``.
        length: Tokens in each, ``T``; fewer if the network has positions for few only.
        seed: Of the draw; the global random state is left untouched.

    Returns:
        int64, shape ``(R, T)``, on the model's device.
    """
    config = model.config
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or -1
    if limit > 0:  # XLNet says -1; some positions may be set aside (RoBERTa)
        length = max(1, min(length, limit // 2))
    special = {
        value
        for settings in (config.to_dict(), text.to_dict())
        for name, value in settings.items()
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    }
    size = getattr(text, "vocab_size", None) or _WITHOUT_VOCABULARY
    plain = torch.tensor([i for i in range(size) if i not in special] or [0], device="cpu")
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = torch.randint(len(plain), (rows, length), generator=generator, device="cpu")
    return plain[drawn].to(model.device)
