from __future__ import annotations

import os
from pathlib import Path

import pytest

from smolbench.utils.files import write_atomically
from tests.helpers.disk import Disk


@pytest.mark.parametrize(("old", "new"), [("old", "new, of many letters"), (b"old", b"new")])
def test_readers_see_the_old_content_or_the_new(tmp_path, monkeypatch, old, new):
    path = tmp_path / "deep" / "file"
    write_atomically(path, old)
    disk = Disk(monkeypatch)
    with path.open("rb") as reader:
        write_atomically(path, new)
        assert reader.read() == b"old", "what is open stays as it was"
    read = path.read_bytes()
    assert read == (new if isinstance(new, bytes) else new.encode())
    assert disk.events == [("on disk", path.stat().st_ino, len(read)), ("renamed", "file")]
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_rename_that_fails_keeps_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def refused(*args):
        raise OSError(5, "Input/output error")

    for place, name in ((os, "fsync"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, refused)
            with pytest.raises(OSError, match="Input/output"):
                write_atomically(path, "new")
        assert path.read_text() == "old"
        assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
