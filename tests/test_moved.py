"""Programs that import a module by its old name go on."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

import pytest

from smolbench.moved import MOVED


@pytest.fixture(autouse=True)
def imported_anew():
    for old in MOVED:
        sys.modules.pop(f"smolbench.{old}", None)


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_leads_to_what_stands_there_now(old):
    new = import_module(f"smolbench.{MOVED[old]}")
    with pytest.warns(FutureWarning, match=f"smolbench.{MOVED[old]} now"):
        module = import_module(f"smolbench.{old}")
    for name, value in vars(new).items():
        if not name.startswith("__") and not isinstance(value, ModuleType):
            assert getattr(module, name) is value


def test_a_name_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"smolbench\.nothing"):
        import_module("smolbench.nothing")
