from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from smolbench.models.memory.live_bytes import LiveBytes


def test_storages_count_while_they_live():
    with LiveBytes() as live:
        one = torch.zeros(100)
        assert live.now == 400
        view = one.view(10, 10)
        assert live.now == 400, "a view has no storage of its own"
        two = one + 1
        assert live.now == live.peak == 800
        del one
        assert live.now == 800, "the view holds it"
        del view, two
        assert (live.now, live.peak) == (0, 800)


def test_gradients_come_as_activations_go():
    with FakeTensorMode():
        weight = torch.nn.Parameter(torch.empty(1000, 1000))  # 4 MB, and no memory
        rows = torch.empty(2, 1000)
        own = {t.untyped_storage()._cdata for t in (weight, rows)}
        with LiveBytes(own) as live:
            (rows @ weight).sum().backward()
        assert weight.grad is not None
        assert live.now == 4_000_000, "the gradient is left"
        assert 4_000_000 < live.peak < 4_100_000
