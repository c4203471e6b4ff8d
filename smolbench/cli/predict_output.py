"""What ``smolbench predict`` says: labels and scores, or summaries; to a file or a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from smolbench.cli.predict_input import Inputs
from smolbench.errors import SmolbenchError
from smolbench.utils.files import csv_writer, rename_when_on_disk

_FORMATS = (".parquet", ".csv", ".jsonl")
_MAX_CLASSES = 6
"""With more classes the terminal shows the score of the label alone."""
BEFORE = "_before"
"""What the names of columns of the model before end in."""


@dataclass(frozen=True)
class Labelled:
    """What a model says of ``N`` texts.

    Attributes:
        names: Names of the ``C`` classes.
        scores: Their probabilities or margins, shape ``(N, C)``, in the order of the texts.
        score_name: Which of the two: what the names of their columns begin with.
    """

    names: Sequence[str]
    scores: torch.Tensor
    score_name: str = "score"

    @classmethod
    def of(
        cls,
        batches: Sequence[dict[str, torch.Tensor]],
        names: Sequence[str],
        score_name: str = "score",
    ) -> Labelled:
        """Put batches in order, with row numbers ``index`` ``(B,)`` and ``scores`` ``(B, C)``."""
        index = torch.cat([batch["index"] for batch in batches])
        scores = torch.cat([batch["scores"] for batch in batches])[index.argsort()]
        return cls(names, scores, score_name)

    @property
    def labels(self) -> list[str]:
        """The class of each text that has the highest score."""
        return [self.names[number] for number in self.scores.argmax(dim=1).tolist()]

    @property
    def best(self) -> list[float]:
        """Its score."""
        best: list[float] = self.scores.max(dim=1).values.tolist()
        return best

    def columns(self, ending: str = "") -> dict[str, list[Any]]:
        """``label`` and a ``score_<class>``, or ``margin_<class>``, for each class."""
        columns: dict[str, list[Any]] = {f"label{ending}": self.labels}
        for number, name in enumerate(self.names):
            values = self.scores[:, number].tolist()
            columns[f"{self.score_name}_{name}{ending}"] = [round(value, 6) for value in values]
        return columns

    def cells(self) -> list[list[str]]:
        """Of each text its label and the label's score."""
        return [
            [label, f"{score:.4f}"] for label, score in zip(self.labels, self.best, strict=True)
        ]


@dataclass(frozen=True)
class Summarized:
    """What a model makes of ``N`` texts.

    Attributes:
        summaries: In the order of the texts.
    """

    summaries: Sequence[str]

    @classmethod
    def of(cls, batches: Sequence[dict[str, Any]]) -> Summarized:
        """Put batches in order, with row numbers ``index`` ``(B,)`` and ``B`` ``summaries``."""
        index = torch.cat([batch["index"] for batch in batches]).tolist()
        texts = [text for batch in batches for text in batch["summaries"]]
        return cls([text for _, text in sorted(zip(index, texts, strict=True))])

    def columns(self, ending: str = "") -> dict[str, list[Any]]:
        """``summary``."""
        return {f"summary{ending}": list(self.summaries)}

    def cells(self) -> list[list[str]]:
        """Of each text its summary, on one line."""
        return [[" ".join(text.split())] for text in self.summaries]


Said = Labelled | Summarized
"""What a model says of texts."""


def check_output(output: Path | None, inputs: Inputs) -> None:
    """Refuse what could not be written, before anything is computed.

    Raises:
        SmolbenchError: If the file's ending is not known, it cannot be a file or be written, or
            the format has no place for what is to be written beside the labels.
    """
    if output is None:
        return
    if output.suffix not in _FORMATS:
        raise SmolbenchError(f"--output must end in {', '.join(_FORMATS)}; it is {output}.")
    if output.is_dir():
        raise SmolbenchError(f"--output {output} is a folder; name a file.")
    there = output.absolute().parent
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise SmolbenchError(f"--output {output} cannot be written: {there} is a file.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SmolbenchError(
            f"--output {output} cannot be written: the folder {there} may not be written to."
        )
    if output.suffix == ".parquet":
        _arrow(inputs.columns)


