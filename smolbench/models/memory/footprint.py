"""What a model takes: weights by format, key-value cache and training memory, from its shape alone.

Nothing is downloaded but the configuration, and no weight is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from smolbench.errors import SmolbenchError
from smolbench.models.memory.live_bytes import LiveBytes
from smolbench.models.pretrained.adaptation import (
    Adaptation,
    LoRAOptions,
    adapt,
    hold_frozen_in,
    linear_layers,
)
from smolbench.models.pretrained.backbone import Backbone, readable_errors
from smolbench.models.pretrained.classifier import classify, skeleton
from smolbench.models.pretrained.reach import reach

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NF4_BLOCK, NF4_NESTED_BLOCK = 64, 256
"""Weights that share a scale, and scales that share one in turn (double quantisation)."""


@dataclass(frozen=True)
class Weights:
    """Numbers of parameters by part, each counted once however often it is used.

    Attributes:
        embeddings: Tables of tokens and positions; with tied weights also the language-model head.
        linear: Matrices of linear layers, which quantisation is for.
        head: A language-model head of its own, which quantisation leaves as it is.
        other: Norms, biases, and everything else.
        quantised: Elements of each of the ``linear`` matrices.
    """

    embeddings: int
    linear: int
    head: int
    other: int
    quantised: tuple[int, ...]

    @property
    def total(self) -> int:
        """All parameters."""
        return self.embeddings + self.linear + self.head + self.other

    def size(self, bits: float) -> float:
        """Bytes with linear layers in so many bits per weight and the rest in bfloat16."""
        return self.linear * bits / 8 + 2 * (self.total - self.linear)

    @property
    def nf4(self) -> int:
        """Bytes with linear layers as bitsandbytes holds them: 4 bits, and the scales.

        NF4 with double quantisation (Dettmers et al. 2023): a scale of 8 bits per 64 weights, one
        of 32 bits per 256 scales, and per matrix the offset of its scales. The two tables that all
        matrices share are left out.
        """
        stored = 0
        for elements in self.quantised:
            scales = -(-elements // NF4_BLOCK)
            stored += -(-elements // 2) + scales + 4 * -(-scales // NF4_NESTED_BLOCK) + 4
        return stored + 2 * (self.total - self.linear)


@dataclass(frozen=True)
class TrainingMemory:
    """What a training step over one batch holds, in bytes.

    Attributes:
        method: What trains.
        trainable: Parameters that train.
        weights: Trained ones in float32, frozen matrices in the compute format or 4 bits.
        gradients: Of what trains, float32.
        optimizer: AdamW's two averages of what trains, float32.
        activations: What the forward pass keeps for the backward pass, copies of trained weights in
            the compute format included.
        step: The most that a forward and a backward pass hold at one time beside weights and
            averages. Gradients come as activations go, and are freed behind the optimiser's step,
            so this is less than both; it includes what operations pass on to each other.
    """

    method: str
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    step: int

    @property
    def total(self) -> int:
        """The most that is held at one time, from the second step on."""
        return self.weights + self.optimizer + self.step


def weights_of(backbone: Backbone) -> Weights:
    """Count a model's parameters by part.

    Raises:
        SmolbenchError: If its configuration cannot be read, or no model can be made of it.
    """
    model = _shape(backbone)
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    head_ids = {id(p) for p in head.parameters()} if isinstance(head, nn.Module) else set()
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    linear = {id(m.weight) for m in linear_layers(model).values()} - head_ids
    counts = dict.fromkeys(("embeddings", "linear", "head", "other"), 0)
    quantised = []
    for parameter in model.parameters():  # a tied one comes once
        part = "other"
        if id(parameter) in tables:
            part = "embeddings"
        elif id(parameter) in head_ids:
            part = "head"
        elif id(parameter) in linear:
            part = "linear"
            quantised.append(parameter.numel())
        counts[part] += parameter.numel()
    if not counts["head"] and _own_head(backbone, model):
        counts["head"] = head.weight.numel()
    return Weights(**counts, quantised=tuple(quantised))


def _own_head(backbone: Backbone, model: PreTrainedModel) -> bool:
    """Whether the files hold a head's weights although transformers ties it to the embeddings.

    It does so with every T5 that it makes, and takes them apart where it finds both in the files.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    names = [name for name, module in model.named_modules() if module is head]
    if not isinstance(head, nn.Linear) or not names:
        return False
    files = sorted(Path(backbone.location).glob("*.safetensors")) if backbone.is_local else []
    if files:
        from safetensors import safe_open  # lazy: import cost

        for file in files:
            with safe_open(file, "pt") as held:
                if f"{names[0]}.weight" in held.keys():  # noqa: SIM118 - no mapping
                    return True
        return False
    return backbone.stated_config.get("tie_word_embeddings") is False


