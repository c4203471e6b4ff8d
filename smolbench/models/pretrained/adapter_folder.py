"""A folder of peft's: an adapter, which is merged into the model that it belongs to."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from smolbench.errors import SmolbenchError
from smolbench.models.pretrained.causality import trial_rows
from smolbench.utils.digest import digest, folder_content
from smolbench.utils.notices import warn

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

ADAPTER_CONFIG = "adapter_config.json"
_PLACE = ("base_model_name_or_path", "revision")
"""Entries that say where the base is found; which one it is, its own digest says."""
_LOADERS = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""What peft's kinds of tasks are loaded by."""
_HEADS = ("score", "classifier", "out_proj")
"""Last modules of transformers' classification heads."""
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "shared", "embed_in", "embeddings")
_WRAPPERS = ("base_layer", "original_module", "token_adapter", "modules_to_save")
"""What peft puts between a module and its weight."""
_NAMED = 4
"""Weights that an error names at most."""
_TEMPLATE = 2
"""Tokens around a text beyond its base's from which a tokenizer is taken for a whole template."""


@dataclass(frozen=True)
class Merged:
    """A model with an adapter in its weights.

    Attributes:
        model: The model, of the class that the adapter was trained on.
        provided: Names of weights that the adapter's files hold whole.
        untied: Whether weights that are one in the base are no longer the same.
        row: Token ids, shape ``(1, T)``.
        outputs: What the base with the adapter beside it, unmerged, says of them.
    """

    model: PreTrainedModel
    provided: set[str]
    untied: bool
    row: torch.Tensor
    outputs: torch.Tensor


