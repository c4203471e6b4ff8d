from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import psutil, torch
from smolbench.models.pretrained import adaptation
from torch import nn

def mib():
    return psutil.Process().memory_info().rss / 2**20

model = nn.Sequential(*(nn.Linear(500, 500) for _ in range(200))).requires_grad_(False)
full = mib()
adaptation.hold_frozen_in(model, torch.bfloat16)
print(full - mib())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_of_what_was_put_into_a_smaller_format_is_given_back():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    # 200 MB in float32 become 100 MB in bfloat16
    assert float(done.stdout) > 60