def cache_bytes_per_token(backbone: Backbone) -> int | None:
    """Bytes in bfloat16 that a token adds to a decoder's key-value cache; ``None`` for an encoder.

    Measured on the model without weights, by how much the cache grows from a row to a longer one;
    what does not grow with the text (Mamba's states) does not count.

    Raises:
        SmolbenchError: If its configuration cannot be read, or no model can be made of it.
    """
    model: Any = _shape(backbone)
    if model.get_output_embeddings() is None:
        return None
    with suppress(Exception):  # of a configuration that must have one
        model.config.pad_token_id = None  # else some look for padding, in a row without content
    model.set_attn_implementation("eager")  # others look into the mask
    model.bfloat16()  # what mixtures of experts multiply with knows no other without content
    read, more = model, {}
    if backbone.config.is_encoder_decoder:
        read, width = model.get_decoder(), model.get_input_embeddings().embedding_dim
        more["encoder_hidden_states"] = torch.zeros(1, 4, width, device="meta", dtype=model.dtype)
    sizes = []
    for length in (4, 5):
        try:
            with torch.no_grad():
                output: Any = read(input_ids=_ids(1, length), use_cache=True, **more)
        except Exception as error:  # whatever an architecture asks of content
            raise SmolbenchError(
                f"The key-value cache of {backbone.name} cannot be counted without its weights "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]})."
            ) from error
        # renamed in transformers 5.24
        name = "cache" if hasattr(output, "cache") else "past_key_values"
        cache = getattr(output, name, None)
        states = any(getattr(output, kind, None) is not None for kind in ("cache_params", "state"))
        if cache is None and not states:
            raise SmolbenchError(
                f"The key-value cache of {backbone.name} cannot be counted: its architecture does "
                "not give it out."
            )
        cache = getattr(cache, "self_attention_cache", cache)
        sizes.append(sum(_kept(layer) for layer in getattr(cache, "layers", [])))
    return 2 * (sizes[1] - sizes[0])


def _kept(layer: Any) -> int:  # noqa: ANN401 - any of transformers' kinds of cached layers
    tensors = (getattr(layer, "keys", None), getattr(layer, "values", None))
    return sum(tensor.numel() for tensor in tensors if tensor is not None)


