"""Published figures: what the reports and the models' cards say, each with its source.

They stand in ``published.csv``. ``n_test`` is the size of the test split that a figure is of; the
texts themselves are not published, so what is known to speak against a comparison is in ``note``.
``unstated`` names the numbers that a source does not give and the recipe had to choose: a run with
the same numbers stands beside such a figure and is not said to reproduce it.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

from smolbench.runs.record import PROMPT, RunRecord, State

FILE = Path(__file__).with_name("published.csv")
_NUMBERS = {"n_train": "training examples", "epochs": "epochs", "n_test": "test rows"}
_SAME_SIZE = 0.01
"""Cleaning drops a few rows that a report may have kept, and the other way round."""


@dataclass(frozen=True)
class Published:
    """A published figure.

    Attributes:
        dataset: Name of the dataset, as in ``data/id``.
        recipe: The recipe that reproduces it.
        state: Whether the model was trained.
        model: Name of the model, as in ``model/id``.
        method: As in ``method``.
        convention: How multiple choice was scored, summaries were written or a prompt's answer was
            found; ``None`` elsewhere.
        metric: Name of the metric, as behind ``test/``.
        value: The figure, a share of 1.
        n_train: Examples trained on; ``None`` where nothing was trained.
        epochs: Times that they were gone through, at most; ``None`` of a fit in one step, too.
        n_test: Size of the test split.
        unstated: Which of these three numbers the source does not state; they are the recipe's.
        note: What speaks against comparing it; empty if nothing is known to.
        source: Where it stands.
    """

    dataset: str
    recipe: str
    state: State
    model: str
    method: str
    convention: str | None
    metric: str
    value: float
    n_train: int | None
    epochs: int | None
    n_test: int
    unstated: tuple[str, ...]
    note: str
    source: str

    def of_test_set(self, dataset: str, n: int | None, convention: str | None) -> bool:
        """Whether it is of a test set of this size, scored by this convention.

        A prompt's convention does not divide test sets, see :attr:`RunRecord.convention`.
        """
        divides = None if self.method == PROMPT else self.convention
        return (self.dataset, divides) == (dataset, convention) and _same_size(n, self.n_test)

    def beside(self, record: RunRecord, trained: RunRecord) -> tuple[str, ...] | None:
        """In what a run of the same recipe differs from the experiment; nothing if it repeats it.

        What the source does not state counts as a difference, see :attr:`unknown`.

        Args:
            record: The run that was scored.
            trained: The run that trained it, which may be the same.

        Returns:
            What differs; ``None`` for a run of another recipe or convention, or that has trained
            where the other has not.
        """
        if (self.recipe, self.state) != (record.recipe, record.state):
            return None
        if self.convention not in (None, record.text("convention")):
            return None
        found = [
            f"{name} {said}"
            for name, key, published in (
                ("model", "model/id", self.model),
                ("method", "method", self.method),
            )
            if (said := record.text(key)) != published
        ]
        n = trained.number("data/n_train")
        if self.n_train is not None and not _same_size(n, self.n_train):
            rows = "unknown" if n is None else f"{n:,.0f}"
            found.append(f"training examples {rows}, not {self._said('n_train', self.n_train)}")
        if self.epochs is not None and (now := trained.planned_epochs) != self.epochs:
            epochs = "unknown" if now is None else now
            found.append(f"epochs {epochs}, not {self._said('epochs', self.epochs)}")
        if trained.out_of_time:
            found.append("its training was cut")
        return (*found, *self.unknown)

    @property
    def unknown(self) -> tuple[str, ...]:
        """What the source leaves open, as a difference that every run has."""
        return tuple(f"{_NUMBERS[name]} not stated by the source" for name in self.unstated)

    def _said(self, name: str, number: int) -> str:
        return f"{number:,}, the recipe's" if name in self.unstated else f"{number:,}"


def _same_size(n: float | None, published: int) -> bool:
    return n is not None and abs(n - published) <= _SAME_SIZE * published


@cache
def published_figures() -> tuple[Published, ...]:
    """All published figures; of two of a kind the one that the recipe reproduces comes first."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return tuple(
            Published(
                dataset=row["dataset"],
                recipe=row["recipe"],
                state=cast("State", row["state"]),
                model=row["model"],
                method=row["method"],
                convention=row["convention"] or None,
                metric=row["metric"],
                value=float(row["value"]),
                n_train=int(row["n_train"]) if row["n_train"] else None,
                epochs=int(row["epochs"]) if row["epochs"] else None,
                n_test=int(row["n_test"]),
                unstated=tuple(row["unstated"].split()),
                note=row["note"],
                source=row["source"],
            )
            for row in csv.DictReader(file)
        )
