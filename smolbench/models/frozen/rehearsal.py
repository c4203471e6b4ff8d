"""A part of a frozen pass, to see what the whole would take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from smolbench.models.frozen.entry import CachedOutputs, Entry
from smolbench.utils.extrapolate import Span, Timed, spread
from smolbench.utils.progress import progress_bar
from smolbench.utils.ranks import Ranks

READ = 10
"""Blocks that are timed."""


class PassRehearsal:
    """The frozen passes of a run that is only estimated: each reads a part."""

    def __init__(self) -> None:
        self.passes: list[PassPart] = []

    def begin(self, name: str, split: str, lengths: np.ndarray) -> PassPart:
        """Take down a pass.

        Args:
            name: What reads what.
            split: What is read.
            lengths: Tokens per row, shape ``(N,)``.
        """
        self.passes.append(PassPart(name, split, lengths))
        return self.passes[-1]


@dataclass
class PassPart:
    """One frozen pass of a run that is only estimated.

    Attributes:
        name: What reads what.
        split: What is read.
        lengths: Tokens per row, shape ``(N,)``.
        seconds: What the whole pass takes, or took if its outputs are kept already.
        kept: Whether they are.
        nbytes: What its outputs will add to the cache.
        read: Blocks that were read, of how many.
        spent: Seconds that were spent on it now.
    """

    name: str
    split: str
    lengths: np.ndarray
    seconds: Span = field(default_factory=lambda: Span.exactly(0.0))
    kept: bool = False
    nbytes: int = 0
    read: tuple[int, int] = (0, 0)
    spent: float = 0.0

    def reuse(self, found: CachedOutputs) -> None:
        """Take what an earlier pass has left."""
        self.seconds = Span.exactly(found.seconds)
        self.kept = True

    def stand_in(
        self,
        missing: Mapping[str, Entry],
        asked: Entry,
        blocks: list[np.ndarray],
        start_compute: Callable[[], Callable[[np.ndarray], Mapping[str, np.ndarray]]],
        ranks: Ranks,
    ) -> CachedOutputs:
        """Read a few blocks and take the first row's outputs for every row's; nothing is kept.

        What is computed from such outputs takes as long as from real ones, and means nothing.

        Args:
            missing: The entries that the pass would fill, by key.
            asked: The one to stand in for.
            blocks: Row numbers of each block.
            start_compute: Loads the network and returns the function that runs it.
            ranks: The job's processes, which would share the blocks.
        """
        start = time.perf_counter()
        mine = blocks[ranks.rank :: ranks.world_size]
        sizes = [len(block) * float(self.lengths[block].max()) for block in mine]
        compute = start_compute()
        loaded = time.perf_counter() - start
        timed = Timed()
        # the longest first, and not timed: it shows the memory that is needed, and warms up
        chosen = spread(sizes, READ)
        outputs: Mapping[str, np.ndarray] = {}
        with progress_bar(f"{self.name}: a part", len(chosen), unit="blocks") as advance:
            compute(mine[int(np.argmax(sizes))])
            for number in chosen:
                begun = time.perf_counter()
                outputs = compute(mine[number])
                timed.add(sizes[number], time.perf_counter() - begun)
                advance(1)
        self.seconds = Span.exactly(loaded) + timed.whole(sum(sizes))
        self.nbytes = sum(entry.missing_bytes for entry in missing.values())
        self.read = (len(chosen), len(mine))
        self.spent = time.perf_counter() - start
        row = outputs[asked.folder.name][0]
        whole = np.broadcast_to(row, (asked.rows, asked.width))
        network_s = self.seconds.value - loaded
        return CachedOutputs(whole, self.seconds.value, network_s, reused=False)
