"""Outputs of frozen networks, computed once and kept on disk: features, teacher logits.

An entry is a folder: ``outputs.f32`` (``N x D`` float32, memory-mapped), ``seconds.f32`` (what each
block of rows took, 0 while it is missing) and, once all blocks are done, ``meta.json`` with a
checksum. The blocks are a pure
function of the rows' lengths, so a pass that was killed and goes on later computes the very same
batches, and so the very same bits, as one that was never killed.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smolbench.cache_folder import crc32, locked, writing
from smolbench.errors import SmolbenchError
from smolbench.files import write_atomically
from smolbench.progress import progress_bar
from smolbench.ranks import Ranks

log = logging.getLogger("smolbench")

_FORMAT = 1
_OUTPUTS, _SECONDS, _META = "outputs.f32", "seconds.f32", "meta.json"
_FAILED = "failed"
ComputeBlock = Callable[[np.ndarray], np.ndarray]
"""Row numbers ``[b]`` of one block -> float32 outputs ``[b, D]``."""


@dataclass(frozen=True)
class CachedOutputs:
    """A complete entry of the cache.

    Attributes:
        outputs: Memory-mapped float32, shape ``(N, D)``.
        seconds: What it took to compute, in wall seconds, added up over interrupted passes.
        reused: Whether it was complete before it was asked for.
    """

    outputs: np.ndarray
    seconds: float
    reused: bool


def plan_blocks(lengths: np.ndarray, tokens_per_block: int) -> list[np.ndarray]:
    """Cut rows into blocks of about equal padded size, longest rows first.

    Args:
        lengths: Tokens per row, shape ``(N,)``.
        tokens_per_block: Most tokens in a block, padding included; a longer row is a block alone.

    Returns:
        Row numbers of each block; every row stands in exactly one.
    """
    order = np.argsort(-lengths, kind="stable")
    blocks: list[np.ndarray] = []
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        stop = start + max(1, tokens_per_block // longest)
        blocks.append(order[start:stop])
        start = stop
    return blocks


def cached_outputs(
    folder: Path,
    key: str,
    *,
    width: int,
    blocks: list[np.ndarray],
    start_compute: Callable[[], ComputeBlock],
    description: str,
    ranks: Ranks | None = None,
) -> CachedOutputs:
    """Open an entry of the cache, computing what is missing of it first.

    Safe against a kill at any moment and against other processes that want the same entry: one
    fills it, the others wait. Ranks of one job share the blocks between them.

    Args:
        folder: Folder of all entries.
        key: Digest of everything that decides about the outputs.
        width: Outputs per row, ``D``.
        blocks: Row numbers of each block, see :func:`plan_blocks`.
        start_compute: Called once, only if a block is missing; loads the network and returns the
            function that runs it.
        description: What the progress bar says.
        ranks: The job's other processes; none if not given.

    Raises:
        SmolbenchError: If the folder cannot be written or the disk is full. What is raised on one
            rank ends all, see :meth:`smolbench.ranks.Ranks.together`.
    """
    ranks = ranks or Ranks()
    entry = folder / key
    rows = sum(len(block) for block in blocks)
    with ExitStack() as locks, ranks.together():  # the lock is kept until all ranks are out
        found = _open(entry, rows, width) if ranks.rank == 0 else None
        if ranks.agree(found is not None):
            return found or _open_shared(entry, rows, width)
        if ranks.rank == 0:
            waiting = f"Another process is computing {entry}; waiting for it."
            locks.enter_context(locked(entry / "lock", waiting))
            # another job may have filled it while this one waited
            found = _open(entry, rows, width)
        if ranks.agree(found is not None):
            return found or _open_shared(entry, rows, width)
        if ranks.rank == 0:
            _discard_damaged(entry)
        _fill(entry, width, blocks, start_compute, description, ranks)
        if ranks.rank == 0:
            _seal(entry, rows, width, ranks.world_size)
        ranks.barrier()
        sealed = _open_shared(entry, rows, width)
    return CachedOutputs(sealed.outputs, sealed.seconds, reused=False)


def _fill(
    entry: Path,
    width: int,
    blocks: list[np.ndarray],
    start_compute: Callable[[], ComputeBlock],
    description: str,
    ranks: Ranks,
) -> None:
    """Compute this rank's missing blocks."""
    rows = sum(len(block) for block in blocks)
    if ranks.rank == 0:
        _allocate(entry, rows * width * 4, len(blocks) * 4)
        (entry / _FAILED).unlink(missing_ok=True)
    ranks.barrier()
    with writing(entry):
        outputs = np.memmap(entry / _OUTPUTS, dtype=np.float32, mode="r+", shape=(rows, width))
        seconds = np.memmap(entry / _SECONDS, dtype=np.float32, mode="r+", shape=(len(blocks),))
    mine = range(ranks.rank, len(blocks), ranks.world_size)
    missing = [n for n in mine if not seconds[n]]
    if 0 < len(missing) < len(mine):
        log.info("%s: going on where an earlier pass stopped.", description)
    if missing:
        start = time.perf_counter()
        with _stopping_others(entry, ranks):
            compute = start_compute()
            with progress_bar(description, sum(len(blocks[n]) for n in missing)) as advance:
                for n in missing:
                    if (entry / _FAILED).exists():
                        break  # which rank and why is said where all meet
                    computed = compute(blocks[n])
                    with writing(entry):
                        outputs[blocks[n]] = computed
                        outputs.flush()  # values must be in the file before the mark that says so
                    now = time.perf_counter()
                    seconds[n] = max(now - start, 1e-9)  # the first block's holds the loading too
                    start = now
                    advance(len(blocks[n]))
    seconds.flush()
    ranks.barrier()


