"""Prompt templates: how a text becomes one row of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from smolbench.digest import digest
from smolbench.errors import SmolbenchError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SLOT = "{text}"


class TemplateEncoder:
    """Puts texts into a template and turns them into token ids.

    A row is ``head specials + prefix + text + suffix + tail specials``. The parts are tokenised
    one by one and joined, so the prefix has the same ids in every row and can be run once; spaces
    in front of the slot go to the text, as most tokenizers have it. Only the text is ever
    truncated, never the template.

    At the seams these may be other ids than those of the whole prompt as one text: signs that meet
    there (a full stop and a quotation mark) stay two tokens, and a tokenizer that puts a blank in
    front of whatever it is given (Llama 2) puts one in front of every part. Where neither happens
    the ids are the same.

    Args:
        tokenizer: The backbone's tokenizer.
        template: A text with the slot ``{text}``; few-shot examples stand in front of the slot.
        max_length: Longest row in tokens, template and special tokens included.
        truncation_side: Which end of a long text is cut off: ``right`` keeps its beginning.

    Raises:
        SmolbenchError: If the template lacks its slot or leaves no room for a text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        max_length: int,
        truncation_side: Literal["left", "right"] = "right",
    ) -> None:
        # an option of text may be null for the option parser
        if not isinstance(template, str) or template.count(SLOT) != 1:
            raise SmolbenchError(
                f"model.template must hold {SLOT} exactly once, where the text goes; given is "
                f"{template!r}."
            )
        if not tokenizer.is_fast:
            raise SmolbenchError(
                f"The tokenizer of {tokenizer.name_or_path} has no fast version, which is needed: "
                "use another backbone, or convert the tokenizer to tokenizer.json."
            )
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        self.truncation_side = truncation_side
        prefix, suffix = template.split(SLOT)
        # in most vocabularies a space is the beginning of the word behind it
        self.space = prefix[len(prefix.rstrip(" ")) :]
        prefix = prefix.removesuffix(self.space)
        self.head_ids, self.tail_ids = _special_tokens(tokenizer)
        self.shared_ids = self.head_ids + self._ids([prefix])[0]
        self.suffix_ids = self._ids([suffix])[0]
        self._suffix = suffix
        self.text_budget = max_length - len(self.shared_ids) - len(self.suffix_ids)
        self.text_budget -= len(self.tail_ids)
        if self.text_budget < 1:
            raise SmolbenchError(
                f"model.max_length is {max_length}, but the template alone takes "
                f"{max_length - self.text_budget} tokens: raise max_length or shorten the template."
            )

    def text_length(self, text: str) -> int:
        """Tokens that a text has where it stands in the template, before it is cut."""
        return len(self._ids([self.space + text])[0])

    def encode(self, texts: Sequence[str]) -> dict[str, list[list[int]] | list[int]]:
        """Rows without their shared beginning.

        Returns:
            ``input_ids``: for each text its own ids, the suffix's and the tail specials; where all
            of these are empty, one end-of-text token, because a row needs a token;
            ``text_length``: how many of those are the text's.

        Raises:
            SmolbenchError: If a row is empty and the tokenizer has no end-of-text token.
        """
        rows: list[list[int]] = []
        lengths: list[int] = []
        for ids in self._ids([self.space + text for text in texts]):
            if len(ids) > self.text_budget:
                keep_end = self.truncation_side == "left"
                ids = ids[-self.text_budget :] if keep_end else ids[: self.text_budget]
            rows.append((ids + self.suffix_ids + self.tail_ids) or [self.end_of_text()])
            lengths.append(len(ids))
        return {"input_ids": rows, "text_length": lengths}

    def anchor_offset(self, anchor: str) -> int:
        """Place of a word of the suffix, as a number of tokens behind the text's last one.

        The word's last occurrence and, if it has several tokens, the last of them.

        Raises:
            SmolbenchError: If the word does not stand behind the slot.
        """
        start = self._suffix.rfind(anchor)
        if start < 0 or not anchor:
            raise SmolbenchError(
                f"model.anchor is {anchor!r}, which does not stand behind {SLOT} in the template "
                f"{self.template!r}."
            )
        encoded = self.tokenizer(
            self._suffix, add_special_tokens=False, return_offsets_mapping=True
        )
        end = start + len(anchor)
        covering = [
            number
            for number, (first, last) in enumerate(encoded["offset_mapping"])
            if first < end and last > start
        ]
        if not covering:
            raise SmolbenchError(
                f"model.anchor is {anchor!r}, which the tokenizer drops: name a word that it keeps."
            )
        return covering[-1]

    def key(self) -> dict[str, str | int]:
        """Everything that decides about the ids, for naming a cache."""
        return {
            "encoder": "template-2" if self.space else "template-1",
            "tokenizer": digest({"json": self.tokenizer.backend_tokenizer.to_str()}),
            "template": self.template,
            "max_length": self.max_length,
            "truncation_side": self.truncation_side,
        }

    def end_of_text(self) -> int:
        """The token that stands for a text without tokens.

        Raises:
            SmolbenchError: If the tokenizer has none.
        """
        tokenizer = self.tokenizer
        for token in (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id):
            if token is not None:
                return int(token)
        raise SmolbenchError(
            "A text is empty and the tokenizer has no end-of-text token to stand for it: remove "
            "empty texts, or put a word behind {text} in model.template."
        )

    def _ids(self, texts: list[str]) -> list[list[int]]:
        # verbose=False: the tokenizer would warn of rows that are about to be truncated
        encoded = self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after every row, such as BERT's [CLS] and [SEP]."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    raise SmolbenchError(
        "This tokenizer changes a text's tokens when it adds its special tokens; such tokenizers "
        "are not supported."
    )
