"""Where texts meet: special tokens around a row, and token ids of a text behind another one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from smolbench.errors import SmolbenchError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after every row, such as BERT's [CLS] and [SEP].

    Where something follows a row (an ending, an answer, a summary), only those in front of it stand
    there: one that ends a row would stand inside the text.

    Raises:
        SmolbenchError: If the tokenizer changes a text's tokens with them.
    """
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    raise SmolbenchError(
        "This tokenizer changes a text's tokens when it adds its special tokens; such tokenizers "
        "are not supported."
    )


def plain_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts, each by itself and without special tokens."""
    # verbose=False: the tokenizer would warn of rows that are about to be truncated
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def ids_behind(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], front: str = ":"
) -> list[list[int]]:
    """Token ids of texts as they stand behind another one, without that one's.

    Some tokenizers (Llama 2's) put a blank in front of whatever they are given alone. Where signs
    meet that are one token, the text's are those that it has without them.

    Args:
        tokenizer: The model's.
        texts: With the blank, if any, that they begin with.
        front: What stands in front of them, or the end of it.
    """
    (before,) = plain_ids(tokenizer, [front])
    wholes = plain_ids(tokenizer, [front + text for text in texts])
    meet = [n for n, ids in enumerate(wholes) if ids[: len(before)] != before]
    found = [ids[len(before) :] for ids in wholes]
    if meet:
        alone = bare_tokenizer(tokenizer) or tokenizer
        for n, ids in zip(meet, plain_ids(alone, [texts[n] for n in meet]), strict=True):
            found[n] = ids
    return found


def bare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase | None:
    """A tokenizer without the blank that it puts in front of all; ``None`` if it puts none."""
    from transformers import PreTrainedTokenizerFast  # lazy: import cost

    backend = without_blank_in_front(tokenizer.backend_tokenizer)
    if backend is None:
        return None
    return PreTrainedTokenizerFast(tokenizer_object=backend)  # type: ignore[no-untyped-call] # untyped in transformers


def without_blank_in_front(backend: Tokenizer) -> Tokenizer | None:
    """What tokenises as another does, but for the blank in front; ``None`` if there is none."""
    from tokenizers import Tokenizer  # lazy: import cost

    known = json.loads(backend.to_str())
    changed = False
    for part in ("normalizer", "pre_tokenizer"):
        known[part], here = _bare(known[part])
        changed |= here
    return Tokenizer.from_str(json.dumps(known)) if changed else None


def _bare(part: dict[str, Any] | None) -> tuple[dict[str, Any] | None, bool]:
    """A step of a tokenizer.json without blanks in front, and whether it had put any."""
    kind = None if part is None else part["type"]
    if part is None or (kind == "Prepend" and part["prepend"] in (" ", "\u2581")):
        return None, part is not None
    if kind == "Sequence":
        name = "normalizers" if "normalizers" in part else "pretokenizers"
        if any(step["type"] == "WhitespaceSplit" for step in part[name]):
            return part, False  # every word gets its blank there (T5), and no part another one
        steps = [_bare(step) for step in part[name]]
        kept = [step for step, _ in steps if step is not None]
        return {**part, name: kept}, any(changed for _, changed in steps)
    if kind == "Metaspace" and part.get("prepend_scheme", "always") != "never":
        return {**part, "prepend_scheme": "never"}, True
    if kind == "ByteLevel" and part.get("add_prefix_space"):
        return {**part, "add_prefix_space": False}, True
    return part, False
