"""Label words: which tokens, written behind a prompt, stand for which class."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from smolbench.errors import SmolbenchError
from smolbench.models.encoding.seams import ids_behind, plain_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LabelWords:
    """The words that a model may answer with, one per class.

    Args:
        tokenizer: The model's tokenizer.
        words: A word per class, in the order of the classes.
        separator: What stands between the prompt and the answer.
        behind: The end of the prompt. Some tokenizers (Llama 2's) put a mark of their own in front
            of whatever they are given alone.

    Attributes:
        ids: Token ids of each answer, as it is written behind the prompt.

    Raises:
        SmolbenchError: If two classes have the same word, or a word has no tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        words: Sequence[str],
        separator: str = " ",
        behind: str = ":",
    ) -> None:
        folded = [word.strip().casefold() for word in words]
        if len(set(folded)) != len(folded):
            raise SmolbenchError(
                f"The label words {', '.join(map(repr, words))} are not all different (capitals do "
                "not count): give a word of its own for each class in model.label_words."
            )
        self.words = list(words)
        self._tokenizer = tokenizer
        self.ids = ids_behind(tokenizer, [separator + word for word in words], behind)
        unknown = tokenizer.unk_token_id if tokenizer.unk_token_id not in _ends(tokenizer) else None
        for word, ids in zip(words, self.ids, strict=True):
            if not ids or not word.strip() or unknown in ids:
                raise SmolbenchError(
                    f"The label word {word!r} is not in the tokenizer's vocabulary: choose another "
                    "one in model.label_words."
                )

        for word, ids, other, others in self._pairs():
            if ids == others:
                raise SmolbenchError(
                    f"The label words {word!r} and {other!r} are the same to this tokenizer: "
                    "choose others in model.label_words."
                )

    @property
    def covered(self) -> list[tuple[str, str]]:
        """Words with one that begins with them: what follows makes that one less likely, always."""
        return [
            (word, other) for word, ids, other, others in self._pairs() if others[: len(ids)] == ids
        ]

    def _pairs(self) -> Iterator[tuple[str, list[int], str, list[int]]]:
        known = list(zip(self.words, self.ids, strict=True))
        for (word, ids), (other, others) in itertools.permutations(known, 2):
            yield word, ids, other, others

    def token_classes(self, vocabulary: int) -> torch.Tensor:
        """Which class each token stands for.

        A token stands for a class if its text, stripped and case-folded, equals the class's word,
        or is the first piece of that word and of no other class's.

        Args:
            vocabulary: Number of scores that the model gives, ``V``.

        Returns:
            Class numbers, int64, shape ``(V,)``; -1 for tokens that stand for none.

        Raises:
            SmolbenchError: If no token stands for one of the classes.
        """
        tokenizer = self._tokenizer
        size = min(len(tokenizer), vocabulary)
        texts = tokenizer.batch_decode([[token] for token in range(size)])
        # parts of characters all read alike: none of them has the text of another
        texts = [f"\ufffd{n}" if "\ufffd" in text else text for n, text in enumerate(texts)]
        meanings = {word.strip().casefold(): k for k, word in enumerate(self.words)}
        pieces: dict[str, set[int]] = {}
        for k, word in enumerate(self.words):
            (alone,) = plain_ids(tokenizer, [word.strip()])
            for first in (self.ids[k][0], alone[0]):
                pieces.setdefault(texts[first].strip().casefold(), set()).add(k)
        for piece, classes in pieces.items():
            if piece and len(classes) == 1:
                meanings.setdefault(piece, *classes)
        found = torch.tensor([meanings.get(text.strip().casefold(), -1) for text in texts])
        if missing := [word for k, word in enumerate(self.words) if not (found == k).any()]:
            raise SmolbenchError(
                f"No token stands for the label word {missing[0]!r} alone, because another one "
                "begins in the same way: choose other words in model.label_words, or "
                "model.rule 'verbalizer'."
            )
        return torch.cat([found, torch.full((vocabulary - size,), -1)])


def _ends(tokenizer: PreTrainedTokenizerBase) -> set[int | None]:
    """Tokens that GPT-2 and others also name as their unknown token, which they never need."""
    return {tokenizer.eos_token_id, tokenizer.bos_token_id}
