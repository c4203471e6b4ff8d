"""Which parameters of a pretrained model train: all, adapters, or biases; its head always."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from smolbench.errors import SmolbenchError
from smolbench.models.pretrained.reach import outermost
from smolbench.utils.freed_memory import return_freed_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Adaptation = Literal["full", "lora", "qlora", "bitfit", "bitfit_added"]
Quantize = Literal["all", "adapted"]
NAMED = 12
"""Layers that an error names at most."""


@dataclass(frozen=True)
class LoRAOptions:
    """Low-rank adapters: ``W x + alpha / r * B A x`` (Hu et al., 2021, arXiv 2106.09685).

    Attributes:
        r: Rank of the adapters.
        alpha: Scale of their output, divided by ``r``.
        dropout: Dropout on their input in training.
        targets: Names of the linear layers that get one, as they end; ``None`` for peft's default
            of the architecture (query and value projections).
    """

    r: int = 8
    alpha: int = 16
    dropout: float = 0.05
    targets: tuple[str, ...] | None = None


def adapt(
    model: PreTrainedModel,
    method: Adaptation,
    lora: LoRAOptions,
    seed: int,
    unused: Collection[str] = frozenset(),
) -> None:
    """Let exactly the parameters of a method train, and put its own into the model.

    ``full``: all parameters. ``lora``, ``qlora``: adapters and head. ``bitfit``: every bias of the
    pretrained network, those of its norms too, and the head (Ben Zaken et al., 2022, arXiv
    2106.10199). ``bitfit_added``: linear layers without a bias get one of zeros first.

    Args:
        model: A model with its head, all of it loaded.
        method: What trains.
        lora: The adapters, for ``lora`` and ``qlora``.
        seed: Seed of the adapters' initial weights; the global random state is left untouched.
        unused: Names of parameters that no text reaches, see
            :func:`~smolbench.models.pretrained.reach.reach`: by no method do they train, nor is
            anything put in front of or behind them.

    Raises:
        SmolbenchError: If the method finds nothing to train in the network behind the head.
    """
    head = head_names(model)
    idle = [p for name, p in model.named_parameters() if name in unused]
    model.requires_grad_(method == "full")
    if method in {"lora", "qlora"}:
        _add_adapters(model, lora, seed, unused)
    elif method != "full":
        _train_biases(model, method, head, unused)
    for name, parameter in model.named_parameters():
        if name in head:
            parameter.requires_grad_(True)
    for parameter in idle:
        parameter.requires_grad_(False)


def head_names(model: PreTrainedModel) -> set[str]:
    """Names of the parameters that a task adds behind the pretrained network: head and pooler.

    None for a causal language model.
    """
    base = model.base_model
    inside = {id(p) for name, p in base.named_parameters() if not _in_pooler(name)}
    # a language-model head is pretrained, and tied to the embeddings or like them
    inside |= {id(p) for p in _language_head(model).parameters()}
    return {name for name, p in model.named_parameters() if id(p) not in inside}


def _language_head(model: PreTrainedModel) -> nn.Module:
    """What turns hidden states into scores of tokens; a module without weights if nothing does."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return head if isinstance(head, nn.Module) else nn.Identity()


def _in_pooler(name: str) -> bool:
    return "pooler" in name.split(".")


def linear_layers(
    model: PreTrainedModel, unused: Collection[str] = frozenset()
) -> dict[str, nn.Module]:
    """The linear layers of the network in front of the head, GPT-2's ``Conv1D`` included.

    Args:
        model: A model with its head.
        unused: Parameters whose layers are left out.
    """
    from transformers.pytorch_utils import Conv1D  # lazy: import cost

    head, language_head = head_names(model), _language_head(model)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and f"{name}.weight" not in head
        and f"{name}.weight" not in unused
        and module is not language_head
    }


