"""Causal language models: from the Hub, a folder, or a folder with a LoRA adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from smolbench.errors import SmolbenchError
from smolbench.models.choice.scoring import last_states
from smolbench.models.choice.scoring_trials import score_by_proven_paths
from smolbench.models.pretrained.backbone import Backbone
from smolbench.models.pretrained.quantization import keep_gradients

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CPU = torch.device("cpu")
DEFAULT_POSITIONS = 2048
"""Most tokens a model is given that does not say how many it reads; as in lm_eval."""
VERY_LARGE_INTEGER = 10**30
"""What a tokenizer of transformers says that knows no limit."""


class LanguageModel(Backbone):
    """A causal language model, found and named exactly; loaded by :func:`load_language_model`."""

    @property
    def reads(self) -> int:
        """Most tokens in a row: as many as there are positions, as lm_eval determines them."""
        if self.max_positions is not None:
            return self.max_positions
        limit: int = self.tokenizer.model_max_length
        return limit if limit < VERY_LARGE_INTEGER else DEFAULT_POSITIONS


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
            :func:`~smolbench.models.pretrained.quantization.in_four_bits`.

    Raises:
        SmolbenchError: If the weights cannot be loaded or are incomplete, the adapter does not
            belong to them, or the model is not one whose log-likelihoods can be computed here.
    """
    from transformers import AutoModelForCausalLM  # lazy: import cost

    _refuse_encoder_decoder(backbone)
    model, missing = backbone.from_pretrained(AutoModelForCausalLM, dtype=dtype, **options)
    backbone.require(missing)
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
