"""One entry of the cache of frozen networks' outputs, as files.

An entry is a folder: ``outputs.f32`` (``N x D`` float32, memory-mapped), ``seconds.f32`` (two
numbers for each block of rows: what it took, 0 while it is missing, and the network's part of that)
and, once all blocks are done, ``meta.json`` with a checksum. ``peaks.json`` says what memory the
pass has taken so far; the longest rows come first.

Processes on one machine write to one file. On a network disk, two machines that write to one page
of a file may undo each other's work without an error; so every node but the first writes to files
of its own (``outputs.node1.f32``), which the first process adds to the entry's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from smolbench.errors import SmolbenchError
from smolbench.utils.cache_folder import crc32, writing
from smolbench.utils.files import write_atomically

log = logging.getLogger("smolbench")

_FORMAT = 2
_OUTPUTS, _SECONDS, _META = "outputs.f32", "seconds.f32", "meta.json"
_PEAKS = "peaks.json"
_MARK = 8
"""Bytes that say what a block took."""


@dataclass(frozen=True)
class CachedOutputs:
    """A complete entry of the cache.

    Attributes:
        outputs: Memory-mapped float32, shape ``(N, D)``.
        seconds: What it took to compute, in wall seconds, added up over interrupted passes.
        network_s: The network's part of that, without loading and without the disk.
        reused: Whether it was complete before it was asked for.
        peaks_mib: Peak memory of the first rank while it was computed, by kind (``rss``,
            ``allocated``, ``reserved``); empty where that is not known.
    """

    outputs: np.ndarray
    seconds: float
    network_s: float
    reused: bool
    peaks_mib: Mapping[str, float] = field(default_factory=dict)


def peak_costs(passes: Iterable[CachedOutputs], stage: str) -> dict[str, float]:
    """Memory of passes under the keys of ``results.json``: as when they ran, also when reused."""
    costs: dict[str, float] = {}
    for done in passes:
        for kind, mib in done.peaks_mib.items():
            for key in (f"cost/peak_{kind}_mib", f"cost/peak_{kind}_mib_{stage}"):
                costs[key] = max(mib, costs.get(key, 0.0))
    return costs


Took = tuple[float, float]
"""Seconds of a block, and the network's part of them."""


