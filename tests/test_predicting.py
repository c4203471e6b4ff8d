from __future__ import annotations

import csv
import io
import json

import pyarrow.parquet
import pytest
import torch

from smolbench.errors import SmolbenchError
from smolbench.predicting import check_output, read_texts, write_predictions


class Stdin(io.StringIO):
    def __init__(self, text: str, terminal: bool = False) -> None:
        super().__init__(text)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def stdin(monkeypatch):
    def feed(text: str, terminal: bool = False) -> None:
        monkeypatch.setattr("sys.stdin", Stdin(text, terminal))

    feed("", terminal=True)
    return feed


# -- texts in -------------------------------------------------------------------------------------


def test_texts_of_the_command_line(stdin):
    stdin("not read")
    assert read_texts(["one", "two"], None) == ["one", "two"]


@pytest.mark.parametrize("source", [None, "-"])
def test_piped_lines(stdin, source):
    stdin("one\n\ntwo\r\n  \nthree")
    assert [text.strip() for text in read_texts([], source)] == ["one", "two", "three"]


def test_a_terminal_is_not_waited_for(stdin):
    stdin("never", terminal=True)
    with pytest.raises(SmolbenchError, match="no text to predict"):
        read_texts([], None)


def test_a_file(stdin, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_bytes("one\r\ntwo ä\n\n".encode())
    assert read_texts(["zero"], str(file)) == ["zero", "one", "two ä"]


def test_a_line_ends_at_a_newline_only(stdin, tmp_path):
    """IMDb's own texts hold U+0085, at which `splitlines` would cut them."""
    text = "a\x85b\x0bc\u2028d"
    (tmp_path / "texts.txt").write_text(f"{text}\nnext\n", encoding="utf-8")
    assert read_texts([], str(tmp_path / "texts.txt")) == [text, "next"]


def test_a_byte_order_mark_is_no_text(stdin, tmp_path):
    (tmp_path / "texts.txt").write_bytes(b"\xef\xbb\xbfgood\n")
    assert read_texts([], str(tmp_path / "texts.txt")) == ["good"]


@pytest.mark.parametrize("texts", [[], [""], ["  ", "\n"]])
def test_nothing_to_predict(stdin, texts):
    with pytest.raises(SmolbenchError, match="no text to predict"):
        read_texts(texts, None)


def test_a_file_that_cannot_be_read(stdin, tmp_path):
    with pytest.raises(SmolbenchError, match=r"--input .*missing"):
        read_texts([], str(tmp_path / "missing"))
    with pytest.raises(SmolbenchError, match=r"--input"):
        read_texts([], str(tmp_path))
    (tmp_path / "latin1").write_bytes("über".encode("latin-1"))
    with pytest.raises(SmolbenchError, match=r"--input .*latin1 cannot be read"):
        read_texts([], str(tmp_path / "latin1"))


def test_standard_input_that_is_no_text(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    with pytest.raises(SmolbenchError, match=r"--input - cannot be read"):
        read_texts([], "-")


# -- labels out -----------------------------------------------------------------------------------

NAMES = ["neg", "pos"]
TEXTS = ["first, with comma", 'second "quoted"\tü', "third"]
# length-sorted batches come in another order than the texts
BATCHES = [
    {"index": torch.tensor([2]), "scores": torch.tensor([[0.25, 0.75]])},
    {"index": torch.tensor([1, 0]), "scores": torch.tensor([[0.9, 0.1], [0.4, 0.6]])},
]
LABELS = ["pos", "neg", "pos"]


def test_the_terminal_gets_a_line_per_text_in_order(capsys):
    write_predictions(BATCHES, ["a", "b", "c"], NAMES, None)
    assert capsys.readouterr().out == "pos\t0.6000\ta\nneg\t0.9000\tb\npos\t0.7500\tc\n"


def read_back(path):
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_files(tmp_path, ending):
    path = tmp_path / "new" / f"labels{ending}"
    write_predictions(BATCHES, TEXTS, NAMES, path)
    found = read_back(path)
    assert [row["text"] for row in found] == TEXTS
    assert [row["label"] for row in found] == LABELS
    assert [float(row["score_pos"]) for row in found] == pytest.approx([0.6, 0.1, 0.75])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_a_failing_write_keeps_the_old_file(tmp_path, monkeypatch, ending):
    path = tmp_path / f"labels{ending}"
    path.write_text("old")

    def fail(rows, file, kind):
        file.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("smolbench.predicting._write_table", fail)
    with pytest.raises(SmolbenchError, match=r"--output .*No space left"):
        write_predictions(BATCHES, TEXTS, NAMES, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SmolbenchError, match=r"--output .* cannot be written"):
        write_predictions(BATCHES, TEXTS, NAMES, tmp_path / "file" / "labels.csv")


@pytest.mark.parametrize("name", ["x", "x.txt", "x.CSV", ".csv"])
def test_unknown_endings(tmp_path, name):
    with pytest.raises(SmolbenchError, match=r"--output must end in \.parquet, \.csv, \.jsonl"):
        check_output(tmp_path / name)


def test_known_endings(tmp_path):
    check_output(None)
    check_output(tmp_path / "x.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(SmolbenchError, match="is a folder"):
        check_output(tmp_path / "folder.csv")
