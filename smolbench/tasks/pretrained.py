"""What tasks share that train a pretrained network wholly or in part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer

from smolbench.errors import SmolbenchError
from smolbench.models.pretrained.adaptation import LoRAOptions, Quantize, adapt, hold_frozen_in
from smolbench.models.pretrained.backbone import Backbone
from smolbench.models.pretrained.language_model import LanguageModel
from smolbench.models.pretrained.quantization import in_four_bits as four_bits
from smolbench.models.pretrained.reach import Reach, reach

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTERS = ("lora", "qlora")
"""Methods that train low-rank adapters."""
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
"""Trainer precisions that leave trained weights in float32."""


def refuse_unused(
    method: str, options: Mapping[str, tuple[Any, tuple[str, ...]]], chosen_by: str = "method"
) -> None:
    """Refuse options that a method would pass over.

    Args:
        method: The method chosen.
        options: For each option its value, ``None`` if not given, and the methods that use it.
        chosen_by: The option that chooses the method.

    Raises:
        SmolbenchError: Naming the first such option.
    """
    for name, (value, methods) in options.items():
        if value is not None and method not in methods:
            raise SmolbenchError(
                f"model.{name} is for the {chosen_by} {' or '.join(methods)}, and "
                f"model.{chosen_by} is {method!r}: leave it out."
            )


def refuse_in_four_bits(method: str, backbone: Backbone) -> None:
    """Refuse an adapter as what is held in 4 bits.

    Args:
        method: The method chosen.
        backbone: What is trained.

    Raises:
        SmolbenchError: If it is one.
    """
    if method == "qlora" and backbone.adapter is not None:
        raise SmolbenchError(
            f"{backbone.given} is an adapter, which weights in 4 bits (method qlora) cannot take "
            "in: use the method lora or full."
        )


def lora_options(
    r: int | None,
    lora_alpha: int | None,
    lora_dropout: float | None,
    target_modules: list[str] | None,
) -> LoRAOptions:
    """Options of the adapters, with a rank of 8, an alpha of 2 ``r`` and a dropout of 0.05.

    Raises:
        SmolbenchError: If one is out of range.
    """
    rank = 8 if r is None else r
    lora = LoRAOptions(
        r=rank,
        alpha=2 * rank if lora_alpha is None else lora_alpha,
        dropout=0.05 if lora_dropout is None else lora_dropout,
        targets=None if target_modules is None else tuple(target_modules),
    )
    if min(lora.r, lora.alpha) <= 0 or not 0 <= lora.dropout < 1 or target_modules == []:
        raise SmolbenchError(
            "model.r and lora_alpha must be positive, lora_dropout in [0, 1), and target_modules "
            f"not empty; given are r={r}, lora_alpha={lora_alpha}, lora_dropout={lora_dropout}, "
            f"target_modules={target_modules}."
        )
    return lora


def lora_signature(method: str, lora: LoRAOptions, quantize: str) -> dict[str, Any]:
    """What of the adapters and the 4 bits a trained state is only valid with, as plain values."""
    adapters = method in ADAPTERS
    return {
        "r": lora.r if adapters else None,
        "lora_alpha": lora.alpha if adapters else None,
        "target_modules": list(lora.targets) if adapters and lora.targets else None,
        "quantize": quantize if method == "qlora" else None,
    }


def compute_dtype(backbone: Backbone, trainer: Trainer | None, device: torch.device) -> torch.dtype:
    """What a network that trains, or is scored as it comes, computes in.

    Under 16-mixed frozen weights stay in float32.

    Raises:
        SmolbenchError: If the trainer's precision would not leave trained weights in float32, or
            says something else than the backbone's ``dtype``.
    """
    asked = backbone.dtype_name
    precision = str(trainer.precision) if trainer else "32-true"
    if precision not in PRECISIONS:
        raise SmolbenchError(
            f"trainer.precision is {precision!r}, but what trains must stay in float32: take "
            f"{', '.join(PRECISIONS)}, and choose what it computes in with model.dtype."
        )
    if (precision, asked) in {
        ("bf16-mixed", "float32"),
        ("16-mixed", "float32"),
        ("16-mixed", "bfloat16"),
    }:
        raise SmolbenchError(
            f"trainer.precision {precision!r} and model.dtype {asked!r} contradict each other: "
            "leave one of them out."
        )
    if precision == "bf16-mixed":
        return torch.bfloat16
    return torch.float32 if precision == "16-mixed" else backbone.dtype(device)


def autocast(device: torch.device, compute: torch.dtype) -> AbstractContextManager[Any]:
    """Mixed precision, unless the trainer's precision sees to it."""
    if compute == torch.float32 or torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, dtype=compute)


