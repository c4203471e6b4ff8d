"""Real processes of the command line, which cost no imports; see tests/helpers/fork_server.py."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from tests.helpers.fork_server import Forked

ROOT = Path(__file__).parents[2]
# elsewhere, what has been imported cannot be relied on in a fork of it
_FORKS = sys.platform == "linux"


class Process:
    """``python -m MODULE ...`` in a process group of its own, whose output is kept.

    Args:
        command: What follows ``python``: ``-m`` or ``-c`` and so on.
        env: The whole environment; this process's own by default.
        cwd: Working directory; this process's own by default.
        fresh: Start an interpreter that has imported nothing yet, where that is what is tested.
    """

    def __init__(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        fresh: bool = False,
    ) -> None:
        self.command = [sys.executable, *command]
        env = {"OMP_NUM_THREADS": "1", **(os.environ if env is None else env)}
        env["PYTHONPATH"] = str(ROOT)
        cwd = Path.cwd() if cwd is None else cwd
        pipes = [os.pipe() for _ in range(2)]
        out, err = (written for _, written in pipes)
        try:
            with Path(os.devnull).open("rb") as null:
                self._process: Forked | subprocess.Popen[bytes]
                if _FORKS and not fresh:
                    streams = (null.fileno(), out, err)
                    self._process = Forked(_server(), command, env, cwd, streams)
                else:
                    self._process = subprocess.Popen(
                        self.command,
                        env=env,
                        cwd=cwd,
                        stdin=null,
                        stdout=out,
                        stderr=err,
                        start_new_session=True,
                    )
        finally:
            os.close(out)
            os.close(err)
        self.pid = self._process.pid
        self.poll = self._process.poll
        self.send_signal = self._process.send_signal
        self._said = bytearray(), bytearray()
        self._readers = [
            threading.Thread(target=self._read, args=(i, read), daemon=True)
            for i, (read, _) in enumerate(pipes)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, i: int, stream: int) -> None:
        while part := os.read(stream, 1 << 16):
            self._said[i].extend(part)
        os.close(stream)

    @property
    def stdout(self) -> str:
        """What it has said so far."""
        return self._said[0].decode(errors="replace")

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return self._said[1].decode(errors="replace")

    def result(self, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Wait for it and for all that have its streams, and say what they said.

        Raises:
            subprocess.TimeoutExpired: If it still runs after ``timeout`` seconds; its group is
                killed.
        """
        try:
            status = self._process.wait(timeout)
            for reader in self._readers:
                reader.join(timeout)
                if reader.is_alive():
                    raise subprocess.TimeoutExpired(self.command, timeout)
        except subprocess.TimeoutExpired as late:
            self.kill()
            for reader in self._readers:
                reader.join(10)
            late.output, late.stderr = self.stdout, self.stderr
            raise
        return subprocess.CompletedProcess(self.command, status, self.stdout, self.stderr)

    def kill(self) -> None:
        """Kill the whole group, if anything of it is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


@functools.cache
def _server() -> str:
    """Address of the server, which ends with this process."""
    folder = tempfile.mkdtemp(prefix="smolbench-forks-")
    address = f"{folder}/socket"
    # OpenMP reads it once, and the processes say themselves how many threads they want
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    # threads that it starts when numpy is imported would be missing in a fork
    env |= {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.fork_server", address],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,  # never written: it is closed when this process has ended
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None

    @atexit.register
    def end() -> None:
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)

    if server.stdout.readline() != b"ready\n":
        raise RuntimeError(f"The fork server ended with status {server.wait()}.")
    return address
