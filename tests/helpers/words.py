"""Rows of words for networks that read no pretrained tokenizer's tokens."""

from __future__ import annotations

import torch

from smolbench.data.batching import pad_rows
from smolbench.models.baselines.vocabulary import PAD_ID


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of words and attention mask, each (B, T)."""
    batch = pad_rows(rows, PAD_ID)
    return batch["input_ids"], batch["attention_mask"]


def alone(network: torch.nn.Module, rows: list[list[int]]) -> torch.Tensor:
    """What a network says of rows, one by one, with no padding."""
    return torch.cat([network(*padded([row])) for row in rows])
