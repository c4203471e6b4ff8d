"""A trained network of transformers as a standard folder, with its adapters merged into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from smolbench.errors import SmolbenchError
from smolbench.models.backbone import Backbone

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ADDED_BIASES = ("attention_bias", "mlp_bias")
"""Settings of architectures (Llama's) by which their linear layers have biases."""


def merge_adapters(model: PreTrainedModel) -> None:
    """Add low-rank adapters to the weights they belong to, in float32, and drop them."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # lazy: import cost

    network: nn.Module = model  # transformers' own methods are untyped
    with torch.no_grad():
        network.float()
        adapted = [(n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
        for name, module in adapted:
            module.merge(safe_merge=True)
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.get_base_layer())
    if adapted:
        del model.peft_config


def name_labels(model: PreTrainedModel, labels: Sequence[str]) -> None:
    """Write the names of the classes into the configuration."""
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: number for number, label in enumerate(labels)}


def write_network(
    model: PreTrainedModel, backbone: Backbone, pad: int | None, folder: Path
) -> None:
    """Write weights, in float32, and configuration.

    The cache of keys and values that is switched off here is no part of them.

    Args:
        model: A network without adapters, of one of transformers' own classes.
        backbone: What it was made from.
        pad: The id that short rows are filled with; ``None`` leaves what the configuration says.
        folder: An existing folder.

    Raises:
        SmolbenchError: If transformers' class has no place for one of the weights.
    """
    network: nn.Module = model  # transformers' own methods are untyped
    network.float()
    model.config.use_cache = getattr(backbone.config, "use_cache", True)
    if pad is not None:
        # where transformers looks for it: of a model that reads pictures, too, in its text's part
        model.config.pad_token_id = model.config.get_text_config().pad_token_id = pad
    model.config.dtype = torch.float32
    _make_room(model)
    model.save_pretrained(folder)


def _make_room(model: PreTrainedModel) -> None:
    """Let the configuration say which layers have biases."""
    config = model.config
    ours = set(model.state_dict())
    unplaced = ours ^ _names(model)
    if unplaced and all(name.endswith(".bias") for name in unplaced):
        before = {name: getattr(config, name) for name in _ADDED_BIASES if hasattr(config, name)}
        for name in before:
            setattr(config, name, True)
        unplaced = ours ^ _names(model)
    if unplaced:
        raise SmolbenchError(
            f"{type(model).__name__} of transformers has no place for {min(unplaced)} (and "
            f"{len(unplaced) - 1} more), so no standard folder can hold this model: biases that "
            "were added (method bitfit_added) can be exported of Llama's kind only."
        )


def _names(model: PreTrainedModel) -> set[str]:
    """Names of the weights that transformers makes of the configuration."""
    with torch.device("meta"):
        plain: nn.Module = type(model)(model.config)
    return set(plain.state_dict())


def classifier_logits(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    alone: bool = False,
) -> torch.Tensor:
    """Logits ``(N, C)`` of texts, in one padded batch, as anybody would compute them.

    Args:
        model: A classifier.
        tokenizer: Its tokenizer.
        texts: What it reads.
        alone: Whether each is a batch of its own.
    """
    if alone:
        return torch.cat([classifier_logits(model, tokenizer, [text]) for text in texts])
    rows = tokenizer(list(texts), truncation=True, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits: torch.Tensor = model.eval()(**rows).logits
    return logits


def language_model_logits(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> torch.Tensor:
    """Logits ``(N, V)`` of the first token behind texts, each read alone.

    Of an encoder-decoder model: of the first token that it writes.
    """
    model.eval()
    config: Any = model.config
    found = []
    with torch.inference_mode():
        for text in texts:
            rows: Any = tokenizer(text, truncation=True, return_tensors="pt")
            rows.pop("token_type_ids", None)
            if config.is_encoder_decoder:
                rows["decoder_input_ids"] = torch.tensor([[config.decoder_start_token_id]])
            found.append(model(**rows).logits[:, -1])
    return torch.cat(found)
