"""A few of a test's predictions: the most confident mistakes and some that are right; summaries."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from smolbench.errors import SmolbenchError
from smolbench.runs.report.cells import Cell, Heading, Table, without_empty
from smolbench.runs.report.significance import FILE_NAME, OF_SHOTS
from smolbench.runs.samples import SAMPLE_LABELS, read_samples

_RIGHT, _WRONG = 3, 5
_SCORE, _MARGIN = "score_", "margin_"
_LOG_LIKELIHOOD, _LENGTH = "log_likelihood_", "length_"
_MOST_SCORES = 8


def sample_table(run: Path) -> Table | None:
    """Predictions of a run that chooses classes or endings, the most confident mistakes first.

    The texts are not in the file: ``row`` is their place in the test split, from 0. Endings are
    chosen as for ``acc_norm``, and numbered from 0; confident is what is far ahead of all others.

    Returns:
        ``None`` if there are no predictions, or they are of neither kind.

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
        known = set(table.column_names)
        of_classes = _MARGIN if any(name.startswith(_MARGIN) for name in known) else _SCORE
        prefix = _LOG_LIKELIHOOD if "prediction_norm" in known else of_classes
        draws = any(name.startswith(OF_SHOTS) for name in known)
        names = [n.removeprefix(prefix) for n in table.column_names if n.startswith(prefix)]
        answer = "prediction_norm" if prefix == _LOG_LIKELIHOOD else "prediction"
        if not names or not {"index", "label", answer} <= known:
            return None
        index, label, prediction = (table[name].to_pylist() for name in ("index", "label", answer))
        scores = [table[f"{prefix}{name}"].to_pylist() for name in names]
        if prefix == _LOG_LIKELIHOOD:
            lengths = [table[f"{_LENGTH}{name}"].to_pylist() for name in names]
            scores = [_ratios(*pair) for pair in zip(scores, lengths, strict=True)]
        confidence = [
            _confidence([column[place] for column in scores], said, ahead=answer != "prediction")
            for place, said in enumerate(prediction)
        ]
        order = sorted(range(len(index)), key=lambda place: (-confidence[place], index[place]))
    except (OSError, ValueError, TypeError, LookupError) as error:  # pyarrow's are among them
        said = " ".join(str(error).split())
        raise SmolbenchError(f"{path} cannot be read ({said}).") from error
    wrong = [place for place in order if label[place] != prediction[place]][:_WRONG]
    right = sorted(
        (place for place in order if label[place] == prediction[place]), key=index.__getitem__
    )[:_RIGHT]
    shown = names if len(names) <= _MOST_SCORES else []
    kind = "margin" if prefix == _MARGIN else "score"
    headings = (
        Heading("row"),
        Heading("answer", is_text=True),
        Heading("true class", is_text=True),
        Heading("predicted by the first draw" if draws else "predicted", is_text=True),
        Heading(f"its {kind}" if answer == "prediction" else "ahead by"),
        *(Heading(f"{kind} of {name}") for name in shown),
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


def _ratios(values: list[float], lengths: list[float]) -> list[float]:
    return [
        value / length if length else -math.inf
        for value, length in zip(values, lengths, strict=True)
    ]


def _confidence(scores: list[float], said: int, *, ahead: bool) -> float:
    """The score of what was said, or how far it is ahead of the second; 0 if that is no choice."""
    if not 0 <= said < len(scores):
        return 0.0
    others = [score for number, score in enumerate(scores) if number != said]
    return scores[said] - (max(others) if ahead and others else 0.0)


def _name(names: list[str], number: int | None) -> str:
    if number is None:
        return ""
    return names[number] if 0 <= number < len(names) else str(number)
