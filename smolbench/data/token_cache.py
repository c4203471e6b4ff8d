"""Encoded examples on disk: written in chunks, memory-mapped when read.

An entry is a folder named by its key. Every column is one little-endian binary file (``.values``:
int32 for rows of tokens, else one number per example), rows of tokens have a second one with where
each row starts (``.offsets``: int64, N + 1 of them). ``meta.json`` names the columns and holds the
size and checksum of every file.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import time
import zlib
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from smolbench.errors import SmolbenchError
from smolbench.utils.cache_folder import crc32, locked, writing
from smolbench.utils.progress import progress_bar

FORMAT = 1
META = "meta.json"
TOKEN_DTYPE = "<i4"
OFFSET_DTYPE = "<i8"

EncodeFn = Callable[[Mapping[str, Sequence[Any]]], Mapping[str, Sequence[Any]]]
"""Turns a batch of examples, given as columns, into columns of token id lists or of numbers."""

log = logging.getLogger("smolbench")


class Ragged:
    """Rows of int32 of different length in two memory-mapped files.

    Pickling hands over the paths only, so that data loader workers map the same pages.
    """

    def __init__(self, values: Path, offsets: Path) -> None:
        """Map the files.

        Args:
            values: All rows one after the other, int32.
            offsets: Where each row starts, and the end of the last one, int64 [N + 1].
        """
        self._paths = (values, offsets)
        self._values = _map(values, TOKEN_DTYPE)
        self._offsets = _map(offsets, OFFSET_DTYPE)
        self.lengths: npt.NDArray[np.int64] = np.diff(self._offsets)

    @property
    def nbytes(self) -> int:
        """Bytes on the disk."""
        return int(self._values.nbytes + self._offsets.nbytes)

    @property
    def largest(self) -> int:
        """The largest of all values; -1 if there are none."""
        return int(self._values.max(initial=-1))

    @property
    def largest_of_rows(self) -> npt.NDArray[np.int32]:
        """The largest value of each row [N]; no row may be empty."""
        largest: npt.NDArray[np.int32] = np.maximum.reduceat(self._values, self._offsets[:-1])
        return largest

    def __len__(self) -> int:
        """Return the number of rows, N."""
        return len(self.lengths)

    def __getitem__(self, row: int) -> npt.NDArray[np.int32]:
        """Return one row, a view of the file."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"Row {row} of {len(self)}.")
        row %= len(self)
        return self._values[self._offsets[row] : self._offsets[row + 1]]

    def padded(self, rows: npt.NDArray[np.int64], fill: int) -> npt.NDArray[np.int64]:
        """Put rows into one rectangle.

        Args:
            rows: Row numbers [B].
            fill: Value to the right of shorter rows.

        Returns:
            int64 [B, T], T being the longest of these rows.
        """
        width = int(self.lengths[rows].max(initial=0))
        batch = np.full((len(rows), width), fill, dtype=np.int64)
        for line, row in zip(batch, rows.tolist(), strict=True):
            values = self[row]
            line[: len(values)] = values
        return batch

    def __reduce__(self) -> tuple[type[Ragged], tuple[Path, Path]]:
        """Pickle as the paths."""
        return Ragged, self._paths


@dataclass(frozen=True)
class TokenTable:
    """Encoded examples.

    Attributes:
        key: Digest of everything the encoding depends on.
        ragged: Columns of token ids, one row per example.
        scalars: Columns of one number per example [N]: int64, float32 or bool.
        seconds: Wall time that encoding took, also when the table was found in the cache.
    """

    key: str
    ragged: dict[str, Ragged]
    scalars: dict[str, npt.NDArray[Any]]
    seconds: float

    @property
    def nbytes(self) -> int:
        """Bytes on the disk."""
        ragged = sum(column.nbytes for column in self.ragged.values())
        return ragged + sum(values.nbytes for values in self.scalars.values())

    def __len__(self) -> int:
        """Return the number of examples, N."""
        columns: list[Sized] = [*self.ragged.values(), *self.scalars.values()]
        return len(columns[0])


