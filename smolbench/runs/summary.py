"""The closing table of a command: what came out, what it cost, where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from smolbench.runs.results import Results

_QUALITY = (
    ("accuracy", "accuracy"),
    ("f1_macro", "F1 (macro)"),
    ("auroc", "AUROC"),
    ("loss", "loss (nats)"),
    ("n", "examples"),
)
_COSTS = (
    ("cost/fit_s", "training", "s"),
    ("cost/cache_s", "frozen features, when first computed", "s"),
    ("cost/cache_tokens_per_s", "frozen backbone", "tokens/s"),
    ("cost/train_samples_per_s", "training throughput", "samples/s"),
    ("cost/train_tokens_per_s", "training throughput", "tokens/s"),
    ("cost/head_train_samples_per_s", "head throughput", "samples/s"),
    ("cost/test_cache_s", "frozen features of the test split", "s"),
    ("cost/test_samples_per_s", "test throughput", "samples/s"),
    ("cost/peak_rss_mib", "peak resident memory", "MiB"),
    ("cost/peak_allocated_mib", "peak allocated GPU memory", "MiB"),
    ("cost/peak_reserved_mib", "peak reserved GPU memory", "MiB"),
    ("model/trainable_params", "trainable parameters", ""),
    ("model/total_params", "of all parameters", ""),
    ("cost/checkpoint_mib", "best checkpoint", "MiB"),
)


def print_summary(results: Results, folder: Path, *, splits: tuple[str, ...]) -> None:
    """Print a run's quality on some splits, its costs, and its folder.

    Args:
        results: Contents of ``results.json``.
        folder: The run folder.
        splits: Which splits' metrics to show, such as ``("val", "test")``.
    """
    table = Table(title=f"{results.get('recipe', 'run')} ({results.get('status')})", box=None)
    table.add_column("", style="dim")
    table.add_column("value", justify="right")
    table.add_column("")
    for split in splits:
        for key, label in _QUALITY:
            if (value := results.get(f"{split}/{key}")) is not None:
                error = results.get(f"{split}/{key}_stderr")
                spread = f"± {error:.4f}" if isinstance(error, float) else ""
                table.add_row(f"{split} {label}", _number(value), spread)
    for key, label, unit in _COSTS:
        if (value := results.get(key)) is not None:
            note = " (reused)" if key == "cost/cache_s" and results.get("cost/cache_reused") else ""
            table.add_row(label, _number(value), unit + note)
    console = Console()
    console.print(table)
    console.print(f"Run folder: {folder}", soft_wrap=True, highlight=False)


def _number(value: Any) -> str:  # noqa: ANN401 - numbers of any kind
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and value > 99):
        return f"{int(value):,}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"
