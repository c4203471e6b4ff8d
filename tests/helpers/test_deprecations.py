from __future__ import annotations

import warnings

import pytest

from tests.helpers import deprecations


def library(code: str, name: str = "library") -> dict:
    names: dict = {"warnings": warnings, "__name__": name}
    exec(compile(code, "/site-packages/library.py", "exec"), names)
    return names


@pytest.fixture
def found():
    """What was taken down; nothing of it fails the test itself."""
    yield deprecations.FOUND
    deprecations.FOUND.clear()


OURS = deprecations._OURS[0] + "module.py"


@pytest.mark.parametrize("kind", ["DeprecationWarning", "FutureWarning", "UserWarning"])
@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.filterwarnings("ignore")
def test_our_calls_and_those_of_libraries(found, kind, level):
    names = library(
        f"def old(): warnings.warn('old is gone soon', {kind}, stacklevel={level})\n"
        "def uses_old(): old()\n"
    )
    names["uses_old"]()
    assert found == []
    wrapper = library("def passed_on(function): function()", "torch.nn.modules.module")
    names["passed_on"] = wrapper["passed_on"]
    exec(compile("old()\n\npassed_on(old)", OURS, "exec"), names)
    expected = [f"{OURS}:{line}: old is gone soon" for line in (1, 3)]
    assert found == ([] if kind == "UserWarning" else expected)
