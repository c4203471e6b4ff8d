"""Causal language models: from the Hub, a folder, or a folder with a LoRA adapter."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from smolbench.digest import digest, folder_content
from smolbench.errors import SmolbenchError
from smolbench.models.backbone import Backbone, DType
from smolbench.models.quantization import keep_gradients
from smolbench.models.scoring import last_states
from smolbench.models.scoring_trials import score_by_proven_paths

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CPU = torch.device("cpu")
ADAPTER_CONFIG = "adapter_config.json"
DEFAULT_POSITIONS = 2048
"""Most tokens a model is given that does not say how many it reads; as in lm_eval."""
VERY_LARGE_INTEGER = 10**30
"""What a tokenizer of transformers says that knows no limit."""


class LanguageModel(Backbone):
    """A causal language model, found and named exactly; loaded by :func:`load_language_model`.

    Args:
        name: A model id on the Hub, a folder with a model or with a peft adapter (whose base model
            is then loaded with it), or ``tiny`` for the built-in model.
        revision: Branch, tag or commit on the Hub; of an adapter, that of its base model.
        dtype: Weights and computation; ``auto`` is bfloat16 where the device computes it natively.
        trust_remote_code: Whether Python code among the model's files may run on this machine.

    Raises:
        SmolbenchError: If an adapter's configuration cannot be read.
    """

    def __init__(
        self,
        name: str,
        revision: str | None,
        dtype: DType,
        *,
        trust_remote_code: bool = False,
    ) -> None:
        self.given = name
        self.adapter: Path | None = None
        folder = Path(name).expanduser()
        if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
            self.adapter = folder
            name, base_revision = _base_of(folder)
            revision = revision or base_revision
            if Path(name).is_absolute() and not Path(name).is_dir():
                raise SmolbenchError(
                    f"{folder / ADAPTER_CONFIG} names the base model {name}, a folder that is not "
                    "there: write its new place into the entry base_model_name_or_path, or link "
                    "it to where it was."
                )
        super().__init__(name, revision, dtype, trust_remote_code=trust_remote_code)

    @cached_property
    def revision(self) -> str:
        """Exactly which weights; see the base class. Those of an adapter count with its base's."""
        base = super().revision
        if self.adapter is None:
            return base
        return digest({"base": base, "adapter": folder_content(self.adapter)})

    @property
    def reads(self) -> int:
        """Most tokens in a row: as many as there are positions, as lm_eval determines them."""
        if self.max_positions is not None:
            return self.max_positions
        limit: int = self.tokenizer.model_max_length
        return limit if limit < VERY_LARGE_INTEGER else DEFAULT_POSITIONS


def _base_of(folder: Path) -> tuple[str, str | None]:
    """Base model of an adapter, and its revision."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        name = config["base_model_name_or_path"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SmolbenchError(
            f"{folder / ADAPTER_CONFIG} does not name the model that the adapter belongs to "
            f"({type(error).__name__}: {error})."
        ) from error
    if not isinstance(name, str) or not name:
        raise SmolbenchError(
            f"{folder / ADAPTER_CONFIG} names no base model: write it into its entry "
            "base_model_name_or_path."
        )
    return name, config.get("revision")


def load_language_model(
    backbone: LanguageModel,
    dtype: torch.dtype,
    device: torch.device = _CPU,
    **options: Any,  # noqa: ANN401 - as transformers types them
) -> PreTrainedModel:
    """Load a causal language model with its head, in evaluation mode.

    Args:
        backbone: What to load.
        dtype: Number format of the weights.
        device: Where it will run; it is loaded onto the CPU.
        **options: More for ``from_pretrained``, see
            :func:`~smolbench.models.quantization.in_four_bits`.

    Raises:
        SmolbenchError: If the weights cannot be loaded or are incomplete, the adapter does not
            belong to them, or the model is not one whose log-likelihoods can be computed here.
    """
    from transformers import AutoModelForCausalLM  # lazy: import cost

    _refuse_encoder_decoder(backbone)
    model, missing = backbone.from_pretrained(AutoModelForCausalLM, dtype=dtype, **options)
    backbone.require(missing)
    if backbone.adapter is not None:
        model = _with_adapter(model, backbone.adapter)
    model.config.use_cache = False  # else every pass keeps all layers' keys and values
    keep_gradients(model)
    network: torch.nn.Module = model  # transformers' own methods are untyped
    network.eval()
    score_by_proven_paths(model, backbone.paths, device)
    _refuse_looking_ahead(model, backbone.given)
    return model


def _refuse_encoder_decoder(backbone: LanguageModel) -> None:
    if backbone.config.is_encoder_decoder:
        raise SmolbenchError(
            f"{backbone.given} is an encoder-decoder model; log-likelihoods of endings are "
            "computed by causal language models, such as SmolLM2, GPT-2, GPT-Neo or OPT."
        )


def language_model_skeleton(backbone: LanguageModel) -> PreTrainedModel:
    """The model's modules on the meta device: names and shapes without weights."""
    from transformers import AutoModelForCausalLM  # lazy: import cost

    _refuse_encoder_decoder(backbone)
    return backbone.skeleton(AutoModelForCausalLM)


def _with_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Add an adapter's matrices to the weights they belong to."""
    from peft import PeftModel  # lazy: import cost

    try:
        adapted = PeftModel.from_pretrained(model, str(folder))
        merged: PreTrainedModel = adapted.merge_and_unload()
    except Exception as error:  # whatever peft makes of files that do not fit
        reason = " ".join(str(error).split())
        raise SmolbenchError(
            f"The adapter in {folder} cannot be put onto {model.config.name_or_path}: only "
            "adapters that can be merged into the weights serve, such as LoRA's, and they must be "
            f"of this model. ({type(error).__name__}: {reason[:300]})"
        ) from error
    return merged


def _refuse_looking_ahead(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose tokens see what is behind them."""
    rows = torch.tensor([[1, 2, 3], [1, 2, 4]], device=model.device)
    with torch.no_grad():
        states = last_states(model, {"input_ids": rows})
    if not torch.equal(states[0, :2], states[1, :2]) and not torch.allclose(
        states[0, :2].float(), states[1, :2].float(), rtol=1e-2, atol=1e-2
    ):
        raise SmolbenchError(
            f"{name} looks at the words behind a word: log-likelihoods of endings are computed by "
            "causal language models, such as SmolLM2, GPT-2, GPT-Neo or OPT."
        )
