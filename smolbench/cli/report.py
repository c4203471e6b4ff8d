"""``smolbench runs`` and ``smolbench report``, the commands themselves; neither needs torch."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smolbench.errors import SmolbenchError
from smolbench.runs.record import RunRecord, find_folders, read_records
from smolbench.utils.files import write_atomically

if TYPE_CHECKING:
    from smolbench.runs.report.board import DatasetReport
    from smolbench.runs.report.details import Details

log = logging.getLogger("smolbench")


def list_runs(arguments: Sequence[str]) -> int:
    """Run ``smolbench runs``.

    Returns:
        The exit status: 0, or 1 if a run's results cannot be read and it is passed over.

    Raises:
        SmolbenchError: If there is no such folder, or no run in it.
    """
    from smolbench.runs.report.listing import as_json, as_text

    parser = argparse.ArgumentParser(
        "smolbench runs", description="List runs, newest first.", allow_abbrev=False
    )
    _add_runs_dir(parser)
    parser.add_argument("--json", action="store_true", help="JSON for scripts")
    options = parser.parse_args(arguments)
    records, status = _read([options.runs_dir])
    _say(as_json(records) if options.json else as_text(records))
    return status


def report(arguments: Sequence[str]) -> int:
    """Run ``smolbench report``.

    Returns:
        The exit status: 0, or 1 if a run's results cannot be read and it is passed over.

    Raises:
        SmolbenchError: If a place does not exist or has no run, or a file cannot be written.
    """
    from smolbench.runs.report.leaderboard import build_report
    from smolbench.runs.report.markdown import render as render_markdown
    from smolbench.runs.report.page import render as render_page

    parser = argparse.ArgumentParser(
        "smolbench report",
        description="Compare runs by what they reach and what they cost: Markdown to the terminal, "
        "and a page with sortable tables and plots.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="*", type=_path, help="run folders, or folders of them; else all runs"
    )
    _add_runs_dir(parser)
    parser.add_argument(
        "--price_per_hour", type=_price, help="price of an hour of the machine, in any currency"
    )
    parser.add_argument(
        "--significance",
        action="store_true",
        help="test every row against the best of its table (reads all predictions.parquet)",
    )
    parser.add_argument(
        "--output",
        type=_path,
        default=Path("report.html"),
        metavar="FILE",
        help="the page (report.html)",
    )
    parser.add_argument(
        "--markdown", type=_path, metavar="FILE", help="write the Markdown here, too"
    )
    parser.add_argument(
        "--details",
        action="store_true",
        help="put learning curves, sample predictions and the environment of every run into the "
        "page, the tables and the pictures (reads all metrics.csv and predictions.parquet)",
    )
    parser.add_argument(
        "--csv", type=_path, metavar="DIR", help="write every table into this folder as CSV"
    )
    parser.add_argument(
        "--png",
        type=_path,
        metavar="DIR",
        help="write the plots of quality over costs into this folder as PNG, with --details also "
        "learning curves and confusion matrices (needs matplotlib)",
    )
    options = parser.parse_args(arguments)
    if options.png is not None:
        from smolbench.runs.report.pictures import require_matplotlib

        require_matplotlib()
    records, status = _read(options.runs or [options.runs_dir])
    datasets = build_report(records, options.price_per_hour)
    if options.significance:
        from smolbench.runs.report.significance import with_significance

        datasets, refused = with_significance(datasets)
        for sentence in refused:
            log.warning("%s It is not tested.", sentence)
        status = 1 if refused else status
    text = render_markdown(datasets)
    describe, unread = _describer(full=options.details)
    page = render_page(datasets, describe)  # has every run
    for sentence in unread:
        log.warning("%s It is left out.", sentence)
    status = 1 if unread else status
    _write(options.output, page)
    if options.csv is not None:
        _write_tables(datasets, options.csv, describe)
    if options.png is not None:
        _write_pictures(datasets, options.png, details=options.details)
    if options.markdown is not None:
        _write(options.markdown, text)
    _say(text)
    return status


def _describer(*, full: bool) -> tuple[Callable[[RunRecord], Details], list[str]]:
    """What says all of a run that is asked for, reading its files once.

    Returns:
        It, and a list that gets a sentence for every file that cannot be read.
    """
    from smolbench.runs.report.details import details_of, full_details_of

    known: dict[int, Details] = {}
    unread: list[str] = []

    def describe(record: RunRecord) -> Details:
        if id(record) not in known:
            details, sentences = full_details_of(record) if full else (details_of(record), [])
            known[id(record)] = details
            unread.extend(sentences)
        return known[id(record)]

    return describe, unread


def _write_tables(
    datasets: Sequence[DatasetReport], folder: Path, describe: Callable[[RunRecord], Details]
) -> None:
    from smolbench.runs.report.tables_csv import write_tables

    try:
        written = write_tables(datasets, folder, describe)
    except OSError as error:
        raise SmolbenchError(f"{folder} cannot be written ({error.strerror}).") from error
    log.info("Written: %d tables in %s", len(written), folder)


def _write_pictures(datasets: Sequence[DatasetReport], folder: Path, *, details: bool) -> None:
    from smolbench.runs.report.pictures import write_pictures

    try:
        written = write_pictures(datasets, folder, details=details)
    except OSError as error:
        raise SmolbenchError(f"{folder} cannot be written ({error.strerror}).") from error
    log.info("Written: %d pictures in %s", len(written), folder)


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text)
    except OSError as error:
        raise SmolbenchError(f"{path} cannot be written ({error.strerror}).") from error
    log.info("Written: %s", path)


def _price(given: str) -> float:
    try:
        price = float(given)
    except ValueError:
        price = math.nan
    if not math.isfinite(price) or price < 0:
        raise argparse.ArgumentTypeError(f"{given} is no price: give a number of at least 0")
    return price


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
