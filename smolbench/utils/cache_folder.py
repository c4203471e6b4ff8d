"""What the caches on disk share: locks, checksums, and sentences for a folder that is full."""

from __future__ import annotations

import errno
import logging
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from smolbench.errors import SmolbenchError

log = logging.getLogger("smolbench")

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_BLOCK = 1 << 22


def crc32(path: Path) -> int:
    """Checksum of a file's contents."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


@contextmanager
def writing(folder: Path) -> Generator[None, None, None]:
    """Turn a full disk or a folder that cannot be written into a sentence.

    Raises:
        SmolbenchError: In place of the ``OSError``; others go through.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            problem = f"No space is left in the cache folder {folder}: free some"
        elif error.errno in _FORBIDDEN:
            problem = f"The cache folder {folder} is not writable: make it so"
        else:
            raise
        reason = error.strerror or type(error).__name__
        raise SmolbenchError(
            f"{problem}, or choose another folder with `--data.cache_dir DIR`. It cannot be "
            f"written ({reason})."
        ) from error


@contextmanager
def locked(path: Path, waiting: str) -> Generator[None, None, None]:
    """Hold a lock file; its folder is made if need be.

    Args:
        path: The lock file.
        waiting: What to say, once, when another process holds it.

    Raises:
        SmolbenchError: If the lock file cannot be made.
    """
    lock = FileLock(path)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("%s", waiting)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
