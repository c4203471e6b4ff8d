"""Convolutions over words, and the largest answer of each filter (Kim 2014)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from smolbench.models.pretrained.heads import score_in_float32


class TextCNN(nn.Module):
    """One layer of convolutions, maximum over the text, dropout, one linear layer.

    Kim, "Convolutional Neural Networks for Sentence Classification" (EMNLP 2014). As there, texts
    have zeros on both sides, so that windows also see a part of their ends; unlike there, the norm
    of the last layer's weights is not bounded. A text scores the same whatever padding it gets.

    Args:
        embedding: Vectors of the words; padding's is zero.
        classes: Number of classes, ``C``.
        widths: Words that filters look at together.
        filters: Number of filters of each width, ``F``.
        dropout: Share of the filters' answers that are dropped in training.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        classes: int,
        widths: Sequence[int],
        filters: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.widths = tuple(widths)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(embedding.embedding_dim, filters, width, padding=width - 1)
            for width in widths
        )
        self.dropout = nn.Dropout(dropout)
        self.output = score_in_float32(nn.Linear(filters * len(widths), classes))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, C)`` of right-padded words.

        Args:
            input_ids: Numbers of words, shape ``(B, T)``.
            attention_mask: 1 for words, 0 for padding, shape ``(B, T)``.
        """
        embedded = self.embedding(input_ids).transpose(1, 2)  # (B, D, T)
        lengths = attention_mask.sum(dim=1, keepdim=True)
        pooled = []
        for width, convolution in zip(self.widths, self.convolutions, strict=True):
            answers = convolution(embedded)  # (B, F, T + width - 1)
            windows = torch.arange(answers.shape[2], device=answers.device)
            # behind these there are only windows without a word, of which a longer batch has more
            beyond = windows >= lengths + width - 1
            pooled.append(answers.masked_fill(beyond.unsqueeze(1), -torch.inf).amax(dim=2))
        # the same as before the maximum, for a fraction of the numbers
        logits: torch.Tensor = self.output(self.dropout(torch.cat(pooled, dim=1).relu()))
        return logits
