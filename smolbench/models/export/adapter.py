"""Low-rank adapters, and the head trained beside them, as a folder of peft."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from smolbench.errors import SmolbenchError
from smolbench.models.export.check import DTypeName
from smolbench.models.export.exported import HERE
from smolbench.models.export.tokenizer import load_tokenizer
from smolbench.models.pretrained.adaptation import LoRAOptions, head_names, linear_layers
from smolbench.models.pretrained.backbone import Backbone
from smolbench.models.pretrained.quantization import keep_gradients
from smolbench.models.pretrained.reach import outermost

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel


def require_adapters(lora: LoRAOptions | None) -> LoRAOptions:
    """The adapters' options.

    Raises:
        SmolbenchError: If there are no adapters.
    """
    if lora is None:
        raise SmolbenchError(
            "--adapter is for runs of the methods lora and qlora: leave it out, to export the "
            "whole model."
        )
    return lora


def refuse_adapter_below(backbone: Backbone) -> None:
    """Refuse to write adapters whose base is an adapter in another model.

    Raises:
        SmolbenchError: If it is.
    """
    if backbone.adapter is not None:
        raise SmolbenchError(
            f"These adapters were trained on {backbone.given}, itself an adapter merged into "
            f"{backbone.name}, which no folder of peft can name as base: leave out --adapter."
        )


def refuse_four_bits(in_four_bits: Mapping[str, Any]) -> None:
    """Refuse to merge adapters into weights in 4 bits.

    Raises:
        SmolbenchError: If they are.
    """
    if in_four_bits:
        raise SmolbenchError(
            "Adapters that were trained on weights in 4 bits (method qlora) cannot be merged into "
            "them without another rounding, nor into the original weights, which they were not "
            "trained on: export them by themselves with --adapter."
        )


def adapter_limits(in_four_bits: Mapping[str, Any]) -> list[str]:
    """What has to be known of adapters before they are used."""
    if not in_four_bits:
        return ["The adapters belong to the base model at the revision named above, to no other."]
    return [
        "The adapters belong to the base model at the revision named above, held in 4 bits as the "
        "code above does. In another number format its scores are others, and were not measured."
    ]


def write_adapter(
    model: PreTrainedModel,
    bare: PreTrainedModel,
    backbone: Backbone,
    lora: LoRAOptions,
    task_type: Literal["SEQ_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM"],
    folder: Path,
) -> None:
    """Write what trained: adapters and head, nothing of the network they belong to.

    Args:
        model: The trained network with its adapters.
        bare: The same without adapters; it may be on the meta device.
        backbone: What it was made from.
        lora: The adapters' options.
        task_type: What it is for, as peft names it.
        folder: An existing folder.
    """
    from peft import LoraConfig  # lazy: import cost
    from peft.tuners.tuners_utils import BaseTunerLayer
    from safetensors.torch import save_file
    from transformers.pytorch_utils import Conv1D

    # not all layers of a name are adapted: texts may not reach some
    names = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    head = head_names(bare) & trained
    base, revision = backbone.origin
    LoraConfig(
        task_type=task_type,
        base_model_name_or_path=base,
        revision=revision,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=names,
        modules_to_save=outermost(bare, head) or None,
        fan_in_fan_out=isinstance(linear_layers(bare)[names[0]], Conv1D),
        inference_mode=True,
    ).save_pretrained(str(folder))
    weights = {
        # peft has a network in a network, and names its only adapter in memory, not in files
        f"base_model.model.{name.replace('.default.', '.')}": value.detach().float().contiguous()
        for name, value in model.state_dict().items()
        if name in head or ".lora_" in name
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@dataclass(frozen=True)
class BaseModel:
    """The network that adapters belong to, as anybody loads it.

    Attributes:
        loader: Name of the class of transformers that loads it.
        backbone: Where it comes from.
        bare: Its modules, with the head, on the meta device.
        options: What its configuration is told.
        in_four_bits: Options by which its weights are held in 4 bits; empty if they are not.
    """

    loader: Literal[
        "AutoModelForSequenceClassification", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"
    ]
    backbone: Backbone
    bare: PreTrainedModel
    options: Mapping[str, Any]
    in_four_bits: Mapping[str, Any]

    @property
    def dtype(self) -> DTypeName:
        """What it is loaded in: in 4 bits what the run computed in, else the exact format."""
        config = self.in_four_bits.get("quantization_config")
        rounded = config is not None and config.bnb_4bit_compute_dtype == torch.bfloat16
        return "bfloat16" if rounded else "float32"

    def load(self, folder: Path, dtype: torch.dtype) -> tuple[torch.nn.Module, Any]:
        """Load it with the adapters of a folder put onto it, and the tokenizer that lies there."""
        import transformers  # lazy: import cost
        from peft import PeftModel

        name, revision = self.backbone.origin
        more = dict(self.in_four_bits)
        if more:
            more["quantization_config"] = self._four_bits(dtype)
        model = getattr(transformers, self.loader).from_pretrained(
            name, revision=revision, dtype=dtype, **self.options, **more
        )
        keep_gradients(model)  # nor must the weights be rounded anew
        adapted: torch.nn.Module = PeftModel.from_pretrained(model, str(folder))
        return adapted, load_tokenizer(folder)

    def usage(self, more: str = "") -> str:
        """Code that does the same, and loads the tokenizer.

        Args:
            more: Further classes of transformers to import, each behind a comma.
        """
        name, revision = self.backbone.origin
        options = [repr(name)]
        if revision is not None:
            options.append(f"revision={revision!r}")
        options += [f"{key}={value!r}" for key, value in self.options.items()]
        imports = [self.loader, "AutoTokenizer"]
        if self.in_four_bits:
            imports.append("BitsAndBytesConfig")
            config = self._four_bits(getattr(torch, self.dtype))
            options.append(
                "quantization_config=BitsAndBytesConfig(\n"
                "        load_in_4bit=True,\n"
                f"        bnb_4bit_quant_type={config.bnb_4bit_quant_type!r},\n"
                f"        bnb_4bit_use_double_quant={config.bnb_4bit_use_double_quant},\n"
                f"        bnb_4bit_compute_dtype=torch.{self.dtype},\n"
                f"        llm_int8_skip_modules={config.llm_int8_skip_modules!r},\n"
                "    )"
            )
        options.append(f"dtype=torch.{self.dtype}")
        arguments = "".join(f"    {option},\n" for option in options)
        return (
            "import torch\nfrom peft import PeftModel\n"
            f"from transformers import {', '.join(sorted(imports))}{more}\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{HERE}")\n'
            f"base = {self.loader}.from_pretrained(\n{arguments})\n"
            f'model = PeftModel.from_pretrained(base, "{HERE}").eval()\n'
        )

    def _four_bits(self, compute: torch.dtype) -> BitsAndBytesConfig:
        """The same layers in 4 bits, named by a few patterns, multiplied in a format."""
        from transformers import BitsAndBytesConfig  # lazy: import cost

        trained = self.in_four_bits["quantization_config"]
        kept = {p.replace("\\", "").removesuffix("$") for p in trained.llm_int8_skip_modules}
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type=trained.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=trained.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=compute,
            llm_int8_skip_modules=_patterns(
                [n for n, m in self.bare.named_modules() if n in kept and _could_be_quantised(m)]
            ),
        )


def _could_be_quantised(module: torch.nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D  # lazy: import cost

    return isinstance(module, (torch.nn.Linear, Conv1D))


def _patterns(names: Sequence[str]) -> list[str]:
    """Regular expressions for the ends of names, with any number for a layer's own."""
    escaped = (re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(name)) for name in names)
    return [f"{name}$" for name in dict.fromkeys(escaped)]
