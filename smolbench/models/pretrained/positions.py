"""How many tokens a model has positions for, found by trying its tables of positions.

``max_position_embeddings`` of a configuration says how many rows such a table has. How many of them
texts can use depends on the code: RoBERTa and its relatives count positions from behind the padding
token's id, OPT and BART have rows to spare.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from smolbench.utils.digest import digest
from smolbench.utils.files import cache_root, write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

log = logging.getLogger("smolbench")
_DEPTHS = (
    "num_hidden_layers",
    "num_encoder_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)
_LARGEST_TABLE = 2**16
"""Rows of a table beyond which it is none of positions."""
_TRIED_WHOLE = 2048
"""Longest row that the whole of a shallow network is run over."""


@dataclass(frozen=True)
class Positions:
    """The longest rows of a model, in tokens; ``None`` where there is no limit.

    Attributes:
        read: What it can read: a causal model its text, an encoder-decoder model the document.
        written: What it can write into one row; of a causal model the same as ``read``.
    """

    read: int | None
    written: int | None


class _PassedError(Exception):
    """A row has passed the table that was looked at."""


def positions_of(config: PreTrainedConfig, *, own_code: str | None = None) -> Positions:
    """Longest rows of a model; found once and remembered on disk.

    Args:
        config: The model's configuration.
        own_code: Where code of the model's own may run, the digest or commit of its files.
    """
    from transformers import __version__  # lazy: import cost

    named = {"config": config.to_json_string(use_diff=False), "transformers": __version__}
    key = digest({"positions": 1, **named, "code": own_code})
    path = cache_root() / "models" / f"{key}.json"
    if path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            return Positions(**{name: _whole(known[name]) for name in ("read", "written")})
        except (ValueError, TypeError, KeyError):
            log.warning("%s is damaged and is made anew.", path)
    found = _find(config, own_code=own_code is not None)
    try:
        write_atomically(path, json.dumps(asdict(found)))
    except OSError as error:
        log.warning("%s cannot be written (%s); the next run looks again.", path, error)
    return found


def _whole(value: Any) -> int | None:  # noqa: ANN401 - from JSON
    return None if value is None else int(value)


def _find(config: PreTrainedConfig, *, own_code: bool) -> Positions:
    if not config.is_encoder_decoder:
        config = config.get_text_config()
    said = getattr(config, "max_position_embeddings", None)
    said = int(said) if said and said > 0 else None  # XLNet says -1
    small = _shallow(config, said or 0)
    with torch.device("meta"):
        bare = _built(small, own_code=own_code)
    if bare is None or not _tables(bare, small):
        return Positions(said, said)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        model: Any = _built(small, own_code=own_code)
    ids = _ids(small)
    if not config.is_encoder_decoder:
        found = _limit(model, small, lambda length: model(input_ids=ids(length)), said)
        return Positions(found, found)
    encoder, decoder = model.get_encoder(), model.get_decoder()

    def write(length: int) -> None:
        states = torch.zeros(1, 1, getattr(small, "hidden_size", 1))
        decoder(input_ids=ids(length), encoder_hidden_states=states)

    read = _limit(encoder, small, lambda length: encoder(input_ids=ids(length)), said)
    return Positions(read, _limit(decoder, small, write, said))


def _shallow(config: PreTrainedConfig, said: int) -> PreTrainedConfig:
    """The same architecture with one layer and hardly any tokens, to be built in no time."""
    small = copy.deepcopy(config)
    for part in (small, *(getattr(small, name, None) for name in small.sub_configs)):
        changes: dict[str, Any] = {name: 1 for name in _DEPTHS if hasattr(part, name)}
        if kinds := getattr(part, "layer_types", None):
            changes["layer_types"] = kinds[:1]
        if getattr(part, "vocab_size", None):
            padding = getattr(part, "pad_token_id", None) or 0
            if padding >= max(said, 64):  # no place that positions could be counted from
                padding = changes["pad_token_id"] = 0
            # tokens for texts, one for padding, and those that the code asks for
            changes["vocab_size"] = max(padding, 0) + 4
        for name, value in changes.items():
            # some architectures say their depth by something else
            with contextlib.suppress(Exception):
                setattr(part, name, value)
    return small


def _built(config: PreTrainedConfig, *, own_code: bool) -> PreTrainedModel | None:
    """A network of a configuration; ``None`` if transformers makes none of it."""
    import transformers  # lazy: import cost

    names = ["AutoModel", *(["AutoModelForSeq2SeqLM"] if config.is_encoder_decoder else [])]
    if own_code:
        own = getattr(config, "auto_map", None) or {}
        names += [name for name in own if name.startswith("AutoModelFor")]
    for name in names:
        try:
            model: PreTrainedModel = getattr(transformers, name).from_config(
                config, trust_remote_code=own_code
            )
        except Exception:  # what architectures make of a single layer
            continue
        network: nn.Module = model  # transformers' own methods are untyped
        network.eval()
        return model
    return None


def _tables(model: nn.Module, config: PreTrainedConfig) -> list[nn.Module]:
    """Tables that might be of positions: those that are not of tokens."""
    tokens = getattr(config, "vocab_size", None)
    return [
        module
        for module in model.modules()
        if "Embedding" in type(module).__name__
        and 0 < _rows(module) <= _LARGEST_TABLE
        and _rows(module) != tokens
    ]


def _rows(table: nn.Module) -> int:
    """Rows of a table; 0 if a module is none."""
    weight = getattr(table, "weight", None)
    return len(weight) if isinstance(weight, torch.Tensor) and weight.ndim == 2 else 0


def _ids(config: PreTrainedConfig) -> Callable[[int], torch.Tensor]:
    """Rows of a length ``T``, shape ``(1, T)``, of a token that is no padding."""
    token = 2 if getattr(config, "pad_token_id", None) == 1 else 1
    return lambda length: torch.full((1, length), token)


def _limit(
    part: nn.Module,
    config: PreTrainedConfig,
    run: Callable[[int], Any],
    said: int | None,
) -> int | None:
    """Longest row that a part of a network takes, by its tables and by what is said of it."""
    limits = [] if said is None else [said]
    for table in _tables(part, config):
        limits += _limit_of(table, run)
    found = min(limits, default=None)
    if found is None or found == said or found > _TRIED_WHOLE or _works(run, found):
        return found
    return _longest(lambda length: _works(run, length), found) or said


def _limit_of(table: nn.Module, run: Callable[[int], Any]) -> list[int]:
    """Longest row that a table has positions for; nothing if it limits none."""

    def stop(*_: Any) -> None:  # noqa: ANN401 - as torch calls it
        raise _PassedError

    handle = table.register_forward_hook(stop)
    try:
        beyond = _rows(table) + 1
        # a table of relative distances, or of kinds of tokens, is passed by longer rows, too
        if _works(run, beyond):
            return []
        found = _longest(lambda length: _works(run, length), beyond)
        return [found] if found else []  # nothing works: it takes more than token ids
    finally:
        handle.remove()


def _works(run: Callable[[int], Any], length: int) -> bool:
    try:
        with torch.inference_mode():
            run(length)
    except _PassedError:
        return True
    except Exception:  # an index out of range, in whatever words
        return False
    return True


def _longest(works: Callable[[int], bool], failing: int) -> int:
    """The longest row that works, where one of ``failing`` tokens does not; 0 if none does."""
    low, high = 0, failing
    # most tables have a few rows to spare
    step = 1
    while high - step > 0 and not works(high - step):
        high, step = high - step, 2 * step
    low = max(high - step, 0)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if works(middle) else (low, middle)
    return low
