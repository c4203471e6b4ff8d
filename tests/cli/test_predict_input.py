from __future__ import annotations

import gzip
import io
import json

import pyarrow
import pyarrow.parquet
import pytest

from smolbench.cli.predict_input import read_inputs
from smolbench.errors import SmolbenchError


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


def read_texts(texts, source):
    return read_inputs(texts, source).texts


# -- texts in -------------------------------------------------------------------------------------


def test_texts_of_the_command_line(stdin):
    stdin("not read")
    assert read_texts(["one", "two"], None) == ["one", "two"]


@pytest.mark.parametrize("source", [None, "-"])
def test_piped_lines(stdin, source):
    stdin("one\ntwo\r\nthree")
    assert [text.strip() for text in read_texts([], source)] == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("content", "number"), [("one\n\ntwo\n", 2), ("one\n \t\n", 2), ("\none", 1), ("one\n\n", 2)]
)
def test_an_empty_line_is_refused_by_its_number(stdin, tmp_path, content, number):
    """What is pasted beside the predictions would stand beside another text."""
    (tmp_path / "in.txt").write_text(content)
    with pytest.raises(SmolbenchError, match=rf"in\.txt, line {number}: the text is empty"):
        read_texts([], str(tmp_path / "in.txt"))
    stdin(content)
    with pytest.raises(SmolbenchError, match=f"standard input, line {number}"):
        read_texts([], "-")


def test_a_terminal_is_not_waited_for(stdin):
    stdin("never", terminal=True)
    with pytest.raises(SmolbenchError, match="no text to predict"):
        read_texts([], None)


def test_a_file(stdin, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_bytes("one\r\ntwo ä\n".encode())
    assert read_texts(["zero"], str(file)) == ["zero", "one", "two ä"]


def test_a_line_ends_at_a_newline_only(stdin, tmp_path):
    """IMDb's own texts hold U+0085, at which `splitlines` would cut them."""
    text = "a\x85b\x0bc\u2028d"
    (tmp_path / "texts.txt").write_text(f"{text}\nnext\n", encoding="utf-8")
    assert read_texts([], str(tmp_path / "texts.txt")) == [text, "next"]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"a\rb\nc\n", ["a\rb", "c"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\rb\r\nc", ["a\rb", "c"]),
        (b"a\rb\r", ["a", "b"]),
    ],
)
def test_a_carriage_return_within_a_line_is_a_part_of_its_text(
    stdin, tmp_path, monkeypatch, content, texts
):
    (tmp_path / "texts.txt").write_bytes(content)
    assert read_texts([], str(tmp_path / "texts.txt")) == texts
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    assert read_texts([], "-") == texts


def test_a_text_that_cannot_be_encoded_or_holds_nul_is_refused(stdin, tmp_path):
    with pytest.raises(SmolbenchError, match=r"--text: the text is not valid .*--encoding"):
        read_texts(["fine", "\udcff"], None)
    with pytest.raises(SmolbenchError, match="--text: the text holds a NUL"):
        read_texts(["a\0b"], None)
    (tmp_path / "texts.txt").write_bytes(b"a\nb\0c\n")
    with pytest.raises(SmolbenchError, match=r"texts.txt, line 2: the text holds a NUL"):
        read_texts([], str(tmp_path / "texts.txt"))


def test_a_byte_order_mark_is_no_text(stdin, tmp_path):
    (tmp_path / "texts.txt").write_bytes(b"\xef\xbb\xbfgood\n")
    assert read_texts([], str(tmp_path / "texts.txt")) == ["good"]


@pytest.mark.parametrize("texts", [[], [""], ["  ", "\n"]])
def test_nothing_to_predict(stdin, texts):
    with pytest.raises(SmolbenchError, match="no text to predict"):
        read_texts(texts, None)


def test_an_empty_text_among_others_is_not_passed_over(stdin):
    with pytest.raises(SmolbenchError, match="texts given by --text is empty"):
        read_texts(["good", " "], None)


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


# -- tables ---------------------------------------------------------------------------------------

ROWS = [
    {"id": "007", "review": "A fine film, really.", "label": "pos"},
    {"id": "8", "review": 'He said "no".\nTwice ü', "label": "neg"},
]


def write_table(path, rows=ROWS):
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    if name.endswith(".jsonl"):
        content = "".join(json.dumps(row) + "\n\n" for row in rows)
    else:
        mark = "\t" if name.endswith(".tsv") else ","
        quoted = [['"' + value.replace('"', '""') + '"' for value in row.values()] for row in rows]
        content = "".join(mark.join(cells) + "\n" for cells in [list(rows[0]), *quoted])
    data = content.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize(
    "ending", [".csv", ".tsv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet", ".CSV"]
)
def test_tables_keep_their_columns(stdin, tmp_path, ending):
    stdin("not read")
    path = write_table(tmp_path / f"reviews{ending}")
    found = read_inputs([], str(path), "review")
    assert found.texts == [row["review"] for row in ROWS]
    columns = {
        name: values if isinstance(values, list) else values.to_pylist()
        for name, values in found.columns.items()
    }
    assert columns == {name: [row[name] for row in ROWS] for name in ROWS[0]}


