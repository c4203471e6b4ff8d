"""A causal language model that was trained, as a folder of transformers, or of peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from smolbench.errors import SmolbenchError
from smolbench.models.adaptation import LoRAOptions
from smolbench.models.causal_lm import LanguageModel, language_model_skeleton
from smolbench.models.export.adapter import (
    BaseModel,
    adapter_limits,
    refuse_four_bits,
    require_adapters,
    write_adapter,
)
from smolbench.models.export.exported import HERE, SAMPLES, Exported, check_equal
from smolbench.models.export.network import language_model_logits, merge_adapters, write_network

_WRITE = """\
rows = tokenizer("She put the kettle on and", return_tensors="pt")
written = model.generate(**rows, max_new_tokens=20, do_sample=False)
print(tokenizer.decode(written[0]))
"""
_USAGE = f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{HERE}")
model = AutoModelForCausalLM.from_pretrained("{HERE}")
{_WRITE}"""


def write_language_model(
    model: Any,  # noqa: ANN401 - a PreTrainedModel; importing the name would import transformers
    backbone: LanguageModel,
    in_four_bits: dict[str, Any],
    reads: list[str],
    folder: Path,
) -> Exported:
    """Write a whole language model; adapters are added to the weights they belong to.

    Args:
        model: The trained network, on the CPU; it is taken apart.
        backbone: What it was made from.
        in_four_bits: Options of ``from_pretrained`` by which its frozen weights are held in 4
            bits; empty if they are not.
        reads: What the card says of what it reads.
        folder: An existing folder.

    Raises:
        SmolbenchError: If no standard folder can hold it, or what was written says something else.
    """
    refuse_four_bits(in_four_bits)
    tokenizer = backbone.tokenizer
    tokenizer.save_pretrained(folder)
    merged = any(".lora_" in name for name, _ in model.named_parameters())
    expected = language_model_logits(model.float(), tokenizer, SAMPLES)
    merge_adapters(model)
    write_network(model, backbone, None, folder)
    check_equal(expected, folder, _loaded_logits)
    return Exported(
        library="transformers",
        what="a causal language model of transformers, with all its weights in float32"
        + (" and its adapters merged into them" if merged else ""),
        usage=_USAGE,
        reads=reads,
        limits=[],
        pipeline="text-generation",
        base=backbone.origin,
        base_is_local=backbone.is_local,
    )


def write_language_model_adapter(
    model: Any,  # noqa: ANN401 - see above
    backbone: LanguageModel,
    lora: LoRAOptions | None,
    in_four_bits: dict[str, Any],
    reads: list[str],
    folder: Path,
) -> Exported:
    """Write the adapters of a language model; see :func:`write_language_model`.

    Args:
        model: The trained network with its adapters, on the CPU.
        backbone: What it was made from.
        lora: The options of its adapters; ``None`` if it has none.
        in_four_bits: See :func:`write_language_model`.
        reads: What the card says of what it reads.
        folder: An existing folder.

    Raises:
        SmolbenchError: If there are no adapters, or what was written says something else.
    """
    lora = require_adapters(lora)
    if backbone.adapter is not None:
        raise SmolbenchError(
            f"These adapters were trained on {backbone.given}, itself an adapter merged into "
            f"{backbone.name}, which no folder of peft can name as base: leave out --adapter."
        )
    tokenizer = backbone.tokenizer
    tokenizer.save_pretrained(folder)
    bare = language_model_skeleton(backbone)
    write_adapter(model, bare, backbone, lora, "CAUSAL_LM", folder)
    base = BaseModel("AutoModelForCausalLM", backbone, bare, {}, in_four_bits)
    expected = language_model_logits(model, tokenizer, SAMPLES)
    check_equal(
        expected,
        folder,
        lambda there: language_model_logits(base.with_adapter(there), tokenizer, SAMPLES),
    )
    return Exported(
        library="peft",
        what="low-rank adapters for a causal language model that is loaded beside them",
        usage=base.usage() + _WRITE,
        reads=reads,
        limits=adapter_limits(in_four_bits),
        pipeline="text-generation",
        base=backbone.origin,
        base_is_local=backbone.is_local,
    )


def _loaded_logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM, AutoTokenizer  # lazy: import cost

    model = AutoModelForCausalLM.from_pretrained(folder)
    return language_model_logits(model, AutoTokenizer.from_pretrained(folder), SAMPLES)