@contextmanager
def _stopping_others(entry: Path, ranks: Ranks) -> Generator[None, None, None]:
    """Leave a mark if this rank fails: the others need not finish what nobody will seal."""
    try:
        yield
    except Exception:
        if ranks.world_size > 1:
            with suppress(OSError):  # they find out at the end of their share
                (entry / _FAILED).touch()
        raise


def _allocate(entry: Path, outputs_size: int, seconds_size: int) -> None:
    """Make files of zeros of these sizes in bytes, unless an earlier pass has made them."""
    with writing(entry):
        if _size(entry / _OUTPUTS) != outputs_size:
            # marks without their outputs would pass zeros off as computed
            (entry / _SECONDS).unlink(missing_ok=True)
        for path, size in ((entry / _OUTPUTS, outputs_size), (entry / _SECONDS, seconds_size)):
            if _size(path) != size:
                _write_zeros(path, size)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _write_zeros(path: Path, size: int) -> None:
    # written out, not left as a hole: a full disk is then an error now, not a bus error later
    with path.open("wb") as file:
        zeros = bytes(1 << 20)
        for start in range(0, size, len(zeros)):
            file.write(zeros[: min(len(zeros), size - start)])


def _seal(entry: Path, rows: int, width: int, world_size: int) -> None:
    with writing(entry):
        seconds = np.fromfile(entry / _SECONDS, dtype=np.float32)
        if not seconds.all():
            raise SmolbenchError(
                f"Blocks are missing in {entry} after the pass: the cache folder must be on a disk "
                "on which several nodes can write parts of one file (--data.cache_dir)."
            )
        meta = {
            "format": _FORMAT,
            "rows": rows,
            "width": width,
            "seconds": float(seconds.sum()) / world_size,  # ranks work side by side
            "crc32": crc32(entry / _OUTPUTS),
        }
        write_atomically(entry / _META, json.dumps(meta))


def _open(entry: Path, rows: int, width: int) -> CachedOutputs | None:
    """The entry if it is complete and undamaged."""
    meta_path = entry / _META
    if not meta_path.is_file():
        return None
    try:
        meta = json.loads(meta_path.read_text(encoding="utf-8"))
        intact = (
            meta["format"] == _FORMAT
            and (meta["rows"], meta["width"]) == (rows, width)
            and meta["crc32"] == crc32(entry / _OUTPUTS)
        )
        seconds = float(meta["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        return None
    outputs = np.memmap(entry / _OUTPUTS, dtype=np.float32, mode="r", shape=(rows, width))
    return CachedOutputs(outputs, seconds, reused=True)


def _discard_damaged(entry: Path) -> None:
    """Remove what was finished once and cannot be opened. Needs the entry's lock."""
    if (entry / _META).is_file():
        log.warning("The cached outputs in %s are damaged; they are computed again.", entry)
        with writing(entry):
            for name in (_META, _SECONDS, _OUTPUTS):
                (entry / name).unlink(missing_ok=True)


def _open_shared(entry: Path, rows: int, width: int) -> CachedOutputs:
    """An entry that rank 0 has seen complete."""
    found = _open(entry, rows, width)
    if found is None:
        raise SmolbenchError(
            f"{entry} is complete on the first rank but cannot be read on this one: the cache "
            "folder must be on a disk that all ranks share (--data.cache_dir)."
        )
    return found
