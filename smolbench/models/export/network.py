"""A trained network of transformers as a standard folder, with its adapters merged into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from smolbench.errors import SmolbenchError
from smolbench.models.pretrained.backbone import Backbone

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

BATCH = 8
"""Texts that are read at once where an export is compared with its run."""
SINGLE_LABEL: Literal["single_label_classification"] = "single_label_classification"
"""What transformers calls a choice of one class; its pipeline then shows a softmax."""
_OF_ITS_TASK = ("finetuning_task", "task_specific_params", "prefix", "custom_pipelines")
"""Settings that a base model has of uses of its own; none of them says how a network is run."""
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
    """Write the classes into the configuration, one of which is right: scores are a softmax."""
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: number for number, label in enumerate(labels)}
    model.config.problem_type = SINGLE_LABEL


def _forget_its_task(config: PreTrainedConfig) -> None:
    """Drop what the base's configuration says of a task of its own."""
    for name in _OF_ITS_TASK:
        if name in vars(config):
            delattr(config, name)


def write_network(
    model: PreTrainedModel, backbone: Backbone, pad: int | None, folder: Path
) -> None:
    """Write weights, in float32, and configuration.

    The cache of keys and values that is switched off here is no part of them, nor is what the base
    was to be used for.

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
    _forget_its_task(model.config)
    _make_room(model)
    _say_whose_head(model)
    model.save_pretrained(folder)


def _say_whose_head(model: PreTrainedModel) -> None:
    """Let the configuration say whether the head shares the embeddings' table, as the file has it.

    transformers 5 says that it does of every T5, and then believes the file; earlier versions
    believe the configuration, also of whether outputs are scaled, which goes with it.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(head, nn.Linear):
        return
    table = model.get_input_embeddings().weight
    if getattr(model.config, "scale_decoder_outputs", True) is False and head.weight is table:
        head.weight = nn.Parameter(table.detach().clone())  # no scaling: a head of its own
    if head.weight is not table:
        model.config.tie_word_embeddings = False


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


def class_probabilities(
    loaded: tuple[nn.Module, PreTrainedTokenizerBase], texts: Sequence[str], *, alone: bool = False
) -> torch.Tensor:
    """Probabilities ``(N, C)`` of texts, in padded batches, as anybody would compute them.

    Args:
        loaded: A classifier and its tokenizer.
        texts: What it reads.
        alone: Whether each is a batch of its own.
    """
    model, tokenizer = loaded
    found = []
    together = 1 if alone else BATCH
    for first in range(0, len(texts), together):
        batch = list(texts[first : first + together])
        rows = tokenizer(batch, truncation=True, padding=True, return_tensors="pt")
        with torch.inference_mode():
            found.append(model.eval()(**rows).logits.float().softmax(dim=1))
    return torch.cat(found)


def mean_log_probability(model: nn.Module, ending: Sequence[int], **inputs: Sequence[int]) -> float:
    """Mean log-probability, in nats, of tokens behind what a language model reads.

    Args:
        model: The model.
        ending: The tokens; all but the last stand at the end of what it, or its decoder, reads.
        **inputs: Token ids by the name of the model's argument.
    """
    rows = {name: torch.tensor([list(ids)]) for name, ids in inputs.items()}
    with torch.inference_mode():
        logits: torch.Tensor = model.eval()(**rows).logits[0, -len(ending) :].float()
    said = logits.log_softmax(dim=1).gather(1, torch.tensor(ending)[:, None])
    return float(said.mean())
