"""How documents and their summaries become token ids, and rows of a batch."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from smolbench.data.batching import IGNORE_LABEL, TokenRows
from smolbench.data.token_cache import TokenTable
from smolbench.errors import SmolbenchError
from smolbench.models.encoding.seams import ids_behind
from smolbench.models.encoding.template import SLOT, TemplateEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENCODER_DECODER_TEMPLATES = {"t5": "summarize: {text}", "mt5": "summarize: {text}"}
"""What encoder-decoder models read, by architecture; others read the bare document."""
LINE_BREAKS = ("<n>", "[X_SEP]")
"""How summaries of Pegasus and of ProphetNet say that a line ends; sentencepiece knows none."""
BARE = "{text}"
CAUSAL_TEMPLATE = "Summarize: {text} Summary:"


def usual_template(model_type: str, *, causal: bool) -> str:
    """The template that an architecture is used to."""
    return CAUSAL_TEMPLATE if causal else ENCODER_DECODER_TEMPLATES.get(model_type, BARE)


class SummaryEncoder:
    """Token ids of documents in their template, and of summaries.

    Args:
        tokenizer: The model's tokenizer.
        template: What stands around a document: a text with the slot ``{text}``.
        max_length: Most tokens of a document with its template; longer ones lose their end.
        max_summary_length: Most tokens of a summary that is learned from, its end token included.
        causal: Whether the summary goes on behind the document in one row.
        joined: Whether a document in its template has the ids of the whole as one text.

    Raises:
        SmolbenchError: If the template lacks its slot or leaves no room for a document, or the
            tokenizer has no token to end a summary with.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        max_length: int,
        max_summary_length: int,
        *,
        causal: bool,
        joined: bool = True,
    ) -> None:
        self.documents = TemplateEncoder(
            tokenizer, template, max_length, joined=joined, goes_on=causal
        )
        self._before = template.rpartition(SLOT)[2] or ":"
        self.tokenizer = tokenizer
        self.max_summary_length = max_summary_length
        self.causal = causal
        if tokenizer.eos_token_id is None:
            raise SmolbenchError(
                f"The tokenizer of {tokenizer.name_or_path} has no end-of-text token, so that no "
                "summary would ever end: set eos_token in its tokenizer_config.json, or use "
                "another model."
            )
        self.end = int(tokenizer.eos_token_id)

    def encode(self, examples: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Token ids of documents, and of their summaries where there are any.

        Returns:
            ``input_ids``: template and document; ``cut``: whether the document lost its end;
            ``labels``: the summary with its end token; ``summary_cut``: whether it lost its end.
        """
        documents = examples["document"]
        rows, shared = self.documents.rows(documents), self.documents.shared_ids
        columns: dict[str, list[Any]] = {
            "input_ids": [[*shared, *row.ids] for row in rows],
            "cut": [row.cut for row in rows],
        }
        if "summary" in examples:
            columns["labels"] = self.summaries(examples["summary"])
            columns["summary_cut"] = self._cut(examples["summary"], columns["labels"])
        return columns

    def summaries(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of summaries, with the end token."""
        if not self.causal:
            encoded = self.tokenizer(
                text_target=list(texts), truncation=True, max_length=self.max_summary_length
            )
            rows: list[list[int]] = encoded["input_ids"]
            # it stays switched on otherwise, and is part of what tokenizers are told apart by
            self.tokenizer.backend_tokenizer.no_truncation()
            # some tokenizers end no row by themselves
            most = self.max_summary_length - 1
            return [row if self.end in row else [*row[:most], self.end] for row in rows]
        bare = self._behind_prompt(texts)
        return [[*row[: self.max_summary_length - 1], self.end] for row in bare]

    def _behind_prompt(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of summaries as they follow a causal model's prompt, without an end."""
        # a space, as between words
        return ids_behind(self.tokenizer, [f" {text.strip()}" for text in texts], self._before)

    def _cut(self, texts: Sequence[str], rows: Sequence[Sequence[int]]) -> list[bool]:
        """Which summaries, of these token ids, are longer than what is learned of them."""
        cut = [False] * len(texts)
        # one that fills its room to the last token may have been longer
        full = [n for n, row in enumerate(rows) if len(row) == self.max_summary_length]
        if not full:
            return cut
        if self.causal:
            whole = self._behind_prompt([texts[n] for n in full])
        else:
            wanted = [texts[n] for n in full]
            whole = self.tokenizer(text_target=wanted, verbose=False)["input_ids"]
        for n, ids in zip(full, whole, strict=True):
            cut[n] = len(ids) + (self.end not in ids) > self.max_summary_length
        return cut

    def texts(self, ids: Sequence[int]) -> str:
        """The text of generated tokens; see :func:`written_text`."""
        return written_text(self.tokenizer, ids, self._line_breaks)

    def broken(self, text: str) -> str:
        """A reference in which the model's words for a line break are line breaks."""
        for word in self._line_breaks.values():
            text = text.replace(word, "\n")
        return text

    @cached_property
    def _line_breaks(self) -> dict[int, str]:
        return line_breaks(self.tokenizer)

    def key(self) -> dict[str, Any]:
        """Everything that decides about the ids, for naming a cache."""
        return {
            **self.documents.key(),
            "summaries": 4,
            "end": self.end,
            "causal": self.causal,
            "max_summary_length": self.max_summary_length,
        }


def line_breaks(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Tokens that mean a line break to models of a tokenizer, with how they are written."""
    known = tokenizer.get_vocab()
    return {known[word]: word for word in LINE_BREAKS if word in known}


def written_text(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], breaks: Container[int]
) -> str:
    """The text of generated tokens.

    Args:
        tokenizer: What decodes them.
        ids: The tokens.
        breaks: Those of which each is a line break.
    """
    lines: list[list[int]] = [[]]
    for token in ids:
        if token in breaks:
            lines.append([])
        else:
            lines[-1].append(token)
    decoded = (tokenizer.decode(line, skip_special_tokens=True) for line in lines)
    return "\n".join(str(text).strip() for text in decoded).strip()


class PairRows(TokenRows):
    """Documents and summaries as rows of two texts, for an encoder-decoder model."""

    def __init__(self, table: TokenTable, pad_token_id: int) -> None:
        """Take the columns of :class:`SummaryEncoder`; the summaries may be missing."""
        super().__init__(table, None, pad_token_id)

    def batch(self, rows: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Put documents and summaries into one batch.

        Args:
            rows: Row numbers [B].

        Returns:
            The columns, see the base class; with ``labels`` [B, S] also ``decoder_attention_mask``
            [B, S], 1 on their tokens.
        """
        return _with_mask(super().batch(rows))

    def heaviest(self, n: int) -> dict[str, torch.Tensor]:
        """A batch that needs as much memory as any of ``n`` rows can.

        The longest documents with the longest summaries, though they may belong to others.
        """
        batch = super().batch(_longest(self.table, "input_ids", n))
        summaries = self.table.ragged["labels"]
        rows = _longest(self.table, "labels", n)
        batch["labels"] = torch.from_numpy(summaries.padded(rows, IGNORE_LABEL))
        return _with_mask(batch)


def _with_mask(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if "labels" in batch:
        batch["decoder_attention_mask"] = (batch["labels"] != IGNORE_LABEL).long()
    return batch


def _longest(table: TokenTable, column: str, n: int) -> npt.NDArray[np.int64]:
    return np.argsort(-table.ragged[column].lengths.astype(np.int64), kind="stable")[:n]


class CausalRows(TokenRows):
    """Prompts and summaries as rows of one text, for a causal model."""

    def __init__(self, table: TokenTable, pad_token_id: int) -> None:
        """Take the columns of :class:`SummaryEncoder`; the summaries may be missing."""
        super().__init__(table, None, pad_token_id)
        assert self.lengths is not None, "prompts have lengths"
        if "labels" in table.ragged:
            self.lengths = self.lengths + table.ragged["labels"].lengths

    def batch(self, rows: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Put prompts and summaries into one batch.

        Args:
            rows: Row numbers [B].

        Returns:
            ``input_ids`` [B, T], right-padded: prompt, then summary; ``attention_mask`` [B, T];
            ``labels`` [B, T]: the summary's tokens where they stand in ``input_ids``, else -100;
            the other columns, and ``index`` [B].
        """
        batch = super().batch(rows)
        return {**batch, **self._joined(rows, rows)} if "labels" in batch else batch

    def heaviest(self, n: int) -> dict[str, torch.Tensor]:
        """A batch that needs as much memory as any of ``n`` rows can; see :class:`PairRows`."""
        rows = _longest(self.table, "input_ids", n)
        joined = self._joined(rows, _longest(self.table, "labels", n))
        return {**super().batch(rows), **joined}

    def _joined(
        self, prompts: npt.NDArray[np.int64], summaries: npt.NDArray[np.int64]
    ) -> dict[str, torch.Tensor]:
        """Prompts of some rows, each with the summary of another or the same one behind it."""
        texts = [
            (self.table.ragged["input_ids"][one], self.table.ragged["labels"][other])
            for one, other in zip(prompts.tolist(), summaries.tolist(), strict=True)
        ]
        lengths = np.array([len(prompt) + len(summary) for prompt, summary in texts])
        ids = np.full((len(texts), lengths.max()), self.fill["input_ids"], dtype=np.int64)
        labels = np.full(ids.shape, IGNORE_LABEL, dtype=np.int64)
        for line, (prompt, summary) in enumerate(texts):
            end = len(prompt) + len(summary)
            ids[line, : len(prompt)] = prompt
            ids[line, len(prompt) : end] = labels[line, len(prompt) : end] = summary
        mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
        arrays = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
