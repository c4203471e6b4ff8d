"""Solved examples in front of a prompt: which ones, and how they are written."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from smolbench.errors import SmolbenchError
from smolbench.models.encoding.template import SLOT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def choose_shots(
    labels: np.ndarray,
    names: Sequence[str],
    count: int,
    seed: int,
    text_of: Callable[[int], str],
) -> list[int]:
    """Draw examples, as many of each class as of any other, or one more.

    Args:
        labels: Classes of the examples to draw from, shape ``(N,)``.
        names: Names of the classes.
        count: How many to draw.
        seed: Of the draw.
        text_of: Row number to text; only texts that may be drawn are read.

    Returns:
        Row numbers, in the order in which they stand in the prompt.

    Raises:
        SmolbenchError: If a class has too few.
    """
    generator = np.random.default_rng(seed)
    classes = generator.permutation(len(names)).tolist()
    shuffled = {k: generator.permutation(np.flatnonzero(labels == k)).tolist() for k in classes}

    def usable(row: int) -> bool:
        text = text_of(row)
        return SLOT not in text and bool(text.strip())  # the slot itself would be filled

    left = {k: filter(usable, rows) for k, rows in shuffled.items()}
    chosen: list[int] = []
    for k in itertools.islice(itertools.cycle(classes), count):
        row = next(left[k], None)
        if row is None:
            raise SmolbenchError(
                f"There are too few training examples of the class {names[k]!r} for "
                f"model.num_shots {count}: lower it, or raise data.limit_train."
            )
        chosen.append(row)
    return [chosen[n] for n in generator.permutation(count)]


@dataclass(frozen=True)
class ShotFormat:
    """How a solved example is written.

    Attributes:
        template: With the slot for its text.
        separator: What stands between the template and the answer.
        end: What stands behind the answer.
        max_length: Longest text in tokens; the rest is cut off.
    """

    template: str
    separator: str
    end: str
    max_length: int

    def write(self, text: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> str:
        """The example as it stands in the prompt."""
        encoded = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ends = [stop for _, stop in encoded["offset_mapping"]]
        kept = text if len(ends) <= self.max_length else text[: ends[self.max_length - 1]]
        return f"{self.template.replace(SLOT, kept)}{self.separator}{answer}{self.end}"
