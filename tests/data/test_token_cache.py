"""The token cache: what is read is what was written, and nothing half-written is ever read."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from smolbench.data import token_cache
from smolbench.data.token_cache import TokenTable, encode_to_cache, open_cache
from smolbench.errors import SmolbenchError

N_ROWS = 25


def columns(start, stop):
    return {"text": [f"text {row}" for row in range(start, stop)]}


def encode(batch):
    rows = [int(text.split()[1]) for text in batch["text"]]
    return {
        "input_ids": [list(range(row, row + row % 4 + 1)) for row in rows],
        "labels": [[-100] * (row % 3) for row in rows],
        "length": [row % 4 + 1 for row in rows],
        "weight": [row / 2 for row in rows],
        "odd": [row % 2 == 1 for row in rows],
    }


def fill(folder, encode=encode, n_rows=N_ROWS, chunk_rows=10):
    return encode_to_cache(folder, "key", columns, n_rows, encode, "Encoding", chunk_rows)


def contents(table: TokenTable):
    ragged = {name: [row.tolist() for row in column] for name, column in table.ragged.items()}
    return ragged | {name: values.tolist() for name, values in table.scalars.items()}


def fail(*_args):
    raise AssertionError("encoded although the cache had it")


def test_written_rows_come_back_across_chunks(tmp_path):
    table = fill(tmp_path)
    whole = encode(columns(0, N_ROWS))

    assert len(table) == N_ROWS
    assert contents(table) == whole
    assert {name: values.dtype.str for name, values in table.scalars.items()} == {
        "length": "<i8",
        "weight": "<f4",
        "odd": "|b1",
    }
    assert table.ragged["input_ids"].lengths.tolist() == whole["length"]


def test_entry_is_reused_with_its_time(tmp_path):
    first = fill(tmp_path)
    again = fill(tmp_path, encode=fail)

    assert contents(again) == contents(first)
    assert again.seconds == first.seconds > 0
    assert open_cache(tmp_path, "other") is None


def test_padding(tmp_path):
    column = fill(tmp_path).ragged["input_ids"]

    padded = column.padded(np.array([3, 0, 21]), fill=7)

    assert padded.dtype == np.int64
    assert padded.tolist() == [[3, 4, 5, 6], [0, 7, 7, 7], [21, 22, 7, 7]]
    with pytest.raises(IndexError):
        column[N_ROWS]


def test_pickle_holds_paths_and_not_contents(tmp_path):
    table = fill(tmp_path, n_rows=2000, chunk_rows=1000)

    raw = pickle.dumps(table.ragged["input_ids"])

    assert len(raw) < 500
    assert pickle.loads(raw)[1999].tolist() == table.ragged["input_ids"][1999].tolist()


def test_at_most_one_chunk_is_asked_for_at_a_time(tmp_path):
    ranges = []

    def recorded(start, stop):
        ranges.append((start, stop))
        return columns(start, stop)

    encode_to_cache(tmp_path, "key", recorded, N_ROWS, encode, "Encoding", 10)

    assert ranges == [(0, 10), (10, 20), (20, 25)]


def damage_values(entry):
    path = entry / "input_ids.values"
    raw = bytearray(path.read_bytes())
    raw[5] ^= 1
    path.write_bytes(raw)


def damage_length(entry):
    path = entry / "length.values"
    path.write_bytes(path.read_bytes()[:-8])


def damage_meta(entry):
    (entry / "meta.json").write_text("{")


def damage_file(entry):
    (entry / "labels.offsets").unlink()


def damage_key(entry):
    meta = json.loads((entry / "meta.json").read_text())
    (entry / "meta.json").write_text(json.dumps(meta | {"key": "other"}))


@pytest.mark.parametrize(
    "damage", [damage_values, damage_length, damage_meta, damage_file, damage_key]
)
def test_damaged_entry_is_removed_with_a_warning_and_made_again(tmp_path, caplog, damage):
    expected = contents(fill(tmp_path))
    damage(tmp_path / "key")

    with caplog.at_level(logging.WARNING, logger="smolbench"):
        assert open_cache(tmp_path, "key") is None
    assert "damaged" in caplog.text
    assert not (tmp_path / "key").exists()

    assert contents(fill(tmp_path)) == expected


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"input_ids": [[1]]}, "1 rows of 'input_ids' for examples 0 to 9"),
        ({"input_ids": [[1]] * 3 + [[]] + [[1]] * 6}, "no token for example 3"),
        ({"input_ids": [[1 << 40]] * 10}, "beyond 32 bits"),
        ({"input_ids": [[[1]]] * 10}, "list of integers"),
        ({"input_ids": [[1]] * 9 + [["a"]]}, "list of integers"),
        ({"name": ["a"] * 10}, "in 'name'"),
        ({"../name": [1] * 10}, "plain identifier"),
        ({}, "no columns"),
    ],
)
def test_encoding_that_is_no_table_is_refused_and_leaves_nothing(tmp_path, result, message):
    with pytest.raises(ValueError, match=message):
        fill(tmp_path, encode=lambda _batch: result)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_columns_may_not_change_between_chunks(tmp_path):
    def changing(batch):
        first = batch["text"][0] == "text 0"
        return {"input_ids": [[1]] * 10} if first else {"other": [1] * 10}

    def widening(batch):
        first = batch["text"][0] == "text 0"
        return {"value": [1] * 10} if first else {"value": [0.5] * 10}

    with pytest.raises(ValueError, match="columns"):
        fill(tmp_path, encode=changing, n_rows=20)
    with pytest.raises(ValueError, match="one kind"):
        fill(tmp_path, encode=widening, n_rows=20)


def test_no_examples_is_the_users_mistake(tmp_path):
    with pytest.raises(SmolbenchError, match="no examples"):
        fill(tmp_path, n_rows=0)


@pytest.mark.parametrize(
    ("number", "message"), [(errno.ENOSPC, "No space"), (errno.EROFS, "not writable")]
)
def test_full_or_read_only_disk_is_a_sentence_and_leaves_nothing(
    tmp_path, monkeypatch, number, message
):
    append = token_cache._Stream.append

    def failing(self, array):
        if self.bytes > 60:
            raise OSError(number, "from the system")
        append(self, array)

    monkeypatch.setattr(token_cache._Stream, "append", failing)

    with pytest.raises(SmolbenchError, match=message) as raised:
        fill(tmp_path)

    assert str(tmp_path) in str(raised.value)
    assert "--data.cache_dir" in str(raised.value)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_folder_that_cannot_be_made_is_a_sentence(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, "from the system")

    monkeypatch.setattr(Path, "mkdir", refuse)

    with pytest.raises(SmolbenchError, match="not writable"):
        fill(tmp_path / "cache")


def test_remains_of_a_killed_process_do_not_matter(tmp_path):
    (tmp_path / "key.part").mkdir()
    (tmp_path / "key.part" / "input_ids.values").write_bytes(b"half")

    assert contents(fill(tmp_path)) == encode(columns(0, N_ROWS))
    assert not (tmp_path / "key.part").exists()


def fill_in_process(folder, encode, queue):
    messages = []

    def note(record):
        messages.append(record.getMessage())
        (folder / "said").touch()

    handler = logging.Handler()
    handler.emit = note
    logging.getLogger("smolbench").addHandler(handler)
    queue.put("started")
    table = fill(folder, encode=encode)
    queue.put((contents(table), messages))


def test_second_process_waits_and_reads_what_the_first_wrote(tmp_path):
    def encode_when_the_other_waits(batch):
        end = time.monotonic() + 10
        while not (tmp_path / "said").exists() and time.monotonic() < end:
            time.sleep(0.01)
        return encode(batch)

    context = multiprocessing.get_context("fork")
    first_queue, second_queue = context.Queue(), context.Queue()
    first = context.Process(
        target=fill_in_process, args=(tmp_path, encode_when_the_other_waits, first_queue)
    )
    first.start()
    while not (tmp_path / "key.part").exists():
        time.sleep(0.01)
    second = context.Process(target=fill_in_process, args=(tmp_path, fail, second_queue))
    second.start()

    assert first_queue.get(timeout=20) == second_queue.get(timeout=20) == "started"
    expected, silent = first_queue.get(timeout=20)
    found, said = second_queue.get(timeout=20)
    first.join()
    second.join()

    assert found == expected == encode(columns(0, N_ROWS))
    assert silent == []
    assert len(said) == 1
    assert "waiting" in said[0]


def test_entry_still_reads_after_its_folder_is_gone(tmp_path):
    table = fill(tmp_path)
    shutil.rmtree(tmp_path / "key")
    assert contents(table) == encode(columns(0, N_ROWS))
