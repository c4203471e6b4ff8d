"""Warnings that are seen: said when they arise, and once more wherever the result stands.

A line that scrolls by is read by nobody. What has to be known of a run's numbers goes through
:func:`warn`: it stands in ``results.json`` (``warnings``), under the closing table and on the run's
row of a report. What is over by the end of the command (a retry, a cache that is made anew) is for
the log alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

LIMIT = 10
"""Most lines that a run keeps; of more the last says how many there are."""

log = logging.getLogger("smolbench")
_said: dict[str, None] = {}  # in their order, each once


def warn(message: str, *values: object) -> None:
    """Say what has to be known of this run's numbers; the same line is said once per command.

    Args:
        message: One line, as for ``logging``: ``%s`` and the like stand for ``values``.
        *values: What is filled in.
    """
    line = " ".join((message % values if values else message).split())
    if line not in _said:
        _said[line] = None
        log.warning("%s", line)


def begin() -> None:
    """Forget what an earlier command of this process has said."""
    _said.clear()


def gathered(earlier: Sequence[str], stage: str) -> list[str]:
    """A run's warnings: of earlier commands, and of this one; at most :data:`LIMIT`.

    Args:
        earlier: What :func:`kept` has left of those that stand in the results.
        stage: ``fit``, ``validate`` or ``test``; lines of the latter two begin with it.
    """
    of_stage = "" if stage == "fit" else f"{stage}: "
    lines = [*earlier, *(f"{of_stage}{line}" for line in _said if line not in earlier)]
    lines = list(dict.fromkeys(lines))
    if len(lines) > LIMIT:
        lines[LIMIT - 1 :] = [f"and {len(lines) - LIMIT + 1} more warnings"]
    return lines


def kept(known: object, stage: str) -> list[str]:
    """Lines of a run's results that a command on it leaves: those of other stages, and of fits.

    Args:
        known: The results' ``warnings``; anything but a list is none.
        stage: The command's.
    """
    lines = [line for line in known if isinstance(line, str)] if isinstance(known, list) else []
    return lines if stage == "fit" else [x for x in lines if not x.startswith(f"{stage}: ")]
