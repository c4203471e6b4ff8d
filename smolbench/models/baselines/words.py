"""What a word is to models that start from no pretrained tokenizer: by Unicode's rules.

A word is a run of letters and digits with their combining marks: the vowel signs of Devanagari and
the points of Arabic belong to it, as does an unseen joiner between two letters. Chinese, Japanese,
Thai, Lao, Khmer and Burmese put no spaces between words; where a tenth of the training texts'
letters are of these scripts, each of their characters is a token of its own, and what follows
another makes the word.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import cache
from typing import Literal

from smolbench.utils.notices import warn

Tokens = Literal["auto", "words", "characters"]
Split = Literal["words-1", "words-2", "characters-2"]
"""A rule by its name and version; the first, of older checkpoints, cut words at combining marks."""
log = logging.getLogger("smolbench")
UNSPACED_SHARE = 0.1
"""Share of letters in scripts without spaces from which their characters are tokens."""
SAMPLE = 2_000
"""Most training texts that are looked at, evenly spaced."""
_LONG = 20
"""Characters of a text, not counting white space, in which there should be more than a word."""
_JOINERS = "\u200c\u200d"


def split_of(tokens: Tokens, texts: Sequence[str]) -> Split:
    """What tokens are, as the option says or as the training texts need it.

    Warns where texts have many characters and hardly a word.

    Args:
        tokens: The option.
        texts: Training texts.
    """
    some = texts[:: max(1, len(texts) // SAMPLE)]
    if tokens == "auto":
        letters = sum(map(len, map(_LETTER.findall, some)))
        unspaced = sum(map(len, map(_patterns()[2].findall, some)))
        tokens = "characters" if unspaced and unspaced >= UNSPACED_SHARE * letters else "words"
    split: Split = "characters-2" if tokens == "characters" else "words-2"
    find = _pattern(split).findall
    sizes = [(sum(map(len, text.split())), len(find(text))) for text in some]
    hardly = sum(size >= _LONG and words * _LONG <= size for size, words in sizes)
    if hardly > len(some) / 10:
        warn(
            "%.0f%% of the training texts have many characters and hardly a word, so that a "
            "baseline on words learns little from them%s.",
            100 * hardly / len(some),
            "; --model.tokens characters reads scripts without spaces" if tokens == "words" else "",
        )
    if split == "characters-2":
        log.info(
            "Tokens are the characters of scripts without spaces, and the words of others "
            "(model.tokens characters)."
        )
    return split


def find_words(text: str, split: Split) -> list[str]:
    """Tokens of a text in lower case: words, with apostrophes inside, ``!`` and ``?``."""
    return _pattern(split).findall(text)


def tell_unread(split: str, n: int, of: int) -> None:
    """Say in how many texts a model on words sees nothing; a warning from a hundredth of them.

    Args:
        split: Whose texts they are; nothing is said of those to validate on.
        n: Texts that have none of its words.
        of: All texts.
    """
    if not n or split == "val":
        return
    name = {"train": "training texts", "predict": "texts"}.get(split, f"{split} texts")
    (warn if 100 * n >= of else log.info)(
        "%s of %s %s have no word that the model knows (by its vocabulary of the training texts): "
        "whatever they say, it sees nothing in them.",
        f"{n:,}",
        f"{of:,}",
        name,
    )


def sklearn_pattern(split: Split) -> str:
    """The same tokens as scikit-learn's vectorisers take them: of two letters at least, no signs.

    Where characters are tokens, those are kept that stand alone. For texts without combining marks
    and joiners this is scikit-learn's own pattern.
    """
    marks, unspaced, _ = _patterns()
    word = r"(?:[{m}\w]+(?:[{j}]\w[{m}\w]*)*|(?:[{j}]\w[{m}\w]*)+)"
    if split == "characters-2":
        letter, inside = rf"(?![{unspaced}])\w", rf"(?:(?![{unspaced}])[{marks}\w])+"
        return rf"[{unspaced}][{marks}]*|{letter}{inside}"
    return r"\w" + word.format(m=marks, j=_JOINERS)


_LETTER = re.compile(r"[^\W\d_]")
_FIRST = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[!?]")


@cache
def _pattern(split: Split) -> re.Pattern[str]:
    if split == "words-1":
        return _FIRST
    marks, unspaced, _ = _patterns()
    run = rf"[^\W_]+(?:(?:[{marks}]|[{_JOINERS}](?=[^\W_]))[^\W_]*)*"
    if split == "characters-2":
        other = rf"(?:(?![{unspaced}])[^\W_][{marks}]*)+"
        return re.compile(rf"[{unspaced}][{marks}]*|{other}(?:'{other})*|[!?]")
    return re.compile(rf"{run}(?:'{run})*|[!?]")


@cache
def _patterns() -> tuple[str, str, re.Pattern[str]]:
    """Combining marks and letters of scripts without spaces, as parts of a class of ``re``."""
    import regex  # lazy: only baselines ask for it

    # beyond are ideographs, and marks that nobody sees
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x20000)]))

    def ranges(pattern: str) -> str:
        found = regex.finditer(f"{pattern}+", everything, regex.V1)
        return "".join(f"{run[0][0]}-{run[0][-1]}" for run in found)

    marks = ranges(r"[[\p{Mn}\p{Mc}]--\p{Default_Ignorable_Code_Point}]")
    scripts = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}ー\p{Line_Break=Complex_Context}"
    unspaced = ranges(rf"[[\p{{L}}\p{{N}}]&&[{scripts}]]") + "\U00020000-\U0003fffd"
    return marks, unspaced, re.compile(f"[{unspaced}]")