class AdapterFolder:
    """A folder with ``adapter_config.json``.

    Args:
        path: The folder.

    Raises:
        SmolbenchError: If its configuration cannot be read, or a model lies beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        file = path / ADAPTER_CONFIG
        try:
            self._config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            name = self._config["base_model_name_or_path"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise SmolbenchError(
                f"{file} does not name the model that the adapter belongs to "
                f"({type(error).__name__}: {error})."
            ) from error
        if not isinstance(name, str) or not name:
            raise SmolbenchError(
                f"{file} names no base model: write it into its entry base_model_name_or_path."
            )
        own = sorted(p.name for p in path.glob("*model*.safetensors*") if "adapter" not in p.name)
        if own:
            raise SmolbenchError(
                f"{path} holds both an adapter ({ADAPTER_CONFIG}) and a model of its own "
                f"({own[0]}): move one of them to another folder."
            )
        if Path(name).is_absolute() and not Path(name).is_dir():
            raise SmolbenchError(
                f"{file} names the base model {name}, a folder that is not there: write its new "
                "place into the entry base_model_name_or_path; runs on the adapter go on with it."
            )
        self.base = name
        self.base_revision: str | None = self._config.get("revision")

    @property
    def content(self) -> str:
        """Digest of its weights and settings, wherever it and its base lie."""
        settings = {name: value for name, value in self._config.items() if name not in _PLACE}
        files = folder_content(self.path, leave_out=ADAPTER_CONFIG)
        return digest({"files": files, "settings": settings})

    def loader(self, asked: type[Any]) -> type[Any]:
        """The class of transformers that it was trained on.

        Args:
            asked: Taken where the folder does not say.
        """
        import transformers  # lazy: import cost

        task = self._config.get("task_type")
        own = (self._config.get("auto_mapping") or {}).get("base_model_class")
        found = getattr(transformers, _LOADERS.get(str(task)) or str(own), None)
        return found if isinstance(found, type) else asked

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights in its files, by name.

        Raises:
            SmolbenchError: If they are missing or damaged.
        """
        from safetensors import safe_open  # lazy: import cost

        try:
            if (file := self.path / "adapter_model.safetensors").is_file():
                with safe_open(file, framework="pt") as weights:
                    return {n: tuple(weights.get_slice(n).get_shape()) for n in weights.keys()}  # noqa: SIM118 - no mapping
            file = self.path / "adapter_model.bin"
            loaded = torch.load(file, map_location="cpu", weights_only=True)
            return {name: tuple(weight.shape) for name, weight in loaded.items()}
        except Exception as error:  # damaged files raise whatever their reader raises
            raise SmolbenchError(
                f"The adapter's weights in {self.path} cannot be read: adapter_model.safetensors "
                f"is missing or damaged. ({type(error).__name__}: {error})"
            ) from error

    @cached_property
    def rows(self) -> int | None:
        """Tokens that it has embeddings for, if it holds any whole; it may have added tokens."""
        return self._rows_of(_EMBEDDINGS)

    @property
    def classes(self) -> int | None:
        """Classes of the classification head that it holds, if any."""
        return self._rows_of(_HEADS) if self._config.get("task_type") == "SEQ_CLS" else None

    def _rows_of(self, modules: tuple[str, ...]) -> int | None:
        for name, shape in self.shapes.items():
            parts = name.split(".")
            if parts[-1] == "weight" and len(shape) == 2 and "lora_" not in name:
                own = [part for part in parts[:-1] if part not in _WRAPPERS]
                if own[-1] in modules:
                    return shape[0]
        return None

    def tokenizer(self, base: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """The tokenizer that it was trained with: its own if one lies beside it.

        One that puts texts into a template by itself (an export's) does not count: the run has a
        template of its own.

        Args:
            base: The base's.
        """
        from transformers import AutoTokenizer  # lazy: import cost

        if not (self.path / "tokenizer_config.json").is_file():
            return base
        own: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.path)
        if _around(own) > _around(base) + _TEMPLATE:
            warn(
                "The tokenizer in %s puts texts into a template of its own: that of %s is used.",
                self.path,
                self.base,
            )
            return base
        return own

    def merge_into(self, model: PreTrainedModel) -> Merged:
        """Add the adapter's matrices to the weights they belong to.

        Weights that the base uses in two places (its embeddings, as its head) are one at each place
        first, where the adapter changes one of them.

        Args:
            model: The base, of the class that :meth:`loader` says; it is changed.

        Raises:
            SmolbenchError: If the adapter does not belong to it, or cannot be merged.
        """
        from peft import PeftModel  # lazy: import cost

        embeddings: Any = model.get_input_embeddings()
        if self.rows and self.rows != embeddings.weight.shape[0]:
            model.resize_token_embeddings(self.rows, mean_resizing=False)
        plain = dict(model.named_modules())
        once = [getattr(config, "tie_word_embeddings", False) for config in _configs(model)]
        tied = _tied(model)
        row = self._trial_row(model)
        before = said_of(model, row)
        try:
            with warnings.catch_warnings():  # of missing and tied weights: both are seen to
                warnings.simplefilter("ignore")
                adapted = PeftModel.from_pretrained(model, str(self.path))
                if adapted.active_peft_config.is_prompt_learning:
                    raise ValueError("it puts states in front of a text")
                self._require_fit(adapted)
                outputs = said_of(adapted, row)
                now = dict(adapted.get_base_model().named_modules())
                touched = any(now.get(n) is not plain[n] for names in tied.values() for n in names)
                if touched:
                    _untie(adapted, set(tied))
                merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
        except SmolbenchError:
            raise
        except Exception as error:  # whatever peft makes of files that do not fit
            reason = " ".join(str(error).split())
            raise SmolbenchError(
                f"The adapter in {self.path} cannot be put onto {self.base}: only adapters that "
                "can be merged into the weights serve, such as LoRA's, and they must be of this "
                f"model. ({type(error).__name__}: {reason[:300]})"
            ) from error
        if torch.equal(before, outputs):
            warn("The adapter in %s changes nothing of what its base says.", self.path)
        untied = touched and not all(_all_equal(merged, names) for names in tied.values())
        if touched:  # whatever peft has made of these settings
            for config, one in zip(_configs(merged), once, strict=True):
                config.tie_word_embeddings = one and not untied
            merged.tie_weights()
        return Merged(merged, self._provided(merged), untied, row, outputs)

    def require_same(self, merged: Merged, model: PreTrainedModel) -> None:
        """Refuse a model that does not say what its base says with the adapter beside it.

        Args:
            merged: From :meth:`merge_into`.
            model: Made of it, and of its class.

        Raises:
            SmolbenchError: If they differ.
        """
        found = said_of(model, merged.row)
        exact = all(p.dtype == torch.float32 for p in model.parameters())
        off = float((found - merged.outputs).norm() / merged.outputs.norm().clamp(min=1e-9))
        if not off <= (1e-3 if exact else 0.1):  # not a number is none, either
            raise SmolbenchError(
                f"The adapter in {self.path} cannot be scored: merged into {self.base} it says "
                f"something else than beside it (off by {off:.2g} of its outputs' size), so "
                "adapters of this kind on these layers cannot be merged into this architecture."
            )

    def _trial_row(self, model: PreTrainedModel) -> torch.Tensor:
        """A few tokens, those among them that were trained by themselves."""
        indices = self._config.get("trainable_token_indices") or self._config.get("token_indices")
        lists = indices.values() if isinstance(indices, dict) else [indices or []]
        trained = [number for numbers in lists for number in numbers[:12]]
        row = trial_rows(model, 1, 12)
        return torch.cat([torch.tensor([trained], dtype=row.dtype), row.cpu()], 1)[:, :24].to(row)

    def _require_fit(self, adapted: PeftModel) -> None:
        """Refuse files whose weights are not exactly those that their configuration asks for."""
        from peft import set_peft_model_state_dict  # lazy: import cost
        from peft.utils import load_peft_weights

        weights = load_peft_weights(str(self.path), device="cpu")
        result: Any = set_peft_model_state_dict(adapted, weights)
        stored = adapted.state_dict(keep_vars=True)
        read = {id(stored[n]) for n in stored.keys() - set(result.missing_keys)}  # at two places
        missing = sorted(
            name.replace(".default", "")
            for name in result.missing_keys
            if "default" in name.split(".") and id(stored[name]) not in read
        )
        over = sorted(self._new_in(weights, result.unexpected_keys))
        if missing or over:
            said = [
                _listed(names, word)
                for names, word in ((missing, "missing"), (over, "left over"))
                if names
            ]
            raise SmolbenchError(
                f"The adapter in {self.path} does not fit {self.base} with its own "
                f"{ADAPTER_CONFIG}: {'; '.join(said)}. It would be scored without them: save it "
                "again by `save_pretrained` of the whole, uncompiled peft model."
            )

    @staticmethod
    def _new_in(weights: Mapping[str, torch.Tensor], names: Sequence[str]) -> list[str]:
        """Those of the weights that are no copies of others: peft saves embeddings twice."""
        others = [weight for name, weight in weights.items() if name not in names]
        return [n for n in names if not any(torch.equal(weights[n], w) for w in others)]

    def _provided(self, merged: PreTrainedModel) -> set[str]:
        """Weights of the merged model that the files hold whole, such as a trained head."""
        held = {name.removeprefix("base_model.model.") for name in self.shapes}
        held = {".".join(p for p in n.split(".") if p not in _WRAPPERS) for n in held}
        return held & set(merged.state_dict())


