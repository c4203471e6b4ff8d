"""A tokenizer that puts texts into their template by itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smolbench.errors import SmolbenchError
from smolbench.models.encoding.template import SLOT, TemplateEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_BLANKS_AND_SIGNS = (" A  b ", "\n\tnaïve\u00a0\u2014 中文 😀\r\n")


def write_tokenizer(
    encoder: TemplateEncoder, config: PreTrainedConfig, texts: Sequence[str], folder: Path
) -> int:
    """Write a tokenizer that turns a text into the very ids that the model was trained on.

    With ``truncation=True`` rows are cut to the length and from the end that the run had; the
    template and special tokens are never cut. A template becomes part of the tokenizer's
    post-processing, so that every tool that loads the folder uses it. Nothing stays of what the
    base's tokenizer says of other uses: its own truncation and padding, further inputs
    (``token_type_ids``), a chat's template.

    Args:
        encoder: What made the run's token ids.
        config: The model's configuration.
        texts: Texts whose ids are compared, from :func:`plain_texts`.
        folder: An existing folder.

    Returns:
        The id that short rows are filled with.

    Raises:
        SmolbenchError: If no tokenizer of transformers gives these ids.
    """
    whole = encoder.template == SLOT and not encoder.ends_open
    tokenizer = copy.deepcopy(encoder.tokenizer) if whole else _with_template(encoder)
    tokenizer.model_max_length = encoder.max_length
    sides = {"truncation_side": encoder.truncation_side, "padding_side": "right"}
    for name, side in sides.items():
        setattr(tokenizer, name, side)
    tokenizer.init_kwargs |= sides  # transformers saves attributes that are named here
    _give_ids_only(tokenizer)
    tokenizer.chat_template = None
    last = [*encoder.suffix_ids, *encoder.tail_ids][-1:]
    pad = padding_id(tokenizer, config, last)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    # for programs that read tokenizer.json alone; transformers truncates where it is asked to
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.enable_truncation(
        encoder.max_length, direction=encoder.truncation_side
    )
    tokenizer.save_pretrained(folder)
    texts = [*texts, *_BLANKS_AND_SIGNS]
    found = load_tokenizer(folder)(texts, truncation=True)["input_ids"]
    rows: list[list[int]] = encoder.encode(texts)["input_ids"]  # type: ignore[assignment] # rows
    if found != [[*encoder.shared_ids, *row] for row in rows]:
        raise SmolbenchError(
            f"The tokenizer of {tokenizer.name_or_path or 'the model'} cannot be saved so that it "
            "gives the token ids this run was trained on: with model.template '{text}' it may be."
        )
    return pad


def write_own_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer as it is, but for further inputs, which the run does not give the model."""
    own = copy.deepcopy(tokenizer)
    _give_ids_only(own)
    own.save_pretrained(folder)


def _give_ids_only(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # saved if named here


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, as anybody loads it."""
    from transformers import AutoTokenizer  # lazy: import cost

    return AutoTokenizer.from_pretrained(folder)


def _with_template(encoder: TemplateEncoder) -> PreTrainedTokenizerBase:
    """A tokenizer whose rows are the template's, of a class that leaves its parts as they are."""
    from tokenizers import Tokenizer, normalizers, processors  # lazy: import cost
    from transformers import PreTrainedTokenizerFast

    tokenizer = encoder.tokenizer
    backend = Tokenizer.from_str(encoder.text_tokenizer.backend_tokenizer.to_str())
    parts = {
        "template_start": encoder.shared_ids,
        "template_end": [*encoder.suffix_ids, *encoder.tail_ids],
    }
    row = ("template_start", "$A", "template_end")
    backend.post_processor = processors.TemplateProcessing(
        single=[name for name in row if name == "$A" or parts[name]],
        special_tokens=[
            {"id": name, "ids": ids, "tokens": [backend.id_to_token(i) for i in ids]}
            for name, ids in parts.items()
            if ids
        ],
    )
    if encoder.space:
        space = normalizers.Prepend(encoder.space)
        others = [backend.normalizer] if backend.normalizer is not None else []
        backend.normalizer = normalizers.Sequence([space, *others])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call] # untyped in transformers
        tokenizer_object=backend,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        **tokenizer.special_tokens_map,
    )


def padding_id(
    tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, last: Sequence[int] = ()
) -> int:
    """The token that fills short rows: the model's own, if it has one.

    Args:
        tokenizer: Its tokenizer.
        config: Its configuration.
        last: The id that every row ends in, if all end in the same; transformers finds the end of a
            row by its padding, so it must be another one.
    """
    text = config.get_text_config()
    named = (
        getattr(text, "pad_token_id", None),
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
        tokenizer.unk_token_id,
        tokenizer.bos_token_id,
    )
    # a tokenizer may have been given a padding token, and the model no embedding for it
    known = getattr(config.get_text_config(), "vocab_size", None) or float("inf")
    found = (int(i) for i in named if i is not None and 0 <= i < known and i not in last)
    return next(found, 0)


def plain_texts(texts: Sequence[str], encoder: TemplateEncoder) -> list[str]:
    """Texts on which an export has to say the same: all but a few odd ones, and one that is cut.

    A text that is empty or spells out a special token may get other spaces than in training, see
    :func:`describe_reading`.
    """
    special = encoder.tokenizer.all_special_tokens
    kept = [text for text in texts if text.strip() and not any(token in text for token in special)]
    longest = max(kept, key=len, default="It is much too long. ")
    return [*kept, f"{longest} " * (12 * encoder.max_length // len(longest) + 1)]


def describe_reading(encoder: TemplateEncoder) -> list[str]:
    """What a model card says of how texts are read."""
    end = "end" if encoder.truncation_side == "right" else "beginning"
    said = [
        f"At most {encoder.max_length:,} tokens are read; a longer text loses its {end} (give the "
        "tokenizer `truncation=True`)."
    ]
    if encoder.template == SLOT:
        bare = "The text as it is, with no prompt around it."
        known = encoder.tokenizer
        empty = known.eos_token or known.sep_token or known.bos_token
        if not (encoder.shared_ids or encoder.tail_ids) and empty:
            bare += f" An empty text has no token that could be read: give `{empty}` in its place."
        return [bare, *said]
    first = (
        f"The text is put into a template, where `{SLOT}` stands: `{encoder.template!r}`. The "
        "tokenizer in this folder does so by itself: give it the bare text."
    )
    if encoder.space:
        first += (
            " (A text that is empty, or spells out one of the tokenizer's special tokens, gets "
            "other spaces than in training.)"
        )
    return [first, *said]
