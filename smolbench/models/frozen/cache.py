"""Outputs of frozen networks, computed once and kept on disk: features, teacher logits.

The blocks of rows that a pass computes are a pure function of the rows' lengths, and each is marked
once it is written. So a pass that was killed and goes on later computes the very same batches, and
so the very same bits, as one that was never killed. One pass may fill several entries.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from smolbench.errors import SmolbenchError
from smolbench.models.frozen.entry import CachedOutputs, Entry
from smolbench.models.frozen.rehearsal import PassPart
from smolbench.utils.cache_folder import locked, writing
from smolbench.utils.notices import warn
from smolbench.utils.progress import progress_bar
from smolbench.utils.ranks import Ranks

log = logging.getLogger("smolbench")

_FAILED = "failed"
_PAUSE_S = 10.0
_HELD_BYTES = 256 << 20
"""A pass that fills several entries writes when either is reached; a kill costs at most as much."""
ComputeBlock = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Row numbers ``[b]`` of one block -> float32 outputs ``[b, D]`` of every entry, by key."""
Entries = Mapping[str, Entry]
_Computed = tuple[Mapping[str, np.ndarray], float]
"""Outputs of a block for every entry, by key, and the seconds that the network took for them."""


def tokens_at_once(device: torch.device) -> int:
    """Most tokens, padding included, that a frozen network reads best at once on a device.

    On a CPU the activations of a block should stay in its caches; a GPU wants much to do.
    """
    return 1024 if device.type == "cpu" else 4096


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
    device: torch.device,
    ranks: Ranks | None = None,
    part: PassPart | None = None,
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
        device: Where the network runs; its memory is measured.
        ranks: The job's other processes; none if not given.
        part: Given where the run is only estimated: if the entry is missing, a few blocks are
            computed, and nothing is written.

    Raises:
        SmolbenchError: If the folder cannot be written or the disk is full, or too full for several
            entries. What is raised on one rank ends all, see
            :meth:`smolbench.utils.ranks.Ranks.together`.
    """
    ranks = ranks or Ranks()
    rows = sum(len(block) for block in blocks)
    entries = {name: Entry(folder / name, rows, width) for name, width in widths.items()}
    asked = entries[key]
    with ExitStack() as locks, ranks.together():  # the locks are kept until all ranks are out
        missing, found = _missing(entries, key, ranks)
        if not missing:
            opened = found or asked.open_shared()
            if part is not None:
                part.reuse(opened)
            elif not opened.peaks_mib and ranks.rank == 0:
                warn(
                    "%s: this was cached by a version that did not measure its memory, so that "
                    "the run's peak memory is without it.",
                    description,
                )
            return opened
        if part is not None:
            return part.stand_in(missing, asked, blocks, start_compute, ranks)
        if ranks.rank == 0:
            for name in sorted(missing):  # in one order, else two jobs could wait for each other
                waiting = f"Another process is computing {missing[name].folder}; waiting for it."
                locks.enter_context(locked(missing[name].lock, waiting))
        # another job may have filled them while this one waited
        still, found = _missing(entries, key, ranks)
        missing = {name: entry for name, entry in missing.items() if name in still}
        if not missing:
            return found or asked.open_shared()
        _prepare(missing, blocks, description, ranks)
        _fill(missing, blocks, start_compute, description, device, ranks)
        if ranks.rank == 0:
            for entry in missing.values():
                entry.add_parts(blocks, ranks.nodes)
                entry.seal()
        ranks.barrier()
        opened = asked.open_shared()
    return replace(opened, reused=key not in missing)


def _missing(entries: Entries, key: str, ranks: Ranks) -> tuple[Entries, CachedOutputs | None]:
    """The entries that rank 0 finds incomplete, and on rank 0 the one asked for if it is not."""
    found = None
    complete: dict[str, bool] = {}
    if ranks.rank == 0:
        complete = {name: entry.stated() is not None for name, entry in entries.items()}
        found = entries[key].open()
        complete[key] = found is not None
    missing = [name for name in entries if not ranks.agree(complete.get(name, False))]
    return {name: entries[name] for name in missing}, found


def _prepare(entries: Entries, blocks: list[np.ndarray], description: str, ranks: Ranks) -> None:
    """Make the files that all ranks write to, with what earlier passes have left in them."""
    if ranks.rank == 0:
        for entry in entries.values():
            entry.discard_damaged()
        if len(entries) > 1:
            _check_space(entries, description)
        for entry in entries.values():
            entry.allocate(len(blocks))
            entry.add_parts(blocks, nodes=1)
        _failed(entries).unlink(missing_ok=True)
    ranks.barrier()
    if ranks.node > 0 and ranks.local_rank == 0:
        for entry in entries.values():
            if not entry.folder.is_dir():
                raise SmolbenchError(
                    f"{entry.folder} has been made on the first node but is not seen on node "
                    f"{ranks.node}: the cache folder must be on a disk that all nodes share "
                    "(--data.cache_dir)."
                )
            entry.allocate(len(blocks), ranks.node)
    ranks.barrier()


def _fill(
    entries: Entries,
    blocks: list[np.ndarray],
    start_compute: Callable[[], ComputeBlock],
    description: str,
    device: torch.device,
    ranks: Ranks,
) -> None:
    """Compute this rank's blocks that are missing in any of the entries."""
    from smolbench.callbacks.memory import peaks_within  # lazy: Lightning, for a pass only

    failed = _failed(entries)
    done = np.logical_and.reduce([entry.done() for entry in entries.values()])
    mine = range(ranks.rank, len(blocks), ranks.world_size)
    missing = [n for n in mine if not done[n]]
    if 0 < len(missing) < len(mine):
        log.info("%s: going on where an earlier pass stopped.", description)
    if missing:
        # adding a little to each of many files takes longer than the network does for a block
        pause_s = _PAUSE_S if len(entries) > 1 else 0.0
        held = 0
        start = time.perf_counter()
        with _stopping_others(failed, ranks), peaks_within(device) as peaks:

            def note_peaks() -> None:
                if ranks.rank == 0:
                    for entry in entries.values():
                        entry.note_peaks(peaks())

            compute = start_compute()
            pending: dict[int, _Computed] = {}
            noted = False
            with progress_bar(description, sum(len(blocks[n]) for n in missing)) as advance:
                for n in missing:
                    if failed.exists():
                        break  # which rank and why is said where all meet
                    begun = time.perf_counter()
                    outputs = compute(blocks[n])
                    pending[n] = (outputs, time.perf_counter() - begun)
                    held += sum(values.nbytes for values in outputs.values())
                    if time.perf_counter() - start >= pause_s or held >= _HELD_BYTES:
                        start = _save(entries, blocks, pending, start, ranks)
                        pending.clear()
                        held = 0
                        if not noted:  # the longest rows: a pass that goes on later has others
                            note_peaks()
                            noted = True
                    advance(len(blocks[n]))
                if pending:
                    _save(entries, blocks, pending, start, ranks)
            note_peaks()
            del compute  # the network goes within what is measured
    ranks.barrier()


