"""Weights in 4 bits, by bitsandbytes, and what it takes to train through them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from smolbench.errors import SmolbenchError
from smolbench.models.pretrained.adaptation import Quantize, adapted_layers, linear_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def in_four_bits(
    skeleton: PreTrainedModel,
    quantize: Quantize,
    targets: tuple[str, ...] | None,
    compute: torch.dtype,
    device: torch.device,
) -> dict[str, Any]:
    """Options for ``from_pretrained`` that hold weights in 4 bits (NF4, double quantisation).

    As in QLoRA (Dettmers et al., 2023, arXiv 2305.14314). Embeddings, norms and head stay as they
    are, and so does what transformers quantises in no model of its kind (T5's ``wo``).

    Args:
        skeleton: The model that is to be loaded, with its head, on the meta device.
        quantize: Which linear layers: ``all``, or those ``adapted`` by LoRA.
        targets: LoRA's layers, see :func:`adapted_layers`.
        compute: What the weights are multiplied in.
        device: Where the weights go.

    Raises:
        SmolbenchError: If the device or the installation cannot do it, or a target fits no layer.
    """
    if device.type not in {"cuda", "cpu"}:
        raise SmolbenchError(
            f"model.method 'qlora' runs on CUDA and on the CPU, not on {device.type}: use the "
            "method lora, or --trainer.accelerator cpu."
        )
    try:
        import accelerate  # type: ignore[import-untyped]  # noqa: F401 - lazy: import cost
        import bitsandbytes  # noqa: F401 - lazy: import cost
    except Exception as error:  # a broken CUDA set-up raises whatever it likes
        raise SmolbenchError(
            "model.method 'qlora' needs bitsandbytes and accelerate, which cannot be imported: run "
            f"`pip install bitsandbytes accelerate`, or use the method lora. ({error})"
        ) from error
    from transformers import BitsAndBytesConfig  # lazy: import cost

    layers = set(linear_layers(skeleton))
    chosen = set(adapted_layers(skeleton, targets)) if quantize == "adapted" else layers
    every = {name for name, module in skeleton.named_modules() if hasattr(module, "weight")}
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=[re.escape(name) + "$" for name in sorted(every - chosen)],
    )
    return {"quantization_config": config, "device_map": {"": device}}


def keep_gradients(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for inference on CPUs with AVX512-BF16.

    The first pass without gradients in evaluation mode would do so in place, with a loss of
    precision, and from then on a kernel without gradients would serve training too: adapters in
    front of such a layer would stop learning, with no error (bitsandbytes 0.50).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment] # not a tensor