def adapted_layers(
    model: PreTrainedModel, targets: Sequence[str] | None, unused: Collection[str] = frozenset()
) -> list[str]:
    """Full names of the linear layers that get an adapter.

    Args:
        model: A model with its head; it may be on the meta device.
        targets: How their names end; ``None`` for peft's default of the architecture.
        unused: Parameters that no text reaches; their layers get none.

    Raises:
        SmolbenchError: If a target fits no layer, or the architecture has no default.
    """
    from peft.utils.constants import (  # lazy: import cost
        TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS,
    )

    layers = list(linear_layers(model, unused))
    kinds = sorted({name.rpartition(".")[2] for name in layers})
    exist = ", ".join(kinds[:NAMED]) + (" ..." if len(kinds) > NAMED else "")
    model_type = model.config.model_type
    wanted = targets
    if targets is None:  # what reads pictures, too, has a language model of a type of its own
        text_type = model.config.get_text_config().model_type
        wanted = DEFAULTS.get(model_type) or DEFAULTS.get(text_type)
    if not wanted:
        raise SmolbenchError(
            f"There is no usual choice of LoRA's layers for the architecture {model_type!r}: name "
            f"them in model.target_modules. Its linear layers are {exist}."
        )
    for target in wanted:
        if not any(_ends_in(name, target) for name in layers):
            raise SmolbenchError(
                f"model.target_modules has {target!r}, but no linear layer of this {model_type} "
                f"model is called so; there are {exist}."
            )
    return [name for name in layers if any(_ends_in(name, target) for target in wanted)]


def _ends_in(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _add_adapters(
    model: PreTrainedModel, lora: LoRAOptions, seed: int, unused: Collection[str]
) -> None:
    from peft import LoraConfig, inject_adapter_in_model  # lazy: import cost
    from transformers.pytorch_utils import Conv1D  # lazy: import cost

    names = adapted_layers(model, lora.targets, unused)
    layers = linear_layers(model)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=names,
        fan_in_fan_out=isinstance(layers[names[0]], Conv1D),
    )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(config, model)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                # drawn here, on the CPU: the same weights whatever device they are moved to
                drawn = torch.zeros(parameter.shape, device=_meta_or_cpu(parameter))
                if "lora_A" in name:
                    nn.init.kaiming_uniform_(drawn, a=5**0.5)
                parameter.data = drawn.to(parameter.device)


def _meta_or_cpu(parameter: nn.Parameter) -> str:
    return "meta" if parameter.is_meta else "cpu"


def _train_biases(
    model: PreTrainedModel, method: Adaptation, head: set[str], unused: Collection[str]
) -> None:
    kind = model.config.model_type
    if method == "bitfit_added":
        layers = linear_layers(model, unused).values()
        bare = [m for m in layers if getattr(m, "bias", None) is None]
        if not bare:
            raise SmolbenchError(
                f"model.method 'bitfit_added' adds biases to linear layers without one, and this "
                f"{kind} model has none such: use the method bitfit."
            )
        for module in bare:
            weight: Any = module.weight
            width = module.out_features  # a Linear: Conv1D always has a bias
            module.bias = nn.Parameter(
                torch.zeros(width, device=weight.device, dtype=torch.float32)  # type: ignore[call-overload]
            )
    biases = [
        parameter
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[2] == "bias" and name not in head and name not in unused
    ]
    if not biases:
        raise SmolbenchError(
            f"model.method 'bitfit' trains biases, and this {kind} model has none: use "
            "bitfit_added, which adds biases of zeros, or lora or head."
        )
    for parameter in biases:
        parameter.requires_grad_(True)


def hold_frozen_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep frozen matrices in a smaller format.

    Vectors (norms, biases) stay in float32: they are a thousandth of the weights, and layers that
    add them to a float32 sum would round them for nothing. Quantised weights are left alone.
    """
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.ndim > 1 and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return_freed_memory()


def parameter_count(model: nn.Module, names: Collection[str] | None = None) -> int:
    """Number of weights; two of a model's 4-bit weights share one stored element.

    Args:
        model: A network.
        names: Of the parameters that count; all if not given.
    """
    return sum(
        p.numel() * (2 if type(p).__name__ == "Params4bit" and p.dtype == torch.uint8 else 1)
        for name, p in model.named_parameters()
        if names is None or name in names
    )


def describe(
    model: nn.Module, method: str, total: int, unused: Collection[str] = frozenset()
) -> str:
    """One line: how many of ``total`` parameters train, and which; and what no text reaches.

    ``*`` stands for any number of a layer.

    Args:
        model: What trains, wholly or in part.
        method: What it is called.
        total: All parameters.
        unused: Names of those that no text reaches.
    """
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    number = sum(trained.values())
    share = 100 * number / total
    line = f"{method}: {number:,} of {total:,} parameters train ({share:.3g} %): "
    line += _in_short(trained)
    if unused:
        idle = parameter_count(model, unused)
        modules = outermost(model, unused)
        alone = (n for n in unused if not any(n.startswith(f"{module}.") for module in modules))
        line += f"; no text reaches {idle:,}, which stay as they are: "
        line += _in_short([*modules, *sorted(alone)])
    return line


def _in_short(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names))
