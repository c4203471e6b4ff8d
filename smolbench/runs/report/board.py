"""What a report consists of: boards of rows that can be compared, and the costs they have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from smolbench.runs.record import RunRecord
from smolbench.runs.report.published import Published


@dataclass(frozen=True)
class Cost:
    """A cost that rows have.

    Attributes:
        key: Short name.
        label: Heading, with the unit.
        of: Its value for a run; ``None`` where it is not known.
        more_is_better: Whether it is a speed.
    """

    key: str
    label: str
    of: Callable[[RunRecord], float | None]
    more_is_better: bool = False


def _key(name: str) -> Callable[[RunRecord], float | None]:
    return lambda record: record.number(name)


TRAINING = Cost("training_s", "fit + cache, s", lambda record: record.training_s)
COSTS = (
    TRAINING,
    Cost("peak_rss_mib", "peak resident, MiB", _key("cost/peak_rss_mib")),
    Cost("peak_allocated_mib", "peak allocated, MiB", _key("cost/peak_allocated_mib")),
    Cost("peak_reserved_mib", "peak reserved, MiB", _key("cost/peak_reserved_mib")),
    Cost("train_tokens_per_s", "trained tokens/s", _key("cost/train_tokens_per_s"), True),
    Cost("cache_tokens_per_s", "frozen tokens/s", _key("cost/cache_tokens_per_s"), True),
    Cost("n_train", "training examples", _key("data/n_train")),
    Cost("trainable_params", "trainable parameters", _key("model/trainable_params")),
    Cost("checkpoint_mib", "checkpoint, MiB", _key("cost/checkpoint_mib")),
    Cost("test_samples_per_s", "test samples/s", _key("cost/test_samples_per_s"), True),
    Cost("latency_ms", "latency p50, ms", _key("cost/test_latency_ms_p50")),
)
OF_TRAINING = {
    "training_s",
    "checkpoint_mib",
    "train_tokens_per_s",
    "cache_tokens_per_s",
    "n_train",
    "trainable_params",
}
"""Costs that a test in a folder of its own takes from the run that was trained."""
PEAKS = {"peak_rss_mib", "peak_allocated_mib", "peak_reserved_mib"}
"""Costs that are the higher one of the training's and the test's."""
MONEY = "money"


@dataclass(frozen=True)
class Row:
    """A line of a leaderboard: one configuration, or a published figure.

    Attributes:
        name: The recipe.
        model: The model's name.
        method: How it was adapted.
        value: The metric: of several seeds their mean; ``None`` where nothing was scored.
        spread: Standard error over the examples of one run, standard deviation of several seeds.
        over_draws: Standard deviation over a prompt's draws of examples, of its newest run;
            ``None`` where there are not several.
        seeds: Seeds behind the value; 0 for a published figure.
        obstacle: Why it is not ranked; ``None`` if it is.
        notes: What else has to be known of it.
        costs: Means over the seeds, by :attr:`Cost.key`; without what is not known.
        records: The runs, newest first; none for a published figure.
        source: Where a published figure stands.
        rank: Place among the rows that can be ranked, from 1.
        difference: The value less the published one of the same experiment, as far as is known.
        metric: What the value is of; ``None`` where nothing was scored.
        p_value: Of its distance to the best row; ``None`` if it was not tested.
    """

    name: str
    model: str
    method: str
    value: float | None
    spread: float | None
    seeds: int
    obstacle: str | None
    notes: tuple[str, ...]
    costs: dict[str, float]
    records: tuple[RunRecord, ...] = ()
    source: str | None = None
    rank: int | None = None
    difference: float | None = None
    metric: str | None = None
    p_value: float | None = None
    over_draws: float | None = None

    @property
    def is_published(self) -> bool:
        """Whether it is a published figure, not a run."""
        return not self.records

    @property
    def marks(self) -> tuple[str, ...]:
        """Obstacle and notes."""
        return self.notes if self.obstacle is None else (self.obstacle, *self.notes)


@dataclass(frozen=True)
class Comparison:
    """A published figure beside the row that reproduces it, or differs in what is named."""

    figure: Published
    row: Row
    ours: float
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Board:
    """Rows that were scored on the same texts in the same way, best first.

    Attributes:
        metric: What they are ranked by.
        convention: How multiple choice was scored or summaries were written, or the class that F1
            is of; ``None`` elsewhere.
        test_digest: Digest of the test set.
        n: Its size.
        limit: The ``limit_test`` that cut it, if one did.
        rows: Runs and published figures.
        comparisons: Every published figure, of any metric, that a row reproduces, and those of the
            board's metric that a row of the same recipe stands beside.
    """

    metric: str
    convention: str | None
    test_digest: str
    n: int | None
    limit: int | None
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class DatasetReport:
    """All of one dataset: a board for each test set, and runs that no board can take."""

    dataset: str
    boards: tuple[Board, ...]
    unscored: tuple[Row, ...]
