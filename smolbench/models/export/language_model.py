"""A trained model that writes, causal or encoder-decoder, as a folder for transformers or peft."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
from smolbench.models.export.check import DTypeName, Expected, check_export
from smolbench.models.export.exported import HERE, Exported
from smolbench.models.export.network import merge_adapters, write_network
from smolbench.models.export.tokenizer import (
    describe_reading,
    load_tokenizer,
    write_own_tokenizer,
    write_tokenizer,
)
from smolbench.models.pretrained.adaptation import LoRAOptions
from smolbench.models.pretrained.language_model import LanguageModel
from smolbench.models.summaries.rows import line_breaks
from smolbench.models.summaries.summarizer import Decoding, summarizer_skeleton

_ENDING = """\
rows = tokenizer("She put the kettle on and", return_tensors="pt")
written = model.generate(**rows, max_new_tokens=20, do_sample=False)
print(tokenizer.decode(written[0]))
"""
_SUMMARY = """\
document = "Ann: Are you coming at eight? Ben: Nine, sorry. Ann: Fine, I will save you a seat."
rows = tokenizer(document, truncation=True, return_tensors="pt")
how = GenerationConfig.from_pretrained("{here}")  # at most {tokens} tokens, num_beams={beams}
written = model.generate(**rows, generation_config=how)
{told}"""
_TOLD = "print(tokenizer.decode(written[0]{behind}, skip_special_tokens=True).strip())\n"
_TOLD_IN_LINES = """\
lines, breaks = [[]], tokenizer.convert_tokens_to_ids({breaks})  # each is a line break
for token in written[0]{behind}.tolist():
    lines.append([]) if token in breaks else lines[-1].append(token)
said = [tokenizer.decode(line, skip_special_tokens=True).strip() for line in lines]
print("\\n".join(said).strip())
"""


@dataclass(frozen=True)
class TrainedWriter:
    """A model with a language-model head that was trained, and what it was made from.

    Attributes:
        model: The network, on the CPU.
        backbone: What it was made from.
        lora: The options of its adapters; ``None`` if it has none.
        in_four_bits: Options of ``from_pretrained`` by which its frozen weights are held in 4
            bits, see :func:`~smolbench.models.pretrained.quantization.in_four_bits`; empty if they
            are not.
        expect: Says what the run's path says; it asks a model with its tokenizer.
        reads: What a model card says of what it reads, beside the template.
        encoder: How a document becomes what it goes on from; ``None`` if it reads texts as they
            are.
        documents: Those that it is compared on; with ``encoder`` only, as what follows.
        decoding: How its summaries were written.
        generation: The same, with all that its base model says of it.
    """

    model: Any  # a PreTrainedModel; importing the name would import transformers
    backbone: LanguageModel
    lora: LoRAOptions | None
    in_four_bits: Mapping[str, Any]
    expect: Callable[[], Expected]
    reads: Sequence[str] = ()
    encoder: TemplateEncoder | None = None
    documents: Sequence[str] = ()
    decoding: Decoding | None = None
    generation: Any = None  # a GenerationConfig

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
            write_own_tokenizer(self.backbone.tokenizer, folder)
        else:
            write_tokenizer(self.encoder, self.backbone.config, self.documents, folder)

    def describe_reading(self) -> list[str]:
        """What a model card says of how texts are read."""
        return [*(describe_reading(self.encoder) if self.encoder else []), *self.reads]

    @property
    def also_imports(self) -> str:
        """What :meth:`example` needs of transformers beside the model's and tokenizer's classes."""
        return "" if self.decoding is None else ", GenerationConfig"

    def example(self) -> str:
        """Code that lets a loaded ``model`` and ``tokenizer`` write."""
        if self.decoding is None:
            return _ENDING
        breaks = list(line_breaks(self.backbone.tokenizer).values())
        behind = "[1:]" if self.encodes else '[rows["input_ids"].shape[1] :]'
        return _SUMMARY.format(
            tokens=self.decoding.max_new_tokens,
            beams=self.decoding.num_beams,
            here=HERE,
            told=(_TOLD_IN_LINES if breaks else _TOLD).format(breaks=breaks, behind=behind),
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
    expected = trained.expect()
    trained.write_tokenizer(folder)
    merge_adapters(trained.model)  # what is frozen stays rounded as it was in training
    if trained.generation is not None:
        trained.model.generation_config = trained.generation
    write_network(trained.model, trained.backbone, None, folder)

    def load(there: Path, dtype: torch.dtype) -> tuple[Any, Any]:
        import transformers  # lazy: import cost

        model = getattr(transformers, trained.loader).from_pretrained(there, dtype=dtype)
        return model, load_tokenizer(there)

    merged = " and its adapters merged into them" if trained.lora else ""
    usage = (
        f"from transformers import {trained.loader}, AutoTokenizer{trained.also_imports}\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{HERE}")\n'
        f'model = {trained.loader}.from_pretrained("{HERE}")\n{trained.example()}'
    )
    what = f"{trained.kind} of transformers, with all its weights in float32{merged}"
    return _checked(trained, expected, folder, load, "float32", what, usage)


def write_language_model_adapter(trained: TrainedWriter, folder: Path) -> Exported:
    """Write the adapters of a model; see :func:`write_language_model`.

    Raises:
        SmolbenchError: If there are no adapters, or what was written says something else.
    """
    lora = require_adapters(trained.lora)
    backbone = trained.backbone
    refuse_adapter_below(backbone)
    expected = trained.expect()
    trained.write_tokenizer(folder)
    if trained.generation is not None:
        trained.generation.save_pretrained(folder)
    bare = summarizer_skeleton(backbone)
    purpose: Literal["SEQ_2_SEQ_LM", "CAUSAL_LM"] = (
        "SEQ_2_SEQ_LM" if trained.encodes else "CAUSAL_LM"
    )
    write_adapter(trained.model, bare, backbone, lora, purpose, folder)
    base = BaseModel(trained.loader, backbone, bare, {}, trained.in_four_bits)
    return _checked(
        trained,
        expected,
        folder,
        base.load,
        base.dtype,
        f"low-rank adapters for {trained.kind} that is loaded beside them",
        base.usage(trained.also_imports) + trained.example(),
    )


def _checked(
    trained: TrainedWriter,
    expected: Expected,
    folder: Path,
    load: Callable[[Path, torch.dtype], tuple[Any, Any]],
    dtype: DTypeName,
    what: str,
    usage: str,
) -> Exported:
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
        check=check_export(expected, folder, load, dtype),
        pipeline=trained.pipeline,
        base=trained.backbone.origin,
        base_is_local=trained.backbone.is_local,
    )
