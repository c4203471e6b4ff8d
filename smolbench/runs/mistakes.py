"""A few of a test's predictions: the most confident mistakes and some that are right; summaries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smolbench.errors import SmolbenchError
from smolbench.runs.cells import Cell, Heading, Table, without_empty
from smolbench.runs.samples import SAMPLE_LABELS, read_samples
from smolbench.runs.significance import FILE_NAME

_RIGHT, _WRONG = 3, 5
_SCORE = "score_"
_MOST_SCORES = 8


def sample_table(run: Path) -> Table | None:
    """Predictions of a classification run, the most confident mistakes first.

    The texts are not in the file: ``row`` is their place in the test split, from 0.

    Returns:
        ``None`` if there are no predictions, or they are not of classes.

    Raises:
        SmolbenchError: If the file is there and cannot be read.
    """
    import pyarrow  # lazy: only this and the tests of significance read predictions
    import pyarrow.parquet

    path = run / FILE_NAME
    if not path.is_file():
        return None
    try:
        table: Any = pyarrow.parquet.read_table(path)
        names = [n.removeprefix(_SCORE) for n in table.column_names if n.startswith(_SCORE)]
        if not names or not {"index", "label", "prediction"} <= set(table.column_names):
            return None
        index, label, prediction = (
            table[name].to_pylist() for name in ("index", "label", "prediction")
        )
        scores = [table[f"{_SCORE}{name}"].to_pylist() for name in names]
        confidence = [
            scores[said][place] if 0 <= said < len(names) else 0.0
            for place, said in enumerate(prediction)
        ]
        order = sorted(range(len(index)), key=lambda place: (-confidence[place], index[place]))
    except (OSError, ValueError, TypeError, IndexError) as error:  # pyarrow's are among them
        said = " ".join(str(error).split())
        raise SmolbenchError(f"{path} cannot be read ({said}).") from error
    wrong = [place for place in order if label[place] != prediction[place]][:_WRONG]
    right = sorted(
        (place for place in order if label[place] == prediction[place]), key=index.__getitem__
    )[:_RIGHT]
    shown = names if len(names) <= _MOST_SCORES else []
    headings = (
        Heading("row"),
        Heading("", is_text=True),
        Heading("is", is_text=True),
        Heading("was called", is_text=True),
        Heading("its score"),
        *(Heading(f"score of {name}") for name in shown),
    )
    lines = tuple(
        (
            Cell(str(index[place]), index[place]),
            Cell("right" if label[place] == prediction[place] else "wrong"),
            Cell(_name(names, label[place])),
            Cell(_name(names, prediction[place])),
            Cell(f"{confidence[place]:.4f}", confidence[place]),
            *(Cell(f"{column[place]:.4f}", column[place]) for column in scores[: len(shown)]),
        )
        for place in [*wrong, *right]
    )
    return Table(headings, lines)


def summaries_table(run: Path) -> Table | None:
    """A run's sample summaries beside their documents and references; ``None`` if it has none."""
    columns = (*SAMPLE_LABELS, ("before_convention", "before training, written as"))
    samples = [sample for sample in read_samples(run) if sample]
    if not samples:
        return None
    headings = [Heading(label, is_text=True) for _, label in columns]
    return without_empty(headings, [[Cell(s.get(key, "")) for key, _ in columns] for s in samples])


def _name(names: list[str], number: int | None) -> str:
    if number is None:
        return ""
    return names[number] if 0 <= number < len(names) else str(number)
