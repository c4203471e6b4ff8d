"""Which of its own paths through a network a run takes: decided once, and the same from then on.

A path is taken if it was found equal to the library's plain one, and some only where they are also
faster on this processor. Either may turn out otherwise in another process, and then the last bits
of all that is computed do; so a run keeps what was decided in its folder and its checkpoints, and a
resumed training, a test and the caches take it from there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from smolbench.utils.processor import processor_name
from smolbench.utils.ranks import Ranks

FORWARD = 3
"""Rises when smolbench's own paths give other numbers than before."""
_KEY = "paths/"
_UNDER = "under"


@dataclass(frozen=True)
class Ways:
    """The paths that a loaded network is run by; each is the library's own where it is ``False``.

    Attributes:
        unmasked: Rows padded on the right get no attention mask: no token sees what is behind it.
        prefix: What all rows begin with is run once, and its keys and values are shared.
        branches: Continuations of one context stand in one row and do not see each other.
        packed: Rows that branch stand one behind the other without padding (CPU, no gradient).
        head: The language-model head is run at the positions that are scored, not at all.
        slices: The head's vocabulary is computed in parts (CPU, no gradient).
        products: Matrices in bfloat16 are multiplied as float32 (CPU, no gradient).
        onednn: Matrices in float32 are multiplied by oneDNN (CPU, no gradient).
        beams: Beams of a document share the keys and values of its tokens.
        together: Prompts of unlike lengths are continued side by side, padded on the left.
    """

    unmasked: bool = False
    prefix: bool = False
    branches: bool = False
    packed: bool = False
    head: bool = False
    slices: bool = False
    products: bool = False
    onednn: bool = False
    beams: bool = False
    together: bool = False


NAMES = tuple(field.name for field in fields(Ways))
_WAYS: WeakKeyDictionary[nn.Module, Ways] = WeakKeyDictionary()


def run_by(model: nn.Module, ways: Ways) -> None:
    """Say by which paths a loaded network is run from now on."""
    _WAYS[model] = ways


def ways_of(model: nn.Module) -> Ways:
    """By which paths a network is run; the library's own if nothing was said of it."""
    return _WAYS.get(model, Ways())


@functools.cache
def forward_environment() -> str:
    """What the outputs of a network depend on beside its weights and inputs, to name caches by."""
    versions = [f"{name} {version(name)}" for name in ("torch", "transformers")]
    return ", ".join([f"forward {FORWARD}", *versions])


class Paths:
    """What one run has decided.

    Attributes:
        ranks: The job's processes, which decide together.
        on_decision: Called with what :meth:`facts` gives whenever something new is decided.
    """

    def __init__(self) -> None:
        self.ranks = Ranks()
        self.on_decision: Callable[[dict[str, Any]], None] | None = None
        self._decided: dict[str, bool] = {}

    def decide(
        self, name: str, right: Callable[[], bool], faster: Callable[[], bool] = lambda: True
    ) -> bool:
        """Whether to take a path; all ranks call it, and it is taken if all of them find so.

        What was decided stands, with one exception: a path that is no longer found right is not
        taken.

        Args:
            name: One of :data:`NAMES`.
            right: Whether the path gives what the library gives, in this process.
            faster: Whether it is worth taking; asked only if nothing was decided yet.
        """
        before = self._decided.get(name)
        wanted = bool(faster() and right()) if before is None else before and right()
        taken = all(self.ranks.gather(wanted))
        if taken != before:
            self._decided[name] = taken
            if self.on_decision is not None:
                self.on_decision(self.facts())
        return taken

    def taken(self, name: str) -> bool:
        """What was decided of a path; ``False`` if nothing was."""
        return self._decided.get(name, False)

    @property
    def under(self) -> str:
        """What the decisions hold under: libraries and processor."""
        return f"{forward_environment()}, {processor_name()}"

    def facts(self) -> dict[str, Any]:
        """What was decided, under the keys of ``results.json``."""
        if not self._decided:
            return {}
        found = {f"{_KEY}{name}": self._decided[name] for name in NAMES if name in self._decided}
        return {**found, f"{_KEY}{_UNDER}": self.under}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take over what the run decided before, unless it was under other libraries.

        Args:
            facts: A run's results, or what a checkpoint holds of :meth:`facts`; other keys are
                passed over.
        """
        if facts.get(f"{_KEY}{_UNDER}") != self.under:
            return  # what was proven there is proven anew
        self._decided |= {
            name: facts[f"{_KEY}{name}"]
            for name in NAMES
            if isinstance(facts.get(f"{_KEY}{name}"), bool) and name not in self._decided
        }
