"""A pretrained network from the Hugging Face Hub or a folder: found, named exactly, loaded, run.

Nothing is loaded before it is needed: a run whose frozen features are all cached never reads the
weights.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from smolbench.errors import SmolbenchError
from smolbench.models.encoding.template import TemplateEncoder
from smolbench.models.kernels.paths import Paths, forward_environment
from smolbench.models.kernels.prefix import SharedPrefix, keeps_all_tokens, shared_prefix
from smolbench.models.kernels.proof import Trials, pad, proven
from smolbench.models.pretrained.adapter_folder import AdapterFolder, adapter_in
from smolbench.models.pretrained.causality import Padding, effect_of_padding, trial_rows
from smolbench.models.pretrained.missing_packages import advice_on_packages
from smolbench.models.pretrained.positions import Positions, positions_of
from smolbench.models.pretrained.precision import native_bfloat16
from smolbench.utils.digest import digest, folder_content
from smolbench.utils.files import cache_root, write_atomically

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("smolbench")

DType = Literal["auto", "float32", "bfloat16"]
_UNKNOWN = ("not a valid model identifier", "repo id must", "404", "401")
"""What messages about a model that does not exist say."""
TINY = "tiny"
"""Backbone name of the built-in tiny model."""
TINY_T5 = "tiny-t5"
"""Backbone name of the built-in tiny encoder-decoder model."""


class OwnCodeError(SmolbenchError):
    """A model has code of its own, which nobody has allowed to run."""


@dataclass(frozen=True)
class Facts:
    """What a one-time look at a loaded backbone has found out.

    Attributes:
        width: Features per token at the layer asked for; not always ``config.hidden_size``
            (OPT-350m ends in 512).
        padding: What padding behind a row does to the states of its tokens.
        prefix: Whether the beginning of rows can be run once.
        parameters: Number of parameters that are loaded and run.
        widths: Features per token at every layer, ``-1`` included.
    """

    width: int
    padding: Padding
    prefix: bool
    parameters: int
    widths: Mapping[int, int]

    @property
    def causal(self) -> bool:
        """Whether a token sees only what stands before it."""
        return self.padding == "unseen"


class Backbone:
    """A frozen encoder: any ``AutoModel``, or the encoder of an encoder-decoder model.

    Args:
        name: A model id on the Hub, a folder with a model or with a peft adapter (whose base model
            is then loaded with it), or ``tiny`` for the built-in model.
        revision: Branch, tag or commit on the Hub; the commit it stands for is in :attr:`revision`.
            Of an adapter, that of its base model.
        dtype: Weights and computation; ``auto`` is bfloat16 where the device computes it natively.
        layer: Which layer's output is the feature: ``-1`` the last (after the final norm), ``0``
            the embeddings, ``k`` the output of block ``k``.
        trust_remote_code: Whether Python code among the model's files may run on this machine.

    Raises:
        SmolbenchError: If an adapter's configuration cannot be read.
    """

    def __init__(
        self,
        name: str,
        revision: str | None,
        dtype: DType,
        layer: int = -1,
        *,
        trust_remote_code: bool = False,
    ) -> None:
        self.given = name
        self.adapter = adapter_in(name)
        if self.adapter is not None:
            name, revision = self.adapter.base, revision or self.adapter.base_revision
        self.name = name
        self.dtype_name: DType = dtype
        self.layer = layer
        self.trust_remote_code = trust_remote_code
        self._asked_revision = revision
        self.paths = Paths()
        self.tried_here = False
        """Whether this process has tried itself what :meth:`facts` says of paths."""

    @cached_property
    def location(self) -> str:
        """What ``from_pretrained`` is given: the id on the Hub, or a folder."""
        if self.name == TINY:
            from smolbench.models.tiny.llama import tiny_model

            return str(tiny_model(cache_root() / "models"))
        if self.name == TINY_T5:
            from smolbench.models.tiny.t5 import tiny_t5

            return str(tiny_t5(cache_root() / "models"))
        return self.name

    @property
    def is_local(self) -> bool:
        """Whether the files lie in a folder, not on the Hub."""
        return Path(self.location).is_dir()

    @property
    def origin(self) -> tuple[str, str | None]:
        """What others load it by: id and commit on the Hub, or the folder's whole path."""
        if self.is_local:
            return str(Path(self.location).resolve()), None
        return self.location, self.revision

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The model's configuration.

        Raises:
            SmolbenchError: If the model does not exist or cannot be reached.
        """
        from transformers import AutoConfig  # lazy: import cost

        with readable_errors(self.name, self._asked_revision):
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                self.location,
                revision=self._asked_revision,
                # said in every call: transformers would ask on the terminal if it was left open
                trust_remote_code=self.trust_remote_code,
            )
        if self.adapter is not None:
            if self.adapter.rows is not None:
                config.get_text_config().vocab_size = self.adapter.rows
            if self.adapter.classes is not None:
                config.num_labels = self.adapter.classes
        return config

    @property
    def stated_config(self) -> dict[str, Any]:
        """What the configuration's file says, which :attr:`config` may not keep."""
        with readable_errors(self.name, self._asked_revision):
            stated: dict[str, Any]
            stated, _ = type(self.config).get_config_dict(
                self.location, revision=self._asked_revision
            )
        return stated

    @cached_property
    def revision(self) -> str:
        """Exactly which weights: the commit on the Hub, or a digest of the folder's files.

        Those of an adapter count with its base's.
        """
        if self.is_local:
            # code that runs is a part of the model
            base = folder_content(Path(self.location), code=self.trust_remote_code)
        else:
            base = self._commit or self._asked_revision or "main"
        if self.adapter is None:
            return base
        return digest({"base": base, "adapter": self.adapter.content})

    @cached_property
    def _commit(self) -> str | None:
        """The commit that the branch or tag asked for stands for; ``None`` for a folder."""
        from huggingface_hub import try_to_load_from_cache  # lazy: import cost

        if Path(self.location).is_dir():
            return None
        _ = self.config  # fetches it, where there is a network
        path = try_to_load_from_cache(
            self.location, "config.json", revision=self._asked_revision or "main"
        )
        return Path(path).parent.name if isinstance(path, str) else None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that belongs to the weights.

        Raises:
            SmolbenchError: If it does not exist or cannot be reached.
        """
        from transformers import AutoTokenizer  # lazy: import cost

        with readable_errors(self.name, self._asked_revision):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                self.location,
                revision=self._pinned_revision,
                trust_remote_code=self.trust_remote_code,
            )
        if self.adapter is None:
            return tokenizer
        with readable_errors(self.given, None):
            return self.adapter.tokenizer(tokenizer)

    @property
    def _pinned_revision(self) -> str | None:
        """The commit that the configuration came from, so that no file comes from another one."""
        return self._commit or self._asked_revision

    @property
    def runs_own_code(self) -> bool:
        """Whether Python code among the model's files runs."""
        parts = (type(self.config), type(self.tokenizer))
        named = getattr(self.config, "auto_map", None) or any(
            not part.__module__.startswith("transformers.") for part in parts
        )
        return self.trust_remote_code and bool(named)

    @cached_property
    def positions(self) -> Positions:
        """How long the rows may be that the model reads, and writes."""
        return positions_of(self.config, own_code=self.revision if self.trust_remote_code else None)

    @property
    def max_positions(self) -> int | None:
        """Longest row the model can read, in tokens; ``None`` if it has no limit."""
        return self.positions.read

    def require_embeddings(self, ids: Sequence[int] | npt.NDArray[Any]) -> None:
        """Refuse token ids that the model has no embeddings for.

        Raises:
            SmolbenchError: If there are any among them.
        """
        known = getattr(self.config.get_text_config(), "vocab_size", None)
        if not known or not len(ids) or (largest := int(np.max(ids))) < known:
            return
        raise SmolbenchError(
            f"This run needs the token {self.tokenizer.convert_ids_to_tokens(largest)!r} (id "
            f"{largest}), but {self.given} has embeddings for {known} tokens only (ids 0 to "
            f"{known - 1}): its tokenizer was given tokens and the model was not. Save the model "
            "again behind `model.resize_token_embeddings(len(tokenizer))` and train what is new, "
            "or use the tokenizer that the model was trained with."
        )

    def dtype(self, device: torch.device) -> torch.dtype:
        """Data type of the weights on a device."""
        if self.dtype_name == "auto":
            return torch.bfloat16 if native_bfloat16(device) else torch.float32
        return torch.bfloat16 if self.dtype_name == "bfloat16" else torch.float32

    def template_encoder(
        self,
        template: str,
        max_length: int,
        truncation_side: Literal["left", "right"],
        *,
        joined: bool = True,
        goes_on: bool = False,
    ) -> TemplateEncoder:
        """A template with this model's tokenizer.

        Args:
            template: What stands around a text.
            max_length: Longest row in tokens.
            truncation_side: Which end of a long text is cut off.
            joined: Whether ids are those of the whole prompt as one text.
            goes_on: Whether something follows behind the row.

        Raises:
            SmolbenchError: If rows could be longer than the model reads, or the template does not
                fit.
        """
        limit = self.max_positions
        if limit is not None and max_length > limit:
            raise SmolbenchError(
                f"model.max_length is {max_length}, but {self.name} has positions for {limit} "
                "tokens only."
            )
        return TemplateEncoder(
            self.tokenizer,
            template,
            max_length,
            truncation_side,
            joined=joined,
            goes_on=goes_on,
        )

    def from_pretrained(
        self,
        loader: type[Any],
        **options: Any,  # noqa: ANN401 - as transformers types them
    ) -> tuple[PreTrainedModel, set[str]]:
        """Let one of transformers' Auto classes read the weights.

        The global random state stays as it was: transformers draws some weights before it reads
        them, and a training must not depend on whether there was anything to load. An adapter is
        merged into its base, whichever class it was trained on.

        Returns:
            The model, and the names of the weights that the files lack or hold in another shape.

        Raises:
            SmolbenchError: If the weights do not exist, cannot be reached or are damaged.
        """
        if self.adapter is None:
            model, missing = self._read(loader, **options)
            if getattr(model, "peft_config", None):
                raise SmolbenchError(
                    f"{self.name} is an adapter on the Hub: get it by `hf download {self.name} "
                    "--local-dir DIR`, and name that folder."
                )
            return model, missing
        return self._adapted(self.adapter, loader, options)

    def _read(
        self,
        loader: type[Any],
        **options: Any,  # noqa: ANN401 - as transformers types them
    ) -> tuple[PreTrainedModel, set[str]]:
        with (
            readable_errors(self.name, self._asked_revision),
            torch.random.fork_rng(devices=[]),
        ):
            model, report = loader.from_pretrained(
                self.location,
                revision=self._pinned_revision,
                trust_remote_code=self.trust_remote_code,
                output_loading_info=True,
                **options,
            )
        mismatched = {name for name, *_ in report["mismatched_keys"]}
        return model, set(report["missing_keys"]) | mismatched

    def _adapted(
        self, adapter: AdapterFolder, loader: type[Any], options: dict[str, Any]
    ) -> tuple[PreTrainedModel, set[str]]:
        """The base with its adapter in it, as the class that was asked for."""
        base, missing = self._read(
            adapter.loader(loader),
            dtype=options["dtype"],
            num_labels=self.config.num_labels,
            ignore_mismatched_sizes=True,
        )
        merged = adapter.merge_into(base)
        missing -= merged.provided
        asked = type(self.skeleton(loader))
        self.config.tie_word_embeddings = merged.model.config.tie_word_embeddings
        config = copy.deepcopy(merged.model.config)
        for name in [name for name in options if name != "dtype" and hasattr(config, name)]:
            setattr(config, name, options.pop(name))
        # random weights are no part of what was loaded
        weights = {n: w for n, w in merged.model.state_dict().items() if n not in missing}
        with readable_errors(self.given, None), torch.random.fork_rng(devices=[]):
            read: Any = asked.from_pretrained(
                None, config=config, state_dict=weights, output_loading_info=True, **options
            )
        model, report = read
        if hasattr(merged.model, "generation_config"):
            model.generation_config = merged.model.generation_config
        lacks = set(report["missing_keys"]) | {name for name, *_ in report["mismatched_keys"]}
        comparable = type(merged.model) is asked and not lacks
        adapter.require_same(merged, model if comparable else merged.model)
        return model, lacks

    def skeleton(
        self,
        loader: type[Any],
        **changes: Any,  # noqa: ANN401 - as transformers types them
    ) -> PreTrainedModel:
        """The modules of one of transformers' Auto classes on the meta device, without weights.

        Args:
            loader: The Auto class.
            **changes: What the configuration is told.

        Raises:
            SmolbenchError: If it makes no model of this configuration.
        """
        with readable_errors(self.name, None), torch.device("meta"):
            config = type(self.config).from_dict(self.config.to_dict(), **changes)
            config.name_or_path = self.location  # where code of its own is looked for
            model: PreTrainedModel = loader.from_config(
                config, trust_remote_code=self.trust_remote_code
            )
        return model

    def load(self, device: torch.device) -> PreTrainedModel:
        """Load the weights, frozen and in evaluation mode.

        Raises:
            SmolbenchError: If the weights do not exist, cannot be reached or are damaged.
        """
        from transformers import AutoModel  # lazy: import cost

        model, missing = self.from_pretrained(AutoModel, dtype=self.dtype(device))
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
            missing = {name for name in missing if not name.startswith("decoder.")}
        # checkpoints of language models lack the pooler, which hidden states do not pass through
        self.require({name for name in missing if "pooler" not in name})
        model.config.use_cache = False  # else every pass keeps all layers' keys and values
        frozen: torch.nn.Module = model  # transformers' own methods are untyped
        frozen.to(device).eval().requires_grad_(False)
        return model

    def require(self, missing: set[str]) -> None:
        """Refuse files that lack weights.

        Raises:
            SmolbenchError: If any is missing.
        """
        if missing:
            raise SmolbenchError(
                f"The weights of model {self.name!r} are incomplete: {len(missing)} are missing, "
                f"such as {min(missing)}, and would be random. Use files that hold them all."
            )

    def facts(self, device: torch.device) -> Facts:
        """Width, direction and size of the backbone, measured once and remembered on disk.

        Raises:
            SmolbenchError: If the layer asked for does not exist.
        """
        stored = self._stored_facts(device)
        widths = {int(layer): width for layer, width in stored["widths"].items()}
        _check_layer(self.layer, len(widths) - 1, self.name)
        return Facts(
            widths[self.layer], stored["padding"], stored["prefix"], stored["parameters"], widths
        )

    @property
    def identity(self) -> dict[str, Any]:
        """Which weights, to name caches by: a folder by what is in it, wherever it stands."""
        return {"model": None if self.is_local else self.name, "revision": self.revision}

    def _facts_file(self, device: torch.device) -> Path:
        key = {"facts": 5, **self.identity, "forward": forward_environment()}
        key |= {"dtype": str(self.dtype(device)), "device": device.type}
        return cache_root() / "models" / f"{digest(key)}.json"

    def forget_facts(self, device: torch.device) -> None:
        """Let the next :meth:`facts` look again."""
        self._facts_file(device).unlink(missing_ok=True)

    def _stored_facts(self, device: torch.device) -> dict[str, Any]:
        """All of :class:`Facts` but the width, of this backbone at any layer."""
        path = self._facts_file(device)
        if path.is_file():
            try:
                stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
                names = ("widths", "padding", "prefix", "parameters")
                return {name: stored[name] for name in names}
            except (ValueError, TypeError, KeyError):
                log.warning("%s is damaged and is made anew.", path)
        model = self.load(device)
        self.tried_here = True
        with torch.inference_mode():
            row = trial_rows(model, 1, 3)
            outputs = layer_outputs(model, None, row, torch.ones_like(row))
        padding = effect_of_padding(model)
        stored = {
            "widths": {str(layer): states.shape[-1] for layer, states in outputs.items()},
            "padding": padding,
            "prefix": padding == "unseen" and shares_prefix(model, device),
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        try:
            write_atomically(path, json.dumps(stored))
        except OSError as error:
            log.warning("%s cannot be written (%s); the next run looks again.", path, error)
        return stored


def hidden_states(
    model: PreTrainedModel,
    layer: int,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    prefix: SharedPrefix | None = None,
) -> torch.Tensor:
    """Output of one layer for right-padded rows, shape ``(B, T, D)``; see :func:`layer_outputs`."""
    return layer_outputs(model, [layer], input_ids, attention_mask, prefix)[layer]


def layer_outputs(
    model: PreTrainedModel,
    layers: Collection[int] | None,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    prefix: SharedPrefix | None = None,
) -> dict[int, torch.Tensor]:
    """Outputs of some layers for right-padded rows, from one forward pass.

    Args:
        model: A backbone from :meth:`Backbone.load`.
        layers: Each ``-1`` for the last, else an index into ``hidden_states`` (``0``: embeddings);
            ``None`` for all, ``-1`` included.
        input_ids: Token ids, shape ``(B, T)``.
        attention_mask: 1 for real tokens, shape ``(B, P + T)``; may be left out for causal models,
            where padding on the right is never looked at.
        prefix: A beginning of ``P`` tokens that stands in front of every row.

    Returns:
        Hidden states by layer, shape ``(B, T, D)`` with a ``D`` of each layer's own.

    Raises:
        SmolbenchError: If a layer does not exist.
    """
    options: dict[str, Any] = {}
    if prefix is not None:
        options = prefix.arguments(model, len(input_ids))
    last_only = layers is not None and set(layers) == {-1}
    output = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        output_hidden_states=not last_only,
        **options,
    )
    if last_only:
        return {-1: output.last_hidden_state}
    # a model of a rare kind may know its last layer only
    states: tuple[torch.Tensor, ...] = getattr(output, "hidden_states", None) or ()
    outputs = {-1: output.last_hidden_state, **dict(enumerate(states))}
    if layers is None:
        return outputs
    for layer in layers:
        _check_layer(layer, len(states), model.config._name_or_path)
    return {layer: outputs[layer] for layer in layers}


