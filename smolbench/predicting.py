"""Texts in, labels out: the two ends of ``smolbench predict``."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from smolbench.errors import SmolbenchError

_FORMATS = (".parquet", ".csv", ".jsonl")


def read_texts(texts: Sequence[str], source: str | None) -> list[str]:
    """The texts to label.

    Args:
        texts: Given on the command line.
        source: A file with a text per line, ``-`` for standard input; standard input is also read
            if nothing else is given and it is not a terminal.

    Raises:
        SmolbenchError: If there is no text, or the file cannot be read.
    """
    found = list(texts)
    read = ""
    try:
        if source == "-" or (source is None and not found and not sys.stdin.isatty()):
            read = sys.stdin.read()
        elif source is not None:
            # some editors put a mark in front, which is no part of the first text
            read = Path(source).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SmolbenchError(f"--input {source or '-'} cannot be read: {error}.") from error
    found += read.split("\n")  # not splitlines(): that also cuts at rare characters within a text
    found = [text for text in found if text.strip()]
    if not found:
        raise SmolbenchError(
            'There is no text to predict: give --text "...", --input FILE, or pipe lines in.'
        )
    return found


def check_output(output: Path | None) -> None:
    """Refuse an output file of an unknown format before anything is computed.

    Raises:
        SmolbenchError: If the file's ending is not known, or it cannot be a file.
    """
    if output is None:
        return
    if output.suffix not in _FORMATS:
        raise SmolbenchError(f"--output must end in {', '.join(_FORMATS)}; it is {output}.")
    if output.is_dir():
        raise SmolbenchError(f"--output {output} is a folder; name a file.")


def write_predictions(
    batches: Sequence[dict[str, torch.Tensor]],
    texts: Sequence[str],
    label_names: Sequence[str],
    output: Path | None,
) -> None:
    """Write a label and a probability per class for every text.

    Args:
        batches: Row numbers ``index`` ``(B,)`` and probabilities ``scores`` ``(B, C)``.
        texts: The texts, ``N`` of them.
        label_names: Names of the ``C`` classes.
        output: Parquet, CSV or JSON lines by its ending; the terminal if not given.

    Raises:
        SmolbenchError: If the file cannot be written.
    """
    index = torch.cat([batch["index"] for batch in batches])
    scores = torch.cat([batch["scores"] for batch in batches])[index.argsort()]
    rows: list[dict[str, Any]] = [
        {
            "text": text,
            "label": label_names[int(row.argmax())],
            **{
                f"score_{name}": round(float(p), 6)
                for name, p in zip(label_names, row, strict=True)
            },
        }
        for text, row in zip(texts, scores, strict=True)
    ]
    if output is None:
        for row in rows:
            best = max(v for k, v in row.items() if k.startswith("score_"))
            sys.stdout.write(f"{row['label']}\t{best:.4f}\t{row['text']}\n")
        return
    temporary = output.with_name(f".{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _write_table(rows, temporary, output.suffix)
        temporary.replace(output)
    except OSError as error:
        raise SmolbenchError(f"--output {output} cannot be written: {error}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_table(rows: list[dict[str, Any]], path: Path, kind: str) -> None:
    if kind == ".jsonl":
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8")
        return
    import pyarrow  # lazy: only these formats need it
    import pyarrow.csv
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(rows)
    if kind == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.parquet.write_table(table, path)
