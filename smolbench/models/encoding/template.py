"""Prompt templates: how a text becomes one row of token ids."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

from smolbench.errors import SmolbenchError
from smolbench.models.encoding.seams import bare_tokenizer, plain_ids, special_tokens
from smolbench.utils.digest import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SLOT = "{text}"
_PROBES = ("a", ".", '"', " a", "\n", "1", "\u00e9", "\u4e2d")
"""Beginnings of texts, behind which a template's own beginning must keep its ids to be shared."""
_TRIES = 64
"""Places that are looked at, from the slot backwards, for the end of what is shared."""


class Row(NamedTuple):
    """A text in its template, without the beginning that all rows share.

    Attributes:
        ids: Token ids, one at least.
        start: Number of the first that is the text's own.
        length: How many of them are.
        cut: Whether the text lost an end.
    """

    ids: list[int]
    start: int
    length: int
    cut: bool


class TemplateEncoder:
    """Puts texts into a template and turns them into token ids.

    A row has the ids that the tokenizer gives for the whole prompt as one text, special tokens
    included: signs that meet where the text begins or ends (a full stop and a quotation mark) are
    one token if the tokenizer has one. The longest beginning whose ids no text can change is the
    same in every row and can be run once. Only the text is ever truncated, never the template:
    tokens that lie in the text alone are left out, as transformers truncates.

    With ``joined=False`` the parts are tokenised one by one as they stand in the prompt, so that
    rows are the text's ids between two constant lists. That is all that a tokenizer saved with a
    model can do, so it is how models are trained that are exported. The ids are the same but where
    signs meet.

    Args:
        tokenizer: The backbone's tokenizer.
        template: A text with the slot ``{text}``; few-shot examples stand in front of the slot.
        max_length: Longest row in tokens, template and special tokens included.
        truncation_side: Which end of a long text is cut off: ``right`` keeps its beginning.
        joined: Whether ids are those of the whole prompt as one text.
        goes_on: Whether something follows behind the row (an answer, a summary), so that no special
            token ends it.

    Raises:
        SmolbenchError: If the template lacks its slot or leaves no room for a text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        max_length: int,
        truncation_side: Literal["left", "right"] = "right",
        *,
        joined: bool = True,
        goes_on: bool = False,
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
        self.joined = joined
        self._prefix, self._suffix = template.split(SLOT)
        # in most vocabularies a space is the beginning of the word behind it
        self.space = self._prefix[len(self._prefix.rstrip(" ")) :]
        self._seam = len(self._prefix) - len(self.space)
        self.head_ids, tail = special_tokens(tokenizer)
        self.tail_ids = [] if goes_on else tail
        self.ends_open = goes_on and bool(tail)
        """Whether the tokenizer's own rows end in a special token, and these do not."""
        place, self._left_ids = self._seam, self._ids(self._prefix[: self._seam])
        if joined:
            place, self._left_ids = self._unchanging()
        self.open_front = self._prefix[place : self._seam]
        """What of the template's beginning stands in the rows."""
        self.shared_ids = self.head_ids + self._left_ids
        self.room = max_length - len(self.shared_ids)
        """Most tokens of a row without its shared beginning."""
        if self.text_budget < 1:
            raise SmolbenchError(
                f"model.max_length is {max_length}, but the template alone takes "
                f"{max_length - self.text_budget} tokens: raise max_length or shorten the template."
            )

    @property
    def text_budget(self) -> int:
        """Tokens of the longest text that is not cut, as long as its ends meet no signs."""
        return self.room - self._around

    @property
    def begins_alike(self) -> bool:
        """Whether the first token of every row is the template's or a special one."""
        return bool(self.head_ids or self._ids(self._prefix[: self._seam]))

    @property
    def text_tokenizer(self) -> PreTrainedTokenizerBase:
        """What tokenises a text alone as it stands in the prompt."""
        # behind nothing the blank in front, if the tokenizer puts one there, is the text's
        return self._bare if self._bare and self._seam else self.tokenizer

    @cached_property
    def suffix_ids(self) -> list[int]:
        """Token ids of what stands behind the slot, as a text of its own if rows are joined."""
        if self.joined or self._bare is None:
            return self._ids(self._suffix)
        return plain_ids(self._bare, [self._suffix])[0]

    def encode(self, texts: Sequence[str]) -> dict[str, list[list[int]] | list[int]]:
        """Rows without their shared beginning.

        Returns:
            ``input_ids``: for each text the rest of its row; where that is empty, one end-of-text
            token, because a row needs a token; ``text_length``: how many of those are the text's
            own; ``text_start``: how many stand in front of these, where any may.

        Raises:
            SmolbenchError: If a row is empty and the tokenizer has no end-of-text token.
        """
        rows = self.rows(texts)
        columns: dict[str, list[list[int]] | list[int]] = {
            "input_ids": [row.ids for row in rows],
            "text_length": [row.length for row in rows],
        }
        if self.joined and self._prefix:
            columns["text_start"] = [row.start for row in rows]
        return columns

    def rows(self, texts: Sequence[str]) -> list[Row]:
        """The same as :meth:`encode`, text by text."""
        if self.template == SLOT:
            own = plain_ids(self.tokenizer, texts)
            return [self._row([], ids, []) for ids in own]
        if not self.joined:
            own = plain_ids(self.text_tokenizer, [self.space + text for text in texts])
            return [self._row([], ids, self.suffix_ids) for ids in own]
        return [self._row(*parts) for parts in self._parts(texts)]

    def _row(self, front: list[int], own: list[int], behind: list[int]) -> Row:
        """A row of these parts; the text's own loses an end if it is too long."""
        room = self.room - len(front) - len(behind) - len(self.tail_ids)
        if cut := len(own) > room:
            if room < 0:
                raise SmolbenchError(
                    f"model.max_length is {self.max_length}, which leaves no room for the template "
                    "around a text that begins or ends in other signs: raise max_length."
                )
            own = own[len(own) - room :] if self.truncation_side == "left" else own[:room]
        ids = [*front, *own, *behind, *self.tail_ids] or [self.end_of_text()]
        return Row(ids, len(front), len(own), cut)

    def _parts(self, texts: Sequence[str]) -> list[tuple[list[int], list[int], list[int]]]:
        """Ids of whole prompts: the template's behind what is shared, the text's, the template's.

        A token of both the template and the text is counted to the template.
        """
        prompts = [f"{self._prefix}{text}{self._suffix}" for text in texts]
        encoded = self.tokenizer(prompts, add_special_tokens=False, verbose=False)
        shared, found = len(self._left_ids), []
        for text, encoding in zip(texts, encoded.encodings or (), strict=True):
            ids, offsets = list(encoding.ids), encoding.offsets
            if ids[:shared] != self._left_ids:
                raise SmolbenchError(
                    f"The text {text[:60]!r} changes the tokens of model.template in front of it, "
                    "which no tokenizer was seen to do: leave it out, or use the template '{text}'."
                )
            begin = bisect_left(offsets, self._seam, lo=shared, key=lambda part: part[0])
            stop = len(self._prefix) + len(text)
            # what ends in the text and begins in it: spans come in the order of their ends, too
            end = bisect_left(offsets, stop + 1, lo=begin, key=lambda part: part[1])
            found.append((ids[shared:begin], ids[begin:end], ids[end:]))
        return found

    @cached_property
    def _around(self) -> int:
        """Tokens of the template and special ones behind what is shared."""
        if self.template == SLOT or not self.joined:
            return len(self.suffix_ids) * (self.template != SLOT) + len(self.tail_ids)
        ((front, _, behind),) = self._parts(["a"])
        return len(front) + len(behind) + len(self.tail_ids)

    def _unchanging(self) -> tuple[int, list[int]]:
        """A place over which the tokenizer never joins, and the ids of the template until there.

        Such a place lies between two characters of the template that no token of the vocabulary
        holds side by side, in front of a blank or a sign.
        """
        prefix, vocabulary = self._prefix, "\0".join(self.tokenizer.get_vocab())
        tried = 0
        for place in range(len(prefix) - 1, 0, -1):
            if prefix[place].isalnum():
                continue
            if not self._may_join(prefix[place - 1 : place + 1], vocabulary):
                ids = self._ids_until(place)
                if ids is not None:
                    return place, ids
            if (tried := tried + 1) == _TRIES:
                break
        return 0, []

    def _may_join(self, pair: str, vocabulary: str) -> bool:
        from tokenizers import pre_tokenizers  # lazy: import cost

        in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        ((as_bytes, _),) = in_bytes.pre_tokenize_str(pair)
        written = {pair, pair.replace(" ", "\u2581"), as_bytes}
        return any(form in vocabulary for each in written for form in (each, each.lower()))

    def _ids_until(self, place: int) -> list[int] | None:
        """Ids of the template up to a place; ``None`` if what follows changes them."""
        prompts = [self._prefix + probe for probe in _PROBES]
        encoded = self.tokenizer(prompts, add_special_tokens=False, verbose=False)
        found = set()
        for encoding in encoded.encodings or ():
            count = sum(end <= place for _, end in encoding.offsets)
            if any(start < place < end for start, end in encoding.offsets):
                return None
            found.add(tuple(encoding.ids[:count]))
        return list(found.pop()) if len(found) == 1 else None

    def anchor_offset(self, anchor: str) -> int:
        """Place of a word of the suffix, counted from the row's end: 1 for its last token.

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
        front = f"{self._prefix}a"
        (encoding,) = self.tokenizer([front + self._suffix], add_special_tokens=False).encodings
        first, last = len(front) + start, len(front) + start + len(anchor)
        covering = [
            number
            for number, (begin, end) in enumerate(encoding.offsets)
            if begin < last and end > first
        ]
        if not covering:
            raise SmolbenchError(
                f"model.anchor is {anchor!r}, which the tokenizer drops: name a word that it keeps."
            )
        return len(encoding.ids) - covering[-1] + len(self.tail_ids)

    def key(self) -> dict[str, str | int]:
        """Everything that decides about the ids, for naming a cache."""
        version = "template-1"
        if self.template != SLOT and self.joined:
            version = "template-3"
        elif self.template != SLOT and self._bare is not None:
            version = "template-4"
        elif self.space:
            version = "template-2"
        key: dict[str, str | int] = {
            "encoder": version,
            "tokenizer": digest({"json": self.tokenizer.backend_tokenizer.to_str()}),
            "template": self.template,
            "max_length": self.max_length,
            "truncation_side": self.truncation_side,
        }
        return {**key, "goes_on": True} if self.ends_open else key

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

    @cached_property
    def _bare(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer without the blank that it puts in front; ``None`` if it puts none."""
        return bare_tokenizer(self.tokenizer)

    def _ids(self, text: str) -> list[int]:
        return plain_ids(self.tokenizer, [text])[0]
