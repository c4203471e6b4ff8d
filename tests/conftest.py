"""What all tests share: no network, caches of their own, a clean process state."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator

# before the imports: the libraries read these once, and a developer's own models and datasets must
# not be found
_CACHES = tempfile.mkdtemp(prefix="smolbench-tests-")
atexit.register(shutil.rmtree, _CACHES, ignore_errors=True)
for _name in ("HF_ENDPOINT", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN"):
    os.environ.pop(_name, None)
# tables and bars are looked at as they are where there is no terminal
for _name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(_name, None)
os.environ["HF_HOME"] = f"{_CACHES}/huggingface"
os.environ["SMOLBENCH_CACHE"] = f"{_CACHES}/smolbench"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"

# a shell lets what it starts in the background ignore Ctrl-C, and so would all processes of tests
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from tests.helpers import deprecations  # noqa: E402

deprecations.watch()

import pytest  # noqa: E402
import torch  # noqa: E402

from smolbench.utils.notices import begin  # noqa: E402

# a second one only waits where models are this small, and costs most where others want it, too
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What has been imported stays: no search for garbage need look at its million objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for the network fails at once instead of hanging."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> object:
        if self.family == socket.AF_UNIX:
            return connect(self, address)
        host = address[0] if isinstance(address, tuple) else address
        if host in {"127.0.0.1", "localhost", "::1"}:
            return connect(self, address)
        raise OSError(f"tests must not use the network, but {host} was contacted")

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _clean_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seed and warnings that a test leaves behind must not reach the next one."""
    begin()
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)


@pytest.fixture(autouse=True)
def _no_deprecated_calls() -> Iterator[None]:
    """What a library will drop is not called; the next version would break it."""
    deprecations.FOUND.clear()
    yield
    assert deprecations.FOUND == []


@pytest.fixture
def folder_here(tmp_path, monkeypatch):
    """An empty working directory, where ``runs/`` goes."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
