from __future__ import annotations

import pytest
import torch
from torch import nn

from smolbench.models.baselines.cnn import TextCNN
from smolbench.models.baselines.lstm import TextLSTM
from smolbench.models.pretrained.heads import build_head


def weights(head):
    return torch.cat([p.detach().flatten() for p in head.parameters()])


@pytest.mark.parametrize("name", ["mlp", "linear"])
def test_initial_weights_depend_on_the_seed_only(name):
    torch.manual_seed(1)
    first = build_head(name, 8, 3, 16, 0.1, seed=5)
    torch.randn(100)
    second = build_head(name, 8, 3, 16, 0.1, seed=5)
    other = build_head(name, 8, 3, 16, 0.1, seed=6)
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.parametrize("name", ["mlp", "linear"])
def test_the_global_random_state_is_left_alone(name):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    build_head(name, 8, 3, 16, 0.1, seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_initial_weights_are_made_on_the_cpu_whatever_the_default_device():
    with torch.device("meta"):
        head = build_head("mlp", 8, 3, 16, 0.1, seed=5)
    assert {p.device.type for p in head.parameters()} == {"cpu"}
    assert torch.equal(weights(head), weights(build_head("mlp", 8, 3, 16, 0.1, seed=5)))


def test_the_linear_head_is_one_layer():
    head = build_head("linear", 8, 3, 16, 0.1, seed=0)
    assert isinstance(head, nn.Linear)
    assert head(torch.randn(4, 8)).shape == (4, 3)
    assert sum(p.numel() for p in head.parameters()) == 8 * 3 + 3


def test_the_mlp_is_batchnorm_linear_gelu_dropout_linear():
    head = build_head("mlp", 8, 3, 16, 0.25, seed=0)
    assert [type(layer) for layer in head] == [
        nn.BatchNorm1d,
        nn.Linear,
        nn.GELU,
        nn.Dropout,
        nn.Linear,
    ]
    assert head[3].p == 0.25
    assert head(torch.randn(4, 8)).shape == (4, 3)
    assert sum(p.numel() for p in head.parameters()) == 2 * 8 + (8 * 16 + 16) + (16 * 3 + 3)


@pytest.mark.parametrize("kind", ["mlp", "linear", "cnn", "lstm"])
def test_scores_are_in_float32_also_under_autocast(kind):
    ids = torch.randint(0, 50, (64, 7), generator=torch.Generator().manual_seed(0))
    inputs: tuple = (ids, torch.ones_like(ids))
    if kind == "cnn":
        network = TextCNN(nn.Embedding(50, 8), 2, filters=4, widths=[2, 3], dropout=0.0)
    elif kind == "lstm":
        network = TextLSTM(nn.Embedding(50, 8), 2, hidden_size=4, num_layers=1, dropout=0.0)
    else:
        network = build_head(kind, 8, 2, 16, 0.1, seed=0)
        inputs = (torch.randn(64, 8, generator=torch.Generator().manual_seed(0)),)
    network.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = network(*inputs)
    assert found.dtype == torch.float32
    assert (found != found.bfloat16().float()).any(), "not what bfloat16 can hold"
    with torch.no_grad():
        torch.testing.assert_close(found, network(*inputs), rtol=0, atol=0.05)
