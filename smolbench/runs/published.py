"""Published figures: what the reports and the models' cards say, each with its source.

They stand in ``published.csv``. ``n_test`` is the size of the test split that a figure is of; the
texts themselves are not published, so what is known to speak against a comparison is in ``note``.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

from smolbench.runs.record import PROMPT, RunRecord, State

FILE = Path(__file__).with_name("published.csv")
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
        n_test: Size of the test split.
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
    n_test: int
    note: str
    source: str

    def of_test_set(self, dataset: str, n: int | None, convention: str | None) -> bool:
        """Whether it is of a test set of this size, scored by this convention.

        A prompt's convention does not divide test sets, see :attr:`RunRecord.convention`.
        """
        divides = None if self.method == PROMPT else self.convention
        if n is None or (self.dataset, divides) != (dataset, convention):
            return False
        return abs(n - self.n_test) <= _SAME_SIZE * self.n_test

    def reproduced_by(self, record: RunRecord) -> bool:
        """Whether a run repeats the experiment: its recipe, model and method, on all training rows.

        And by its convention, where it has one.
        """
        return (
            (self.recipe, self.state, self.model, self.method)
            == (record.recipe, record.state, record.text("model/id"), record.text("method"))
            and self.convention in (None, record.text("convention"))
            and record.results.get("data/limit_train") is None
        )


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
                n_test=int(row["n_test"]),
                note=row["note"],
                source=row["source"],
            )
            for row in csv.DictReader(file)
        )
