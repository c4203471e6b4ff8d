"""``results.json``: one flat file per run that says what was measured and how to repeat it.

Reports, sweeps and outside scripts start from this file. Its keys are a contract: they are listed
in docs/results.md, and ``schema`` rises when one of them changes its meaning.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from smolbench.errors import SmolbenchError
from smolbench.utils.files import write_atomically

SCHEMA = 1
FILE_NAME = "results.json"
Results = dict[str, Any]


def read_results(run_dir: Path) -> Results:
    """Read a run folder's ``results.json``.

    Raises:
        SmolbenchError: If the file is missing, is not JSON, or has a schema that this version
            cannot read.
    """
    path = run_dir / FILE_NAME
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SmolbenchError(f"{run_dir} is not a run folder: it has no {FILE_NAME}.") from None
    except (ValueError, OSError, RecursionError) as error:
        raise SmolbenchError(f"{path} cannot be read as JSON ({error}).") from None
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        found = results.get("schema") if isinstance(results, dict) else type(results).__name__
        raise SmolbenchError(
            f"{path} has schema {found!r}; this version of smolbench reads schema {SCHEMA}."
        )
    return results


def write_results(run_dir: Path, results: Results) -> None:
    """Write a run folder's ``results.json`` atomically.

    Values that are not finite become ``null``: JSON has no spelling for them.
    """
    clean = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in {"schema": SCHEMA, **results}.items()
    }
    write_atomically(run_dir / FILE_NAME, json.dumps(clean, indent=2, allow_nan=False) + "\n")
