"""Columns of datasets, read a block of rows at a time.

``dataset[name]`` reads row by row, which takes twenty times as long, and ``dataset[name][:]`` holds
all values at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from smolbench.utils.digest import LENGTH, text_digest

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

BLOCK_ROWS = 1000
"""Rows of a column that are read at once."""


def column_blocks(dataset: Dataset, name: str) -> Iterator[pa.Array]:
    """Values of a column, in order, as Arrow arrays of at most ``BLOCK_ROWS`` rows."""
    chosen = None if dataset._indices is None else np.asarray(dataset._indices.column(0), np.int64)
    if chosen is not None and np.any(chosen[1:] < chosen[:-1]):  # not the order on disk
        for batch in dataset.select_columns(name).with_format("arrow").iter(BLOCK_ROWS):
            yield from batch.column(0).chunks
        return
    first = 0
    for chunk in dataset.data.column(name).chunks:
        for start in range(0, len(chunk), BLOCK_ROWS):
            block = chunk.slice(start, BLOCK_ROWS)
            if chosen is not None:
                here = slice(*np.searchsorted(chosen, [first, first + len(block)]))
                block_rows = chosen[here] - first
                first += len(block)
                block = block.take(block_rows)
            yield block


def column_values(dataset: Dataset, name: str) -> Iterator[Any]:
    """Values of a column, in order, as Python objects."""
    for block in column_blocks(dataset, name):
        yield from block.to_pylist()


def column_numbers(dataset: Dataset, name: str) -> npt.NDArray[np.int64]:
    """Values of a column of integers without gaps, shape ``(N,)``."""
    blocks = [np.asarray(block, np.int64) for block in column_blocks(dataset, name)]
    return np.concatenate([np.zeros(0, np.int64), *blocks])


def column_digest(dataset: Dataset, name: str) -> str:
    """Digest of a column's values, each as text; order and boundaries count.

    Strings are read where they lie in memory: a million short ones take a fraction of a second. The
    digest does not depend on how the rows are stored.
    """
    import pyarrow as pa  # lazy: import cost

    if dataset.data.column(name).type != pa.string():
        return text_digest(map(str, column_values(dataset, name)))
    lengths, content = hashlib.sha256(), hashlib.sha256()
    for block in column_blocks(dataset, name):
        if block.null_count:  # a gap is not an empty text, and holds its place in neither buffer
            return text_digest(map(str, column_values(dataset, name)))
        if not len(block):
            continue
        _, offset_bytes, text_bytes = block.buffers()
        ends = np.frombuffer(offset_bytes, np.int32)[block.offset : block.offset + len(block) + 1]
        lengths.update(np.diff(ends).astype("<i8").tobytes())
        if text_bytes is not None:  # there is none where all texts are empty
            content.update(memoryview(text_bytes)[int(ends[0]) : int(ends[-1])])
    return hashlib.sha256(lengths.digest() + content.digest()).hexdigest()[:LENGTH]


def first_bad_row(dataset: Dataset, classes: int) -> tuple[int, Any, Any] | None:
    """Find a row without a text, or with a label that is no class.

    Args:
        dataset: Rows with the columns ``text`` and ``label``.
        classes: Labels go from 0 to below this.

    Returns:
        Number, text and label of the first such row; ``None`` if there is none.
    """
    if _sound(dataset.data.column("text"), dataset.data.column("label"), classes):
        return None
    # rows that are not chosen may be the bad ones
    columns = (column_values(dataset, name) for name in ("text", "label"))
    for row, (text, label) in enumerate(zip(*columns, strict=True)):
        if not isinstance(text, str) or label is None or not 0 <= label < classes:
            return row, text, label
    return None


def _sound(texts: pa.ChunkedArray, labels: pa.ChunkedArray, classes: int) -> bool:
    """Whether all rows that are stored are good, chosen or not."""
    import pyarrow as pa  # lazy: import cost
    import pyarrow.compute as pc

    if not pa.types.is_string(texts.type) and not pa.types.is_large_string(texts.type):
        return False
    if texts.null_count or labels.null_count or not pa.types.is_integer(labels.type):
        return False
    bounds = pc.min_max(labels).as_py()
    return not len(labels) or bool(bounds["min"] >= 0 and bounds["max"] < classes)