def write_predictions(
    inputs: Inputs, said: Said, output: Path | None, before: Said | None = None
) -> None:
    """Write a label and a probability per class for every text, or its summary.

    A file holds the columns of the input, with ``input_`` in front of the names that the results
    take, then those of the model before, if there is one, then the results. The terminal gets a
    table; what is piped on gets a line per text: label, its score (or the summary) and the text
    (with a model before what it says first), separated by tabs.

    Args:
        inputs: The texts.
        said: What the model says of them.
        output: Parquet, CSV or JSON lines by its ending; the terminal if not given.
        before: What another model says of them, to be put beside it.

    Raises:
        SmolbenchError: If the file cannot be written.
    """
    if output is None:
        if sys.stdout.isatty():
            _print_table(inputs, said, before)
        else:
            _print_lines(inputs, said, before)
        return
    results = said.columns()
    if before is not None:
        ending = BEFORE
        while results.keys() & before.columns(ending).keys():  # a class may be called x_before
            ending += "_"
        results = before.columns(ending) | results
    kept = {}
    for name, values in inputs.columns.items():
        while name in results or name in kept:
            name = f"input_{name}"
        kept[name] = values
    temporary = output.with_name(f".{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _write_table({**kept, **results}, temporary, output.suffix)
        rename_when_on_disk(temporary, output)
    except OSError as error:
        raise SmolbenchError(f"--output {output} cannot be written: {error}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


# -- files ----------------------------------------------------------------------------------------


def _write_table(columns: Mapping[str, Any], path: Path, kind: str) -> None:
    if kind == ".parquet":
        import pyarrow.parquet  # lazy: only this format needs it

        pyarrow.parquet.write_table(_arrow(columns), path)
        return
    rows = zip(*(_plain(values) for values in columns.values()), strict=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        if kind == ".csv":
            writer = csv_writer(file)
            writer.writerow(columns)
            writer.writerows([_cell(value) for value in row] for row in rows)
            return
        for row in rows:
            line = dict(zip(columns, row, strict=True))
            file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")


def _plain(values: Any) -> Sequence[Any]:  # noqa: ANN401 - a list or an Arrow array
    found: Sequence[Any] = values if isinstance(values, list) else values.to_pylist()
    return found


def _cell(value: object) -> object:
    """A value as it stands in a CSV file."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value


def _arrow(columns: Mapping[str, Any]) -> Any:  # noqa: ANN401 - pyarrow has no types
    import pyarrow  # lazy: import cost

    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pyarrow.array(values) if isinstance(values, list) else values
        except (pyarrow.ArrowException, OverflowError) as error:
            raise SmolbenchError(
                f"The column {name!r} holds values of several kinds, for which Parquet has no "
                "place: let --output end in .jsonl or .csv."
            ) from error
    return pyarrow.table(arrays)


# -- the terminal ---------------------------------------------------------------------------------


def _print_lines(inputs: Inputs, said: Said, before: Said | None) -> None:
    sides = [side.cells() for side in (before, said) if side is not None]
    for text, *parts in zip(inputs.texts, *sides, strict=True):
        cells = [re.sub(r"[\r\n\t]+", " ", cell) for part in parts for cell in part]
        # the text stands last: it may hold tabs, but a line break would end the line
        sys.stdout.write("\t".join([*cells, re.sub(r"[\r\n]+", " ", text)]) + "\n")


def _print_table(inputs: Inputs, said: Said, before: Said | None) -> None:
    """A row per text, which is shortened to what the terminal has room for."""
    from rich.console import Console  # lazy: import cost
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, expand=True)
    table.add_column("text", ratio=1, no_wrap=True, overflow="ellipsis")
    if isinstance(said, Summarized):
        columns = _add_summaries(table, said, before)
    else:
        assert before is None or isinstance(before, Labelled), "both are of one task"
        columns = _add_labels(table, said, before)
    for text, *cells in zip(inputs.texts, *columns, strict=True):
        table.add_row(Text(" ".join(text.split())), *cells)
    Console().print(table)


def _add_summaries(table: Any, said: Summarized, before: Said | None) -> list[list[Any]]:  # noqa: ANN401
    """Columns of whole summaries, wider than the text."""
    from rich.text import Text  # lazy: import cost

    sides = [("before", before), ("after", said)] if before is not None else [("summary", said)]
    columns = []
    for title, side in sides:
        assert isinstance(side, Summarized), "both are of one task"
        table.add_column(title, ratio=2, overflow="fold")
        columns.append([Text(cell) for (cell,) in side.cells()])
    return columns


def _add_labels(table: Any, labelled: Labelled, before: Labelled | None) -> list[list[Any]]:  # noqa: ANN401
    """Columns of labels and scores."""
    from rich.text import Text  # lazy: import cost

    columns: list[list[Any]] = []
    if before is not None:
        for title, side in (("before", before), ("after", labelled)):
            table.add_column(title)
            table.add_column(side.score_name, justify="right")
            columns += [_bold(side.labels), [Text(f"{score:.4f}") for score in side.best]]
        return columns
    table.add_column("label")
    columns.append(_bold(labelled.labels))
    if len(labelled.names) > _MAX_CLASSES:
        table.add_column(labelled.score_name, justify="right")
        columns.append([Text(f"{score:.4f}") for score in labelled.best])
        return columns
    for number, name in enumerate(labelled.names):
        margin = labelled.score_name == "margin"
        table.add_column(Text(f"margin of {name}" if margin else name), justify="right")
        values = labelled.scores[:, number].tolist()
        columns.append([Text(f"{value:.4f}") for value in values])
    return columns


def _bold(labels: Sequence[str]) -> list[Any]:
    from rich.text import Text  # lazy: import cost

    return [Text(label, style="bold") for label in labels]
