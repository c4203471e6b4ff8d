from __future__ import annotations

import json
import math

import pytest

from smolbench.errors import SmolbenchError
from smolbench.runs.results import SCHEMA, read_results, write_results
from smolbench.utils.files import write_atomically


def test_what_is_written_is_read(tmp_path):
    written = {"recipe": "ä", "test/accuracy": 0.1, "seed": 0, "data/limit_val": None, "flag": True}
    write_results(tmp_path, written)
    assert read_results(tmp_path) == {"schema": SCHEMA, **written}


def test_the_folder_is_made(tmp_path):
    write_results(tmp_path / "a" / "b", {})
    assert read_results(tmp_path / "a" / "b") == {"schema": SCHEMA}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_spell_becomes_null(tmp_path, value):
    write_results(tmp_path, {"val/loss": value})
    assert json.loads((tmp_path / "results.json").read_text())["val/loss"] is None


def test_nothing_else_is_left_in_the_folder(tmp_path):
    for number in range(3):
        write_results(tmp_path, {"n": number})
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_failing_write_keeps_the_old_file(tmp_path):
    write_results(tmp_path, {"n": 1})
    with pytest.raises(TypeError):
        write_results(tmp_path, {"n": object()})
    assert read_results(tmp_path)["n"] == 1


def test_a_full_disk_keeps_the_old_file_and_names_it(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_atomically(path, "old")

    def full(self, text, encoding):
        with self.open("w") as file:
            file.write(text[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomically(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read as JSON"),
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe\xff", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"[]", "schema 'list'"),
        (b"{}", "schema None"),
        (b'{"schema": 99}', "schema 99; this version of smolbench reads schema 1"),
    ],
)
def test_a_damaged_file_is_a_sentence(tmp_path, content, said):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(SmolbenchError, match=said):
        read_results(tmp_path)


def test_a_folder_without_the_file(tmp_path):
    with pytest.raises(SmolbenchError, match="is not a run folder"):
        read_results(tmp_path)
    with pytest.raises(SmolbenchError, match="is not a run folder"):
        read_results(tmp_path / "missing")
