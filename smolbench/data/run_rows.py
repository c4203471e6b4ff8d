"""A run's own rows in data as it is now: rows may have moved, gone, changed or come."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from smolbench.data.hub import Source
from smolbench.data.kept_rows import KeptRows, Numbers, RowKeys, among
from smolbench.errors import SmolbenchError
from smolbench.identity import compare, said
from smolbench.utils.notices import warn

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("smolbench")
_WORDS = {"train": "training", "val": "validation", "test": "test"}
_SEARCHED = {
    "train": ("train", "validation", "test"),
    "val": ("validation", "train", "test"),
    "test": ("test", "train", "validation"),
}


@dataclass(frozen=True)
class OfRun:
    """A run whose data is read again.

    Attributes:
        kept: Its rows; ``None`` for a run of a version that did not keep them.
        results: Contents of its ``results.json``.
        goes_on: Whether it is trained further; else a checkpoint of it is scored.
        other_test: Whether it is scored on another test set than its own.
        commit: Commit of its dataset on the Hub, to be read again; ``None`` for none.
    """

    kept: KeptRows | None
    results: dict[str, object]
    goes_on: bool = False
    other_test: bool = False
    commit: str | None = None

    @property
    def limit_test(self) -> object:
        """How many test rows it draws at most."""
        return self.results.get("data/limit_test")

    def revision_of(self, source: Source) -> object:
        """The revision that results are to name: the run's own, unless the test set is another."""
        known = self.results.get("data/revision", source.revision)
        return source.revision if self.other_test else known

    def tell_unknown(self, source: Source) -> None:
        """Say what cannot be verified of a run that is scored and did not keep its rows."""
        before = self.results.get("data/revision")
        if self.kept is not None or self.goes_on or self.other_test:
            return
        if before == source.revision:
            log.info(
                "This run is of an earlier version and did not keep its rows; its data has the "
                "revision that it was trained on (%s), and is split as it was then.",
                before,
            )
        else:
            warn(
                "This run is of an earlier version and did not keep its rows, and its data has "
                "changed since (revision %s, now %s): that it was not trained on rows that are "
                "scored cannot be verified.",
                before,
                source.revision,
            )

    def moved(self, source: Source, now: KeptRows, content: tuple[str, ...]) -> bool:
        """Whether a training goes on whose rows only stand in another order now.

        Args:
            source: The data as it is now.
            now: The rows that are drawn from it.
            content: Columns that make an example what it is.
        """
        kept = self.kept
        if not self.goes_on or kept is None or kept.seen.digest == now.seen.digest:
            return False
        if kept.n_all != now.n_all:  # rows have come or gone
            return False
        there = RowKeys.joined(*(RowKeys.of(s, content) for s in source.splits.values()))
        places = kept.seen.places_in(there)
        return bool((places >= 0).all()) and not kept.seen.n_respaced(there, places)

    def refuse_other(self, source: Source, now: KeptRows, content: tuple[str, ...]) -> None:
        """Refuse to train further on other rows.

        Args:
            source: The data as it is now.
            now: The rows that are drawn from it.
            content: Columns that make an example what it is.

        Raises:
            SmolbenchError: Saying how they differ.
        """
        old: dict[str, object] = {"data/id": self.results.get("data/id", source.id)}
        new: dict[str, object] = {"data/id": source.id}
        if self.kept is not None:
            fields = ("data/train_rows", "data/val_rows")
            old |= {field: self.kept.digests[field] for field in fields}
            new |= {field: now.digests[field] for field in fields}
        elif "data/revision" in self.results:
            old["data/revision"] = self.results["data/revision"]
            new["data/revision"] = source.revision
        refused = compare("resume", old, new).refused
        same = np.arange(0 if self.kept is None or refused else len(self.kept.seen))
        if not refused and not (self.kept and self.kept.seen.n_respaced(now.seen, same)):
            return
        how = said(refused)
        if self.kept is not None and "data/id" not in refused:
            there = RowKeys.joined(*(RowKeys.of(s, content) for s in source.splits.values()))
            how = _how_they_differ(self.kept.seen, there)
        raise SmolbenchError(
            f"The data is not what this run has been trained on so far: {how}. Put it back as it "
            "was, or start a new run without --ckpt_path."
        )


def found_again(
    name: str, source: Source, content: tuple[str, ...], kept: KeptRows
) -> tuple[Dataset, Numbers]:
    """Rows of a run's split, wherever they stand now, in the run's order.

    Args:
        name: ``train``, ``val`` or ``test``; of the latter all rows that are drawn from.
        source: The data as it is now.
        content: Columns that make an example what it is.
        kept: The run's rows.

    Returns:
        Those that are still there, and their numbers among the run's rows.

    Raises:
        SmolbenchError: If none is.
    """
    wanted: RowKeys = getattr(kept, name)
    names = [split for split in _SEARCHED[name] if split in source.splits]
    keys = [RowKeys.of(source.splits[names[0]], content)]
    same = np.arange(len(wanted))
    if len(wanted) == 0 or (
        np.array_equal(keys[0].rows, wanted.rows) and not wanted.n_respaced(keys[0], same)
    ):
        return source.splits[names[0]].select(same), same
    keys += [RowKeys.of(source.splits[split], content) for split in names[1:]]
    there = RowKeys.joined(*keys)
    places = wanted.places_in(there)
    drawn = kept.drawn if name == "test" else np.arange(len(wanted))
    gone = drawn[places[drawn] < 0]
    changed = int(among(wanted.texts[gone], there.texts).sum())
    respaced = wanted[drawn].n_respaced(there, places[drawn])
    _tell(name, len(drawn), len(gone), changed, _n_new(kept, there), respaced, source.id)
    present = np.flatnonzero(places >= 0)
    return _chosen([source.splits[split] for split in names], places[present]), present


