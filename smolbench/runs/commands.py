"""``smolbench runs``: the command itself; nothing of it needs torch."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from smolbench.runs.record import RunRecord, find_folders, read_records

log = logging.getLogger("smolbench")


def list_runs(arguments: Sequence[str]) -> int:
    """Run ``smolbench runs``.

    Returns:
        The exit status: 0, or 1 if a run's results cannot be read and it is passed over.

    Raises:
        SmolbenchError: If there is no such folder, or no run in it.
    """
    from smolbench.runs.listing import as_json, as_text

    parser = argparse.ArgumentParser(
        "smolbench runs", description="List runs, newest first.", allow_abbrev=False
    )
    _add_runs_dir(parser)
    parser.add_argument("--json", action="store_true", help="JSON for scripts")
    options = parser.parse_args(arguments)
    records, status = _read([options.runs_dir])
    sys.stdout.write(as_json(records) if options.json else as_text(records))
    return status


def _add_runs_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs_dir", type=_path, default=Path("runs"), help="folder of all runs (runs)"
    )


def _path(given: str) -> Path:
    return Path(given).expanduser()


def _read(places: Sequence[Path]) -> tuple[list[RunRecord], int]:
    """Runs of some places, and the exit status: 1 if one cannot be read, which is named."""
    records, refused = read_records(find_folders(places))
    for sentence in refused:
        log.warning("%s This run is passed over.", sentence)
    return records, 1 if refused else 0
