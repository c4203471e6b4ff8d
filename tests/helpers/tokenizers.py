"""Small tokenizers of every kind, with and without a blank in front and special tokens."""

from __future__ import annotations

import functools
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from tests.helpers.tiny import BOS, EOS, SPECIALS, TEXTS, VOCABULARY

ENDS: dict[str, tuple[list[int], list[int]]] = {
    "none": ([], []),
    "bos": ([BOS], []),
    "eos": ([], [EOS]),
    "both": ([BOS], [EOS]),
}
"""Ids that a tokenizer puts before and after a row."""
_BLANK = "\u2581"
_BYTES = [f"<0x{n:02X}>" for n in range(256)]
_LETTERS = sorted({*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?:;\"'() "})
# signs and line breaks that meet, so that there are tokens for them
_SEEN = [
    *(f'"{text}" ; this review is : good ;' for text in TEXTS),
    *(f"Text:\n{text}\nIt was bad.\n\n" for text in TEXTS),
    *(f"Review: {text} This was  good\n\n" for text in TEXTS),
    *(f"({text}) ..  ..\n" for text in TEXTS),
] * 3


def _bytes_of(pre_tokenizer: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def _trained(tokenizer: Tokenizer, kind: type = trainers.BpeTrainer, **options: Any) -> Tokenizer:
    options = {"vocab_size": VOCABULARY, "special_tokens": SPECIALS, **options}
    tokenizer.train_from_iterator(_SEEN, kind(show_progress=False, **options))
    return tokenizer


def _sentencepiece(model: str, normalizer: Any, pre_tokenizer: Any) -> Tokenizer:
    """Words behind blanks are learned; how a text is taken apart is said afterwards."""
    own = [*SPECIALS, *_BYTES] if model == "bpe" else SPECIALS
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    _trained(tokenizer, special_tokens=own, initial_alphabet=[_BLANK, *_LETTERS])
    if model == "unigram":  # its trainer draws, so the pieces are those of the other
        pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        scored = [(piece, -5.0 - 0.01 * rank) for piece, rank in pieces]
        tokenizer = Tokenizer(models.Unigram(scored, unk_id=SPECIALS.index("<unk>")))
        tokenizer.add_special_tokens(SPECIALS)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def _wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _trained(tokenizer, trainers.WordPieceTrainer, initial_alphabet=_LETTERS)


def _replacing(*first: Any) -> Any:
    return normalizers.Sequence([*first, normalizers.Replace(" ", _BLANK)])


_ByteLevel, _Metaspace = pre_tokenizers.ByteLevel, pre_tokenizers.Metaspace
_LINES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
KINDS: dict[str, Any] = {
    # GPT-2, SmolLM2
    "bytes": lambda: _bytes_of(_ByteLevel(add_prefix_space=False)),
    "bytes, blank in front": lambda: _bytes_of(_ByteLevel(add_prefix_space=True)),
    # Llama 3, Qwen: a line break joins the sign in front of it
    "bytes, lines": lambda: _bytes_of(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_LINES), "isolated"),
                _ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    ),
    # tokens of several words
    "bytes, no words": lambda: _bytes_of(_ByteLevel(add_prefix_space=False, use_regex=False)),
    "wordpiece": _wordpiece,
    # Llama 2 before and since it has a Metaspace, Mistral
    "bpe, blank by normalizer": lambda: _sentencepiece(
        "bpe", _replacing(normalizers.Prepend(_BLANK)), None
    ),
    "bpe, blank first": lambda: _sentencepiece(
        "bpe", None, _Metaspace(prepend_scheme="first", split=False)
    ),
    # Gemma
    "bpe, no blank": lambda: _sentencepiece("bpe", _replacing(), None),
    "unigram, blank always": lambda: _sentencepiece("unigram", None, _Metaspace()),
    # T5
    "unigram, words": lambda: _sentencepiece(
        "unigram",
        normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(left=False, right=True)]),
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), _Metaspace()]),
    ),
}


@functools.cache
def made_tokenizer(kind: str, ends: str = "none") -> PreTrainedTokenizerFast:
    """A tokenizer of a kind, with special tokens at these ends of a row."""
    tokenizer = Tokenizer.from_str(_model(kind).to_str())
    head, tail = ENDS[ends]
    if head or tail:
        row = [*(SPECIALS[i] for i in head), "$A", *(SPECIALS[i] for i in tail)]
        ids = {i: tokenizer.token_to_id(SPECIALS[i]) for i in {*head, *tail}}
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(row), special_tokens=[(SPECIALS[i], ids[i]) for i in ids]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@functools.cache
def _model(kind: str) -> Tokenizer:
    return KINDS[kind]()