def _check_layer(layer: int, count: int, name: str) -> None:
    if not -1 <= layer < count:
        raise SmolbenchError(
            f"There is no layer {layer} in {name}: layers go from 0 (the embeddings) to "
            f"{count - 1}, and -1 is the last."
        )


def shares_prefix(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether a beginning that is run once gives all layers' outputs behind it, tried on a twin.

    Args:
        model: A causal backbone.
        device: Where it runs.
    """
    if not keeps_all_tokens(model):
        return False
    trials = Trials(model, device)

    def right() -> bool:
        front, rows = trials.draw(12), [trials.draw(length) for length in (23, 3, 40)]
        ids, mask = pad(rows)

        def own(twin: PreTrainedModel) -> torch.Tensor:
            prefix = shared_prefix(twin, front.tolist())
            outputs = [layer_outputs(twin, None, ids, None, prefix) for _ in range(2)]
            return _real(outputs[0], mask) + _real(outputs[1], mask)

        def plain(twin: PreTrainedModel) -> torch.Tensor:
            whole = [layer_outputs(twin, None, torch.cat([front, row])[None]) for row in rows]
            return 2 * torch.cat(
                [
                    torch.cat([each[layer][0, len(front) :] for each in whole]).flatten()
                    for layer in whole[0]
                ]
            )

        return trials.equal(own, plain)

    return proven("Running the beginning of all rows once", right)


def _real(outputs: Mapping[int, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """All layers' outputs of real tokens, one behind the other."""
    return torch.cat([states[mask.bool()].flatten() for states in outputs.values()])


@contextmanager
def readable_errors(name: str, revision: str | None) -> Iterator[None]:
    """Turn the many ways in which loading fails into one sentence each."""
    try:
        yield
    except Exception as error:  # damaged files raise whatever their reader raises
        at = f" at revision {revision!r}" if revision else ""
        reason = " ".join(str(error).split())
        lowered = reason.lower()
        kind = type(error).__name__
        if "trust_remote_code" in lowered:
            raise OwnCodeError(
                f"Model {name!r}{at} has Python code of its own, which would run on this machine "
                "with all that you may do there: read it first, and allow it with "
                "--model.trust_remote_code true (`smolbench footprint`: --trust_remote_code), or "
                "use a model of an architecture that transformers knows."
            ) from error
        if (packages := advice_on_packages(error, name)) is not None:
            raise SmolbenchError(f"Model {name!r}{at} cannot be loaded. {packages}") from error
        if (Path(name) / "checkpoints").is_dir() and not (Path(name) / "config.json").is_file():
            advice = (
                f"It is the folder of a run: score it with `smolbench test --run_dir {name}`, or "
                f"make a model of it with `smolbench export {name} DIR`."
            )
        elif Path(name).is_absolute() and not Path(name).is_dir():
            advice = (
                "There is no such folder. If it was moved or renamed, name the place where it lies "
                "now: --model.backbone DIR."
            )
        elif "padding_idx must be within" in lowered:
            advice = (
                "Its config.json names a pad_token_id that the model has no embedding for: name "
                "one that it has."
            )
        elif "unrecognized configuration class" in lowered:
            advice = "Its architecture has no network for this kind of task: use another model."
        elif "gated" in lowered:
            advice = "It is gated: accept its licence on the Hub and run `hf auth login`."
        elif isinstance(error, OSError) and getattr(error, "errno", None) == 28:
            advice = "The disk is full: free some space or set HF_HOME to another disk."
        elif any(sign in lowered for sign in _UNKNOWN):
            advice = (
                "No such model is known: give an id such as HuggingFaceTB/SmolLM2-135M, a folder "
                f"with config.json and weights, or {TINY!r} for the built-in model."
            )
        elif "file named config.json" in lowered:
            advice = (
                "It holds no model's configuration. If it is an adapter of peft, get it by `hf "
                f"download {name} --local-dir DIR`, and name that folder."
            )
        elif "connect" in lowered or "offline" in lowered or "503" in lowered:
            advice = (
                "The Hub cannot be reached and the model is not in the local cache: run "
                f"`hf download {name}` once where there is a network, or set HF_HOME to a folder "
                "that holds it."
            )
        else:
            advice = "Its files may be damaged or of a kind that this version cannot load."
        raise SmolbenchError(
            f"Model {name!r}{at} cannot be loaded. {advice} ({kind}: {reason[:300]})"
        ) from error
