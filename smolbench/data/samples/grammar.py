"""What the generators of built-in samples share: phrases with slots, drawn from a seed."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

Phrases = Mapping[str, tuple[str, ...]]

_SLOT = re.compile(r"\{(\w+)\}")


def phrases(**lists: str) -> Phrases:
    """Lists of phrases, written as text with a bar between two phrases."""
    return {
        name: tuple(" ".join(phrase.split()) for phrase in text.split("|"))
        for name, text in lists.items()
    }


class Grammar:
    """Draws phrases, the same on every machine and in every Python version.

    Args:
        name: Name of what is written; with another name or seed other texts come out.
        seed: Seed of the draw.
    """

    def __init__(self, name: str, seed: int) -> None:
        # a text as seed is hashed in the same way everywhere, and of the methods only random()
        # promises the same numbers in later Python versions
        self.random = random.Random(f"smolbench {name} {seed}").random

    def pick(self, choices: Sequence[str]) -> str:
        """One of several phrases, each as likely."""
        return choices[int(self.random() * len(choices))]

    def expand(self, template: str, lists: Phrases) -> str:
        """Replace every ``{name}``, also within what replaces one, by a phrase of that list."""
        return _SLOT.sub(lambda slot: self.expand(self.pick(lists[slot[1]]), lists), template)