@dataclass(frozen=True)
class Entry:
    """The files of one entry.

    Attributes:
        folder: Where they are.
        rows: Rows of outputs, ``N``.
        width: Outputs per row, ``D``.
    """

    folder: Path
    rows: int
    width: int

    @property
    def lock(self) -> Path:
        """Held by who fills it."""
        return self.folder / "lock"

    @property
    def nbytes(self) -> int:
        """Size of the outputs."""
        return self.rows * self.width * 4

    @property
    def missing_bytes(self) -> int:
        """What the outputs still take on the disk."""
        return 0 if _size(self.folder / _OUTPUTS) == self.nbytes else self.nbytes

    # -- while it is filled -----------------------------------------------------------------------

    def allocate(self, blocks: int, node: int = 0) -> None:
        """Make a node's files, of zeros, unless an earlier pass has made them."""
        outputs, seconds = self._outputs(node), self._seconds(node)
        with writing(self.folder):
            if _size(outputs) != self.nbytes:
                # marks without their outputs would pass zeros off as computed
                seconds.unlink(missing_ok=True)
            for path, size in ((outputs, self.nbytes), (seconds, blocks * _MARK)):
                if _size(path) != size:
                    _write_zeros(path, size)

    def done(self) -> np.ndarray:
        """Which blocks are computed, bool, shape ``(blocks,)``."""
        with writing(self.folder):
            return np.asarray(self._marks()[:, 0] > 0)

    def write(
        self,
        blocks: list[np.ndarray],
        computed: Iterable[tuple[int, np.ndarray]],
        node: int = 0,
    ) -> None:
        """Write the outputs of blocks so that they survive a kill.

        Args:
            blocks: Row numbers of each block.
            computed: Numbers of blocks and their outputs ``(b, D)``.
            node: Whose file they belong into.
        """
        outputs = self._open_outputs(node, "r+")
        for n, values in computed:
            outputs[blocks[n]] = values
        outputs.flush()

    def mark(self, took: Mapping[int, Took], node: int = 0) -> None:
        """Say of blocks that are written what they took; they are done from then on."""
        marks = np.memmap(self._seconds(node), dtype=np.float32, mode="r+")
        marks.reshape(-1, 2)[list(took)] = list(took.values())
        marks.flush()

    def note_peaks(self, peaks_mib: Mapping[str, float]) -> None:
        """Say what memory a pass has taken; of several attempts the most counts."""
        known = self._peaks()
        most = {kind: max(mib, known.get(kind, 0.0)) for kind, mib in peaks_mib.items()}
        with writing(self.folder):
            write_atomically(self.folder / _PEAKS, json.dumps(known | most))

    def _peaks(self) -> dict[str, float]:
        try:
            return dict(json.loads((self.folder / _PEAKS).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def _marks(self, node: int = 0) -> np.ndarray:
        """What each block took, float32, shape ``(blocks, 2)``."""
        return np.fromfile(self._seconds(node), dtype=np.float32).reshape(-1, 2)

    def add_parts(self, blocks: list[np.ndarray], nodes: int) -> None:
        """Move what all other nodes have done into the entry's own files.

        Args:
            blocks: Row numbers of each block.
            nodes: Nodes of this job; there may be files of more, left by a larger one.
        """
        # the names are asked for one by one, too: a network disk may be late to list them
        left = (path.name.split(".")[1] for path in self.folder.glob("seconds.node*.f32"))
        found = {int(name[4:]) for name in left if name[4:].isdigit()}
        with writing(self.folder):
            for node in sorted(found | set(range(1, nodes))):
                self._add_part(node, blocks)

    def _add_part(self, node: int, blocks: list[np.ndarray]) -> None:
        sizes = (_size(self._outputs(node)), _size(self._seconds(node)))
        if sizes == (self.nbytes, len(blocks) * _MARK):
            took = self._marks(node)
            new = np.flatnonzero((took[:, 0] > 0) & ~self.done()).tolist()
            part = self._open_outputs(node, "r")
            self.write(blocks, ((n, part[blocks[n]]) for n in new))
            self.mark({n: tuple(took[n].tolist()) for n in new})
        # the marks last: they are what a later job finds the rest by
        self._outputs(node).unlink(missing_ok=True)
        self._seconds(node).unlink(missing_ok=True)

    def seal(self) -> None:
        """Say that it is complete.

        Raises:
            SmolbenchError: If a block is missing.
        """
        with writing(self.folder):
            took = self._marks()
            if not took[:, 0].all():
                raise SmolbenchError(
                    f"Blocks are missing in {self.folder} after the pass: the cache folder must be "
                    "on a disk that all nodes share (--data.cache_dir)."
                )
            meta = {
                "format": _FORMAT,
                "rows": self.rows,
                "width": self.width,
                "seconds": float(took[:, 0].sum()),
                "network_s": float(took[:, 1].sum()),
                "crc32": crc32(self._outputs()),
                "peaks_mib": self._peaks(),
            }
            write_atomically(self.folder / _META, json.dumps(meta))

    # -- once it is complete ----------------------------------------------------------------------

    def stated(self) -> dict[str, Any] | None:
        """What it says of itself, ``crc32``, times and memory; ``None`` if it is not complete."""
        try:
            meta = json.loads((self.folder / _META).read_text(encoding="utf-8"))
            shape = (meta["format"], meta["rows"], meta["width"])
            stated = {
                "crc32": meta["crc32"],
                "seconds": float(meta["seconds"]),
                "network_s": float(meta["network_s"]),
                "peaks_mib": dict(meta.get("peaks_mib", {})),  # earlier versions did not measure
            }
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return (
            stated if shape == (_FORMAT, self.rows, self.width) and not self.missing_bytes else None
        )

    def open(self) -> CachedOutputs | None:
        """The outputs, if they are complete and undamaged."""
        stated = self.stated()
        try:
            if stated is None or stated["crc32"] != crc32(self._outputs()):
                return None
        except OSError:
            return None
        return CachedOutputs(
            self._open_outputs(0, "r"),
            stated["seconds"],
            stated["network_s"],
            reused=True,
            peaks_mib=stated["peaks_mib"],
        )

    def open_shared(self) -> CachedOutputs:
        """The outputs, which rank 0 has seen complete.

        Raises:
            SmolbenchError: If they cannot be read here.
        """
        found = self.open()
        if found is None:
            raise SmolbenchError(
                f"{self.folder} is complete on the first rank but cannot be read on this one: the "
                "cache folder must be on a disk that all ranks share (--data.cache_dir)."
            )
        return found

    def discard_damaged(self) -> None:
        """Remove what was finished once and cannot be opened. Needs the entry's lock."""
        if (self.folder / _META).is_file():
            log.warning(
                "The cached outputs in %s are damaged; they are computed again.", self.folder
            )
            with writing(self.folder):
                own = (self.folder / _META, self.folder / _PEAKS, self._seconds(), self._outputs())
                for path in own:
                    path.unlink(missing_ok=True)

    def _outputs(self, node: int = 0) -> Path:
        return _of_node(self.folder / _OUTPUTS, node)

    def _seconds(self, node: int = 0) -> Path:
        return _of_node(self.folder / _SECONDS, node)

    def _open_outputs(self, node: int, mode: Literal["r", "r+"]) -> np.memmap[Any, Any]:
        shape = (self.rows, self.width)
        return np.memmap(self._outputs(node), dtype=np.float32, mode=mode, shape=shape)


def _of_node(path: Path, node: int) -> Path:
    return path if node == 0 else path.with_suffix(f".node{node}{path.suffix}")


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _write_zeros(path: Path, size: int) -> None:
    # written out, not left as a hole: a full disk is then an error now, not a bus error later
    with path.open("wb") as file:
        zeros = bytes(1 << 20)
        for start in range(0, size, len(zeros)):
            file.write(zeros[: min(len(zeros), size - start)])