def unseen_rows(dataset: Dataset, content: tuple[str, ...], kept: KeptRows) -> Numbers:
    """Rows of a test set that is not the run's own, without those that it was trained on.

    Args:
        dataset: The test set.
        content: Columns that make an example what it is.
        kept: The run's rows.

    Returns:
        Their numbers; all of them if they are the run's own test rows after all.

    Raises:
        SmolbenchError: If there is none.
    """
    keys = RowKeys.of(dataset, content)
    if np.array_equal(np.sort(keys.rows), np.sort(kept.test.rows)):
        return np.arange(len(keys))
    seen = among(keys.rows, kept.seen.rows)
    if seen.any():
        if seen.all():
            raise SmolbenchError(
                f"The run was trained or validated on all {len(keys):,} rows of this test set: "
                "name one that it has not seen."
            )
        warn(
            "%s of %s rows of the test set are left out: the run was trained or validated on them.",
            f"{seen.sum():,}",
            f"{len(keys):,}",
        )
    return np.flatnonzero(~seen)


def _chosen(splits: list[Dataset], places: Numbers) -> Dataset:
    """Rows by their places in splits that stand behind each other."""
    from datasets import concatenate_datasets  # lazy: import cost

    starts = np.cumsum([0, *map(len, splits)])
    # splits that nothing is taken of may have other columns
    used = [n for n in range(len(splits)) if np.any(_within(places, *starts[n : n + 2]))]
    moved = np.empty(len(places), np.int64)
    start = 0
    for n in used:
        here = _within(places, *starts[n : n + 2])
        moved[here] = places[here] - starts[n] + start
        start += len(splits[n])
    joined = splits[used[0]] if len(used) == 1 else concatenate_datasets([splits[n] for n in used])
    return joined.select(moved)


def _within(places: Numbers, start: int, stop: int) -> np.ndarray:
    return (places >= start) & (places < stop)


def _n_new(kept: KeptRows, there: RowKeys) -> int:
    """How many rows have come; of those that no limit let in it is taken that they still stand."""
    known = RowKeys.joined(kept.seen, kept.test)
    places = known.places_in(there)
    unknown = np.ones(len(there), bool)
    unknown[places[places >= 0]] = False
    changed = among(known.texts[places < 0], there.texts[unknown]).sum()
    return max(0, int(unknown.sum() - changed) - (kept.n_all - len(known)))


def _tell(
    name: str, n: int, n_gone: int, n_changed: int, n_new: int, n_respaced: int, source_id: str
) -> None:
    """Say in one line what has become of a run's rows."""
    rows = f"{_WORDS[name]} rows"
    lost = n_gone - n_changed
    parts = [f"{n_changed:,} with another label now"] if n_changed else []
    parts += [f"{lost:,} gone"] if lost else []
    parts += [f"{n_new:,} new"] if n_new else []
    if n_gone == n:
        raise SmolbenchError(
            f"The data has changed since the run was trained: of its {n:,} {rows} none stands in "
            f"{source_id} now ({', '.join(parts)}). Put the data back as it was, or name a test "
            "set of its own (--data.test_file)."
        )
    if parts or n_respaced:
        spaced = f", {n_respaced:,} of them with other white space around" if n_respaced else ""
        warn(
            "The data has changed since the run was trained: of its %s %s %s are still there and "
            "used%s%s.",
            f"{n:,}",
            rows,
            f"{n - n_gone:,}",
            spaced,
            f"; not used: {', '.join(parts)}" if parts else "",
        )
    else:
        log.info("The run's %s %s stand elsewhere than they did; they are the ones used.", n, rows)


def _how_they_differ(before: RowKeys, there: RowKeys) -> str:
    """What has become of the rows that a run has seen, as a part of a sentence.

    Args:
        before: The rows.
        there: All rows of the data as it is now.
    """
    rows = f"{len(before):,} training and validation rows"
    places = before.places_in(there)
    missing = places < 0
    if not missing.any() and (respaced := before.n_respaced(there, places)):
        return f"of its {rows} {respaced:,} with other white space around their texts now"
    if not missing.any():
        return f"its {rows} still stand there, but among more or fewer others than before"
    changed = int(among(before.texts[missing], there.texts).sum())
    lost = int(missing.sum()) - changed
    parts = [f"{changed:,} with another label now"] if changed else []
    parts += [f"{lost:,} gone"] if lost else []
    return f"of its {rows} {', '.join(parts)}"