def adapter_in(name: str) -> AdapterFolder | None:
    """The adapter in a folder; ``None`` if the name is of no folder, or of one without an adapter.

    Raises:
        SmolbenchError: See :class:`AdapterFolder`.
    """
    folder = Path(name).expanduser()
    return AdapterFolder(folder) if (folder / ADAPTER_CONFIG).is_file() else None


def said_of(model: Any, row: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - of peft or transformers
    """First output of a model, float32, for a row of token ids ``(1, T)``."""
    inputs = {"input_ids": row}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = row
    training = model.training
    model.eval()
    with torch.no_grad():
        said: torch.Tensor = model(**inputs)[0].float()
    model.train(training)
    return said


def _around(tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that a tokenizer puts around a text by itself."""
    return len(tokenizer("a").input_ids) - len(tokenizer("a", add_special_tokens=False).input_ids)


def _configs(model: PreTrainedModel) -> tuple[PreTrainedConfig, PreTrainedConfig]:
    return model.config, model.config.get_text_config()


def _tied(model: nn.Module) -> dict[int, list[str]]:
    """Modules that share a weight, by the weight."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return {weight: names for weight, names in owners.items() if len(names) > 1}


def _untie(model: nn.Module, weights: set[int]) -> None:
    """Give every module a weight of its own."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in weights:
                setattr(module, name, nn.Parameter(copy.deepcopy(parameter.data), False))


def _all_equal(model: nn.Module, modules: list[str]) -> bool:
    first, *others = (next(model.get_submodule(name).parameters(recurse=False)) for name in modules)
    return all(torch.equal(first, other) for other in others)


def _listed(names: list[str], word: str) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    verb = "is" if len(names) == 1 else "are"
    return f"{', '.join(names[:_NAMED])}{more} {verb} {word}"
