"""Which deprecation warnings are about calls that smolbench makes.

A warning filter can't tell: torch's ``Module.__call__`` stands between smolbench and the
``forward`` that warns, and many libraries blame the line that warns instead of its caller. So the
stack is looked at. What libraries call of each other is theirs to mend.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

_ROOT = Path(__file__).parents[2]
_OURS = tuple(str(_ROOT / folder) + "/" for folder in ("smolbench", "callbacks"))
_BETWEEN = {
    "contextlib",
    "functools",
    "torch.nn.modules.module",
    "torch.utils._contextlib",
    "transformers.utils.deprecation",
    "transformers.utils.generic",
}
"""Modules whose wrappers pass calls on."""
FOUND: list[str] = []
"""Deprecation warnings about smolbench's own calls, with the place of the call."""


def _caller(frame: FrameType | None) -> FrameType | None:
    """Who has called what runs in a frame, or in the wrappers around it."""
    frame = frame and frame.f_back
    while frame is not None and frame.f_globals.get("__name__") in _BETWEEN:
        frame = frame.f_back
    return frame


def watch() -> None:
    """Take down such warnings in :data:`FOUND`, whether a filter hides them or not."""
    warn = warnings.warn

    def watched(
        message: Any, category: Any = None, stacklevel: int = 1, *rest: Any, **options: Any
    ) -> None:
        kind = type(message) if isinstance(message, Warning) else category or UserWarning
        if issubclass(kind, DeprecationWarning | PendingDeprecationWarning | FutureWarning):
            # 1 blames the deprecated function itself, as 2 does where a decorator warns
            blamed: FrameType | None = sys._getframe(1)
            for _ in range(stacklevel - 2):
                blamed = blamed and blamed.f_back
            blamed = _caller(blamed)
            if blamed is not None and blamed.f_code.co_filename.startswith(_OURS):
                FOUND.append(f"{blamed.f_code.co_filename}:{blamed.f_lineno}: {message}")
        warn(message, category, stacklevel + 1, *rest, **options)

    warnings.warn = watched  # type: ignore[assignment]
