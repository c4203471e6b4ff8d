"""Run folders as reports see them: what a ``results.json`` says, and whether it can be compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from smolbench.errors import SmolbenchError
from smolbench.metrics.table import MAIN_METRICS
from smolbench.runs.results import FILE_NAME, Results, read_results
from smolbench.runs.settings import read_settings

State = Literal["trained", "untrained", "as_is"]

_BY_CONVENTION = {"acc_norm", "rouge1"}
"""Metrics whose values are comparable within a convention only."""
PROMPT = "prompt"
"""Method of a model that is prompted; its convention is the rule that finds its answers."""
_AS_IT_COMES = {PROMPT, "none"}
"""Methods that train nothing: their scores are no untrained baselines."""


@dataclass(frozen=True)
class RunRecord:
    """One run's results.

    The file may come from anywhere: a key that is missing or of another type than the contract
    says reads as ``None``.

    Attributes:
        path: The run folder, as it was found.
        results: Contents of its ``results.json``.
    """

    path: Path
    results: Results

    def text(self, key: str) -> str | None:
        """A value that is a text, else ``None``; on one line and without control characters."""
        value = self.results.get(key)
        if not isinstance(value, str) or not value:
            return None
        if value.isprintable():
            return value
        return "".join(c if c.isprintable() else " " for c in value)

    def number(self, key: str) -> float | None:
        """A value that is a finite number, else ``None``."""
        return finite(self.results.get(key))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What its commands have warned of, a line each."""
        lines = self.results.get("warnings")
        return tuple(map(str, lines)) if isinstance(lines, list) else ()

    @property
    def name(self) -> str:
        """Recipe and folder, which together name a run below a folder of runs."""
        return f"{self.recipe}/{self.path.name}"

    @property
    def recipe(self) -> str:
        """The recipe's name."""
        return self.text("recipe") or "unknown"

    @property
    def status(self) -> str:
        """``running``, ``finished``, ``interrupted`` or ``failed``."""
        return self.text("status") or "unknown"

    @property
    def started_at(self) -> str:
        """When it started, in ISO 8601; empty if the file does not say."""
        return self.text("started_at") or ""

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        return self.text("data/id") or "unknown dataset"

    @property
    def state(self) -> State:
        """Whether what was scored was trained; ``as_is`` where nothing is ever trained."""
        if self.text("method") in _AS_IT_COMES:
            return "as_is"
        trained = self.results.get("attempts") or self.results.get("checkpoint")
        return "trained" if trained else "untrained"

    @property
    def out_of_time(self) -> bool:
        """Whether its training was cut because its time was up."""
        return self.results.get("training/out_of_time") is True

    @property
    def planned_epochs(self) -> int | None:
        """Epochs that its training was to have; ``None`` if steps were counted, or not known."""
        if "training/max_epochs" in self.results:
            epochs = self.results["training/max_epochs"]
        else:  # earlier versions say it in their settings alone
            try:
                trainer = read_settings(self.path / "config.yaml").get("trainer") or {}
            except SmolbenchError:
                return None
            counted = trainer.get("max_steps") in (None, -1)
            epochs = trainer.get("max_epochs") if counted else None
        return epochs if isinstance(epochs, int) else None

    @property
    def metric(self) -> str | None:
        """Name of the metric that runs of its kind are ranked by; ``None`` before a test."""
        named = self.text("headline")
        names = MAIN_METRICS if named is None else (named, *MAIN_METRICS)
        return next((name for name in names if self.number(f"test/{name}") is not None), None)

    @property
    def convention(self) -> str | None:
        """What makes scores of multiple choice, of summaries, or of one class incomparable.

        A prompt's convention is part of its method: whichever way a class is found, its accuracy is
        the share of texts that got the right one.
        """
        if self.metric == "f1":
            return f"of {self.text('positive_label')!r}"
        return self.text("convention") if self.metric in _BY_CONVENTION else None

    @property
    def training_s(self) -> float | None:
        """Seconds of training and of frozen passes, as reports rank by; ``None`` if not known."""
        fit = 0.0 if self.state == "as_is" else self.number("cost/fit_s")
        return None if fit is None else fit + (self.number("cost/cache_s") or 0.0)

    @property
    def peak_memory(self) -> tuple[float, str] | None:
        """Peak in MiB and its kind: ``allocated`` on a GPU, else ``rss``."""
        for kind in ("allocated", "rss"):
            if (peak := self.number(f"cost/peak_{kind}_mib")) is not None:
                return peak, kind
        return None


def finite(value: Any) -> float | None:  # noqa: ANN401 - from JSON
    """A value that is a finite number, else ``None``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # JSON's integers have no end
        return None


def find_folders(places: Iterable[Path]) -> list[Path]:
    """Run folders that are named or lie anywhere below a named folder, each once.

    Raises:
        SmolbenchError: If a place does not exist or has no run.
    """
    found: dict[Path, Path] = {}
    for place in places:
        if not place.is_dir():
            raise SmolbenchError(
                f"There is no folder {place}: name run folders, or the folder of all runs with "
                "--runs_dir."
            )
        own = [place] if (place / FILE_NAME).is_file() else []
        folders = own or sorted(path.parent for path in place.rglob(FILE_NAME))
        if not folders:
            raise SmolbenchError(f"There are no runs below {place}: it has no {FILE_NAME}.")
        for folder in folders:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def read_records(folders: Sequence[Path]) -> tuple[list[RunRecord], list[str]]:
    """Read run folders, newest start first.

    Returns:
        The runs, and a sentence for every folder whose results cannot be read.
    """
    records: list[RunRecord] = []
    refused: list[str] = []
    for folder in folders:
        try:
            records.append(RunRecord(folder, read_results(folder)))
        except SmolbenchError as error:
            refused.append(str(error))
    records.sort(key=lambda record: (record.started_at, str(record.path)), reverse=True)
    return records, refused
