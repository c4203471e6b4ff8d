"""A fine-tuned classifier as a folder of transformers, or of peft."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from smolbench.models.encoding.template import TemplateEncoder
from smolbench.models.export.adapter import (
    BaseModel,
    adapter_limits,
    refuse_adapter_below,
    refuse_four_bits,
    require_adapters,
    write_adapter,
)
from smolbench.models.export.check import Expected, check_export
from smolbench.models.export.exported import HERE, Exported
from smolbench.models.export.network import (
    SINGLE_LABEL,
    merge_adapters,
    name_labels,
    write_network,
)
from smolbench.models.export.tokenizer import describe_reading, load_tokenizer, write_tokenizer
from smolbench.models.pretrained.adaptation import LoRAOptions
from smolbench.models.pretrained.backbone import Backbone
from smolbench.models.pretrained.classifier import skeleton

_USAGE = f"""\
from transformers import pipeline

# without truncation=True it would read all of a long text, which the model has not learned to
label = pipeline("text-classification", model="{HERE}", top_k=None, truncation=True)
for scores in label(["Two hours I will never get back.", "A gem."]):
    print(scores[0]["label"], scores[0]["score"])
"""
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
            bits, see :func:`~smolbench.models.pretrained.quantization.in_four_bits`; empty if they
            are not.
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


def write_classifier(
    trained: Trained, texts: Sequence[str], expect: Callable[[], Expected], folder: Path
) -> Exported:
    """Write a whole classifier; adapters are added to the weights they belong to.

    Args:
        trained: The classifier; its network is taken apart.
        texts: Those that it is compared on, from
            :func:`~smolbench.models.export.tokenizer.plain_texts`.
        expect: Says what the run's path says of them; it asks a model with its tokenizer.
        folder: An existing folder.

    Raises:
        SmolbenchError: If no standard folder can hold it, or what was written says something else.
    """
    refuse_four_bits(trained.in_four_bits)
    expected = expect()
    model, backbone = trained.model, trained.backbone
    pad = write_tokenizer(trained.encoder, model.config, texts, folder)
    merge_adapters(model)
    name_labels(model, trained.labels)
    write_network(model, backbone, pad, folder)

    def load(there: Path, dtype: torch.dtype) -> tuple[Any, Any]:
        from transformers import AutoModelForSequenceClassification  # lazy: import cost

        loaded = AutoModelForSequenceClassification.from_pretrained(there, dtype=dtype)
        return loaded, load_tokenizer(there)

    return Exported(
        framework="transformers",
        what="a classifier of transformers, with all its weights in float32"
        + (" and its adapters merged into them" if trained.lora else ""),
        usage=_USAGE,
        reads=describe_reading(trained.encoder),
        limits=_padding_limits(trained, pad),
        check=check_export(expected, folder, load),
        pipeline="text-classification",
        base=backbone.origin,
        base_is_local=backbone.is_local,
    )


def write_classifier_adapter(
    trained: Trained, texts: Sequence[str], expect: Callable[[], Expected], folder: Path
) -> Exported:
    """Write the adapters of a classifier and its head; see :func:`write_classifier`.

    Raises:
        SmolbenchError: If there are no adapters, or what was written says something else.
    """
    lora = require_adapters(trained.lora)
    refuse_adapter_below(trained.backbone)
    expected = expect()
    backbone, labels = trained.backbone, trained.labels
    pad = write_tokenizer(trained.encoder, trained.model.config, texts, folder)
    bare = skeleton(backbone, len(labels))
    write_adapter(trained.model, bare, backbone, lora, "SEQ_CLS", folder)
    base = BaseModel(
        "AutoModelForSequenceClassification",
        backbone,
        bare,
        {
            "id2label": dict(enumerate(labels)),
            "problem_type": SINGLE_LABEL,
            "pad_token_id": pad,
        },
        trained.in_four_bits,
    )
    return Exported(
        framework="peft",
        what="low-rank adapters and a classification head, for a network that is loaded beside "
        "them",
        usage=base.usage() + trained.label_texts,
        reads=describe_reading(trained.encoder),
        limits=[*_padding_limits(trained, pad), *adapter_limits(trained.in_four_bits)],
        check=check_export(expected, folder, base.load, base.dtype),
        pipeline="text-classification",
        base=backbone.origin,
        base_is_local=backbone.is_local,
    )


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