def test_the_column_is_called_text_if_no_other_is_named(stdin, tmp_path):
    path = write_table(tmp_path / "x.csv", [{"text": "one"}, {"text": "two"}])
    assert read_inputs([], str(path)).texts == ["one", "two"]


def test_objects_may_lack_what_is_not_the_text(stdin, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a", "n": 1}\n{"m": [2], "text": "b"}\n')
    found = read_inputs([], str(tmp_path / "x.jsonl"))
    assert found.columns == {"text": ["a", "b"], "n": [1, None], "m": [None, [2]]}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", "review\na\n", ["x.csv has no column 'text'", "'review'", "--text_column"]),
        ("x.csv", "", ["is empty"]),
        ("x.csv", "text,id\n", ["x.csv has no rows"]),
        ("x.csv", "text,id\na,1,2\n", ["x.csv, row 2 has 3 fields"]),
        ("x.csv", "text,id,id\na,1,2\n", ["2 columns named 'id'"]),
        ("x.csv", "text,id\na,1\n ,2\n", ["x.csv, row 3: the text is empty"]),
        ("x.csv", "text\na\n\nb\n", ["x.csv, row 3: the text is empty"]),
        ("x.tsv", '"text"\n"a"\n\n', ["x.tsv, row 3: the text is empty"]),
        ("x.csv", 'text\n"never closed\n', ["row 2 cannot be read", "never closed"]),
        ("x.csv", b"text\n\xfcber\n", ["row 2", "byte 0xFC", "--encoding"]),
        ("x.csv", b"text,id\na,\xfc\n", ["row 2", "byte 0xFC", "--encoding"]),
        ("x.tsv", "text,id\na,1\n", ["separated by commas"]),
        ("x.jsonl", '{"text": "a"}\n{"txt": "b"}\n', ["line 2 has no 'text'", "--text_column"]),
        ("x.jsonl", '{"text": 3}\n', ["line 1", "a number"]),
        ("x.jsonl", "[1]\n", ["line 1 is [1], not an object with 'text'."]),
        ("x.jsonl", "{\n", ["line 1 is not valid JSON"]),
        ("x.parquet", "no", ["not a whole Parquet file"]),
        ("x.csv.gz", "no", ["not a whole gzip file"]),
        ("x.xlsx", "no", ["ending that is not known", ".txt", ".parquet"]),
    ],
)
def test_tables_that_cannot_be_labelled(stdin, tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SmolbenchError) as caught:
        read_inputs([], str(path))
    said = str(caught.value)
    assert all(word in said for word in words), said
    assert "--data" not in said


def test_every_line_of_a_tsv_without_quotes_around_texts_is_a_text(stdin, tmp_path):
    texts = ['"opens', "plain", 'closes"', '"whole"'] * 3
    path = tmp_path / "x.tsv"
    path.write_text("id\ttext\n" + "".join(f"{n}\t{text}\n" for n, text in enumerate(texts)))
    assert read_inputs([], str(path)).texts == texts
    assert read_inputs([], str(path), quoting="none").texts == texts
    assert len(read_inputs([], str(path), quoting="quotes").texts) == 6


@pytest.mark.parametrize("column", ["label", "stars"])
def test_a_tsv_with_labels_is_cut_into_the_rows_that_test_has(stdin, tmp_path, column):
    path = tmp_path / "x.tsv"
    path.write_text(f'text\t{column}\ngood\tneg\n"\t\nbad"\tpos\n')
    label_column = None if column == "label" else column
    assert read_inputs([], str(path), label_column=label_column).texts == ["good", "\t\nbad"]
    # without a column of labels nothing says which it is
    assert len(read_inputs([], str(path), label_column="none").texts) == 3


def test_a_table_that_is_not_there(stdin, tmp_path):
    with pytest.raises(SmolbenchError, match="--input: there is no file"):
        read_inputs([], str(tmp_path / "x.csv"))


def test_another_encoding(stdin, tmp_path):
    (tmp_path / "x.csv").write_bytes("text\nüber\n".encode("cp1252"))
    (tmp_path / "x.txt").write_bytes("über\n".encode("utf-16"))
    assert read_inputs([], str(tmp_path / "x.csv"), encoding="cp1252").texts == ["über"]
    assert read_inputs([], str(tmp_path / "x.txt"), encoding="utf-16").texts == ["über"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((["a"], None, "review"), "--text_column review is for a table"),
        (([], "lines.txt", "review"), "--text_column review is for a table"),
        (([], "lines.txt", None, None, "none"), "--quoting none is for a CSV or TSV"),
        (([], "x.tsv", None, None, "some"), "--quoting some is not known"),
        ((["a"], "x.csv"), "Both --text and the table"),
        ((["a"], None, None, "utf-8"), "--encoding is for a file"),
        (([], "x.csv", None, "no-such"), "--encoding 'no-such' is not known"),
    ],
)
def test_options_that_would_be_passed_over(stdin, arguments, words):
    with pytest.raises(SmolbenchError, match=words):
        read_inputs(*arguments)
