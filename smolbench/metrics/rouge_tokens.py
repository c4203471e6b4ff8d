"""What ROUGE counts as words: those of ``rouge_score``, or those of any script.

``rouge_score`` keeps runs of ``[a-z0-9]`` and drops everything else, so that a text in another
script has no words at all. ``unicode`` is a tokenizer for all of them, given to ``rouge_score`` as
its ``tokenizer``:

1. The text is taken in NFKC, case-folded (Unicode Standard, section 3.13), and without the
   characters that are not seen (soft hyphen, joiners, direction marks, variation selectors).
2. A word is a run of letters and digits with their combining marks: the vowel signs of Devanagari
   and the points of Arabic belong to the word.
3. In Chinese, Japanese, Thai, Lao, Khmer and Burmese, which put no spaces between words, each
   character with its combining marks is a word.
4. Words of ``[a-z0-9]`` are stemmed as by ``rouge_score``, if it stems.

English has the same words by both, whatever quotes, dashes and signs it is written with. They
differ where ``rouge_score`` cuts a word at a letter it does not know (``caf`` of *café*) or at a
character that is not seen, and at compatibility forms (*m²* is ``m2``, *™* is ``tm``; it drops
them).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import regex

RougeTokenizer = Literal["rouge_score", "unicode"]

_UNSEEN = regex.compile(r"[\p{Default_Ignorable_Code_Point}--\u200B]", regex.V1)
"""But the zero width space, which stands between words."""
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}ー\p{Line_Break=Complex_Context}"
_WORD = regex.compile(
    rf"[[\p{{L}}\p{{N}}]&&[{_UNSPACED}]][\p{{Mn}}\p{{Mc}}]*"
    rf"|[[\p{{L}}\p{{N}}]--[{_UNSPACED}]][[\p{{L}}\p{{N}}\p{{Mn}}\p{{Mc}}]--[{_UNSPACED}]]*",
    regex.V1,
)
_WRITTEN = regex.compile(r"[\p{L}\p{N}\p{Mn}\p{Mc}]")
_ENDED = regex.compile(
    r"((?:[\p{Sentence_Terminal}--[.!?\uFF0E]]|\uFF0E(?!\p{Nd})|(?<!\p{Nd})\uFF0E)"
    r"\p{Sentence_Terminal}*"
    r"""["')\]\p{Pe}\p{Pf}]*)\s*""",
    regex.V1,
)
"""The end of a sentence by a mark that needs no space behind it, as the ideographic full stop; the
wide one (U+FF0E) is a decimal point, too."""
_BOUNDARIES: dict[RougeTokenizer, Any] = {
    "rouge_score": re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')\]])\s+|\s*[\r\n]+\s*"),
    "unicode": regex.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')\]\p{Pf}])\s+|\s*[\r\n]+\s*"),
}
SPLITTERS: dict[RougeTokenizer, str] = {
    "rouge_score": (
        "regex: behind [.!?] and closing quotes or brackets, before white space; and lines"
    ),
    "unicode": (
        "regex: behind [.!?] and closing quotes or brackets, before white space; behind all other "
        "sentence terminals of Unicode; and lines"
    ),
}
"""How sentences are found, as results name it."""


def sentences(text: str, tokenizer: RougeTokenizer = "rouge_score") -> str:
    """A text with each of its sentences on a line of its own; deterministic, with no model.

    Args:
        text: What is divided.
        tokenizer: Whose convention; ``unicode`` also knows how sentences of other scripts end.
    """
    if tokenizer == "unicode":
        text = _ENDED.sub(r"\1\n", text)
    return "\n".join(part for part in _BOUNDARIES[tokenizer].split(text.strip()) if part)


class UnicodeTokenizer:
    """Words of any script, as the module says; what ``rouge_score`` takes as its ``tokenizer``.

    Args:
        use_stemmer: Whether words of ``[a-z0-9]`` are stemmed, in the way of ``rouge_score``.
    """

    def __init__(self, *, use_stemmer: bool = False) -> None:
        self._ascii: Any = _default_tokenizer(use_stemmer=True) if use_stemmer else None

    def tokenize(self, text: str) -> list[str]:
        """Divide a text into its words."""
        words: list[str] = _WORD.findall(_folded(text))
        if self._ascii is None:
            return words
        return [
            token
            for word in words
            for token in (self._ascii.tokenize(word) if word.isascii() else (word,))
        ]


def tokenizer_named(name: RougeTokenizer, *, use_stemmer: bool) -> Any:  # noqa: ANN401 - of rouge_score
    """What ``rouge_score`` takes as its ``tokenizer``."""
    if name == "unicode":
        return UnicodeTokenizer(use_stemmer=use_stemmer)
    return _default_tokenizer(use_stemmer=use_stemmer)


def shares_read(texts: Sequence[str], tokenizer: RougeTokenizer) -> npt.NDArray[np.float64]:
    """How much of each text a tokenizer sees.

    Returns:
        The share of a text's letters and digits that stand in its tokens, shape ``(N,)``; 0 where
        it has no token.
    """
    tokenize = tokenizer_named(tokenizer, use_stemmer=False).tokenize
    return np.array(
        [
            sum(map(len, tokenize(text))) / max(1, len(_WRITTEN.findall(_folded(text))))
            for text in texts
        ]
    )


def _folded(text: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return str(_UNSEEN.sub("", folded))


@cache
def _default_tokenizer(*, use_stemmer: bool) -> Any:  # noqa: ANN401 - of rouge_score
    from rouge_score.tokenizers import DefaultTokenizer  # lazy: import cost

    return DefaultTokenizer(use_stemmer)
