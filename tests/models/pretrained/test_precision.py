from __future__ import annotations

from pathlib import Path

import pytest
import torch

from smolbench.models.pretrained.precision import native_bfloat16


@pytest.fixture(autouse=True)
def _ask_again():
    native_bfloat16.cache_clear()
    yield
    native_bfloat16.cache_clear()


def cpu_says(monkeypatch, text, system="Linux"):
    read = Path.read_text

    def read_text(self, *args, **kwargs):
        if str(self) != "/proc/cpuinfo":
            return read(self, *args, **kwargs)
        if text is None:
            raise FileNotFoundError(str(self))
        return text

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr("platform.system", lambda: system)
    return native_bfloat16(torch.device("cpu"))


@pytest.mark.parametrize(
    ("text", "native"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16 sse\n", True),
        ("processor\t: 0\nflags\t\t: fpu amx_bf16\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\n", False),
        ("processor\t: 0\nmodel name\t: avx512_bf16\nflags\t\t: fpu\n", False),
        ("", False),
        (None, False),
    ],
)
def test_a_cpu_is_asked_for_its_instructions(monkeypatch, text, native):
    assert cpu_says(monkeypatch, text) is native


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_other_systems_say_no(monkeypatch, system):
    assert cpu_says(monkeypatch, "flags : avx512_bf16", system) is False


def test_cuda_is_asked_without_emulation(monkeypatch):
    def supported(including_emulation=True):
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert native_bfloat16(torch.device("cuda")) is False


def test_mps_says_no():
    assert native_bfloat16(torch.device("mps")) is False
