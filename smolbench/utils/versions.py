"""Which versions of the libraries that results depend on were tried."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

NEWEST_TRIED = {"transformers": (5, 24), "datasets": (5, 2)}
"""Newest minor versions that the tests have passed with.

Of these libraries pyproject.toml allows later ones as well: what relies on their details is tried
out when it is used.
"""


def untried() -> str | None:
    """One sentence about installed versions newer than any that was tried; ``None`` without any.

    Nothing but the packages' metadata is read: the libraries take seconds to import.
    """
    found, older = [], []
    for name, (major, minor) in NEWEST_TRIED.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        parts = re.match(r"(\d+)\.(\d+)", installed)
        if parts and (int(parts[1]), int(parts[2])) > (major, minor):
            found.append(f"{name} {installed} (tried: up to {major}.{minor})")
            older.append(f'"{name}<{major}.{minor + 1}"')
    if not found:
        return None
    return (
        f"Newer than what smolbench was tried with: {', '.join(found)}. Should something fail or "
        f"results surprise you, compare with: pip install {' '.join(older)}"
    )
