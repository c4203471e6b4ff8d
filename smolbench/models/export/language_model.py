"""A trained model that writes, causal or encoder-decoder, as a folder for transformers or peft."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from smolbench.errors import SmolbenchError
from smolbench.models.adaptation import LoRAOptions
from smolbench.models.causal_lm import LanguageModel
from smolbench.models.export.adapter import (
    BaseModel,
    adapter_limits,
    refuse_four_bits,
    require_adapters,
    write_adapter,
)
from smolbench.models.export.exported import HERE, SAMPLES, Exported, check_equal
from smolbench.models.export.network import language_model_logits, merge_adapters, write_network
from smolbench.models.export.tokenizer import describe_reading, write_tokenizer
from smolbench.models.summarizer import Decoding, summarizer_skeleton
from smolbench.models.template import TemplateEncoder

_ENDING = """\
rows = tokenizer("She put the kettle on and", return_tensors="pt")
written = model.generate(**rows, max_new_tokens=20, do_sample=False)
print(tokenizer.decode(written[0]))
"""
_SUMMARY = """\
document = "Ann: Are you coming at eight? Ben: Nine, sorry. Ann: Fine, I will save you a seat."
rows = tokenizer(document, truncation=True, return_tensors="pt")
written = model.generate(**rows, max_new_tokens={tokens}, num_beams={beams}, do_sample=False)
print(tokenizer.decode(written[0]{behind}, skip_special_tokens=True))
"""


@dataclass(frozen=True)
class TrainedWriter:
    """A model with a language-model head that was trained, and what it was made from.

    Attributes:
        model: The network, on the CPU.
        backbone: What it was made from.
        lora: The options of its adapters; ``None`` if it has none.
        in_four_bits: Options of ``from_pretrained`` by which its frozen weights are held in 4
            bits, see :func:`~smolbench.models.quantization.in_four_bits`; empty if they are not.
        reads: What a model card says of what it reads, beside the template.
        encoder: How a document becomes what it goes on from; ``None`` if it reads texts as they
            are.
        decoding: How its summaries were written; with ``encoder`` only.
    """

    model: Any  # a PreTrainedModel; importing the name would import transformers
    backbone: LanguageModel
    lora: LoRAOptions | None
    in_four_bits: Mapping[str, Any]
    reads: Sequence[str] = ()
    encoder: TemplateEncoder | None = None
    decoding: Decoding | None = None

    @property
    def encodes(self) -> bool:
        """Whether an encoder reads, and a decoder writes."""
        return bool(self.backbone.config.is_encoder_decoder)

    @property
    def loader(self) -> Literal["AutoModelForCausalLM", "AutoModelForSeq2SeqLM"]:
        """The class of transformers that loads it."""
        return "AutoModelForSeq2SeqLM" if self.encodes else "AutoModelForCausalLM"

    @property
    def kind(self) -> str:
        """What it is called."""
        return "an encoder-decoder model" if self.encodes else "a causal language model"

    @property
    def pipeline(self) -> str:
        """What it is for, as the Hub names it."""
        return "text-generation" if self.decoding is None else "summarization"

    def write_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer, with the template in it if there is one."""
        if self.encoder is None:
            self.backbone.tokenizer.save_pretrained(folder)
        else:
            write_tokenizer(self.encoder, self.backbone.config, folder)

    def describe_reading(self) -> list[str]:
        """What a model card says of how texts are read."""
        return [*(describe_reading(self.encoder) if self.encoder else []), *self.reads]

    def example(self) -> str:
        """Code that lets a loaded ``model`` and ``tokenizer`` write."""
        if self.decoding is None:
            return _ENDING
        return _SUMMARY.format(
            tokens=self.decoding.max_new_tokens,
            beams=self.decoding.num_beams,
            behind="" if self.encodes else '[rows["input_ids"].shape[1] :]',
        )

    def limits(self) -> list[str]:
        """What has to be known before it is used."""
        if self.decoding is None or self.encodes:
            return []
        return ["Let it write one text at a time, or pad on the left: it goes on behind a row."]


def write_language_model(trained: TrainedWriter, folder: Path) -> Exported:
    """Write a whole model; adapters are added to the weights they belong to.

    Args:
        trained: The model; its network is taken apart.
        folder: An existing folder.

    Raises:
        SmolbenchError: If no standard folder can hold it, or what was written says something else.
    """
    refuse_four_bits(trained.in_four_bits)
    trained.write_tokenizer(folder)
    trained.model.float()  # what is frozen stays rounded as it was in training
    expected = _logits(trained.model, folder)
    merge_adapters(trained.model)
    write_network(trained.model, trained.backbone, None, folder)

    def loaded(there: Path) -> torch.Tensor:
        import transformers  # lazy: import cost

        return _logits(getattr(transformers, trained.loader).from_pretrained(there), there)

    merged = " and its adapters merged into them" if trained.lora else ""
    usage = (
        f"from transformers import {trained.loader}, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{HERE}")\n'
        f'model = {trained.loader}.from_pretrained("{HERE}")\n{trained.example()}'
    )
    what = f"{trained.kind} of transformers, with all its weights in float32{merged}"
    return _checked(trained, expected, folder, loaded, what, usage)


def write_language_model_adapter(trained: TrainedWriter, folder: Path) -> Exported:
    """Write the adapters of a model; see :func:`write_language_model`.

    Raises:
        SmolbenchError: If there are no adapters, or what was written says something else.
    """
    lora = require_adapters(trained.lora)
    backbone = trained.backbone
    if backbone.adapter is not None:
        raise SmolbenchError(
            f"These adapters were trained on {backbone.given}, itself an adapter merged into "
            f"{backbone.name}, which no folder of peft can name as base: leave out --adapter."
        )
    trained.write_tokenizer(folder)
    bare = summarizer_skeleton(backbone)
    purpose: Literal["SEQ_2_SEQ_LM", "CAUSAL_LM"] = (
        "SEQ_2_SEQ_LM" if trained.encodes else "CAUSAL_LM"
    )
    write_adapter(trained.model, bare, backbone, lora, purpose, folder)
    base = BaseModel(trained.loader, backbone, bare, {}, trained.in_four_bits)
    return _checked(
        trained,
        _logits(trained.model, folder),
        folder,
        lambda there: _logits(base.with_adapter(there), there),
        f"low-rank adapters for {trained.kind} that is loaded beside them",
        base.usage() + trained.example(),
    )


def _checked(
    trained: TrainedWriter,
    expected: torch.Tensor,
    folder: Path,
    load: Callable[[Path], torch.Tensor],
    what: str,
    usage: str,
) -> Exported:
    check_equal(expected, folder, load)
    adapter = (folder / "adapter_config.json").is_file()
    return Exported(
        framework="peft" if adapter else "transformers",
        what=what,
        usage=usage,
        reads=trained.describe_reading(),
        limits=[
            *trained.limits(),
            *(adapter_limits(trained.in_four_bits) if adapter else []),
        ],
        pipeline=trained.pipeline,
        base=trained.backbone.origin,
        base_is_local=trained.backbone.is_local,
    )


def _logits(model: torch.nn.Module, folder: Path) -> torch.Tensor:
    """What a model says, given what the folder's tokenizer makes of texts."""
    from transformers import AutoTokenizer  # lazy: import cost

    return language_model_logits(model, AutoTokenizer.from_pretrained(folder), SAMPLES)
