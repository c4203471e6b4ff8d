from __future__ import annotations

import csv
import io
import json
import re

import pyarrow
import pyarrow.parquet
import pytest
import torch

from smolbench.cli.predict_input import Inputs
from smolbench.cli.predict_output import Labelled, Summarized, check_output, write_predictions
from smolbench.errors import SmolbenchError

NAMES = ["neg", "pos"]
TEXTS = ["first, with comma", 'second "quoted"\tü', "third\nin two lines"]
INPUTS = Inputs(TEXTS, {"text": TEXTS})
# length-sorted batches come in another order than the texts
BATCHES = [
    {"index": torch.tensor([2]), "scores": torch.tensor([[0.25, 0.75]])},
    {"index": torch.tensor([1, 0]), "scores": torch.tensor([[0.9, 0.1], [0.4, 0.6]])},
]
SAID = Labelled.of(BATCHES, NAMES)
LABELS = ["pos", "neg", "pos"]
BEFORE = Labelled(NAMES, torch.tensor([[0.5, 0.5], [0.51, 0.49], [0.7, 0.3]]))


def read_back(path):
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# -- the terminal ---------------------------------------------------------------------------------


def test_what_is_piped_on_is_a_line_per_text_in_order(capsys):
    write_predictions(INPUTS, SAID, None)
    assert capsys.readouterr().out == (
        "pos\t0.6000\tfirst, with comma\n"
        'neg\t0.9000\tsecond "quoted"\tü\n'
        "pos\t0.7500\tthird in two lines\n"
    )


def test_lines_with_a_model_before(capsys):
    write_predictions(INPUTS, SAID, None, BEFORE)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == 'neg\t0.5100\tneg\t0.9000\tsecond "quoted"\tü'


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


SUMMARIES = Summarized.of(
    [
        {"index": torch.tensor([2, 0]), "summaries": ["the third", "a\nfirst"]},
        {"index": torch.tensor([1]), "summaries": ["equal"]},
    ]
)


