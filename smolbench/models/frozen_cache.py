"""Outputs of frozen networks, computed once and kept on disk: features, teacher logits.

An entry is a folder: ``outputs.f32`` (``N x D`` float32, memory-mapped), ``seconds.f32`` (what each
block of rows took, 0 while it is missing) and, once all blocks are done, ``meta.json`` with a
checksum. The blocks are a pure
function of the rows' lengths, so a pass that was killed and goes on later computes the very same
batches, and so the very same bits, as one that was never killed. One pass may fill several entries.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Generator, Mapping
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
_PAUSE_S = 10.0
_HELD_BYTES = 256 << 20
"""A pass that fills several entries writes when either is reached; a kill costs at most as much."""
ComputeBlock = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Row numbers ``[b]`` of one block -> float32 outputs ``[b, D]`` of every entry, by key."""


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
    widths: Mapping[str, int],
    blocks: list[np.ndarray],
    start_compute: Callable[[], ComputeBlock],
    description: str,
    ranks: Ranks | None = None,
) -> CachedOutputs:
    """Open an entry of the cache, computing what is missing of it first.

    Safe against a kill at any moment and against other processes that want the same entry: one
    fills it, the others wait. Ranks of one job share the blocks between them.

    One pass may compute several entries. Each is then an entry like any other, found later under
    its own key alone. Those that were complete before are left as they are. The seconds of an entry
    are the whole pass's, not a share of them: so long it took to have this entry.

    Args:
        folder: Folder of all entries.
        key: The entry to open, a digest of everything that decides about its outputs.
        widths: Outputs per row, ``D``, of every entry to fill, by key; ``key`` is one of them. The
            others' checksums are not compared, which would take long.
        blocks: Row numbers of each block, see :func:`plan_blocks`.
        start_compute: Called once, only if a block is missing in any entry; loads the network and
            returns the function that runs it.
        description: What the progress bar says.
        ranks: The job's other processes; none if not given.

    Raises:
        SmolbenchError: If the folder cannot be written or the disk is full, or too full for several
            entries. What is raised on one rank ends all, see
            :meth:`smolbench.ranks.Ranks.together`.
    """
    ranks = ranks or Ranks()
    rows = sum(len(block) for block in blocks)
    with ExitStack() as locks, ranks.together():  # the locks are kept until all ranks are out
        missing, found = _missing(folder, key, widths, rows, ranks)
        if not missing:
            return found or _open_shared(folder / key, rows, widths[key])
        if ranks.rank == 0:
            for name in sorted(missing):  # in one order, else two jobs could wait for each other
                entry = folder / name
                waiting = f"Another process is computing {entry}; waiting for it."
                locks.enter_context(locked(entry / "lock", waiting))
        # another job may have filled them while this one waited
        still, found = _missing(folder, key, widths, rows, ranks)
        missing = [name for name in missing if name in still]
        if not missing:
            return found or _open_shared(folder / key, rows, widths[key])
        if ranks.rank == 0:
            for name in missing:
                _discard_damaged(folder / name)
        entries = {name: widths[name] for name in missing}
        _fill(folder, entries, blocks, start_compute, description, ranks)
        if ranks.rank == 0:
            for name, width in entries.items():
                _seal(folder / name, rows, width, ranks.world_size)
        ranks.barrier()
        opened = _open_shared(folder / key, rows, widths[key])
    return CachedOutputs(opened.outputs, opened.seconds, reused=key not in entries)


def _missing(
    folder: Path, key: str, widths: Mapping[str, int], rows: int, ranks: Ranks
) -> tuple[list[str], CachedOutputs | None]:
    """Keys of the entries that rank 0 finds incomplete, and on rank 0 the entry asked for."""
    found = None
    complete: dict[str, bool] = {}
    if ranks.rank == 0:
        complete = {
            name: _meta(folder / name, rows, width) is not None for name, width in widths.items()
        }
        found = _open(folder / key, rows, widths[key])
        complete[key] = found is not None
    return [name for name in widths if not ranks.agree(complete.get(name, False))], found


