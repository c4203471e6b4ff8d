"""Points are taken once, whatever happens to the workers."""

from __future__ import annotations

import copy

import pytest

from smolbench.cli.sweep import ledger as module
from smolbench.cli.sweep import process
from smolbench.cli.sweep.ledger import Ledger, Outcome
from smolbench.cli.sweep.space import read_space
from smolbench.errors import SmolbenchError

SPACE = read_space(["a=1,2", "b=x,y"], [])


@pytest.fixture(params=["journal", "sqlite"])
def opened(request, tmp_path):
    def open_one(folder="here", definition=None, **options) -> Ledger:
        (tmp_path / folder).mkdir(exist_ok=True)
        storage = None if request.param == "journal" else f"sqlite:///{tmp_path}/db"
        settings = {"sampler": "grid", "trials": None, "seed": 0, "mode": "max", "prunes": False}
        settings |= {"storage": storage, **options}
        space = settings.pop("space", SPACE)
        return Ledger(
            tmp_path / folder, "name", space, definition or {"grid": ["a=1,2"]}, **settings
        )

    return open_one


def done(value: float = 0.5) -> Outcome:
    return Outcome("finished", value, "trials/0", {"val/accuracy": value})


def elsewhere(monkeypatch) -> None:
    monkeypatch.setattr(process, "host", lambda: "another machine")


def test_every_point_once(opened):
    workers = [opened(), opened()]
    claims = [workers[i % 2].claim() for i in range(5)]
    assert claims[4] is None
    assert [claim.number for claim in claims[:4]] == [0, 1, 2, 3]
    assert claims[1].point == {"a": "1", "b": "y"}
    assert not workers[0].is_done()
    for i, claim in enumerate(claims[:4]):
        assert workers[i % 2].finish(claim, done(i / 10))
    assert all(worker.is_done() for worker in workers)
    entries = opened().entries()
    assert [entry.outcome.value for entry in entries] == [0.0, 0.1, 0.2, 0.3]
    assert [entry.status for entry in entries] == ["finished"] * 4


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_range_of_whole_numbers_ends(opened, sampler):
    space = read_space([], ["a=1:3"])
    worker = opened(space=space, sampler=sampler, trials=20)
    assert worker.limit == 3
    points = []
    while (claim := worker.claim()) is not None:
        points.append(claim.point["a"])
        assert worker.finish(claim, done(len(points) / 10))
    assert sorted(points) == ["1", "2", "3"], "each is run once"
    assert worker.is_done()


def test_points_that_two_workers_entered_at_once(opened):
    one = opened()
    for _ in range(2):  # without a common lock both find that none is there
        for number, point in enumerate(SPACE.grid()):
            one._enter(number, point, 0)
    claims = []
    while (claim := one.claim()) is not None:
        claims.append(claim.number)
        one.finish(claim, done())
    assert claims == [0, 1, 2, 3]
    assert one.is_done()


def test_a_worker_that_gives_back(opened):
    one, two = opened(), opened()
    claim = one.claim()
    one.note_process(claim, {"host": "h", "pid": 1, "started": 0.0})
    one.give_back(claim)
    taken = [two.claim() for _ in range(4)]
    assert [c.number for c in taken] == [1, 2, 3, 0]
    assert taken[3].before == ({"host": "h", "pid": 1, "started": 0.0},)
    assert two.claim() is None
    assert not one.beat(claim), "it is told that it has lost it"
    assert not one.finish(claim, done())
    assert two.finish(taken[3], done())


def test_a_dead_process_of_this_machine_is_seen_at_once(opened, monkeypatch):
    one = opened()
    with monkeypatch.context() as patch:
        patch.setattr(
            module, "identity", lambda: {"host": process.host(), "pid": 2**22 + 1, "started": 1.0}
        )
        assert one.claim().number == 0
    assert [opened().claim().number for _ in range(4)] == [1, 2, 3, 0]
    assert opened().claim() is None, "this process is alive"


