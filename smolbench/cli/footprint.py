"""``smolbench footprint``: what a model takes before anything of it is downloaded."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from smolbench.errors import SmolbenchError

if TYPE_CHECKING:
    from smolbench.models.memory.footprint import TrainingMemory, Weights

log = logging.getLogger("smolbench")
_METHODS = ("full", "lora", "qlora", "bitfit", "bitfit_added")
_MB = 1e6
_LENGTH = 512


def footprint(arguments: Sequence[str]) -> int:
    """Run ``smolbench footprint``.

    Returns:
        The exit status: 0.

    Raises:
        SmolbenchError: If a model is not known, or a method does not fit it.
    """
    parser = argparse.ArgumentParser(
        "smolbench footprint",
        description="What models take, from their configuration alone: weights by format, "
        "key-value cache, and the memory of fine-tuning them to classify. MB are 1,000,000 bytes.",
        allow_abbrev=False,
    )
    parser.add_argument("models", nargs="+", help="model ids, folders, or tiny")
    parser.add_argument("--revision", help="branch, tag or commit")
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run the Python code that a model's files bring along, on this machine",
    )
    parser.add_argument(
        "--method",
        action="append",
        choices=_METHODS,
        help="what trains; may be repeated (default: full, lora and qlora)",
    )
    parser.add_argument("--batch_size", type=_count, default=8, help="rows of a step (8)")
    parser.add_argument("--length", type=_count, help=f"tokens per row ({_LENGTH})")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="what training computes in (bfloat16)",
    )
    parser.add_argument("--json", action="store_true", help="JSON for scripts, in bytes")
    options = parser.parse_args(arguments)
    facts = [_facts(name, options) for name in options.models]
    sys.stdout.write(json.dumps(facts, indent=2) + "\n" if options.json else _text(facts, options))
    return 0


def _count(given: str) -> int:
    if not given.isdigit() or int(given) < 1:
        raise argparse.ArgumentTypeError(f"{given!r} is no whole number of at least 1")
    return int(given)


def _facts(name: str, options: argparse.Namespace) -> dict[str, Any]:
    import torch  # lazy: --help needs none

    from smolbench.models.memory.footprint import cache_bytes_per_token, training_memory, weights_of
    from smolbench.models.pretrained.backbone import Backbone

    length = options.length or _LENGTH
    backbone = Backbone(
        name, options.revision, options.dtype, trust_remote_code=options.trust_remote_code
    )
    weights = weights_of(backbone)
    facts: dict[str, Any] = {
        "model": name,
        "revision": backbone.revision,
        "parameters": _parameters(weights),
        "bytes": {
            "bf16": weights.size(16),
            "int8": weights.size(8),
            "int4": weights.size(4),
            "nf4": weights.nf4,
        },
        "cache_bytes_per_token": None,
        "batch_size": options.batch_size,
        "length": length,
        "dtype": options.dtype,
        "training": [],
    }
    try:
        facts["cache_bytes_per_token"] = cache_bytes_per_token(backbone)
    except SmolbenchError as error:
        log.warning("%s", error)
    if backbone.config.is_encoder_decoder and options.method is None:
        return facts  # FineTuneTask does not train it
    compute = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    try:
        for method in options.method or ("full", "lora", "qlora"):
            memory = training_memory(backbone, method, options.batch_size, length, compute)
            facts["training"].append(_training(memory))
    except SmolbenchError as error:
        if options.method is not None or options.length is not None:
            raise
        log.warning("Training %s is left out: %s", name, error)
    return facts


def _parameters(weights: Weights) -> dict[str, int]:
    return {
        "total": weights.total,
        "embeddings": weights.embeddings,
        "linear": weights.linear,
        "head": weights.head,
        "other": weights.other,
    }


def _training(memory: TrainingMemory) -> dict[str, Any]:
    return {
        "method": memory.method,
        "trainable_parameters": memory.trainable,
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "activations": memory.activations,
        "step": memory.step,
        "total": memory.total,
    }


def _text(facts: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    weights = [
        ("weights, MB", "bf16", "int8", "int4", "NF4 with scales", "cache, kB/token"),
        *(
            (
                one["model"],
                *(f"{one['bytes'][kind] / _MB:,.2f}" for kind in ("bf16", "int8", "int4", "nf4")),
                "-"
                if one["cache_bytes_per_token"] is None
                else f"{one['cache_bytes_per_token'] / 1e3:,.2f}",
            )
            for one in facts
        ),
    ]
    parts = ("total", "embeddings", "linear", "head", "other")
    parameters = [
        ("parameters", *parts),
        *((one["model"], *(f"{one['parameters'][part]:,}" for part in parts)) for one in facts),
    ]
    columns = ("weights", "gradients", "optimizer", "activations", "step", "total")
    training = [
        ("training, MB", "method", *columns, "trainable parameters"),
        *(
            (
                one["model"],
                row["method"],
                *(f"{row[column] / _MB:,.1f}" for column in columns),
                f"{row['trainable_parameters']:,}",
            )
            for one in facts
            for row in one["training"]
        ),
    ]
    said = [_table(weights), _table(parameters)]
    if len(training) > 1:
        batch = f"{options.batch_size} x {facts[0]['length']} tokens, {options.dtype}"
        said.append(
            f"Training to classify, a step over {batch}; step: the most that activations and "
            "gradients take at one time; total: that, weights and optimizer:\n" + _table(training)
        )
    return "\n".join(said)


def _table(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = (
        "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
    return "".join(f"{row.rstrip()}\n" for row in rows)
