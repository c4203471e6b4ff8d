"""Prints constraints: every direct dependency in the lowest version that pyproject.toml allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
groups = [project["dependencies"], *project["optional-dependencies"].values()]
lines = set()
for requirement in (one for group in groups for one in group):
    lowest = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?\s*>=([\w.]+)", requirement)
    if lowest is None:
        raise SystemExit(f"pyproject.toml names no lowest version: {requirement}")
    lines.add(f"{lowest[1]}=={lowest[2]}")
print(*sorted(lines, key=str.lower), sep="\n")