@dataclass(frozen=True)
class Adapted:
    """A language model, loaded and made ready for its method.

    Attributes:
        model: Its network.
        compute: What it computes in.
        in_four_bits: How it was loaded in 4 bits; nothing otherwise.
        reach: What texts reach in it; ``None`` where nothing is trained.
    """

    model: PreTrainedModel
    compute: torch.dtype
    in_four_bits: dict[str, Any]
    reach: Reach | None


def load_adapted(
    backbone: LanguageModel,
    method: str,
    *,
    lora: LoRAOptions,
    quantize: Quantize,
    gradient_checkpointing: bool,
    seed: int,
    load: Callable[..., PreTrainedModel],
    skeleton: Callable[[LanguageModel], PreTrainedModel],
    trainer: Trainer | None,
    device: torch.device,
) -> Adapted:
    """Load a model that writes texts and let the method's parameters train; all others are frozen.

    Args:
        backbone: What to load.
        method: ``none``, ``full``, ``lora`` or ``qlora``.
        lora: Options of the adapters.
        quantize: Which layers ``qlora`` holds in 4 bits.
        gradient_checkpointing: Whether activations are computed again in the backward pass.
        seed: Seed of the adapters' weights.
        load: Reads the weights of a backbone in a number format, for a device, with options.
        skeleton: Makes its modules without weights.
        trainer: Its precision decides in training; ``None`` outside of one.
        device: Where the model will run.

    Raises:
        SmolbenchError: If it cannot be loaded, or precision and ``dtype`` contradict each other.
    """
    in_four_bits: dict[str, Any] = {}
    with torch.device("cpu"):  # whatever device Lightning has made the default
        compute = compute_dtype(backbone, trainer, device)
        if method == "none":
            untrained = load(backbone, compute, device)
            untrained.requires_grad_(False)
            return Adapted(untrained, compute, in_four_bits, None)
        if method == "qlora":
            bare = skeleton(backbone)
            in_four_bits = four_bits(bare, quantize, lora.targets, compute, device)
        model = load(backbone, torch.float32, device, **in_four_bits)
        found = reach(model, lambda ids, mask: _logits(model, ids, mask))
        adapt(model, method, lora, seed, found.unused)  # type: ignore[arg-type] # the task has checked it
    hold_frozen_in(model, compute)
    if gradient_checkpointing:
        checkpoint_gradients(model, backbone.given)
    return Adapted(model.train(), compute, in_four_bits, found)


def _logits(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """What a model would write next, shape ``(B, T, V)``."""
    row: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    if model.config.is_encoder_decoder:
        row["decoder_input_ids"] = input_ids
    logits: torch.Tensor = model(**row, use_cache=False).logits
    return logits


def checkpoint_gradients(model: PreTrainedModel, name: str) -> None:
    """Let a model compute its layers' activations again in the backward pass.

    Raises:
        SmolbenchError: If the architecture does not support it.
    """
    # transformers 5.20 knows it by the second name only
    enable = getattr(model, "activation_checkpointing_enable", None)
    enable = enable or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise SmolbenchError(
            f"{name} does not support gradient checkpointing: leave out "
            "model.gradient_checkpointing."
        ) from error
