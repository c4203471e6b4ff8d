"""``smolbench`` commands in processes of their own, which neither outlive nor outrun a sweep."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

SMOLBENCH = [sys.executable, "-m", "smolbench"]
POLL_S = 0.1
TIES = sys.platform == "linux"
"""Whether the kernel stops a command whose sweep is gone."""
_SAME_START_S = 5.0
"""Start times of one process may differ so much where the clock was set in between."""

# The kernel tells the command to stop when the sweep is gone, also if it was killed: it would else
# train on, unseen, while the sweep that goes on starts it a second time. Set by the process itself:
# what runs in a fork of a process with threads may block.
_TIED = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class Stop:
    """Signals that end a sweep, handed on to the command that runs.

    Attributes:
        received: The first one; ``None`` as long as there is none.
    """

    _SIGNALS = tuple(
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
    )

    def __init__(self) -> None:
        self.received: int | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for signum in self._SIGNALS:
            ignored = signal.getsignal(signum) is signal.SIG_IGN
            if ignored and signum == getattr(signal, "SIGHUP", None):  # nohup: it is to go on
                continue
            self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.received = self.received or signum
        if self.process is not None:
            end(self.process, signum)

    def wait(self, seconds: float) -> None:
        """Sleep, but not on when a signal comes."""
        until = time.monotonic() + seconds
        while self.received is None and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, POLL_S))


def end(process: subprocess.Popen[bytes], signum: int = signal.SIGTERM) -> None:
    """Ask a command to stop: it finishes its step and saves; asked twice, it stops at once."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM if signum == getattr(signal, "SIGHUP", None) else signum)


def run(
    arguments: Sequence[str],
    log: Path,
    stop: Stop,
    *,
    started: Callable[[dict[str, Any]], None] = lambda identity: None,
    meanwhile: Callable[[subprocess.Popen[bytes]], None] = lambda process: None,
) -> int:
    """Run a command and wait for it.

    Args:
        arguments: Everything behind ``smolbench``.
        log: File that its output is added to.
        stop: Hands signals on to it.
        started: Called with :func:`identity` of the process.
        meanwhile: Called again and again while it runs.

    Returns:
        Its exit status; negative if a signal killed it.
    """
    command = [*SMOLBENCH, *arguments]
    if TIES:
        command = [sys.executable, "-ISc", _TIED, str(os.getpid()), *command]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        # a group of its own: a Ctrl-C of the terminal reaches the sweep, which hands it on once
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    stop.process = process
    try:
        if stop.received is not None:  # it came before there was a process to hand it on to
            end(process, stop.received)
        started(identity(process.pid))
        while True:
            try:
                return process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                meanwhile(process)
    finally:
        stop.process = None
        if process.poll() is None:  # an error of ours must not leave it behind
            process.terminate()
            process.wait()


def identity(pid: int | None = None) -> dict[str, Any]:
    """What tells a process from all others, on any machine."""
    pid = os.getpid() if pid is None else pid
    try:
        started = psutil.Process(pid).create_time()
    except psutil.Error:  # it has ended already
        started = 0.0
    return {"host": host(), "pid": pid, "started": started}


def is_alive(process: dict[str, Any]) -> bool | None:
    """Whether a process still runs; ``None`` if it is on another machine."""
    if process.get("host") != host():
        return None
    try:
        found = psutil.Process(int(process["pid"]))
        same = abs(found.create_time() - float(process["started"])) < _SAME_START_S
        return same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def host() -> str:
    """This machine, container and boot: process numbers mean the same wherever this is equal."""
    parts = [socket.gethostname()]
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        parts += [boot.strip()[:8], Path("/proc/self/ns/pid").readlink().name]
    except OSError:  # no Linux
        pass
    return " ".join(parts)


def size_of(log: Path) -> int:
    """Bytes in a file; 0 if there is none."""
    return log.stat().st_size if log.is_file() else 0


def last_words(log: Path, start: int = 0) -> str:
    """The sentence that a failed command ended with, whose output starts at a byte of a file."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - 20_000))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return "it left no output"
    return last_words_of(text)


def last_words_of(output: str) -> str:
    """The sentence that some output ends with."""
    lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    marked = [line for line in lines if line.startswith("smolbench: error: ")]
    found = marked[-1].removeprefix("smolbench: error: ") if marked else (lines or [""])[-1]
    return "".join(c if c.isprintable() else " " for c in found)[:1000] or "it left no output"
