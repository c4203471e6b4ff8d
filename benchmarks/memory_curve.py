"""Time and peak memory of reading, encoding and batching more and more short texts from a CSV file.

    python benchmarks/memory_curve.py

Each size is started twice, in fresh processes: first with an empty cache, then with the token ids
that the first start has kept. No model and no network are needed: texts are generated, and the
tokenizer is that of the built-in tiny model.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import (
    Finding,
    Measured,
    Side,
    Spread,
    alternate,
    at_most,
    machine,
    measure,
    option_parser,
    positive,
    ratio,
    readable_errors,
    say,
    table,
    write_results,
)

SIZES = (1_000, 10_000, 100_000, 1_600_000)
MEMORY_BOUND = 2.0
"""How much more memory the largest size may take than the smallest; mapped pages count."""
TIME_BOUND = 1.5
"""How much longer a row of the largest size may take than one of the second largest."""
MAX_LENGTH = 64
BATCH_SIZE = 32
SYLLABLES = ("ba", "co", "di", "fu", "ge", "ha", "ki", "lo", "mu", "ne", "po", "ri", "sa", "te")


def main() -> None:
    """Measure and write the result."""
    parser = option_parser(__doc__, downloads=False)
    parser.add_argument(
        "--sizes", type=positive, nargs="+", default=list(SIZES), help="numbers of rows"
    )
    parser.add_argument("--limit", type=positive, help="leave out sizes above this")
    options = parser.parse_args()
    sizes = sorted({n for n in options.sizes if options.limit is None or n <= options.limit})
    if not sizes:
        parser.error("--limit leaves no size")
    where = machine()
    with tempfile.TemporaryDirectory(prefix="smolbench-benchmark-") as name:
        folder = Path(name)
        for size in sizes:
            write_texts(folder / f"{size}.csv", size)
        # made once, in the cache of all sizes: it is no part of what is measured
        models = {"SMOLBENCH_CACHE": str(folder / "models")}
        measure([sys.executable, __file__, "--worker", "prepare"], models)
        sides = {f"{size:,} rows": _side(folder, size, models) for size in sizes}
        rounds = alternate(sides, options.rounds)
    path = write_results(
        "memory_curve",
        title="Reading, encoding and batching short texts from a CSV file",
        setting={
            "data": "generated texts of 4 to 16 words, two classes, in one CSV file",
            "tokenizer": f"the built-in tiny model's, at most {MAX_LENGTH} tokens",
            "batch size": BATCH_SIZE,
            "sizes": ", ".join(f"{size:,}" for size in sizes),
            "rounds": options.rounds,
        },
        findings=compared(sizes, rounds),
        rounds=rounds,
        where=where,
        notes=[
            "Steps are timed within the process, so that importing is left out: reading (or opening"
            " what was read before), encoding (or opening the token ids), one epoch of batches.",
            "Pages of memory-mapped files count as resident memory; they can be dropped at any"
            " time.",
            "The page cache of the files is warm.",
        ],
    )
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + "\n".join(steps_table(rounds)) + "\n")
    say(f"Written: {path}")


def compared(sizes: Sequence[int], rounds: Mapping[str, Sequence[Measured]]) -> list[Finding]:
    """What the sizes say about each other."""
    largest = sizes[-1]
    findings = []
    for start in ("first start", "second start"):
        if len(sizes) > 1:
            memory = {n: [one.peak_rss_mib for one in rounds[_name(n, start)]] for n in sizes}
            findings.append(
                at_most(
                    f"{start}: peak memory of {largest:,} rows over {sizes[0]:,}",
                    ratio(memory[largest], memory[sizes[0]]),
                    MEMORY_BOUND,
                )
            )
    if len(sizes) > 1:
        per_row = {
            n: [_total(one) / n for one in rounds[_name(n, "first start")]] for n in sizes[-2:]
        }
        findings.append(
            at_most(
                f"first start: time per row of {largest:,} rows over {sizes[-2]:,}",
                ratio(per_row[largest], per_row[sizes[-2]]),
                TIME_BOUND,
            )
        )
    for size in sizes:
        first, second = (
            [_ready(one) for one in rounds[_name(size, start)]]
            for start in ("first start", "second start")
        )
        findings.append(
            Finding(
                f"{size:,} rows: reading and encoding, first start over second",
                ratio(first, second).shown(1, "x"),
            )
        )
    return findings


def steps_table(rounds: Mapping[str, Sequence[Measured]]) -> list[str]:
    """Seconds of each step."""
    steps = ("read_s", "encode_s", "batch_s")
    return table(
        ["side", "reading, s", "encoding, s", "one epoch of batches, s"],
        [
            [name, *(Spread.of([one.facts[step] for one in all_]).shown() for step in steps)]
            for name, all_ in rounds.items()
        ],
    )


def _name(size: int, start: str) -> str:
    return f"{size:,} rows, {start}"


def _ready(measured: Measured) -> float:
    return float(measured.facts["read_s"] + measured.facts["encode_s"])


def _total(measured: Measured) -> float:
    return _ready(measured) + float(measured.facts["batch_s"])


def _side(folder: Path, size: int, models: Mapping[str, str]) -> Side:
    def start_twice(number: int) -> dict[str, Measured]:
        found = {}
        report = folder / "report.json"
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            for start in ("first start", "second start"):
                command = [sys.executable, __file__, "--worker", "batch"]
                files = [str(folder / f"{size}.csv"), cache, str(report)]
                found[_name(size, start)] = measure([*command, *files], models, report)
        return found

    return start_twice


def write_texts(path: Path, rows: int) -> None:
    """A CSV file of short texts, the same for the same number of rows."""
    draw = random.Random(rows)
    words = [draw.choice(SYLLABLES) + draw.choice(SYLLABLES) for _ in range(200)]
    words += [one + draw.choice(SYLLABLES) for one in words]
    with path.open("w", encoding="utf-8") as file:
        file.write("text,label\n")
        for row in range(rows):
            text = " ".join(draw.choices(words, k=draw.randint(4, 16)))
            file.write(f"{text} {row},{draw.choice(('bad', 'good'))}\n")


# -- in a fresh process ---------------------------------------------------------------------------


def work(what: str, *arguments: str) -> None:
    """What a measured process does."""
    from smolbench.models.tiny.llama import tiny_model
    from smolbench.utils.files import cache_root

    tokenizer_folder = tiny_model(cache_root() / "models")
    if what == "prepare":
        return
    file, cache, report = arguments

    # imported here, so that no step waits for them
    import datasets  # noqa: F401
    import sklearn.model_selection  # noqa: F401
    from transformers import AutoTokenizer

    from smolbench.data import TextFilesDataModule
    from smolbench.models.encoding.template import TemplateEncoder

    template = TemplateEncoder(
        AutoTokenizer.from_pretrained(tokenizer_folder), "{text}", MAX_LENGTH
    )

    class Encode:
        """Texts to token ids; what it does is named, so that the ids are kept."""

        key: Mapping[str, Any] = template.key()

        def __call__(self, examples: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
            return template.encode(examples["text"])

    data = TextFilesDataModule(
        train_file=file, cache_dir=cache, encode=Encode(), batch_size=BATCH_SIZE
    )
    times = [time.monotonic()]
    train = data.split("train")
    data.split("val")
    times.append(time.monotonic())
    data.setup("fit")
    times.append(time.monotonic())
    seen = sum(len(batch["index"]) for batch in data.train_dataloader())
    times.append(time.monotonic())
    if seen != len(train):
        raise SystemExit(f"{seen} of {len(train)} rows were batched.")
    seconds = [after - before for before, after in itertools.pairwise(times)]
    facts = dict(zip(("read_s", "encode_s", "batch_s"), seconds, strict=True), rows=seen)
    Path(report).write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    else:
        with readable_errors():
            main()
