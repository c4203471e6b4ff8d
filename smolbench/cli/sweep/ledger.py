"""Who does what: the points of a sweep in Optuna's storage, each of which is done once.

Optuna's samplers give every worker what it asks for: with several of them a grid's points are run
twice or not at all, and a trial whose worker died stays RUNNING for ever. Here a point is a trial
that waits in the storage, and three rules make its run unique:

- Taking a waiting trial and finishing one are atomic in the storage.
- Of several trials for one point, as two workers may enter them at the same moment, the one with
  the lowest number counts.
- A trial without an ``outcome`` whose worker is gone is told to have failed, which succeeds once,
  and its point is entered again. Gone is a worker whose process has ended on this machine, or that
  has given no sign of life for `STALE_S` seconds on another one.

Where workers share the sweep's folder, its lock makes each of these steps one: SQLite's own locks
would let two workers take the same trial.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock

from smolbench.cli.sweep.process import identity, is_alive
from smolbench.cli.sweep.space import Point, Range, Space
from smolbench.errors import SmolbenchError

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

BEAT_S = 30.0
STALE_S = 300.0
LOCK_GRACE_S = 10
"""How long a journal's lock that a killed worker left is respected; a line takes milliseconds."""
Sampler = Literal["grid", "random", "tpe"]
Mode = Literal["max", "min"]
Status = Literal["waiting", "running", "finished", "pruned", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        status: Whether it finished, was pruned, or failed.
        value: The metric that trials are compared by.
        run: Its run folder, from the sweep's folder.
        facts: What its results said.
        error: The sentence it failed with.
    """

    status: Literal["finished", "pruned", "failed"]
    value: float | None
    run: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class Entry:
    """A point as the storage knows it."""

    number: int
    point: Point
    status: Status
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Claim:
    """A point that this worker has to run.

    Attributes:
        number: The point's number.
        point: Its values.
        trial: Optuna's trial for it.
        before: Processes that may still be at it: those of workers that are gone.
    """

    number: int
    point: Point
    trial: optuna.Trial
    before: tuple[dict[str, Any], ...]


class Ledger:
    """The storage of one sweep.

    Args:
        folder: The sweep's folder.
        name: Its name in the storage.
        space: What is swept.
        definition: What must be the same for all workers, and whenever the sweep goes on.
        sampler: How points are found.
        trials: How many, where that is not settled by the grid.
        seed: Of random points.
        mode: Whether the metric should rise or fall.
        storage: Optuna's URL, or a journal file; ``None`` for the one in the folder.
        prunes: Whether trials that are worse than the median are stopped.

    Raises:
        SmolbenchError: If the storage cannot be opened, or holds another sweep of this name.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        space: Space,
        definition: Mapping[str, Any],
        *,
        sampler: Sampler,
        trials: int | None,
        seed: int,
        mode: Mode,
        storage: str | None,
        prunes: bool,
    ) -> None:
        import optuna  # lazy: the extra `sweep`

        self._optuna = optuna
        self.space = space
        self.sampler = sampler
        self.seed = seed
        size = space.distinct
        limit = size if trials is None else trials if size is None else min(trials, size)
        assert limit is not None, "without an end of points their number is given"
        self.limit = limit
        self._points: dict[int, Point] | None = None
        if sampler == "grid":
            self._points = dict(enumerate(space.grid()))
        elif sampler == "random":
            self._points = dict(space.drawn(limit, seed))
        self._lock = FileLock(folder / ".lock")
        self._shares_lock = storage is None or "://" not in storage or "sqlite" in storage
        self._seen: dict[int, tuple[int, float]] = {}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with (
            self.locked(),
            self.usable(storage, Exception),
        ):  # drivers and servers are of many kinds
            self._study = optuna.create_study(
                storage=_open(storage, folder),
                study_name=name,
                direction="maximize" if mode == "max" else "minimize",
                load_if_exists=True,
                sampler=optuna.samplers.RandomSampler(),
                pruner=optuna.pruners.MedianPruner() if prunes else optuna.pruners.NopPruner(),
            )
            known = self._study.user_attrs.get("definition")
            if known is None:
                self._study.set_user_attr("definition", dict(definition))
        check_definition(name, known or definition, definition)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one worker of those that share the folder."""
        with self._lock:
            yield

    @contextmanager
    def usable(self, storage: str | None, kind: type[Exception] | None = None) -> Iterator[None]:
        """What goes wrong with the storage as a sentence.

        Args:
            storage: Its name.
            kind: What it raises; Optuna's errors if not given.

        Raises:
            SmolbenchError: In place of them.
        """
        try:
            yield
        except SmolbenchError:
            raise
        except Exception as error:
            if not isinstance(error, kind or self._optuna.exceptions.OptunaError):
                raise
            where = "journal.log in the sweep's folder" if storage is None else _public(storage)
            said = " ".join(str(error).split())[:300]
            raise SmolbenchError(
                f"The sweep's storage, {where}, cannot be used ({type(error).__name__}: {said})."
            ) from error

    # -- what there is ----------------------------------------------------------------------------

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _counting(self) -> dict[int, optuna.trial.FrozenTrial]:
        """The trial that counts, for every point that has one.

        That is the first one of the latest attempt; attempts after the first are asked for.
        """
        found: dict[int, optuna.trial.FrozenTrial] = {}
        seen: dict[int, None] = {}
        for trial in self._trials():  # in the order of their numbers
            if (number := trial.user_attrs.get("point")) is None:
                continue
            seen.setdefault(number)
            known = found.get(number)
            latest = known is None or _attempt(trial) > _attempt(known)
            if latest and not self._is_lost(trial):
                found[number] = trial
        if self.sampler == "tpe":  # workers without a common lock may have asked for too many
            for number in list(seen)[self.limit :]:
                if number in found and not found[number].state.is_finished():
                    del found[number]
        return found

    def _is_lost(self, trial: optuna.trial.FrozenTrial) -> bool:
        failed = trial.state == self._optuna.trial.TrialState.FAIL
        return failed and "outcome" not in trial.user_attrs

    def entries(self) -> list[Entry]:
        """All points in the order of their numbers, also those that nobody has begun."""
        states = self._optuna.trial.TrialState
        found = {}
        for number, trial in self._counting().items():
            waits = trial.state == states.WAITING or trial.user_attrs.get("beat", 0) < 0
            status: Status = "waiting" if waits else "running"
            outcome = None
            if trial.state.is_finished():
                outcome = Outcome(**trial.user_attrs["outcome"])
                status = outcome.status
            found[number] = Entry(number, self._point_of(trial), status, outcome)
        for number, point in (self._points or {}).items():
            found.setdefault(number, Entry(number, point, "waiting"))
        return [found[number] for number in sorted(found)]

    def _point_of(self, trial: optuna.trial.FrozenTrial) -> Point:
        # a kill may have left the parameters half written, never what was entered
        return self.space.texts(trial.system_attrs.get("fixed_params") or trial.params)

    def is_done(self) -> bool:
        """Whether every point has its outcome."""
        found = self._counting()
        enough = len(found) >= self.limit and found.keys() >= (self._points or {}).keys()
        return enough and all(trial.state.is_finished() for trial in found.values())

    # -- taking points ----------------------------------------------------------------------------

    def retry_failed(self) -> None:
        """Enter every failed point once more."""
        with self.locked():
            for number, trial in self._counting().items():
                if trial.state == self._optuna.trial.TrialState.FAIL:
                    self._enter(number, self._point_of(trial), _attempt(trial) + 1)

    def claim(self) -> Claim | None:
        """Take a point that waits; ``None`` if others have all that are left."""
        with self.locked():
            self._bury_the_dead()
            self._enter_missing()
            while True:
                if self._anything_waits():
                    trial = self._study.ask(self._distributions())
                elif self.sampler == "tpe" and len(self._counting()) < self.limit:
                    trial = self._sampled()
                else:
                    return None
                trial.set_user_attr("owner", identity())
                number = trial.user_attrs.get("point")
                counting = self._counting()
                if number in counting and counting[number].number == trial.number:
                    break
                self._tell(trial.number, self._optuna.trial.TrialState.FAIL)  # another one counts
        earlier = tuple(
            t.user_attrs["process"]
            for t in self._trials()
            if t.user_attrs.get("point") == number and "process" in t.user_attrs
        )
        return Claim(number, self.space.texts(trial.params), trial, earlier)

    def _anything_waits(self) -> bool:
        waiting = (self._optuna.trial.TrialState.WAITING,)
        return bool(self._study.get_trials(deepcopy=False, states=waiting))

    def _enter(self, number: int, point: Point, attempt: int) -> None:
        attributes = {"point": number, "attempt": attempt}
        self._study.enqueue_trial(self.space.params(point), user_attrs=attributes)

    def _enter_missing(self) -> None:
        counting = self._counting()
        wanted = dict(self._points or {})
        latest: dict[int, int] = {}
        for trial in self._trials():
            number = trial.user_attrs.get("point")
            if number is not None:
                latest[number] = max(latest.get(number, 0), _attempt(trial))
                wanted.setdefault(number, self._point_of(trial))
        if self._points is None:
            wanted = dict(list(wanted.items())[: self.limit])
        for number in sorted(wanted):
            if number not in counting:
                self._enter(number, wanted[number], latest.get(number, 0))

    def _sampled(self) -> optuna.Trial:
        """A point that Optuna finds in the light of all results so far."""
        taken = {trial.user_attrs.get("point") for trial in self._trials()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            # other workers' running trials count as bad, so that not all try the same
            self._study.sampler = self._optuna.samplers.TPESampler(
                seed=self.seed + len(self._trials()), constant_liar=True
            )
        trial = self._study.ask(self._distributions())
        number = trial.number
        if self.space.size is not None:
            number = self.space.index(trial.params)
            if number in taken:  # it would give what is known: another one is tried
                self._tell(trial.number, self._optuna.trial.TrialState.FAIL)
                free = [i for i in range(self.space.size) if i not in taken]
                number = free[(self.seed + len(taken)) * 7919 % len(free)]
                self._enter(number, self.space.point(number), 0)
                return self._study.ask(self._distributions())
        elif self.space.distinct is not None and (other := self._instead_of(trial)) is not None:
            self._tell(trial.number, self._optuna.trial.TrialState.FAIL)
            self._enter(number, other, 0)
            return self._study.ask(self._distributions())
        trial.set_user_attr("point", number)
        return trial

    def _instead_of(self, trial: optuna.Trial) -> Point | None:
        """A random point that nobody has, if somebody has a trial's already."""
        taken = {
            tuple(self._point_of(other).values())
            for other in self._trials()
            if other.user_attrs.get("point") is not None
        }
        if tuple(self.space.texts(trial.params).values()) not in taken:
            return None
        drawn = (point for _, point in self.space.drawn(len(taken) + 1, self.seed))
        return next(point for point in drawn if tuple(point.values()) not in taken)

    def _distributions(self) -> dict[str, BaseDistribution]:
        kinds = self._optuna.distributions
        found: dict[str, BaseDistribution] = {}
        for name, key in self.space.keys.items():
            if not isinstance(key, Range):
                found[name] = kinds.CategoricalDistribution(key.values)
            elif key.whole:
                found[name] = kinds.IntDistribution(int(key.low), int(key.high), log=key.log)
            else:
                found[name] = kinds.FloatDistribution(key.low, key.high, log=key.log)
        return found

    # -- signs of life ----------------------------------------------------------------------------

    def _bury_the_dead(self) -> None:
        """End trials whose worker is gone, by what it left behind."""
        states = self._optuna.trial.TrialState
        for trial in self._study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            if not self._is_gone(trial):
                continue
            if (left := trial.user_attrs.get("outcome")) is not None:
                self._tell_outcome(trial.number, Outcome(**left))
            else:
                self._tell(trial.number, states.FAIL)

    def _is_gone(self, trial: optuna.trial.FrozenTrial) -> bool:
        beat, owner = trial.user_attrs.get("beat", 0), trial.user_attrs.get("owner")
        if beat < 0:
            return True  # it has given it back
        alive = is_alive(owner) if owner is not None else None
        if alive is not None:
            return not alive
        if owner is None and self._shares_lock:
            return True  # its worker died between taking it and saying so: the lock is ours
        # clocks of two machines may differ: only that nothing changes can be seen from here
        known, since = self._seen.get(trial.number, (None, 0.0))
        if known != beat:
            self._seen[trial.number] = (beat, time.monotonic())
            return False
        return time.monotonic() - since > STALE_S

    def beat(self, claim: Claim) -> bool:
        """Give a sign of life.

        Returns:
            Whether the trial is still this worker's.
        """
        trials = self._study.get_trials(deepcopy=False)
        if trials[claim.trial.number].state.is_finished():
            return False
        claim.trial.set_user_attr("beat", claim.trial.user_attrs.get("beat", 0) + 1)
        return True

    def note_process(self, claim: Claim, process: dict[str, Any]) -> None:
        """Say which process trains."""
        claim.trial.set_user_attr("process", process)

    def give_back(self, claim: Claim) -> None:
        """Leave a trial to whoever goes on."""
        claim.trial.set_user_attr("beat", -1)

    def finish(self, claim: Claim, outcome: Outcome) -> bool:
        """Enter how a trial ended.

        Returns:
            Whether it was still this worker's.
        """
        with self.locked():
            if self._study.get_trials(deepcopy=False)[claim.trial.number].state.is_finished():
                return False
            # a kill behind this leaves all that is needed
            claim.trial.set_user_attr("outcome", vars(outcome))
            return self._tell_outcome(claim.trial.number, outcome)

    def _tell_outcome(self, number: int, outcome: Outcome) -> bool:
        states = self._optuna.trial.TrialState
        if outcome.status == "failed":
            return self._tell(number, states.FAIL)
        if outcome.status == "pruned":
            return self._tell(number, states.PRUNED)
        return self._tell(number, states.COMPLETE, outcome.value)

    def _tell(
        self, number: int, state: optuna.trial.TrialState, value: float | None = None
    ) -> bool:
        try:
            self._study.tell(number, value, state=state)
        except (ValueError, RuntimeError, self._optuna.exceptions.UpdateFinishedTrialError):
            return False  # another worker was first
        return True


