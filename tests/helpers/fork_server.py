"""Processes that need no imports: each is forked from one that has made them and does nothing else.

``python -m smolbench`` imports for seconds, most of a test that starts it. The server imports once
what it takes and computes nothing; what it forks runs like a fresh interpreter with the
environment, folder, streams and process group that it is given. What libraries read while they are
imported (``HF_HUB_OFFLINE`` ...) is the test session's. The one thread in it is that of the
allocator that comes with pyarrow, which knows of forks.

The program is the server, the class :class:`Forked` is one of its processes, seen from outside.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ADDRESS = "SMOLBENCH_TESTS_FORK_SERVER"
"""Environment variable with the socket of the server, in processes that it has forked."""
PRELOADED = (
    "smolbench.cli.lightning_cli",
    "smolbench.tasks",
    "smolbench.data",
    "datasets",
    "rouge_score.rouge_scorer",
    "transformers.models.llama.modeling_llama",
    "transformers.models.t5.modeling_t5",
    "pytest",  # tests' own callbacks are in modules that import it
)
PYTHON = [sys.executable, "-m", "tests.helpers.fork_server"]
"""What stands for ``python`` in commands that such a process starts itself."""
_HEADER = struct.Struct("!I")
_LOOK_S = 0.02


class Forked:
    """``python -m MODULE ...``, with what tests and Lightning's launcher need of a `Popen`.

    Args:
        server: Socket of the server.
        command: ``-m`` or ``-c`` and what follows it behind ``python``.
        env: The whole environment.
        cwd: Working directory.
        streams: File descriptors of stdin, stdout and stderr.
        group: Process group to join; a new one by default.
    """

    def __init__(
        self,
        server: str,
        command: Sequence[str],
        env: Mapping[str, str],
        cwd: str | Path,
        streams: Sequence[int],
        group: int = 0,
    ) -> None:
        self.args = [sys.executable, *command]
        self.returncode: int | None = None
        self._lock = threading.Lock()  # Lightning's observer looks from a thread of its own
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(server)
        told = json.dumps(
            {
                "command": [*command],
                "env": {**env, ADDRESS: server},
                "cwd": str(cwd),
                "group": group,
            }
        ).encode()
        socket.send_fds(self._socket, [_HEADER.pack(len(told))], streams)
        self._socket.sendall(told)
        self._answers = self._socket.makefile("rb")
        self.pid = self._answer()

    def _answer(self) -> int:
        line = self._answers.readline()
        if not line:
            raise RuntimeError("The fork server has died.")
        return int(line)

    def poll(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, when it has ended.

        Raises:
            subprocess.TimeoutExpired: If it has not after ``timeout`` seconds.
        """
        with self._lock:
            if self.returncode is None:
                with selectors.DefaultSelector() as selector:
                    selector.register(self._socket, selectors.EVENT_READ)
                    if not selector.select(timeout):
                        raise subprocess.TimeoutExpired(self.args, timeout or 0)
                self.returncode = self._answer()
                self._answers.close()
                self._socket.close()
            return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Server:
    """Forks what is asked for, and tells who asked when it has ended."""

    def __init__(self, address: str) -> None:
        self.selector = selectors.DefaultSelector()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(address)
        self.listener.listen(64)
        self.children: dict[int, socket.socket] = {}

    def serve(self) -> dict[str, Any]:
        """Returns in every process that is forked, with what it is to run."""
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(sys.stdin, selectors.EVENT_READ)  # closed when the tests have ended
        while True:
            ready = self.selector.select(_LOOK_S if self.children else None)
            self._tell_of_the_dead()
            for key, _ in ready:
                if key.fileobj is sys.stdin:
                    for pid in self.children:
                        os.kill(pid, signal.SIGKILL)
                    sys.exit()
                asked = self._fork(self.listener.accept()[0])
                if asked is not None:
                    return asked

    def _tell_of_the_dead(self) -> None:
        for pid in [*self.children]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                with self.children.pop(pid) as client, contextlib.suppress(OSError):
                    client.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))

    def _fork(self, client: socket.socket) -> dict[str, Any] | None:
        header, streams, _, _ = socket.recv_fds(client, _HEADER.size, 3)
        with client.makefile("rb") as file:
            asked = json.loads(file.read(*_HEADER.unpack(header)))
        pid = os.fork()
        with contextlib.suppress(OSError):  # it may have joined the group itself, or ended
            os.setpgid(pid, asked["group"])
        if pid:
            for stream in streams:
                os.close(stream)
            self.children[pid] = client
            with contextlib.suppress(OSError):
                client.sendall(b"%d\n" % pid)
            return None
        for other in (client, self.listener, self.selector, *self.children.values()):
            other.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        return asked


def _set_up_ranks() -> None:
    """Let Lightning's launcher have its further ranks, the same command again, from the server."""
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only
    from lightning.pytorch.strategies.launchers import subprocess_script

    rank_zero_only.rank = _get_rank() or 0  # read when Lightning was imported

    def popen(command: Sequence[str], env: Mapping[str, str], cwd: str | None) -> Forked:
        streams, group = (0, 1, 2), os.getpgrp()
        return Forked(os.environ[ADDRESS], command[1:], env, cwd or Path.cwd(), streams, group)

    subprocess_script.subprocess = SimpleNamespace(Popen=popen)  # type: ignore[assignment]


def _become(asked: dict[str, Any]) -> None:
    """Run the command; what Python does at its start is done here for the forked process."""
    import numpy as np
    import torch

    # whatever the tests' own parent has set, such as a shell for what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    np.random.seed()
    if threads := os.environ.get("OMP_NUM_THREADS"):  # read when torch was loaded
        torch.set_num_threads(int(threads))
    _set_up_ranks()
    sys.path[0] = asked["cwd"]
    kind, what, *arguments = asked["command"]
    sys.argv = [kind, *arguments]
    if kind == "-c":
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_module(what, run_name="__main__", alter_sys=True)


def _hand_on(command: Sequence[str]) -> None:
    """Be a process of the server's, for a parent that starts its children itself."""
    process = Forked(os.environ[ADDRESS], command, os.environ, Path.cwd(), (0, 1, 2))
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda signum, _: os.kill(process.pid, signum))
    status = process.wait()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    if sys.argv[1].startswith("-"):
        _hand_on(sys.argv[1:])
    server = _Server(sys.argv[1])
    gc.disable()
    for name in PRELOADED:
        importlib.import_module(name)
    gc.enable()
    gc.freeze()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    _become(server.serve())