def test_a_worker_of_another_machine_is_gone_when_it_gives_no_sign_of_life(opened, monkeypatch):
    now = [1000.0]  # from the first look on: the machine's own clock may stand at less, or at more
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    there, here = opened(), opened()
    with monkeypatch.context() as patch:
        elsewhere(patch)
        claim = there.claim()
    for _ in range(3):
        here.finish(here.claim(), done())
    assert here.claim() is None
    now[0] += module.STALE_S - 1
    assert here.claim() is None
    assert there.beat(claim)
    now[0] += 2
    assert here.claim() is None, "it has given one"
    now[0] += module.STALE_S + 1
    again = here.claim()
    assert again.number == claim.number == 0
    assert not there.beat(claim)
    assert not there.finish(claim, done(0.9))
    assert here.finish(again, done(0.1))
    assert here.entries()[0].outcome.value == 0.1


def test_an_outcome_that_was_not_told(opened, monkeypatch):
    one = opened()
    with monkeypatch.context() as patch:
        patch.setattr(
            module, "identity", lambda: {"host": process.host(), "pid": 2**22 + 1, "started": 1.0}
        )
        claim = one.claim()
    claim.trial.set_user_attr("outcome", vars(done(0.7)))
    two = opened()
    assert [two.claim().number for _ in range(3)] == [1, 2, 3]
    assert two.claim() is None
    assert two.entries()[0].outcome == done(0.7)


def test_a_kill_between_taking_and_saying_so(opened, monkeypatch):
    one = opened()
    with monkeypatch.context() as patch:
        patch.setattr(module, "identity", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            one.claim()
    assert sorted(opened().claim().number for _ in range(4)) == [0, 1, 2, 3]


def test_a_kill_while_a_point_is_written_down(opened):
    one = opened()
    claim = one.claim()
    torn = copy.deepcopy(one._trials()[claim.trial.number])
    torn.params = {"a": torn.params["a"]}  # a storage writes them one by one
    assert one._point_of(torn) == claim.point


def test_failed_points_are_entered_again_once(opened):
    one, two = opened(), opened()
    for _ in range(4):
        claim = one.claim()
        bad = Outcome("failed", None, "trials/0", {}, "No.")
        one.finish(claim, bad if claim.number == 2 else done())
    assert one.is_done()
    one.retry_failed()
    two.retry_failed()
    claim = two.claim()
    assert claim.number == 2
    assert one.claim() is None
    two.finish(claim, done(0.8))
    assert one.is_done()
    assert one.entries()[2].outcome.value == 0.8


def test_more_or_fewer_random_trials(opened):
    two, three = (opened(sampler="random", trials=n) for n in (2, 3))
    claims = [three.claim() for _ in range(3)]
    for claim in claims:
        three.finish(claim, done())
    assert two.claim() is None
    assert two.is_done()
    assert three.is_done()
    assert len(two.entries()) == 3
    four = opened(sampler="random", trials=4)
    assert not four.is_done()
    assert four.claim().number not in {claim.number for claim in claims}
    assert four.claim() is None


def test_sampled_trials_of_a_dead_worker_are_run_again_and_no_more_of_them(opened, monkeypatch):
    one = opened(sampler="tpe", trials=3)
    with monkeypatch.context() as patch:
        patch.setattr(
            module, "identity", lambda: {"host": process.host(), "pid": 2**22 + 1, "started": 1.0}
        )
        lost = one.claim()
    numbers = []
    while (claim := one.claim()) is not None:
        numbers.append(claim.number)
        one.finish(claim, done())
    assert len(numbers) == len(set(numbers)) == 3
    assert lost.number in numbers
    assert one.is_done()


def test_another_definition_is_refused(opened):
    opened()
    with pytest.raises(SmolbenchError, match=r"grid was \['a=1,2'\], is \['a=1'\]"):
        opened(definition={"grid": ["a=1"]})
