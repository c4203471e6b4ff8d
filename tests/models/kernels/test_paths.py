"""What a run has decided about its paths stands, unless a path has become wrong."""

from __future__ import annotations

import pytest

from smolbench.models.kernels import paths as module
from smolbench.models.kernels.paths import NAMES, Paths
from smolbench.utils.ranks import Ranks


def yes():
    return True


def no():
    return False


def never():
    pytest.fail("it was asked for")


def restored(**decided):
    paths = Paths()
    for name, taken in decided.items():
        paths.decide(name, yes if taken else no)
    later = Paths()
    later.restore({**paths.facts(), "test/accuracy": 0.5, "paths/unknown": True})
    return later


def test_a_path_that_is_right_and_faster_is_taken():
    paths = Paths()
    assert paths.decide("prefix", yes)
    assert not paths.decide("packed", no)
    assert not paths.decide("products", never, faster=no)
    facts = paths.facts()
    assert facts.pop("paths/under") == paths.under
    assert facts == {"paths/prefix": True, "paths/packed": False, "paths/products": False}


def test_speed_is_measured_once_in_a_run():
    assert restored(products=True).decide("products", yes, faster=never)
    assert not restored(products=False).decide("products", never, faster=never)


def test_a_path_that_has_become_wrong_is_not_taken():
    paths = restored(prefix=True)
    assert not paths.decide("prefix", no)
    assert paths.facts()["paths/prefix"] is False


def test_what_was_decided_under_other_libraries_is_decided_anew(monkeypatch):
    paths = Paths()
    paths.decide("prefix", no)
    facts = paths.facts()
    monkeypatch.setattr(module, "forward_environment", lambda: "another")
    later = Paths()
    later.restore(facts)
    assert later.decide("prefix", yes)


def test_what_is_decided_is_told_once():
    told = []
    paths = restored(head=True)
    paths.on_decision = told.append
    paths.decide("head", yes)
    paths.decide("slices", no)
    paths.decide("slices", no)
    assert [set(facts) for facts in told] == [{"paths/head", "paths/slices", "paths/under"}]


class Others(Ranks):
    """This process and one that finds all paths wrong."""

    def gather(self, value):
        return [value, False]


def test_ranks_take_a_path_together():
    paths = Paths()
    paths.ranks = Others()
    assert not paths.decide("prefix", yes)


def test_nothing_is_said_before_anything_is_decided():
    assert Paths().facts() == {}
    Paths().restore({})
    assert set(NAMES) >= {"unmasked", "prefix", "branches", "packed", "head", "slices", "products"}
