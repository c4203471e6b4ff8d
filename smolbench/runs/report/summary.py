"""The closing table of a command: what came out, what it cost, where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from smolbench.metrics.table import METRICS
from smolbench.runs.report.details import CLASS_COLUMNS, MAX_CLASSES, of_draws
from smolbench.runs.results import Results
from smolbench.runs.samples import labelled, read_samples

_COSTS = (
    ("data/n_train_references_cut", "training references truncated", ""),
    ("cost/fit_s", "training", "s"),
    ("cost/cache_s", "frozen passes, when first computed", "s"),
    ("cost/cache_tokens_per_s", "frozen backbone", "tokens/s"),
    ("cost/train_samples_per_s", "training throughput", "samples/s"),
    ("cost/train_tokens_per_s", "training throughput", "tokens/s"),
    ("cost/head_train_samples_per_s", "head throughput", "samples/s"),
    ("cost/test_cache_s", "frozen pass over the test split", "s"),
    ("cost/test_samples_per_s", "test throughput", "samples/s"),
    ("cost/test_latency_ms_p50", "latency of a single text, median", "ms"),
    ("cost/test_latency_ms_p95", "latency of a single text, 95th percentile", "ms"),
    ("cost/peak_rss_mib", "peak resident memory", "MiB"),
    ("cost/peak_allocated_mib", "peak allocated GPU memory", "MiB"),
    ("cost/peak_reserved_mib", "peak reserved GPU memory", "MiB"),
    ("model/trainable_params", "trainable parameters", ""),
    ("model/total_params", "of all parameters", ""),
    ("cost/checkpoint_mib", "best checkpoint", "MiB"),
)


def print_summary(results: Results, folder: Path, *, splits: tuple[str, ...]) -> None:
    """Print a run's quality on some splits and its costs.

    Args:
        results: Contents of ``results.json``.
        folder: The run folder.
        splits: Which splits' metrics to show, such as ``("val", "test")``.
    """
    table = Table(title=f"{results.get('recipe', 'run')} ({results.get('status')})", box=None)
    table.add_column("", style="dim")
    table.add_column("value", justify="right")
    table.add_column("")
    if (convention := results.get("convention")) is not None:
        table.add_row("scored as in", str(convention))
    for split in splits:
        for label, value, spread in quality_lines(results, split):
            table.add_row(f"{split} {label}", value, spread and f"± {spread}")
    for line in cost_lines(results):
        table.add_row(*line)
    console = Console()
    console.print(table)
    if "test" in splits:
        _print_classes(console, results)
        _print_samples(console, folder)
    for line in results.get("warnings") or ():
        console.print(Text(f"warning: {line}"), style="yellow", soft_wrap=True, highlight=False)


def quality_lines(results: Results, split: str) -> list[tuple[str, str, str]]:
    """What a split was scored: name, value and standard error (empty if there is none)."""
    lines = []
    headline, positive = results.get("headline"), results.get("positive_label")
    # what runs are compared by stands first
    for key, metric in sorted(METRICS.items(), key=lambda item: item[0] != headline):
        if (value := results.get(f"{split}/{key}")) is not None:
            label = f"{metric.label} (nats)" if metric.unit == "nats" else metric.label
            if metric.of_class and positive is not None:
                label = f"{label} of {positive!r}"
            error = results.get(f"{split}/{key}_stderr")
            spread = f"{error:.4f}" if isinstance(error, float) else ""
            over_draws = results.get(f"{split}/{key}_std")
            if isinstance(over_draws, float):
                spread += f" (over draws ± {over_draws:.4f})"
            lines.append((label, _number(value), spread))
    return lines


def cost_lines(results: Results) -> list[tuple[str, str, str]]:
    """What a run has cost: name, value and unit."""
    lines = []
    for key, label, unit in _COSTS:
        if (value := results.get(key)) is not None:
            note = " (reused)" if key == "cost/cache_s" and results.get("cost/cache_reused") else ""
            lines.append((label, _number(value), unit + note))
    return lines


def _print_classes(console: Console, results: Results) -> None:
    """Print what a test found class by class, and the confusion matrix."""
    names = results.get("test/labels")
    if not names or len(names) > MAX_CLASSES:
        return
    of = of_draws(results)
    table = Table(title=f"Class by class{of and f', means {of}'}", box=None)
    table.add_column("class", style="dim")
    for _, title in CLASS_COLUMNS:
        table.add_column(title, justify="right")
    for number, name in enumerate(names):
        values = [results[key][number] for key, _ in CLASS_COLUMNS]
        *ratios, count, share = values
        table.add_row(escape(name), *map(_number, ratios), f"{count:,}", f"{share:.1%}")
    console.print(table)
    if (cells := results.get("test/confusion")) is None:
        return
    short = [name if len(name) <= 12 else f"{name[:11]}…" for name in names]
    table = Table(title=f"Confusion matrix{of} (rows: true class)", box=None)
    table.add_column("true \\ predicted", style="dim")
    for name in short:
        table.add_column(escape(name), justify="right")
    for number, (name, row) in enumerate(zip(short, cells, strict=True)):
        shown = [f"{count:,}" for count in row]
        shown[number] = f"[bold]{shown[number]}[/bold]"
        table.add_row(escape(name), *shown)
    console.print(table)


def _print_samples(console: Console, folder: Path) -> None:
    """Print what a test has written of a few documents, beside what a person wrote."""
    for sample in read_samples(folder):
        table = Table(title="A sample", box=None, show_header=False)
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        for label, text in labelled(sample):
            shown = text.replace("\r\n", "\n").strip()
            table.add_row(Text(label), Text(shown or "(nothing)"))
        console.print(table)


def _number(value: Any) -> str:  # noqa: ANN401 - numbers of any kind
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and value > 99):
        return f"{int(value):,}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"
