"""What is read of random tables is what was written, or it is refused in a sentence."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import event, given, note
from hypothesis import strategies as st

from smolbench.cli.predict_input import read_inputs
from smolbench.data import TextFilesDataModule, TextPairsDataModule
from smolbench.errors import SmolbenchError
from tests.properties.drawn import tables
from tests.properties.effort import examples


def options(drawn):
    return dict(option.split("=") for option in drawn.options)


def in_order(names):
    numeric = all(name.lstrip("-").isdecimal() for name in names)
    return sorted(set(names), key=int if numeric else None)


@examples(short=40, long=4000)
@given(drawn=tables())
def test_every_row_is_read_as_it_was_written(drawn):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{drawn.ending}"
        drawn.write(path)
        if drawn.kind != ".parquet":
            note(repr(path.read_bytes()))
        data = TextFilesDataModule(
            **dict.fromkeys(("train_file", "val_file", "test_file"), str(path)),
            cache_dir=folder,
            **options(drawn),
        )
        source = data.load_hub()
        names = in_order(drawn.labels)
        for split in ("train", "test"):
            rows = source.splits[split]
            assert rows.features["label"].names == names
            assert rows["text"][:] == drawn.texts
            assert [names[label] for label in rows["label"]] == drawn.labels
        inputs = read_inputs([], str(path), **options(drawn))
        assert list(inputs.texts) == drawn.texts


@examples(short=30, long=2000)
@given(drawn=tables())
def test_every_pair_is_read_as_it_was_written(drawn):
    """Summaries may be any text: here the texts themselves, backwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{drawn.ending}"
        backwards = [text[::-1] for text in drawn.texts]
        pairs = replace(
            drawn,
            rows=tuple(zip(drawn.texts, backwards, strict=True)),
            dressed="plain",
            numbers=False,
            told=True,
        )
        pairs.write(path, "summary")
        data = TextPairsDataModule(
            train_file=str(path), test_file=str(path), cache_dir=folder, **options(pairs)
        )
        rows = data.load_hub().splits["test"]
        assert rows["document"][:] == pairs.texts
        assert rows["summary"][:] == backwards


@examples(short=40, long=4000)
@given(
    drawn=tables(),
    place=st.floats(0, 1),
    length=st.integers(0, 6),
    instead=st.one_of(
        st.binary(max_size=6),
        st.sampled_from(
            [b'"', b"\n", b"\r", b"\t", b",", b"\0", b"{", b"null", b"\xff\xfe", b"\\ud800"]
        ),
    ),
)
def test_a_damaged_file_is_read_or_refused_in_a_sentence(drawn, place, length, instead):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{drawn.ending}"
        drawn.write(path)
        whole = path.read_bytes()
        at = round(place * len(whole))
        path.write_bytes(whole[:at] + instead + whole[at + length :])
        note(repr(path.read_bytes()))
        files = dict.fromkeys(("train_file", "val_file", "test_file"), str(path))
        try:
            data = TextFilesDataModule(**files, cache_dir=folder, **options(drawn))
            rows = data.load_hub().splits["train"]
        except SmolbenchError:  # any other error would fail here
            event("refused")
        else:
            assert all(map(str.strip, rows["text"][:]))
            # one that is read for its texts alone is cut into the same rows
            assert list(read_inputs([], str(path), **options(drawn)).texts) == rows["text"][:]
            event("read")