def encode_to_cache(
    folder: Path,
    key: str,
    columns: Callable[[int, int], Mapping[str, Sequence[Any]]],
    n_rows: int,
    encode: EncodeFn,
    description: str,
    chunk_rows: int = 1000,
) -> TokenTable:
    """Open an entry of the cache, after encoding it where it is missing.

    Memory stays flat: no more than ``chunk_rows`` examples are held at once. Of several processes
    that ask for the same key, one encodes and the others wait for it. An entry appears under its
    name only when it is complete.

    Args:
        folder: Folder of the cache; made where missing.
        key: Digest of everything the encoding depends on.
        columns: ``columns(start, stop)`` returns the examples of that range of rows as columns.
        n_rows: Number of examples.
        encode: Turns examples into columns of token id lists or of numbers.
        description: What is encoded, for progress and messages, such as ``"Encoding train"``.
        chunk_rows: Examples encoded at a time.

    Raises:
        SmolbenchError: If the folder cannot be written or is full, or there are no examples.
        ValueError: If ``encode`` returns something else than one row of integers, or one number,
            per example and column, or no token for an example.
    """
    if n_rows < 1:
        raise SmolbenchError(f"{description}: there are no examples; check the source and limits.")
    table = open_cache(folder, key)
    if table is not None:
        return table
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f"{key}.lock", f"{description}: waiting for another process."):
        table = _open_or_remove(folder, key)  # another process may have been first
        if table is None:
            _write(folder, key, columns, n_rows, encode, description, chunk_rows)
            table = _read(folder / key, key)
    return table


def open_cache(folder: Path, key: str) -> TokenTable | None:
    """Open an entry of the cache, or return None where there is none.

    Sizes and checksums are compared. An entry that is damaged is removed with a warning, and None
    is returned, so that it is made again.
    """
    if not (folder / key).exists():
        return None
    try:
        return _read(folder / key, key)
    except _DamagedError:
        pass
    # whoever holds the lock may just have replaced the damaged entry: look again before removing
    with locked(folder / f"{key}.lock", f"Checking {key}: waiting for another process."):
        return _open_or_remove(folder, key)


class _DamagedError(Exception):
    """An entry is not what its ``meta.json`` says."""


def _open_or_remove(folder: Path, key: str) -> TokenTable | None:
    """Open an entry; remove it if it is damaged. Needs the entry's lock."""
    if not (folder / key).exists():
        return None
    try:
        return _read(folder / key, key)
    except _DamagedError as error:
        log.warning(
            "The cached encoding %s is damaged (%s): it is made again.", folder / key, error
        )
        with writing(folder):
            shutil.rmtree(folder / key)
        return None


