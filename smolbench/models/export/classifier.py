"""A fine-tuned classifier as a folder of transformers, or of peft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from smolbench.models.adaptation import LoRAOptions
from smolbench.models.backbone import Backbone
from smolbench.models.classifier import skeleton
from smolbench.models.export.adapter import (
    BaseModel,
    adapter_limits,
    refuse_four_bits,
    require_adapters,
    write_adapter,
)
from smolbench.models.export.exported import HERE, SAMPLES, Exported, check_equal
from smolbench.models.export.network import (
    classifier_logits,
    merge_adapters,
    name_labels,
    write_network,
)
from smolbench.models.export.tokenizer import describe_reading, write_tokenizer
from smolbench.models.template import TemplateEncoder

_LABEL = """\
rows = tokenizer(
    ["Two hours I will never get back.", "A gem."],
    truncation=True,
    padding=True,
    return_tensors="pt",
)
with torch.inference_mode():
    scores = model(**rows).logits.softmax(dim=-1)
for row in scores:
    print(model.config.id2label[int(row.argmax())], float(row.max()))
"""
_USAGE = f"""\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{HERE}")
model = AutoModelForSequenceClassification.from_pretrained("{HERE}")
"""


@dataclass(frozen=True)
class Trained:
    """A classifier that was trained, and what it was made from.

    Attributes:
        model: The network with its head, on the CPU.
        backbone: What it was made from.
        encoder: How texts become rows.
        labels: Names of the ``C`` classes.
        lora: The options of its adapters; ``None`` if it has none.
        in_four_bits: Options of ``from_pretrained`` by which its frozen weights are held in 4
            bits, see :func:`~smolbench.models.quantization.in_four_bits`; empty if they are not.
        alone: Whether texts must be read one by one, since padding changes what is said of them,
            mask or not.
    """

    model: Any  # a PreTrainedModel; importing the name would import transformers
    backbone: Backbone
    encoder: TemplateEncoder
    labels: Sequence[str]
    lora: LoRAOptions | None
    in_four_bits: Mapping[str, Any]
    alone: bool = False

    @property
    def label_texts(self) -> str:
        """Code that lets a loaded ``model`` and ``tokenizer`` label texts."""
        return _LABEL.replace('"Two hours I will never get back.", ', "") if self.alone else _LABEL


def write_classifier(trained: Trained, expected: torch.Tensor, folder: Path) -> Exported:
    """Write a whole classifier; adapters are added to the weights they belong to.

    Args:
        trained: The classifier; its network is taken apart.
        expected: Its logits of :data:`~smolbench.models.export.exported.SAMPLES`, shape ``(N, C)``.
        folder: An existing folder.

    Raises:
        SmolbenchError: If no standard folder can hold it, or what was written says something else.
    """
    refuse_four_bits(trained.in_four_bits)
    model, backbone = trained.model, trained.backbone
    pad = write_tokenizer(trained.encoder, model.config, folder)
    merge_adapters(model)
    name_labels(model, trained.labels)
    write_network(model, backbone, pad, folder)
    check_equal(expected, folder, lambda there: _loaded_logits(there, alone=trained.alone))
    return Exported(
        framework="transformers",
        what="a classifier of transformers, with all its weights in float32"
        + (" and its adapters merged into them" if trained.lora else ""),
        usage=_USAGE + trained.label_texts,
        reads=describe_reading(trained.encoder),
        limits=_padding_limits(trained, pad),
        pipeline="text-classification",
        base=backbone.origin,
        base_is_local=backbone.is_local,
    )


def write_classifier_adapter(trained: Trained, expected: torch.Tensor, folder: Path) -> Exported:
    """Write the adapters of a classifier and its head; see :func:`write_classifier`.

    Raises:
        SmolbenchError: If there are no adapters, or what was written says something else.
    """
    lora = require_adapters(trained.lora)
    backbone, labels = trained.backbone, trained.labels
    pad = write_tokenizer(trained.encoder, trained.model.config, folder)
    bare = skeleton(backbone, len(labels))
    write_adapter(trained.model, bare, backbone, lora, "SEQ_CLS", folder)
    base = BaseModel(
        "AutoModelForSequenceClassification",
        backbone,
        bare,
        {"id2label": dict(enumerate(labels)), "pad_token_id": pad},
        trained.in_four_bits,
    )

    def loaded(there: Path) -> torch.Tensor:
        from transformers import AutoTokenizer  # lazy: import cost

        tokenizer = AutoTokenizer.from_pretrained(there)
        model = base.with_adapter(there)
        return classifier_logits(model, tokenizer, SAMPLES, alone=trained.alone)

    check_equal(expected, folder, loaded)
    return Exported(
        framework="peft",
        what="low-rank adapters and a classification head, for a network that is loaded beside "
        "them",
        usage=base.usage() + trained.label_texts,
        reads=describe_reading(trained.encoder),
        limits=[*_padding_limits(trained, pad), *adapter_limits(trained.in_four_bits)],
        pipeline="text-classification",
        base=backbone.origin,
        base_is_local=backbone.is_local,
    )


def _loaded_logits(folder: Path, *, alone: bool) -> torch.Tensor:
    from transformers import (  # lazy: import cost
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return classifier_logits(model, tokenizer, SAMPLES, alone=alone)


def _padding_limits(trained: Trained, pad: int) -> list[str]:
    """How the end of a row is found, where a decoder's head reads it, and what padding changes."""
    if trained.alone:
        return ["Let it read one text at a time: this architecture sees padding, mask or not."]
    if getattr(trained.model, "score", None) is None:
        return []
    token = trained.encoder.tokenizer.convert_ids_to_tokens(pad)
    return [
        f"The head reads a row's last token that is not the padding token `{token}` (id {pad}): "
        "that is how transformers finds the end of a row. In training it was the row's last token, "
        f"whatever its id; the two differ only for a text that itself ends in `{token}`.",
        "Pad on the right, as the tokenizer in this folder does.",
    ]
