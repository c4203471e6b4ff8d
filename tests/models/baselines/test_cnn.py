from __future__ import annotations

import torch
import torch.nn.functional as F

from smolbench.models.baselines.cnn import TextCNN
from smolbench.models.baselines.embedding import random_embedding
from smolbench.models.baselines.vocabulary import PAD_ID
from tests.helpers.words import alone, padded

ROWS = [[2, 3, 4, 5, 6, 7, 8], [9, 2], [3], [4, 4, 5, 9, 3]]


def network(**options):
    torch.manual_seed(0)
    made = TextCNN(
        random_embedding(10, 6), classes=3, **{"widths": [2, 4], "filters": 5, "dropout": 0.5}
    )
    return made.eval()


def plainly(made: TextCNN, row: list[int]) -> torch.Tensor:
    """Kim's network for a single text, window by window."""
    weights = made.embedding.weight
    features = []
    for width, convolution in zip([2, 4], made.convolutions, strict=True):
        zeros = torch.zeros(width - 1, weights.shape[1])
        text = torch.cat([zeros, weights[row], zeros])
        windows = [text[start : start + width] for start in range(len(text) - width + 1)]
        answers = torch.stack(
            [
                torch.einsum("fdw,wd->f", convolution.weight, window) + convolution.bias
                for window in windows
            ]
        )
        features.append(F.relu(answers).max(dim=0).values)
    return F.linear(torch.cat(features), made.output.weight, made.output.bias)


def test_logits_are_those_of_the_plain_definition():
    made = network()
    expected = torch.stack([plainly(made, row) for row in ROWS])
    torch.testing.assert_close(made(*padded(ROWS)), expected, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_plain_definition():
    made = network()
    names, parameters = zip(*made.named_parameters(), strict=True)
    plain = torch.stack([plainly(made, row) for row in ROWS]).square().sum()
    expected = torch.autograd.grad(plain, parameters)
    found = torch.autograd.grad(made(*padded(ROWS)).square().sum(), parameters)
    for name, one, other in zip(names, expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5, msg=name)
    assert not found[0][PAD_ID].any()


def test_a_text_scores_the_same_alone_and_in_a_batch():
    made = network()
    together = made(*padded(ROWS))
    torch.testing.assert_close(alone(made, ROWS), together, rtol=1e-5, atol=1e-6)


def test_dropout_is_for_training_only():
    made = network()
    assert torch.equal(made(*padded(ROWS)), made(*padded(ROWS)))
    made.train()
    assert not torch.equal(made(*padded(ROWS)), made(*padded(ROWS)))