def training_memory(
    backbone: Backbone,
    method: Adaptation,
    batch_size: int,
    length: int,
    compute: torch.dtype = torch.bfloat16,
    lora: LoRAOptions | None = None,
) -> TrainingMemory:
    """What fine-tuning to classify takes by a method, as ``FineTuneTask`` does it.

    A forward and a backward pass are run without data, on a CPU's kernels, and every tensor is
    followed from its making to its end. That is an estimate, because transformers writes out masks
    there that it leaves out where there is data, and other devices' kernels keep somewhat more or
    less. What kernels need inside is not counted, nor what the C library's allocator holds in holes
    between tensors: on Linux a process takes about a quarter more for LoRA or BitFit.

    Args:
        backbone: The model.
        method: What trains, beside the head.
        batch_size: Rows, ``B``.
        length: Tokens per row, ``T``.
        compute: What the network computes in.
        lora: The adapters, for ``lora`` and ``qlora``.

    Raises:
        SmolbenchError: If the method finds nothing to train in the network, it does not classify,
            or its positions end before ``length``.
    """
    limit = backbone.max_positions
    if limit is not None and length > limit:
        raise SmolbenchError(
            f"--length is {length}, but {backbone.name} has positions for {limit} tokens only."
        )
    model = skeleton(backbone, classes=2)
    model.float()  # type: ignore[no-untyped-call] # as it is loaded, whatever its files hold
    adapt(model, method, lora or LoRAOptions(), seed=0, unused=_unused(backbone))
    hold_frozen_in(model, compute)
    stored = sum(p.numel() * p.element_size() for p in model.parameters())
    if method == "qlora":
        linear: list[Any] = [module.weight for module in linear_layers(model).values()]
        frozen = [weight for weight in linear if not weight.requires_grad]
        in_full = sum(p.numel() * p.element_size() for p in frozen)
        sizes = tuple(p.numel() for p in frozen)
        stored += Weights(0, sum(sizes), 0, 0, sizes).nf4 - in_full
    activations, step = _held_by_a_step(model, backbone.name, batch_size, length, compute)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return TrainingMemory(
        method=method,
        trainable=trainable,
        weights=stored,
        gradients=4 * trainable,
        optimizer=8 * trainable,
        activations=activations,
        step=step,
    )


def _held_by_a_step(
    model: PreTrainedModel, name: str, batch_size: int, length: int, compute: torch.dtype
) -> tuple[int, int]:
    """Bytes that are kept for the backward pass, and the most that both passes hold at one time."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # lazy: import cost

    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu").train()
        own = {p.untyped_storage()._cdata for p in model.parameters()}
        live = LiveBytes(own)
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage
            return tensor

        rows = torch.zeros(batch_size, length, dtype=torch.long)
        with (
            readable_errors(name, None),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            live,
        ):
            with torch.autocast("cpu", dtype=compute, enabled=compute != torch.float32):
                loss = _classified(model, rows, torch.ones_like(rows)).logsumexp(dim=1).sum()
            activations = sum(storage.nbytes() for storage in kept.values())
            kept.clear()  # the backward pass must be free to let go of them
            loss.backward()  # type: ignore[no-untyped-call]
    return activations, live.peak


def _unused(backbone: Backbone) -> frozenset[str]:
    """Names of the parameters that no text reaches."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # lazy: import cost

    model = skeleton(backbone, classes=2)
    model.float()  # type: ignore[no-untyped-call] # transformers' own methods are untyped
    with readable_errors(backbone.name, None), FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        with LiveBytes():  # for the products that it knows without data
            return reach(model, lambda ids, mask: _classified(model, ids, mask)).unused


def _classified(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Logits; a decoder is taken for causal, which could only be measured with its weights."""
    return classify(model, input_ids, attention_mask, padding="unseen")


def _ids(rows: int, length: int) -> torch.Tensor:
    return torch.zeros(rows, length, dtype=torch.long, device="meta")


def _shape(backbone: Backbone) -> PreTrainedModel:
    """The model on the meta device, with its language-model head where it has one."""
    from transformers import (  # lazy: import cost
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForSeq2SeqLM,
    )

    kinds: Sequence[str] = backbone.config.architectures or []
    from_images = any(kind.endswith("ForConditionalGeneration") for kind in kinds)
    loader: Any = AutoModel
    if backbone.config.is_encoder_decoder:
        loader = AutoModelForSeq2SeqLM
    elif any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds):
        loader = AutoModelForCausalLM
    elif from_images:
        loader = AutoModelForImageTextToText
    own = (backbone.trust_remote_code and getattr(backbone.config, "auto_map", None)) or {}
    if own and loader.__name__ not in own:  # code of its own may be for one of them only
        import transformers  # lazy: import cost

        loader = next((getattr(transformers, n) for n in own if n.startswith("AutoModel")), loader)
    model = backbone.skeleton(loader)
    shape: nn.Module = model  # transformers' own methods are untyped
    shape.eval()
    return model
