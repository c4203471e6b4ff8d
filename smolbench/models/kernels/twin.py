"""A small network of the architecture that was loaded, to try paths on."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

VOCABULARY = 4096 + 256
"""Tokens of a twin: more than the head computes at once, see ``scoring.VOCABULARY_SLICE``."""
WINDOW = 8
"""Tokens that a twin looks back where its architecture does not look back to the beginning."""
_WINDOWS = ("sliding_window", "local_attention", "window_size", "attention_chunk_size")
_LAYERS, _MOST_LAYERS = 2, 8
_GAIN = 1.5
"""Spread of what a twin's layers say, so that attention decides about its outputs."""


def twin_of(model: PreTrainedModel) -> PreTrainedModel:
    """A random float32 network of a model's own class and widths, on the CPU.

    It has the fewest layers in which each kind occurs (two at least), a part of the vocabulary, and
    windows that short rows pass. The global random state stays as it was.

    Args:
        model: Any model of transformers, with or without a head.

    Raises:
        Exception: Whatever the class raises if it cannot be made of such a configuration.
    """
    config = _shallow(model.config)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(0)
        twin = type(model)(config)
        network: nn.Module = twin  # transformers' own methods are untyped
        network.to(torch.float32)
        with torch.no_grad():
            for module in network.modules():
                _liven(module)
    network.eval().requires_grad_(False)
    return twin


def as_loaded(twin: PreTrainedModel, model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a twin in the number formats of the model's own weights."""
    formats = {name: p.dtype for name, p in model.named_parameters() if p.is_floating_point()}
    usual = model.dtype
    rounded = copy.deepcopy(twin)
    for name, parameter in rounded.named_parameters():
        parameter.data = parameter.data.to(formats.get(name, usual))
    return rounded


def _shallow(config: PreTrainedConfig) -> PreTrainedConfig:
    small = copy.deepcopy(config)
    parts = [getattr(small, name, None) for name in getattr(small, "sub_configs", {})]
    for part in [small, *(part for part in parts if part is not None)]:
        _cut_depth(part)
        for name in _WINDOWS:
            if isinstance(window := getattr(part, name, None), int) and window > WINDOW:
                setattr(part, name, WINDOW)
        if (getattr(part, "vocab_size", None) or 0) > VOCABULARY:
            part.vocab_size = VOCABULARY
            for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
                if isinstance(token := getattr(part, name, None), int) and token >= VOCABULARY:
                    setattr(part, name, 0)
    return small


def _cut_depth(config: Any) -> None:  # noqa: ANN401 - a configuration, whose settings vary
    depth = getattr(config, "num_hidden_layers", None)
    if not isinstance(depth, int) or depth <= _LAYERS:
        return
    by_layer = {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, list) and len(value) == depth
    }
    kept = _LAYERS
    for value in by_layer.values():
        kinds = {str(kind) for kind in value}
        while kept < min(depth, _MOST_LAYERS) and {str(kind) for kind in value[:kept]} != kinds:
            kept += 1
    config.num_hidden_layers = kept
    for name, value in by_layer.items():
        setattr(config, name, value[:kept])


def _liven(module: nn.Module) -> None:
    """Weights large enough to tell formulas apart; norms and all else stay as they are made."""
    from transformers.pytorch_utils import Conv1D  # lazy: import cost

    if isinstance(module, nn.Embedding):
        module.weight.normal_()
    elif isinstance(module, (nn.Linear, Conv1D)):
        inputs = module.weight.shape[0 if isinstance(module, Conv1D) else 1]
        module.weight.normal_(std=_GAIN / inputs**0.5)
        if module.bias is not None:
            module.bias.normal_(std=0.1)
