"""What is forked for tests behaves like an interpreter of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.processes import Process

BOTH = pytest.mark.parametrize("fresh", [False, True], ids=["forked", "fresh"])


def test_a_fork_has_one_thread_and_what_was_imported():
    code = (
        "import os, sys; print(len(os.listdir('/proc/self/task')), 'lightning' in sys.modules,"
        " 'tests.helpers.processes' in sys.modules)"
    )
    if sys.platform != "linux":
        pytest.skip("nothing is forked here")
    assert Process("-c", code).result().stdout == "1 True False\n"


@BOTH
def test_it_is_given_its_world(tmp_path, fresh):
    code = "import os, sys; print(os.getcwd(), os.environ['A'], sys.argv, 'B' in os.environ)"
    env = {"PATH": os.environ["PATH"], "A": "1"}
    done = Process("-c", code, "x", "y", cwd=tmp_path, env=env, fresh=fresh).result()
    assert (done.returncode, done.stdout) == (0, f"{tmp_path} 1 ['-c', 'x', 'y'] False\n")


@BOTH
@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no')", 1, "no\n"),
        ("raise ValueError('odd')", 1, "ValueError: odd\n"),
        ("import atexit; atexit.register(print, 'end', file=__import__('sys').stderr)", 0, "end\n"),
        ("import os; os._exit(7)", 7, ""),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import os; os.kill(os.getpid(), 15)", -15, ""),
        ("import os; os.killpg(os.getpgrp(), 9)", -9, ""),
    ],
)
def test_it_ends_as_any_process_does(fresh, code, status, said):
    done = Process("-c", code, fresh=fresh).result()
    assert done.returncode == status
    assert done.stderr.endswith(said)
    assert bool(done.stderr) == bool(said)


@BOTH
def test_a_module_is_run_as_the_main_one(fresh):
    done = Process("-m", "smolbench", "--no", fresh=fresh).result()
    assert done.returncode == 2
    assert done.stderr.startswith("smolbench: error: Options stand behind the subcommand")


@BOTH
def test_signals_and_time_limits(tmp_path, fresh):
    code = """
import sys, time
try:
    open("here", "w").close()
    time.sleep(60)
except KeyboardInterrupt:
    print("on", flush=True)
    time.sleep(60)
"""
    process = Process("-c", code, cwd=tmp_path, fresh=fresh)
    until(lambda: Path(tmp_path, "here").exists())
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # whatever this process itself does with it
    until(lambda: process.stdout == "on\n")
    with pytest.raises(subprocess.TimeoutExpired):
        process.result(timeout=0.1)  # kills it
    assert process.result().returncode == -signal.SIGKILL


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
