"""Words and their numbers, for networks that start from no pretrained tokenizer."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from unicodedata import normalize

from smolbench.errors import SmolbenchError
from smolbench.models.baselines.words import Split, find_words
from smolbench.utils.digest import text_digest
from smolbench.utils.files import write_atomically

log = logging.getLogger("smolbench")

PAD_ID, UNKNOWN_ID = 0, 1
"""Numbers of padding and of words that the vocabulary lacks; words follow."""
USUAL: Split = "words-2"


def split_words(text: str, split: Split = USUAL) -> list[str]:
    """Words of a text, in lower case.

    A word is a run of letters and digits of any script with their marks, see
    :mod:`smolbench.models.baselines.words`, with apostrophes inside (``don't``, also with a
    typographic one); ``!`` and ``?`` are words, too. Everything else separates words: of
    ``<br />`` remains ``br``.
    """
    lower = text.lower().replace("\u2019", "'")
    return find_words(lower if split == "words-1" else normalize("NFC", lower), split)


class Vocabulary:
    """Words in a fixed order; the first one has the number 2.

    Args:
        words: Each once; none may hold a line break.
        split: How texts are cut into words.
    """

    def __init__(self, words: Sequence[str], split: Split = USUAL) -> None:
        self.words = list(words)
        self.split: Split = split

    @classmethod
    def of_texts(
        cls, texts: Iterable[str], most_words: int, min_count: int, split: Split = USUAL
    ) -> Vocabulary:
        """The most frequent words of texts; of equally frequent ones the alphabet's first.

        Args:
            texts: What is counted.
            most_words: How many words are kept at most.
            min_count: How often a word must occur.
            split: How texts are cut into words.

        Raises:
            SmolbenchError: If no word is left.
        """
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(split_words(text, split))
        ranked = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        if not ranked:
            raise SmolbenchError(
                "The vocabulary is empty: the training texts have "
                f"{f'{len(counts):,} different words' if counts else 'no words'}"
                + (
                    f", and none occurs {min_count} times: lower model.min_count."
                    if counts
                    else "."
                )
            )
        return cls([word for _, word in ranked[:most_words]], split)

    @classmethod
    def of_lines(cls, lines: str, split: Split = USUAL) -> Vocabulary:
        """Read what :attr:`lines` gave; they do not say how texts are cut into words."""
        return cls(lines.split("\n"), split)

    @property
    def lines(self) -> str:
        """All words, one a line."""
        return "\n".join(self.words)

    @cached_property
    def digest(self) -> str:
        """Digest of the words in their order."""
        return text_digest(self.words)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words, start=UNKNOWN_ID + 1)}

    def __len__(self) -> int:
        """Return how many numbers there are, ``V``: the words, padding and the unknown word."""
        return len(self.words) + UNKNOWN_ID + 1

    def encode(self, text: str) -> list[int]:
        """Numbers of a text's words; the unknown word where there is none, so never empty."""
        known = self._numbers
        return [known.get(word, UNKNOWN_ID) for word in split_words(text, self.split)] or [
            UNKNOWN_ID
        ]


def remembered(path: Path, count: Callable[[], Vocabulary], split: Split = USUAL) -> Vocabulary:
    """A vocabulary that is kept on disk, counted where it is missing or damaged.

    Args:
        path: Its file, named after everything the words depend on.
        count: Finds the words.
        split: How it cuts texts into words.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = Vocabulary.of_lines(kept["words"], split)
        if vocabulary.digest == kept["digest"]:
            return vocabulary
        log.warning("%s is damaged and is made anew.", path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        log.warning("%s is damaged and is made anew.", path)
    vocabulary = count()
    kept = {"digest": vocabulary.digest, "words": vocabulary.lines}
    try:
        write_atomically(path, json.dumps(kept, ensure_ascii=False))
    except OSError as error:
        log.warning("%s cannot be written (%s); the next run counts again.", path, error)
    return vocabulary
