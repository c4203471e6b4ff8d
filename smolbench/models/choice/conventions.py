"""Conventions by which HellaSwag is scored: what is read, what is scored, what it is divided by.

Scores by different conventions are not comparable; each is in use:

- ``lm_eval``: lm-evaluation-harness 0.4, task ``hellaswag`` version 1.
- ``smollm2``: the evaluation that the cards of SmolLM2 report (lighteval with a task of its own).
- ``llm_c``: Karpathy's ``hellaswag.py`` of build-nanogpt and llm.c.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from smolbench.errors import SmolbenchError
from smolbench.models.encoding.seams import ids_behind, plain_ids, special_tokens
from smolbench.utils.digest import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Convention = Literal["lm_eval", "smollm2", "llm_c"]
SHOT_END = "\n\n"
"""Stands behind every example of a few-shot prompt."""


@dataclass(frozen=True)
class Question:
    """A multiple-choice example as a convention words it.

    Attributes:
        context: What stands in front of every ending.
        endings: Their texts, with what joins them to the context.
        lengths: What their log-likelihoods are divided by for ``acc_norm``; ``None`` for tokens.
        n_bytes: What they are divided by for ``acc_bytes``.
    """

    context: str
    endings: tuple[str, ...]
    lengths: tuple[int, ...] | None
    n_bytes: tuple[int, ...]


def word(convention: Convention, row: Mapping[str, Any]) -> Question:
    """Word an example as a convention does.

    Args:
        convention: Which one.
        row: ``activity_label``, ``ctx_a``, ``ctx_b``, ``ctx`` and ``endings`` of one example.
    """
    if convention == "llm_c":
        plain: list[str] = list(row["endings"])
        sizes = tuple(len(ending.encode()) for ending in plain)
        return Question(row["ctx"], tuple(f" {ending}" for ending in plain), None, sizes)
    strip = convention == "lm_eval"
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    if not strip:
        context += " "
    endings = [_without_marks(ending, strip=strip) for ending in row["endings"]]
    return Question(
        _without_marks(context, strip=strip),
        tuple(f" {ending}" for ending in endings),
        tuple(map(len, endings)),
        tuple(len(ending.encode()) for ending in endings),
    )


def _without_marks(text: str, *, strip: bool) -> str:
    """Remove what the how-to articles have in square brackets, as both harnesses do."""
    if strip:
        text = text.strip()
    text = text.replace(" [title]", ". ")
    text = re.sub(r"\[.*?\]", "", text)
    return text.replace("  ", " ")


class ChoiceEncoder:
    """Turns multiple-choice examples into token ids by a convention.

    Ids of context and ending are found as lm_eval finds them: blanks at the end of the context move
    to the ending, both are tokenised as one text, and what the context alone does not account for
    is the ending's. ``llm_c`` tokenises the two one by one. In front of a context stand the
    tokenizer's own special tokens (``</s>`` for OPT, none for GPT-2 and SmolLM2); those that it
    puts at the end of a row are left out, as lm_eval does with ``add_bos_token=False``: they would
    stand between a context and its ending.

    Args:
        tokenizer: The model's.
        convention: How examples are worded and scored.
        max_length: Most tokens that the model reads.
        shots: Solved examples that stand in front of every context, in this order: rows with their
            ``label``.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        convention: Convention,
        max_length: int,
        shots: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.convention: Convention = convention
        self.max_length = max_length
        self._head, self._tail = special_tokens(tokenizer)
        self.prompt = ""
        for shot in shots:
            question = word(convention, shot)
            self.prompt += question.context + question.endings[shot["label"]] + SHOT_END
        self.prompt_ids = self._rows([self.prompt])[0] if self.prompt else []

    def encode(self, examples: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Token ids of examples, and what their scores are divided by.

        Returns:
            ``input_ids``: the context's and then the endings', one after the other;
            ``ending_tokens``, ``lengths`` and ``n_bytes``: for each ending its number of tokens, of
            units of length and of bytes; ``shared``: how many ids the row has in common with the
            prompt of solved examples.

        Raises:
            SmolbenchError: If an ending has no tokens, or more than the model reads.
        """
        names = list(examples)
        rows = [
            dict(zip(names, values, strict=True)) for values in zip(*examples.values(), strict=True)
        ]
        questions = [word(self.convention, row) for row in rows]
        contexts, endings = self._pairs(questions)
        encoded: dict[str, list[Any]] = {
            name: [] for name in ("input_ids", "ending_tokens", "lengths", "n_bytes", "shared")
        }
        for question, context, each in zip(questions, contexts, endings, strict=True):
            sizes = [len(ids) for ids in each]
            for text, size in zip(question.endings, sizes, strict=True):
                if not 1 <= size <= self.max_length:
                    raise SmolbenchError(
                        f"The ending {text.strip()[:60]!r} has {size} tokens, where at least one "
                        f"and at most {self.max_length} (model.max_length) are needed."
                    )
            encoded["input_ids"].append([*context, *(token for ids in each for token in ids)])
            encoded["ending_tokens"].append(sizes)
            encoded["lengths"].append(sizes if question.lengths is None else question.lengths)
            encoded["n_bytes"].append(question.n_bytes)
            encoded["shared"].append(_common(self.prompt_ids, context))
        return encoded

    def _pairs(
        self, questions: Sequence[Question]
    ) -> tuple[list[list[int]], list[list[list[int]]]]:
        """Ids of the contexts, and of each one's endings."""
        contexts, wholes, counts = [], [], []
        for question in questions:
            text = self.prompt + question.context
            bare = text.rstrip() if self.convention != "llm_c" else text
            blanks = text[len(bare) :]
            contexts.append(bare)
            wholes += [blanks + ending for ending in question.endings]
            counts.append(len(question.endings))
        known = self._rows(contexts)
        if self.convention == "llm_c":
            found = ids_behind(self.tokenizer, wholes)
        else:
            of = [number for number, count in enumerate(counts) for _ in range(count)]
            whole_ids = self._rows(
                [contexts[number] + ending for number, ending in zip(of, wholes, strict=True)]
            )
            found = [ids[len(known[number]) :] for number, ids in zip(of, whole_ids, strict=True)]
        # lm_eval conditions on one special token where there is no context
        context_ids = [ids or [self._start_of_text()] for ids in known]
        rest = iter(found)
        return context_ids, [[next(rest) for _ in range(count)] for count in counts]

    def key(self) -> dict[str, Any]:
        """Everything that decides about the ids, for naming a cache."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise SmolbenchError(
                f"The tokenizer of {self.tokenizer.name_or_path} has no fast version, which is "
                "needed: use another backbone, or convert the tokenizer to tokenizer.json."
            )
        return {
            "encoder": "choices-2",
            "tokenizer": digest({"json": backend.to_str()}),
            "convention": self.convention,
            "max_length": self.max_length,
            "prompt": self.prompt,
        }

    def _start_of_text(self) -> int:
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise SmolbenchError(
            "A context is empty, and the tokenizer has no token for the start or the end of a text "
            "to stand for it: leave out such examples, or use another model."
        )

    def _rows(self, texts: list[str]) -> list[list[int]]:
        """Ids of texts that something follows."""
        return [self._head + ids for ids in plain_ids(self.tokenizer, texts)]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))