def _fill(
    folder: Path,
    widths: Mapping[str, int],
    blocks: list[np.ndarray],
    start_compute: Callable[[], ComputeBlock],
    description: str,
    ranks: Ranks,
) -> None:
    """Compute this rank's blocks that are missing in any of the entries."""
    rows = sum(len(block) for block in blocks)
    failed = folder / next(iter(widths)) / _FAILED
    if ranks.rank == 0:
        if len(widths) > 1:
            _check_space(folder, widths, rows, description)
        for name, width in widths.items():
            _allocate(folder / name, rows * width * 4, len(blocks) * 4)
        failed.unlink(missing_ok=True)
    ranks.barrier()
    done = np.full(len(blocks), True)
    with writing(folder):
        for name in widths:
            done &= np.fromfile(folder / name / _SECONDS, dtype=np.float32) > 0
    mine = range(ranks.rank, len(blocks), ranks.world_size)
    missing = [n for n in mine if not done[n]]
    if 0 < len(missing) < len(mine):
        log.info("%s: going on where an earlier pass stopped.", description)
    if missing:
        # adding a little to each of many files takes longer than the network does for a block
        pause_s = _PAUSE_S if len(widths) > 1 else 0.0
        held = 0
        start = time.perf_counter()
        with _stopping_others(failed, ranks):
            compute = start_compute()
            pending: dict[int, Mapping[str, np.ndarray]] = {}
            with progress_bar(description, sum(len(blocks[n]) for n in missing)) as advance:
                for n in missing:
                    if failed.exists():
                        break  # which rank and why is said where all meet
                    pending[n] = compute(blocks[n])
                    held += sum(outputs.nbytes for outputs in pending[n].values())
                    if time.perf_counter() - start >= pause_s or held >= _HELD_BYTES:
                        start = _save(folder, widths, blocks, pending, start)
                        pending.clear()
                        held = 0
                    advance(len(blocks[n]))
                if pending:
                    _save(folder, widths, blocks, pending, start)
    ranks.barrier()


@contextmanager
def _stopping_others(failed: Path, ranks: Ranks) -> Generator[None, None, None]:
    """Leave a mark if this rank fails: the others need not finish what nobody will seal."""
    try:
        yield
    except Exception:
        if ranks.world_size > 1:
            with suppress(OSError):  # they find out at the end of their share
                failed.touch()
        raise


def _save(
    folder: Path,
    widths: Mapping[str, int],
    blocks: list[np.ndarray],
    computed: Mapping[int, Mapping[str, np.ndarray]],
    start: float,
) -> float:
    """Write blocks to their entries and mark them as done.

    Args:
        folder: Folder of all entries.
        widths: Outputs per row of the entries to write, by key.
        blocks: Row numbers of each block.
        computed: Outputs by block and key.
        start: When work on these blocks began, loading included; they share the seconds since.

    Returns:
        When it was done, on the same clock.
    """
    rows = sum(len(block) for block in blocks)
    with writing(folder):
        # one file at a time: there may be more entries than files that a process may keep open
        for name, width in widths.items():
            outputs = np.memmap(
                folder / name / _OUTPUTS, dtype=np.float32, mode="r+", shape=(rows, width)
            )
            for n, by_entry in computed.items():
                outputs[blocks[n]] = by_entry[name]
            outputs.flush()  # the values must be in the file before the mark that says so
        now = time.perf_counter()
        for name in widths:
            seconds = np.memmap(
                folder / name / _SECONDS, dtype=np.float32, mode="r+", shape=(len(blocks),)
            )
            seconds[list(computed)] = max((now - start) / len(computed), 1e-9)
            seconds.flush()
    return now


def _check_space(folder: Path, widths: Mapping[str, int], rows: int, description: str) -> None:
    """Say what the entries will take and refuse what the disk has no room for."""
    wanted = {folder / name / _OUTPUTS: rows * width * 4 for name, width in widths.items()}
    needed = sum(size for path, size in wanted.items() if _size(path) != size)
    free = shutil.disk_usage(folder).free
    log.info(
        "%s: %d sets of outputs take %.3g GB in %s.",
        description,
        len(widths),
        sum(wanted.values()) / 1e9,
        folder,
    )
    if needed > free:
        raise SmolbenchError(
            f"{description}: {len(widths)} sets of outputs need {needed / 1e9:.3g} GB more in "
            f"{folder}, where {free / 1e9:.3g} GB are free: free some, choose another folder with "
            "`--data.cache_dir DIR`, or store fewer at once."
        )


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


def _meta(entry: Path, rows: int, width: int) -> dict[str, float] | None:
    """What a complete entry says of itself; ``None`` if it is not complete."""
    path = entry / _META
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        complete = meta["format"] == _FORMAT and (meta["rows"], meta["width"]) == (rows, width)
        stated = {"crc32": meta["crc32"], "seconds": float(meta["seconds"])}
        whole = _size(entry / _OUTPUTS) == rows * width * 4
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return stated if complete and whole else None


def _open(entry: Path, rows: int, width: int) -> CachedOutputs | None:
    """The entry if it is complete and undamaged."""
    meta = _meta(entry, rows, width)
    try:
        if meta is None or meta["crc32"] != crc32(entry / _OUTPUTS):
            return None
    except OSError:
        return None
    outputs = np.memmap(entry / _OUTPUTS, dtype=np.float32, mode="r", shape=(rows, width))
    return CachedOutputs(outputs, meta["seconds"], reused=True)


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
