"""Short, stable digests that name cache entries, configurations and data."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LENGTH = 20
"""Hexadecimal characters kept: 80 bits, far beyond any accidental collision here."""


def is_digest(text: object) -> bool:
    """Whether a text may be one of these digests: of a folder's content, not a commit or branch."""
    return isinstance(text, str) and re.fullmatch(rf"[0-9a-f]{{{LENGTH}}}", text) is not None


def digest(value: Mapping[str, Any]) -> str:
    """Digest of a JSON-serialisable mapping, independent of the order of its keys.

    Raises:
        TypeError: If a value is not plain JSON; silently hashing a ``repr`` would tie the digest to
            a memory address.
    """
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:LENGTH]


def text_digest(texts: Iterable[str]) -> str:
    """Digest of a sequence of texts; order and boundaries count."""
    state = hashlib.sha256()
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        state.update(len(raw).to_bytes(8, "little"))
        state.update(raw)
    return state.hexdigest()[:LENGTH]


def file_digest(paths: Iterable[Path]) -> str:
    """Digest of the contents of files, in the order given, with their names."""
    state = hashlib.sha256()
    for path in paths:
        state.update(path.name.encode())
        with path.open("rb") as file:
            state.update(hashlib.file_digest(file, "sha256").digest())
    return state.hexdigest()[:LENGTH]


def folder_content(folder: Path, *, code: bool = False, leave_out: str | None = None) -> str:
    """Digest of a model folder's weights and settings, by which it is known wherever it lies.

    Args:
        folder: The folder.
        code: Whether Python files count, too.
        leave_out: Name of a file that does not count.
    """
    kinds = {".json", ".safetensors", ".bin"} | ({".py"} if code else set())
    files = sorted(p for p in folder.iterdir() if p.suffix in kinds and p.name != leave_out)
    states = [path.stat() for path in files]
    return _content(tuple(files), tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in states))


@functools.lru_cache(maxsize=64)
def _content(files: tuple[Path, ...], states: tuple[tuple[int, ...], ...]) -> str:
    """Digest of files; read once as long as their ``states`` stay the same."""
    return file_digest(files)