def _failed(entries: Entries) -> Path:
    return next(iter(entries.values())).folder / _FAILED


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
    entries: Entries,
    blocks: list[np.ndarray],
    computed: Mapping[int, _Computed],
    start: float,
    ranks: Ranks,
) -> float:
    """Write blocks to their entries and mark them as done.

    Args:
        entries: What to write, by key.
        blocks: Row numbers of each block.
        computed: Outputs by block and key, and the network's seconds.
        start: When work on these blocks began, loading included; they share the seconds since.
        ranks: This process among those that work side by side.

    Returns:
        When it was done, on the same clock.
    """
    folder = next(iter(entries.values())).folder
    with writing(folder):
        # one file at a time: there may be more entries than files that a process may keep open
        for name, entry in entries.items():
            of_entry = ((n, outputs[name]) for n, (outputs, _) in computed.items())
            entry.write(blocks, of_entry, ranks.node)
        now = time.perf_counter()
        # ranks work side by side, and an interrupted pass may go on with another number of them
        each = max((now - start) / len(computed) / ranks.world_size, 1e-9)
        took = {n: (each, network_s / ranks.world_size) for n, (_, network_s) in computed.items()}
        for entry in entries.values():
            entry.mark(took, ranks.node)
    return now


def _check_space(entries: Entries, description: str) -> None:
    """Say what the entries will take and refuse what the disk has no room for."""
    folder = next(iter(entries.values())).folder.parent
    needed = sum(entry.missing_bytes for entry in entries.values())
    free = shutil.disk_usage(folder).free
    log.info(
        "%s: %d sets of outputs take %.3g GB in %s.",
        description,
        len(entries),
        sum(entry.nbytes for entry in entries.values()) / 1e9,
        folder,
    )
    if needed > free:
        raise SmolbenchError(
            f"{description}: {len(entries)} sets of outputs need {needed / 1e9:.3g} GB more in "
            f"{folder}, where {free / 1e9:.3g} GB are free: free some, choose another folder with "
            "`--data.cache_dir DIR`, or store fewer at once."
        )