def _read(entry: Path, key: str) -> TokenTable:
    """Check and map an entry."""
    try:
        meta = json.loads((entry / META).read_text(encoding="utf-8"))
        if meta["format"] != FORMAT or meta["key"] != key:
            raise _DamagedError(f"{META} is of another format or key")
        for name, expected in meta["files"].items():
            path = entry / name
            if path.stat().st_size != expected["bytes"]:
                raise _DamagedError(f"{name} has {path.stat().st_size} bytes")
            if crc32(path) != expected["crc32"]:
                raise _DamagedError(f"{name} has another checksum")
        ragged: dict[str, Ragged] = {}
        scalars: dict[str, npt.NDArray[Any]] = {}
        for name, dtype in meta["columns"].items():
            if dtype == "ragged":
                ragged[name] = Ragged(entry / f"{name}.values", entry / f"{name}.offsets")
            else:
                scalars[name] = _map(entry / f"{name}.values", dtype)
        n_rows, seconds = int(meta["n_rows"]), float(meta["seconds"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, PermissionError):
            raise SmolbenchError(
                f"The cached encoding {entry} may not be read: change its permissions, or choose"
                " another folder with `--data.cache_dir DIR`."
            ) from error
        raise _DamagedError(f"{type(error).__name__}: {error}") from error
    columns: list[Sized] = [*ragged.values(), *scalars.values()]
    if any(len(column) != n_rows for column in columns):
        raise _DamagedError("columns of different length")
    return TokenTable(key=key, ragged=ragged, scalars=scalars, seconds=seconds)


def _write(
    folder: Path,
    key: str,
    columns: Callable[[int, int], Mapping[str, Sequence[Any]]],
    n_rows: int,
    encode: EncodeFn,
    description: str,
    chunk_rows: int,
) -> None:
    """Encode into a temporary folder and rename it. Needs the entry's lock."""
    started = time.monotonic()
    part = folder / f"{key}.part"
    shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
    writers: dict[str, _Writer] = {}
    try:
        with writing(folder):
            part.mkdir()
        with progress_bar(description, n_rows) as advance:
            for start in range(0, n_rows, chunk_rows):
                stop = min(start + chunk_rows, n_rows)
                encoded = encode(columns(start, stop))
                if start == 0:
                    if not encoded:
                        raise ValueError("encode returned no columns.")
                    with writing(folder):
                        writers = {name: _new_writer(part, name, encoded[name]) for name in encoded}
                if encoded.keys() != writers.keys():
                    raise ValueError(
                        f"encode returned the columns {sorted(encoded)} for examples {start} to"
                        f" {stop - 1}, but {sorted(writers)} before."
                    )
                for name, rows in encoded.items():
                    if len(rows) != stop - start:
                        raise ValueError(
                            f"encode returned {len(rows)} rows of {name!r} for examples {start} to"
                            f" {stop - 1}; it must return one row per example."
                        )
                    with writing(folder):
                        writers[name].append(rows, start)
                advance(stop - start)
        with writing(folder):
            files = {
                stream.path.name: {"bytes": stream.bytes, "crc32": stream.crc32}
                for writer in writers.values()
                for stream in writer.close()
            }
            meta = {
                "format": FORMAT,
                "key": key,
                "n_rows": n_rows,
                "columns": {name: writer.kind for name, writer in writers.items()},
                "seconds": time.monotonic() - started,
                "files": files,
            }
            (part / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
            part.replace(folder / key)
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        shutil.rmtree(part, ignore_errors=True)
        raise


class _Stream:
    """A file that is appended to, with its size and checksum."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self.crc32 = 0
        self.file: BinaryIO = path.open("wb")

    def append(self, array: npt.NDArray[Any]) -> None:
        raw = array.tobytes()
        self.file.write(raw)
        self.bytes += len(raw)
        self.crc32 = zlib.crc32(raw, self.crc32)


class _Writer:
    """One column being written."""

    kind: str

    def __init__(self, part: Path, name: str) -> None:
        self.name = name
        self.values = _Stream(part / f"{name}.values")

    def streams(self) -> list[_Stream]:
        return [self.values]

    def append(self, rows: Sequence[Any], start: int) -> None:
        raise NotImplementedError

    def close(self) -> list[_Stream]:
        for stream in self.streams():
            stream.file.close()
        return self.streams()

    def abandon(self) -> None:
        for stream in self.streams():
            try:
                stream.file.close()
            except OSError:  # a full disk fails here once more; the first failure is reported
                continue


class _RaggedWriter(_Writer):
    kind = "ragged"

    def __init__(self, part: Path, name: str) -> None:
        super().__init__(part, name)
        self.offsets = _Stream(part / f"{name}.offsets")
        self.offsets.append(np.zeros(1, dtype=OFFSET_DTYPE))
        self.end = 0

    def streams(self) -> list[_Stream]:
        return [self.values, self.offsets]

    def append(self, rows: Sequence[Any], start: int) -> None:
        try:
            lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
            flat = np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int64)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"encode must return a list of integers per example in {self.name!r}; among"
                f" examples {start} to {start + len(rows) - 1} it did not: {error}"
            ) from error
        if self.name == "input_ids" and not lengths.all():
            raise ValueError(
                f"encode returned no token for example {start + int(lengths.argmin())}; every"
                " example needs one, such as an end-of-text token for an empty text."
            )
        bounds = np.iinfo(np.int32)
        if len(flat) and not (bounds.min <= flat.min() and flat.max() <= bounds.max):
            raise ValueError(f"encode returned numbers beyond 32 bits in {self.name!r}.")
        self.values.append(flat.astype(TOKEN_DTYPE))
        self.offsets.append((self.end + lengths.cumsum()).astype(OFFSET_DTYPE))
        self.end += int(lengths.sum())


class _ScalarWriter(_Writer):
    def __init__(self, part: Path, name: str, kind: str) -> None:
        super().__init__(part, name)
        self.kind = kind

    def append(self, rows: Sequence[Any], start: int) -> None:
        array = np.asarray(rows)
        if array.ndim != 1 or not np.can_cast(array.dtype, self.kind, casting="same_kind"):
            raise ValueError(
                f"encode must return one number per example in {self.name!r}, of one kind"
                f" throughout ({np.dtype(self.kind).name}); examples {start} to"
                f" {start + len(rows) - 1} are {array.dtype.name} of shape {array.shape}."
            )
        self.values.append(array.astype(self.kind))


def _new_writer(part: Path, name: str, rows: Sequence[Any]) -> _Writer:
    """Choose a column's storage by its first example."""
    if not name.isidentifier():
        raise ValueError(f"encode returned a column named {name!r}; use a plain identifier.")
    if len(rows) and np.ndim(rows[0]) == 1:
        return _RaggedWriter(part, name)
    kinds = {"b": "|b1", "i": "<i8", "u": "<i8", "f": "<f4"}  # float32: MPS has no float64
    array = np.asarray(rows)
    if array.ndim != 1 or array.dtype.kind not in kinds:
        raise ValueError(
            f"encode returned {array.dtype.name} of shape {array.shape} in {name!r}; a column holds"
            " one list of integers or one number per example."
        )
    return _ScalarWriter(part, name, kinds[array.dtype.kind])


def _map(path: Path, dtype: str) -> npt.NDArray[Any]:
    """Memory-map a file as a plain array; an empty file cannot be mapped."""
    if path.stat().st_size == 0:
        return np.zeros(0, dtype=dtype)
    # a plain view: slicing a np.memmap object costs several times as much
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))
