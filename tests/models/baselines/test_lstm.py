from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from smolbench.models.baselines.embedding import random_embedding
from smolbench.models.baselines.lstm import TextLSTM
from tests.helpers.words import alone, padded

ROWS = [[2, 3, 4, 5, 6, 7, 8], [9, 2], [3], [4, 4, 5, 9, 3]]


def network(layers: int = 1) -> TextLSTM:
    torch.manual_seed(0)
    return TextLSTM(random_embedding(10, 6), 3, hidden_size=4, num_layers=layers, dropout=0.5)


def plainly(made: TextLSTM, layers: int) -> torch.Tensor:
    """PyTorch's own bidirectional LSTM over packed rows, with the same weights."""
    plain = nn.LSTM(6, 4, num_layers=layers, batch_first=True, bidirectional=True)
    for layer in range(layers):
        for suffix, own in (("", made.forwards[layer]), ("_reverse", made.backwards[layer])):
            for name, value in own.named_parameters():
                getattr(plain, name.replace("l0", f"l{layer}") + suffix).data.copy_(value)
    ids, mask = padded(ROWS)
    packed = pack_padded_sequence(
        made.embedding(ids), mask.sum(dim=1), batch_first=True, enforce_sorted=False
    )
    states, lengths = pad_packed_sequence(plain(packed)[0], batch_first=True)
    pooled = [
        torch.cat([states[n, :length].mean(dim=0), states[n, :length].max(dim=0).values])
        for n, length in enumerate(lengths)
    ]
    return made.output(torch.stack(pooled))


@pytest.mark.parametrize("layers", [1, 2])
def test_logits_are_those_of_packed_rows(layers):
    made = network(layers).eval()
    torch.testing.assert_close(made(*padded(ROWS)), plainly(made, layers), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_text_scores_the_same_alone_and_in_a_batch(layers):
    made = network(layers).eval()
    together = made(*padded(ROWS))
    torch.testing.assert_close(alone(made, ROWS), together, rtol=1e-5, atol=1e-6)


def test_everything_learns():
    made = network(2)
    made(*padded(ROWS)).square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
