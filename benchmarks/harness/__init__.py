"""What all benchmarks share: sides in turn, each in a fresh process, ratios with their spread.

Plain Python and small on purpose: Linux counts the memory of the process that starts another one
into the peak of the one started, so nothing large may be imported here.
"""

from harness.comparing import (
    Finding,
    Spread,
    Verdict,
    at_least,
    at_most,
    difference,
    ratio,
)
from harness.running import (
    ROOT,
    Measured,
    Side,
    alternate,
    measure,
)
from harness.starting import (
    BenchmarkError,
    option_parser,
    positive,
    readable_errors,
    require_hub,
    require_packages,
    say,
)
from harness.writing import (
    RESULTS,
    commit,
    machine,
    table,
    versions,
    write_results,
)

__all__ = [
    "RESULTS",
    "ROOT",
    "BenchmarkError",
    "Finding",
    "Measured",
    "Side",
    "Spread",
    "Verdict",
    "alternate",
    "at_least",
    "at_most",
    "commit",
    "difference",
    "machine",
    "measure",
    "option_parser",
    "positive",
    "ratio",
    "readable_errors",
    "require_hub",
    "require_packages",
    "say",
    "table",
    "versions",
    "write_results",
]