def _attempt(trial: optuna.trial.FrozenTrial) -> int:
    return int(trial.user_attrs.get("attempt", 0))


def check_definition(name: str, known: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a sweep under other settings.

    Raises:
        SmolbenchError: Naming what differs.
    """
    differing = [
        f"{key} was {known.get(key)!r}, is {now.get(key)!r}"
        for key in sorted({*known, *now})
        if known.get(key) != now.get(key)
    ]
    if differing:
        raise SmolbenchError(
            f"There is another sweep of the name {name}: {'; '.join(differing)}. Give this one a "
            "name of its own with --name, or repeat the other's command to go on with it."
        )


def _open(storage: str | None, folder: Path) -> Any:  # noqa: ANN401 - Optuna's, imported later
    import optuna  # lazy: see above
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    if storage is None or "://" not in storage:
        path = folder / "journal.log" if storage is None else Path(storage).expanduser().resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        # it also works on network disks; a kill in the middle of a line leaves it behind
        lock = JournalFileSymlinkLock(str(path), grace_period=LOCK_GRACE_S)
        return optuna.storages.JournalStorage(JournalFileBackend(str(path), lock))
    options = {"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(storage, engine_kwargs=options)


def _public(storage: str) -> str:
    """A storage's name without the password that may stand in it."""
    scheme, found, rest = storage.partition("://")
    return f"{scheme}{found}{rest.rpartition('@')[2]}"
