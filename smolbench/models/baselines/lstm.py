"""A recurrent network that reads texts in both directions."""

from __future__ import annotations

import torch
from torch import nn

from smolbench.models.pretrained.heads import score_in_float32


class TextLSTM(nn.Module):
    """Bidirectional LSTM layers, mean and maximum over the text, one linear layer.

    Hochreiter and Schmidhuber, "Long Short-Term Memory" (1997). The same as ``nn.LSTM`` over packed
    sequences; each direction is a layer of its own over a rectangle, whose kernels are faster, and
    what reads backwards is given each text's words in reverse. A text scores the same whatever
    padding it gets.

    Args:
        embedding: Vectors of the words.
        classes: Number of classes, ``C``.
        hidden_size: Width of the state in each direction, ``H``.
        num_layers: Layers on top of each other.
        dropout: Share of what is dropped in training: of the words' vectors, between layers and in
            front of the last layer.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        classes: int,
        hidden_size: int,
        num_layers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        widths = [embedding.embedding_dim, *[2 * hidden_size] * (num_layers - 1)]
        self.forwards = nn.ModuleList(nn.LSTM(w, hidden_size, batch_first=True) for w in widths)
        self.backwards = nn.ModuleList(nn.LSTM(w, hidden_size, batch_first=True) for w in widths)
        self.dropout = nn.Dropout(dropout)
        self.output = score_in_float32(nn.Linear(4 * hidden_size, classes))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, C)`` of right-padded words.

        Args:
            input_ids: Numbers of words, shape ``(B, T)``.
            attention_mask: 1 for words, 0 for padding, shape ``(B, T)``.
        """
        lengths = attention_mask.sum(dim=1, keepdim=True)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        # each text's own words in reverse; padding stays where it is
        backwards = torch.where(positions < lengths, lengths - 1 - positions, positions)
        states = self.embedding(input_ids)
        for ahead, behind in zip(self.forwards, self.backwards, strict=True):
            states = self.dropout(states)
            ahead_states, _ = ahead(states)
            behind_states, _ = behind(_take(states, backwards))
            states = torch.cat([ahead_states, _take(behind_states, backwards)], dim=2)
        words = attention_mask.bool().unsqueeze(2)
        mean = states.masked_fill(~words, 0).sum(dim=1) / lengths
        largest = states.masked_fill(~words, -torch.inf).amax(dim=1)
        logits: torch.Tensor = self.output(self.dropout(torch.cat([mean, largest], dim=1)))
        return logits


def _take(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Bring states ``(B, T, D)`` into the order of positions ``(B, T)``."""
    return states.gather(1, positions.unsqueeze(2).expand_as(states))