def test_summaries_stand_in_the_order_of_the_texts(capsys, tmp_path):
    write_predictions(INPUTS, SUMMARIES, None, Summarized(["x", "y", "z"]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "x\ta first\tfirst, with comma"
    assert lines[2] == "z\tthe third\tthird in two lines"
    write_predictions(INPUTS, SUMMARIES, tmp_path / "a.jsonl")
    assert [row["summary"] for row in read_back(tmp_path / "a.jsonl")] == [
        "a\nfirst",
        "equal",
        "the third",
    ]


@pytest.mark.parametrize("before", [None, Summarized(["x", "y", "z"])])
def test_a_terminal_shows_whole_summaries(monkeypatch, before):
    monkeypatch.setenv("COLUMNS", "60")
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    write_predictions(INPUTS, SUMMARIES, None, before)
    shown = terminal.getvalue()
    assert "the third" in shown
    assert ("after" in shown) == (before is not None)


@pytest.fixture
def cells(monkeypatch):
    """Cells of what is written to a terminal."""

    def write(*arguments):
        monkeypatch.setenv("COLUMNS", "60")
        monkeypatch.setenv("TERM", "dumb")
        screen = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout", screen)
            write_predictions(*arguments)
        return split(screen)

    return write


def split(screen):
    plain = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    return [re.split(r"\s{2,}", line.strip()) for line in plain.splitlines()]


def test_a_terminal_gets_a_table_with_long_texts_shortened(cells):
    texts = ["[bold]short[/bold]", "a long text, " * 20, "three"]
    head, *rows = cells(Inputs(texts, {"text": texts}), SAID, None)
    assert head == ["text", "label", "neg", "pos"]
    assert [row[1:] for row in rows] == [
        ["pos", "0.4000", "0.6000"],
        ["neg", "0.9000", "0.1000"],
        ["pos", "0.2500", "0.7500"],
    ]
    assert rows[0][0] == "[bold]short[/bold]"
    assert rows[1][0].startswith("a long text, a")
    assert rows[1][0].endswith("…")


def test_a_terminal_shows_both_models_side_by_side(cells):
    head, *rows = cells(INPUTS, SAID, None, BEFORE)
    assert head == ["text", "before", "score", "after", "score"]
    assert rows[2][1:] == ["neg", "0.7000", "pos", "0.7500"]


def test_many_classes_have_one_score(cells):
    names = [f"class {n}" for n in range(20)]
    scores = torch.full((1, 20), 0.01)
    scores[0, 7] = 0.81
    found = cells(Inputs(["x"], {"text": ["x"]}), Labelled(names, scores), None)
    assert found == [["text", "label", "score"], ["x", "class 7", "0.8100"]]


# -- files ----------------------------------------------------------------------------------------

ENDINGS = [".parquet", ".csv", ".jsonl"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_files(tmp_path, ending):
    path = tmp_path / "new" / f"labels{ending}"
    write_predictions(INPUTS, SAID, path)
    found = read_back(path)
    assert list(found[0]) == ["text", "label", "score_neg", "score_pos"]
    assert [row["text"] for row in found] == TEXTS
    assert [row["label"] for row in found] == LABELS
    assert [float(row["score_pos"]) for row in found] == pytest.approx([0.6, 0.1, 0.75])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_with_a_model_before(tmp_path, ending):
    path = tmp_path / f"labels{ending}"
    write_predictions(INPUTS, SAID, path, BEFORE)
    found = read_back(path)
    results = [
        f"{name}{end}" for end in ("_before", "") for name in ("label", "score_neg", "score_pos")
    ]
    assert list(found[0]) == ["text", *results]
    assert [row["label_before"] for row in found] == ["neg", "neg", "neg"]
    assert [float(row["score_neg_before"]) for row in found] == pytest.approx([0.5, 0.51, 0.7])
    assert [row["label"] for row in found] == LABELS


def test_a_class_that_is_called_as_another_one_before_keeps_its_scores(tmp_path):
    names = ["x", "x_before"]
    before, said = (Labelled(names, torch.tensor([[p, 1 - p]])) for p in (0.25, 0.75))
    write_predictions(Inputs(["a"], {"text": ["a"]}), said, tmp_path / "l.jsonl", before)
    (row,) = read_back(tmp_path / "l.jsonl")
    assert (row["score_x_before_"], row["score_x_before_before_"]) == (0.25, 0.75)
    assert (row["score_x"], row["score_x_before"]) == (0.75, 0.25)
    assert (row["label_before_"], row["label"]) == ("x_before", "x")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("mark", ["\r", "\n", "\r\n", "\x85", "\u2028", "\x0b", "\x1c"])
def test_a_text_with_any_line_break_is_one_row(tmp_path, ending, mark):
    texts = [f"a{mark}b", mark + "c", "d" + mark]
    said = Labelled(NAMES, torch.full((3, 2), 0.5))
    write_predictions(Inputs(texts, {"text": texts}), said, tmp_path / f"l{ending}")
    if ending == ".jsonl":
        lines = (tmp_path / "l.jsonl").read_bytes().decode().removesuffix("\n").split("\n")
        found = [json.loads(line) for line in lines]
    else:
        found = read_back(tmp_path / f"l{ending}")
    assert [row["text"] for row in found] == texts


@pytest.mark.parametrize("ending", ENDINGS)
def test_columns_of_the_input_are_kept_and_never_overwritten(tmp_path, ending):
    path = tmp_path / f"labels{ending}"
    columns = {
        "id": ["007", "8", None],
        "review": TEXTS,
        "label": ["a", "b", "c"],
        "tags": [["x", "y"], [], None],
    }
    write_predictions(Inputs(TEXTS, columns), SAID, path)
    found = read_back(path)
    assert list(found[0]) == [
        "id", "review", "input_label", "tags", "label", "score_neg", "score_pos"
    ]  # fmt: skip
    assert [row["input_label"] for row in found] == ["a", "b", "c"]
    assert [row["label"] for row in found] == LABELS
    assert found[0]["id"] == "007"
    assert found[0]["tags"] == ('["x", "y"]' if ending == ".csv" else ["x", "y"])
    assert found[2]["id"] == ("" if ending == ".csv" else None)


def test_parquet_keeps_its_types(tmp_path):
    stars = pyarrow.chunked_array([pyarrow.array([1, 2, 3], pyarrow.int8())])
    write_predictions(Inputs(TEXTS, {"text": TEXTS, "stars": stars}), SAID, tmp_path / "x.parquet")
    schema = pyarrow.parquet.read_schema(tmp_path / "x.parquet")
    assert schema.field("stars").type == pyarrow.int8()
    write_predictions(Inputs(TEXTS, {"text": TEXTS, "stars": stars}), SAID, tmp_path / "x.csv")
    assert [row["stars"] for row in read_back(tmp_path / "x.csv")] == ["1", "2", "3"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_failing_write_keeps_the_old_file(tmp_path, monkeypatch, ending):
    path = tmp_path / f"labels{ending}"
    path.write_text("old")

    def fail(columns, file, kind):
        file.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("smolbench.cli.predict_output._write_table", fail)
    with pytest.raises(SmolbenchError, match=r"--output .*No space left"):
        write_predictions(INPUTS, SAID, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# -- what is refused before anything is computed --------------------------------------------------


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SmolbenchError, match=r"--output .* cannot be written: .*file is a file"):
        check_output(tmp_path / "file" / "labels.csv", INPUTS)


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)  # root may everything
    with pytest.raises(SmolbenchError, match="may not be written to"):
        check_output(tmp_path / "new" / "labels.csv", INPUTS)


@pytest.mark.parametrize("name", ["x", "x.txt", "x.CSV", ".csv"])
def test_unknown_endings(tmp_path, name):
    with pytest.raises(SmolbenchError, match=r"--output must end in \.parquet, \.csv, \.jsonl"):
        check_output(tmp_path / name, INPUTS)


def test_known_endings(tmp_path):
    check_output(None, INPUTS)
    check_output(tmp_path / "x.csv", INPUTS)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(SmolbenchError, match="is a folder"):
        check_output(tmp_path / "folder.csv", INPUTS)


def test_values_that_parquet_has_no_place_for(tmp_path):
    mixed = Inputs(TEXTS, {"text": TEXTS, "stars": [1, "two", 3]})
    with pytest.raises(SmolbenchError, match=r"'stars' holds values of several kinds"):
        check_output(tmp_path / "x.parquet", mixed)
    check_output(tmp_path / "x.jsonl", mixed)
