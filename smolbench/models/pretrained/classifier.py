"""A pretrained network with a classification head: loaded and run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from smolbench.errors import SmolbenchError
from smolbench.models.pretrained.adaptation import head_names
from smolbench.models.pretrained.backbone import Backbone
from smolbench.models.pretrained.causality import Padding
from smolbench.models.pretrained.heads import score_in_float32

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_classifier(backbone: Backbone, classes: int, seed: int, **options: Any) -> PreTrainedModel:  # noqa: ANN401
    """Load a network and put a head with random weights on it.

    The head is always drawn anew, also where the files hold a trained one: its labels are another
    data set's. A pooler (BERT's) is part of the pretrained network if the files hold it.

    Args:
        backbone: What to load; its ``dtype`` is passed over, weights come in float32.
        classes: Number of classes, ``C``.
        seed: Seed of the head's weights; the global random state is left untouched.
        **options: More for ``from_pretrained``, see
            :func:`~smolbench.models.pretrained.quantization.in_four_bits`.

    Returns:
        The model, in training mode, so that its dropout is on.

    Raises:
        SmolbenchError: If the weights cannot be loaded or are incomplete, or there is no classifier
            of this architecture.
    """
    from transformers import AutoModelForSequenceClassification  # lazy: import cost

    _require_classifier(backbone)
    model, missing = backbone.from_pretrained(
        AutoModelForSequenceClassification,
        id2label={number: str(number) for number in range(classes)},
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        **options,
    )
    head = head_names(model)
    backbone.require(missing - head)
    base = {id(p) for p in model.base_model.parameters()}
    fresh = {name for name, p in model.named_parameters() if id(p) not in base} | missing
    _draw(model, fresh, seed)
    _score_in_float32(model)
    model.config.use_cache = False
    model.train()
    return model


def load_trained_classifier(backbone: Backbone) -> PreTrainedModel:
    """Load a classifier with the head that its files hold.

    Args:
        backbone: What to load; its ``dtype`` is passed over, weights come in float32.

    Returns:
        The model, in evaluation mode; it has as many classes as its configuration says.

    Raises:
        SmolbenchError: If the weights cannot be loaded, or lack any, as a head.
    """
    from transformers import AutoModelForSequenceClassification  # lazy: import cost

    _require_classifier(backbone)
    model, missing = backbone.from_pretrained(
        AutoModelForSequenceClassification, dtype=torch.float32
    )
    if missing & head_names(model):
        raise SmolbenchError(
            f"The files of {backbone.given} hold no trained classification head "
            f"({min(missing & head_names(model))} is missing): it cannot classify yet."
        )
    backbone.require(missing)
    _score_in_float32(model)
    model.config.use_cache = False
    frozen: torch.nn.Module = model  # transformers' own methods are untyped
    frozen.eval()
    return model


def _require_classifier(backbone: Backbone) -> None:
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING  # lazy: import cost

    config = backbone.config
    if config.is_encoder_decoder:
        raise SmolbenchError(
            f"{backbone.given} is an encoder-decoder model, which FineTuneTask does not train: use "
            "a decoder (GPT-2, OPT, SmolLM2) or an encoder (BERT), or ProbeTask for its encoder."
        )
    own = getattr(config, "auto_map", None) or {}  # what a model's own code has classes for
    if (
        type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        and "AutoModelForSequenceClassification" not in own
    ):
        raise SmolbenchError(
            f"{backbone.given} is of the architecture {config.model_type!r}, for which "
            "transformers has no network that classifies: use ProbeTask, or the method head, which "
            "put a head of their own on its features."
        )


def _draw(model: PreTrainedModel, names: set[str], seed: int) -> None:
    """Random weights for a head: small normal matrices, biases of 0, norms of 1."""
    config = model.config
    std = getattr(config, "initializer_range", None) or getattr(config, "init_std", None) or 0.02
    generator = torch.Generator("cpu").manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name in names:
            drawn = torch.zeros(parameter.shape, device="cpu", dtype=torch.float32)
            if parameter.ndim > 1:
                drawn.normal_(std=std, generator=generator)
            elif name.endswith("weight"):
                drawn.fill_(1)
            parameter.data = drawn.to(parameter.device)


def _score_in_float32(model: PreTrainedModel) -> None:
    """See :func:`~smolbench.models.pretrained.heads.score_in_float32`; decoders' are run apart."""
    heads, last = head_names(model), None
    for name, module in model.named_modules():
        fits = (
            isinstance(module, torch.nn.Linear) and module.out_features == model.config.num_labels
        )
        if fits and f"{name}.weight" in heads:
            last = module
    if last is not None:
        score_in_float32(last)


def skeleton(backbone: Backbone, classes: int) -> PreTrainedModel:
    """The classifier's modules on the meta device: names and shapes without weights."""
    from transformers import AutoModelForSequenceClassification  # lazy: import cost

    _require_classifier(backbone)
    return backbone.skeleton(AutoModelForSequenceClassification, num_labels=classes)


def classify(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    padding: Padding,
) -> torch.Tensor:
    """Logits of right-padded rows.

    A decoder's head reads the last real token of each row, as in transformers, but whatever its id
    is, and nothing but this token. An encoder is run with the head transformers gives it. What a
    row is given does not depend on the rows beside it.

    Args:
        model: From :func:`load_classifier`.
        input_ids: Token ids, shape ``(B, T)``.
        attention_mask: 1 for real tokens, shape ``(B, T)``.
        padding: What :func:`~smolbench.models.pretrained.causality.effect_of_padding` says of the
            model.

    Returns:
        Logits, float32, shape ``(B, C)``.
    """
    lengths = attention_mask.sum(dim=1)
    if padding == "seen" and len(set(lengths.tolist())) > 1:
        known: list[int] = sorted(set(lengths.tolist()))
        alike = [(lengths == length).nonzero().flatten() for length in known]
        parts = [
            classify(model, input_ids[at, :length], attention_mask[at, :length], padding=padding)
            for at, length in zip(alike, known, strict=True)
        ]
        return torch.cat(parts)[torch.cat(alike).argsort()]
    score = getattr(model, "score", None)
    if score is None:
        logits: torch.Tensor = model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits.float()
    # causal rows never look at their padding, which stands on the right; without a mask the fused
    # kernels are at their fastest
    mask = None if padding == "unseen" else attention_mask
    states = model.base_model(
        input_ids=input_ids, attention_mask=mask, use_cache=False
    ).last_hidden_state
    rows = torch.arange(len(states), device=states.device)
    pooled = states[rows, lengths - 1]
    with torch.autocast(states.device.type, enabled=False):
        scored: torch.Tensor = score(pooled.float())
    return scored
