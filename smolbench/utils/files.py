"""Small file operations that never leave half a file under a good name."""

from __future__ import annotations

import contextlib
import csv
import os
from pathlib import Path
from typing import Any, TextIO

CACHE_VARIABLE = "SMOLBENCH_CACHE"


def cache_root(override: str | Path | None = None) -> Path:
    """Folder for everything that can be computed again: token ids, frozen features, the tiny model.

    Args:
        override: A folder chosen by the user; else ``$SMOLBENCH_CACHE``, else ``smolbench`` in
            ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """
    if override is not None:
        return Path(override).expanduser().absolute()
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "smolbench"


def csv_writer(file: TextIO) -> Any:  # noqa: ANN401 - the type has no public name
    """A writer of rows that end in a newline, as ``csv.writer``.

    Before Python 3.13 that quotes a line break only if it is a part of its own, so that of a text
    with a lone carriage return it writes two rows.

    Args:
        file: Open for writing, without translation of newlines.
    """
    return csv.writer(_NewlineEnds(file), lineterminator="\r\n")


class _NewlineEnds:
    """Rows that end in a carriage return and a newline, written without the former."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, row: str) -> int:
        return self._file.write(row.removesuffix("\r\n") + "\n")


def rename_when_on_disk(complete: Path, path: Path) -> None:
    """Give a complete file its good name, which it must not have on the disk before its content.

    Args:
        complete: The file under a temporary name.
        path: Its name from now on; a file that has it is replaced.
    """
    with complete.open("rb+") as file:
        os.fsync(file.fileno())
    complete.replace(path)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part of it.

    Args:
        path: The file.
        content: A text, which is written in UTF-8, or bytes.

    Raises:
        OSError: Naming the file, if it cannot be written; what was there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            temporary.write_text(content, encoding="utf-8")
        rename_when_on_disk(temporary, path)
    except OSError as error:
        error.filename = str(path)  # a full disk is reported without a name, or with the temporary
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
