"""A user's own files: formats, labels, splits, and the table that is kept of them."""

from __future__ import annotations

import errno
import gzip
import json
import logging
import shutil
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from smolbench.data import TextFilesDataModule, tables
from smolbench.data.files import options as own_rows
from smolbench.data.files import readers
from smolbench.data.hub import Source
from smolbench.errors import SmolbenchError
from smolbench.utils import notices

TEXTS = ['He said "no", twice', "line one\nline two", "NA", "  née Ωmega 😀", "null", "tab\there"]
LABELS = ["no", "yes", "no", "yes", "no", "yes"]


def encode(examples):
    return {"input_ids": [[len(text), 1] for text in examples["text"]]}


def csv_bytes(separator=",", encoding="utf-8"):
    rows = [
        f'"{text.replace(chr(34), chr(34) * 2)}"{separator}{label}\n'
        for text, label in zip(TEXTS, LABELS, strict=True)
    ]
    return "".join([f"text{separator}label\n", *rows]).encode(encoding)


def jsonl_bytes():
    rows = zip(TEXTS, LABELS, strict=True)
    return "".join(json.dumps({"label": b, "text": a, "id": 1}) + "\n" for a, b in rows).encode()


def parquet_bytes(labels=None, kind=None):
    sink = pa.BufferOutputStream()
    texts = pa.array(TEXTS, kind or pa.string())
    pq.write_table(pa.table({"id": range(6), "text": texts, "label": labels or LABELS}), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def module(tmp_path):
    """A DataModule over files, given as their contents."""

    def build(files, **options):
        for name, content in files.items():
            content = content if isinstance(content, bytes) else content.encode()
            (tmp_path / name).write_bytes(content)
        given = {
            f"{option}_file": str(tmp_path / name)
            for option, name in zip(("train", "test", "val"), files, strict=False)
        }
        options = {"cache_dir": str(tmp_path / "cache"), "encode": encode, **options}
        return TextFilesDataModule(**{**given, **options})

    return build


def numbered(n, classes=2):
    return "text,label\n" + "".join(f"number {i},{i % classes}\n" for i in range(n))


def pairs(split):
    """Rows as a set of texts with the names of their labels."""
    names = split.features["label"].names
    return {(text, names[label]) for text, label in zip(split["text"], split["label"], strict=True)}


# -- formats --------------------------------------------------------------------------------------


FILES = {
    "t.csv": csv_bytes(),
    "T.CSV": csv_bytes().replace(b"\n", b"\r\n").replace(b"one\r\n", b"one\n"),
    "bom.csv": b"\xef\xbb\xbf" + csv_bytes(),
    "blank.csv": b"\n" + csv_bytes() + b"\n\n",
    "spaces.csv": csv_bytes().replace(b",label", b", label").replace(b",yes", b", yes"),
    "t.tsv": csv_bytes("\t"),
    "t.csv.gz": gzip.compress(csv_bytes()),
    "t.jsonl": jsonl_bytes(),
    "t.jsonl.gz": gzip.compress(jsonl_bytes() + b"\n"),
    "t.parquet": parquet_bytes(),
    "large.parquet": parquet_bytes(kind=pa.large_string()),
    "coded.parquet": parquet_bytes(pa.array(LABELS).dictionary_encode()),
}


@pytest.mark.parametrize("name", FILES)  # by name: some contents hold the time
def test_every_format_gives_the_same_rows(module, name):
    data = module({name: FILES[name], "test.csv": csv_bytes()}, val_fraction=0)
    train = data.load_hub().splits["train"]
    assert list(train["text"]) == TEXTS
    assert train.features["label"].names == ["no", "yes"]
    assert list(train["label"]) == [0, 1] * 3


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_other_encodings(module, encoding):
    data = module({"t.csv": csv_bytes(encoding=encoding)}, encoding=encoding, val_fraction=0)
    assert {text for split in data.load_hub().splits.values() for text in split["text"]} == {*TEXTS}


def test_old_encoding(module):
    content = "text,label\ncafé,a\nnaïve,b\n".encode("cp1252")
    data = module({"t.csv": content, "e.csv": content}, encoding="cp1252", val_fraction=0)
    assert list(data.load_hub().splits["test"]["text"]) == ["café", "naïve"]


def test_a_text_longer_than_pythons_limit_for_csv(module):
    long = "word " * 100_000
    data = module(
        {"t.csv": f"text,label\n{long},a\nshort,b\n", "e.csv": "text,label\nx,a\n"}, val_fraction=0
    )
    assert data.load_hub().splits["train"][0]["text"] == long


GLUE = ['"opens here', "plain", 'closes here"', '"whole"', 'in "the" middle', '"a "b" c"']


def glue(texts=GLUE * 2, head="label\ttext\n", tail=""):
    return head + "".join(f"{i % 2}\t{text}\n" for i, text in enumerate(texts)) + tail


@pytest.mark.parametrize("texts", [GLUE, GLUE[:3], GLUE[1:3], GLUE[:2], GLUE[4:]])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_tsv_without_quotes_around_texts_has_a_row_per_line(module, texts, ending):
    content = glue(texts * 2).replace("\n", ending)
    for options in ({}, {"quoting": "none"}):
        data = module({"t.tsv": content, "e.tsv": content}, val_fraction=0, **options)
        assert list(data.load_hub().splits["train"]["text"]) == texts * 2


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        # written as spreadsheets do: what a text in quotes spans is no row
        (glue(['"a\nb"', '"c ""d"""']), ["a\nb", 'c "d"']),
        (glue(['"a\nb\tc"', "d"]), ["a\nb\tc", "d"]),
        ('"label"\t"text"\n"0"\t"a\nx\tb"\n"1"\t"c"\n', ["a\nx\tb", "c"]),
        ('"label"\t"text"\n"0"\t"a\n1\tb"\n"1"\t"c"\n', ["a\n1\tb", "c"]),
        (glue(['"whole"', '"two"']), ["whole", "two"]),
    ],
)
def test_a_tsv_with_quotes_around_texts_is_read_so(module, content, texts):
    data = module({"t.tsv": content, "e.tsv": content}, val_fraction=0)
    assert list(data.load_hub().splits["train"]["text"]) == texts


def test_rows_that_a_quotation_mark_may_have_swallowed_are_said(module, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("smolbench"), "propagate", True)
    csv = "text,label\n" + "".join(f"word {i},{i % 2}\n" for i in range(8))
    held = csv.replace("word 3", '"word 3').replace("word 6,0", 'word 6",0')
    fine = csv + '"Dear all,\nthanks, and\nbye, then",1\n'
    for name, content, rows, said in (
        ("t.csv", held, 5, "the lines 5 to 8 are one row"),
        ("f.csv", fine, 9, None),
        ("t.tsv", glue(['"a', 'b"', "c"], tail="1\tone\ttoo many\n"), 0, "quoting none"),
        ("q.tsv", held.replace(",", "\t"), 5, "the lines 5 to 8 are one row"),
    ):
        for _ in range(2):  # said also when the rows are there already
            notices.begin()
            caplog.clear()
            options = {"quoting": "quotes"} if name == "q.tsv" else {}
            data = module({name: content, "e.csv": csv}, val_fraction=0, **options)
            if not rows:
                with pytest.raises(SmolbenchError, match=said):
                    data.load_hub()
                continue
            assert len(data.load_hub().splits["train"]) == rows
            assert (said or "one row") in caplog.text or said is None
            assert said is not None or "quoting" not in caplog.text
    data = module({"t.csv": held, "e.csv": csv}, val_fraction=0, quoting="none")
    assert len(data.load_hub().splits["train"]) == 8


def test_quoting_is_for_files_that_have_it(module):
    with pytest.raises(SmolbenchError, match=r"data\.quoting 'none' is for CSV and TSV"):
        module({"t.jsonl": jsonl_bytes()}, quoting="none")
    with pytest.raises(SmolbenchError, match=r"data\.quoting 'none' is for files"):
        module({}, dataset_id="x/y", quoting="none")


# -- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 9, 10, 9, -1, -1], ["-1", "9", "10"]),
        ([1.0, 2.0, 1.0, 2.0, 1.0, 2.0], ["1", "2"]),
        ([True, False] * 3, ["False", "True"]),
        (["b", "a", "10", "9", "b", "a"], ["10", "9", "a", "b"]),
    ],
)
def test_classes_are_in_order(module, labels, names):
    files = {"t.parquet": parquet_bytes(labels), "e.parquet": parquet_bytes(labels[::-1])}
    data = module(files, val_fraction=0)
    train = data.load_hub().splits["train"]
    assert data.label_names == names
    found = [names[number] for number in train["label"]]
    assert found == [str(int(n) if isinstance(n, float) else n) for n in labels]


def test_other_files_use_the_numbers_of_the_training_file(module):
    data = module(
        {"t.csv": numbered(30, 3), "e.csv": "text,label\na,2\nb,1\n", "v.csv": "text,label\nc,2\n"}
    )
    assert list(data.split("test").labels) == [2, 1]
    assert list(data.split("val").labels) == [2]
    assert len(data.split("train")) == 30


def labelled(kind, labels):
    """A file of a kind with a row for each label; CSV and TSV write what Python writes."""
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        texts = [f"t {i}" for i in range(len(labels))]
        pq.write_table(pa.table({"text": texts, "label": labels}), sink)
        return sink.getvalue().to_pybytes()
    if kind == "jsonl":
        rows = [json.dumps({"text": f"t {i}", "label": x}) for i, x in enumerate(labels)]
        return ("\n".join(rows) + "\n").encode()
    tab = "," if kind == "csv" else "\t"
    return "".join(
        ["text" + tab + "label\n", *(f"t {i}{tab}{x}\n" for i, x in enumerate(labels))]
    ).encode()


KINDS = ("csv", "tsv", "jsonl", "parquet")
ACCENT = unicodedata.normalize("NFD", "Café")


@pytest.mark.parametrize("kind", KINDS)
def test_white_space_and_composition_make_no_class(module, kind):
    labels = ["Café", ACCENT, " Café\u00a0", "tea", "\ttea "] * 3
    labels = ["Café", "tea"] + (labels if kind not in ("tsv",) else [x.strip() for x in labels])
    data = module({f"t.{kind}": labelled(kind, labels), f"e.{kind}": labelled(kind, labels[1:])})
    assert data.label_names == ["Café", "tea"]
    assert len(data.load_hub().splits["test"]) == len(labels) - 1


SPELLINGS = [
    (["Pos", "pos", "pos", "neg"], "'Pos' (1) and 'pos' (2)", ["neg", "pos"]),
    (["1", "1.0", "1.0", "2"], "'1' (1) and '1.0' (2)", ["1.0", "2"]),
    (["01", "1", "1", "2"], "'01' (1) and '1' (2)", ["1", "2"]),
    (["true", "True", "True", "no"], "'true' (1) and 'True' (2)", ["True", "no"]),
    (["\uff21", "a", "a", "b"], "'\uff21' (1) and 'a' (2)", ["a", "b"]),
    (["a b", "A  B", "A  B", "b"], "'a b' (1) and 'A  B' (2)", ["A  B", "b"]),
    (["sci-fi", "Sci_Fi", "Sci_Fi", "b"], "'sci-fi' (1) and 'Sci_Fi' (2)", ["Sci_Fi", "b"]),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("labels", "pair", "merged"), SPELLINGS)
def test_two_spellings_of_a_label_are_refused_merged_or_kept(module, kind, labels, pair, merged):
    files = {f"{name}.{kind}": labelled(kind, labels) for name in "te"}
    with pytest.raises(SmolbenchError, match="similar_labels merge") as error:
        module(files, val_fraction=0).load_hub()
    assert pair in str(error.value)
    data = module(files, val_fraction=0, similar_labels="merge")
    assert data.label_names == merged
    counts = [3, 1] if merged[0] in labels[:3] else [1, 3]
    assert np.bincount(data.load_hub().splits["test"]["label"]).tolist() == counts
    assert len(module(files, val_fraction=0, similar_labels="keep").label_names) == 3


@pytest.mark.parametrize(
    "spelled",
    [
        ("sci-fi", "sci_fi", "sci fi", "SciFi", "sci\u2011fi", "sci \u2013 fi"),
        ("not spam", "not  spam", "not\u00a0spam", "not\u200bspam", "Not-Spam"),
        ("pos", "pos.", "pos,", "p\u00ados", "'pos'", "\u201cpos\u201d", "pos_"),
        ("class 2", "class\uff12", "class_2", "class-2", "\uff43lass 2"),
        ("12", "\uff11\uff12", "12.0", "12,0", "012", "\u0967\u0968"),
        ("1000", "1,000", "1e3"),
        ("-1", "\u22121", "\u20131", "-1.0"),
        ("18-25", "18\u201325", "18 - 25", "18_25"),
        ("\u2764", "\u2764\ufe0f"),
        ("R&D", "r & d", "R&amp;D"),
        ("true", "True", "1", "1.0"),
        ("FALSE", "0"),
        ("a", "['a']", "(A)", '["a"]'),
    ],
)
def test_what_hyphens_blanks_and_marks_leave_one_class(spelled):
    assert len(set(map(tables.spelling_key, spelled))) == 1


def test_what_only_looks_like_two_spellings():
    apart = ["c", "c++", "c#", "c*", "a", "a-", "a+", "-1", "1", "1-2", "12", "1/2", "u.s.", "us"]
    apart += [
        "level -1",
        "level 1",
        "1 1",
        "1 -1",
        "-1 1",
        "> -5",
        "> 5",
        "< 5",
        "5%",
        "5",
        "co",
        "yes",
    ]
    apart += [
        "yes?",
        ".net",
        "net",
        ".",
        "_",
        "-",
        "--",
        "\u0915\u093f",
        "\u0915",
        "caf\u00e9",
        "cafe",
    ]
    keys = list(map(tables.spelling_key, apart))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("t.csv", "text,label\na,x\nb,y\ntext,label\nc,x\n", "row 4 repeats the names of the col"),
        ("t.tsv", "label\ttext\nx\ta\n Label \tText\n", "row 3 repeats the names of the columns"),
        (
            "t.jsonl",
            '{"text": "a", "label": "x"}\n{"text": "b", "label": "x", "label": "y"}\n',
            "line 2 has 'label' 2 times",
        ),
        ("t.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": 1e999}\n', "label is a num"),
    ],
)
def test_files_put_behind_each_other_and_names_that_stand_twice(module, name, content, sentence):
    with pytest.raises(SmolbenchError, match=sentence):
        module({name: content}).load_hub()


@pytest.mark.parametrize("ending", ["csv", "tsv.gz", "jsonl"])
def test_bytes_of_another_encoding_are_told(module, ending):
    content = f"text,label\nna\u00efve {ACCENT},x\nb,y\n".replace(
        ",", "\t" if "t" in ending else ","
    )
    if ending == "jsonl":
        content = '{"text": "na\u00efve", "label": "x"}\n{"text": "b", "label": "y"}\n'
    for encoding in ("utf-8", "cp1252"):
        raw = content.replace(ACCENT, "").encode(encoding)
        raw = gzip.compress(raw) if ending.endswith("gz") else raw
        notices.begin()
        module(
            {f"t.{ending}": raw, f"e.{ending}": raw}, encoding="cp1252", val_fraction=0
        ).load_hub()
        said = "\n".join(notices.gathered([], "fit"))
        assert ("was read as cp1252, and all of its bytes are valid UTF-8" in said) == (
            encoding != "cp1252"
        )


def test_what_may_be_missing_is_counted_and_what_is_merged_named(module):
    rows = [("good", "pos"), ("nan", "neg"), ("None", "nan"), ("NULL", "Neg")] * 2
    content = "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows)
    for _ in range(2):  # the second time from the table that is kept
        notices.begin()
        module(
            {"t.csv": content, "e.csv": content}, val_fraction=0, similar_labels="merge"
        ).load_hub()
        lines = notices.gathered([], "fit")
        assert any(
            "a text of its rows is 'NULL' (2) and 'None' (2) and 'nan' (2)" in x for x in lines
        )
        assert any("a label of its rows is 'nan' (2), which is what programs" in x for x in lines)
        assert "t.csv: one class each are 'neg' (2) and 'Neg' (2)." in lines


@pytest.mark.parametrize(
    ("labels", "pair"),
    [([1, 1.0, "2"], "'1' (1) and '1.0'"), ([True, "true", False], "'True' (1) and")],
)
def test_numbers_and_truths_of_json_follow_the_same_rule(module, labels, pair):
    files = {"t.jsonl": labelled("jsonl", labels), "e.jsonl": labelled("jsonl", labels)}
    with pytest.raises(SmolbenchError, match="differ only in how they are spelled") as error:
        module(files, val_fraction=0).load_hub()
    assert pair in str(error.value)
    assert len(module(files, val_fraction=0, similar_labels="merge").label_names) == 2


def test_long_numbers_are_not_rounded_to_one_class(module):
    labels = ["90071992547409921", "90071992547409922"] * 3
    files = {f"{name}.csv": labelled("csv", labels) for name in "te"}
    assert module(files, val_fraction=0).label_names == labels[:2]


@pytest.mark.parametrize(
    ("train", "test", "same"),
    [
        (("csv", ["1", "2"]), ("parquet", [1.0, 2.0]), True),
        (("parquet", [1.0, 2.0]), ("csv", ["2", "1"]), True),
        (("csv", ["1.0", "2.0"]), ("parquet", [1.0, 2.0]), True),
        (("csv", ["1", "2"]), ("tsv", ["1.0", "2.0"]), False),
        (("parquet", [True, False]), ("csv", ["true", "false"]), False),
        (("csv", ["Pos", "neg"]), ("jsonl", ["pos", "neg"]), False),
    ],
)
def test_another_file_may_spell_labels_otherwise_if_that_is_said(module, train, test, same):
    def build(**options):
        files = {"t." + train[0]: labelled(train[0], train[1] * 4), "e." + test[0]: labelled(*test)}
        return module(files, val_fraction=0, **options)

    if not same:
        with pytest.raises(SmolbenchError, match=r"a label of t.*similar_labels merge"):
            build().load_hub()
        with pytest.raises(SmolbenchError, match="does not occur in t"):
            build(similar_labels="keep").load_hub()
    data = build(**({} if same else {"similar_labels": "merge"}))
    assert sorted(data.split("test").labels) == [0, 1]


def test_class_names_of_the_hub_that_are_alike(module, monkeypatch):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["pos", "neg", "Pos"])})
    rows = Dataset.from_dict({"text": list("abcdef"), "label": [0, 1, 2] * 2}, features=features)
    source = Source({"train": rows, "test": rows}, id="x/y", revision="r")
    monkeypatch.setattr(own_rows, "load_hub", lambda *_, **__: source)
    with pytest.raises(SmolbenchError, match=r"'pos' \(2\) and 'Pos' \(2\)"):
        module({}, dataset_id="x/y", val_fraction=0).load_hub()
    data = module({}, dataset_id="x/y", val_fraction=0, similar_labels="merge")
    assert data.label_names == ["pos", "neg"]
    assert np.bincount(data.load_hub().splits["test"]["label"]).tolist() == [4, 2]


# -- splits ---------------------------------------------------------------------------------------


def test_held_out_rows_are_stratified_and_seeded(module):
    content = numbered(200, 4)
    first = module({"t.csv": content}, test_fraction=0.25).load_hub().splits
    again = module({"t.csv": content}, test_fraction=0.25).load_hub().splits
    other = module({"t.csv": content}, test_fraction=0.25, split_seed=1).load_hub().splits
    counts = np.bincount(first["test"]["label"])
    assert counts.max() - counts.min() <= 1
    train, test = pairs(first["train"]), pairs(first["test"])
    assert len(train) == 150
    assert train.isdisjoint(test)
    assert train | test == {(f"number {i}", str(i % 4)) for i in range(200)}
    assert pairs(again["test"]) == test
    assert pairs(other["test"]) != test


def test_three_splits_of_one_file(module):
    data = module({"t.csv": numbered(100)}, test_fraction=0.2, val_fraction=0.25)
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [60, 20, 20]
    texts = [
        text for name in ("train", "val", "test") for text in data.split(name).examples["text"]
    ]
    assert len(set(texts)) == 100


def test_limits_larger_than_the_data_mean_all(module):
    data = module({"t.csv": numbered(20), "e.csv": numbered(8)}, limit_train=999, limit_test=999)
    assert len(data.split("train")) == 18
    assert len(data.split("test")) == 8


def test_same_rows_for_training_and_test_are_said(module, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("smolbench"), "propagate", True)
    data = module({"t.csv": numbered(20), "e.csv": numbered(20)})
    data.split("test")
    assert "train_file and test_file hold the same rows" in caplog.text
    assert data.facts()["data/overlap"] == 20


def test_batches_hold_every_row_once(module):
    data = module({"t.csv": numbered(45, 3)}, batch_size=4)
    data.setup("fit")
    batches = list(data.train_dataloader())
    index = np.concatenate([batch["index"].numpy() for batch in batches])
    assert sorted(index) == list(range(len(data.split("train"))))
    train = data.split("train")
    for batch in batches:
        for row, label, ids in zip(
            batch["index"].tolist(), batch["labels"].tolist(), batch["input_ids"], strict=True
        ):
            text = train.examples[row]["text"]
            assert ids[0] == len(text)
            assert label == int(text.split()[1]) % 3


# -- the table that is kept -----------------------------------------------------------------------


def test_a_second_start_does_not_read_the_file_again(module, monkeypatch):
    module({"t.csv": numbered(20)}).split("train")
    monkeypatch.setattr(readers.CsvReader, "chunks", lambda self: pytest.fail("read again"))
    again = module({"t.csv": numbered(20)})
    assert len(again.split("train")) == 14


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (numbered(20).replace("number 3", "number x"), {}),  # of the same size
        (numbered(20), {"text_column": "label", "label_column": "text"}),
    ],
)
def test_what_changed_is_read_again(module, content, options):
    first = module({"t.csv": numbered(20)}).load_hub().splits["train"]
    if options:
        with pytest.raises(SmolbenchError, match="every class needs 3 rows"):
            module({"t.csv": content}, **options).load_hub()
    else:
        assert pairs(module({"t.csv": content}).load_hub().splits["train"]) != pairs(first)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "meta"])
def test_a_damaged_table_is_made_again(module, tmp_path, caplog, monkeypatch, damage):
    monkeypatch.setattr(logging.getLogger("smolbench"), "propagate", True)
    expected = pairs(module({"t.csv": numbered(20)}).load_hub().splits["train"])
    (rows,) = (tmp_path / "cache" / "tables").glob("*/rows.arrow")
    content = rows.read_bytes()
    rows.unlink()  # the file is mapped: what is mapped must not change
    if damage == "cut":
        rows.write_bytes(content[:-100])
    elif damage == "flipped":
        rows.write_bytes(content.replace(b"number 3", b"number 4"))
    elif damage == "meta":
        rows.write_bytes(content)
        rows.with_name("meta.json").write_text("{")
    assert pairs(module({"t.csv": numbered(20)}).load_hub().splits["train"]) == expected
    assert "damaged" in caplog.text


def test_a_reader_that_dies_leaves_nothing(module, tmp_path, monkeypatch):
    chunks = readers.CsvReader.chunks

    def dying(self):
        yield from chunks(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(readers.CsvReader, "chunks", dying)
    with pytest.raises(KeyboardInterrupt):
        module({"t.csv": numbered(20)}).load_hub()
    monkeypatch.setattr(readers.CsvReader, "chunks", chunks)
    assert [p for p in (tmp_path / "cache" / "tables").iterdir() if p.is_dir()] == []
    assert module({"t.csv": numbered(20)}).load_hub().splits["train"].num_rows == 16


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "No space is left"), (errno.EROFS, "cache_dir")]
)
def test_a_cache_that_cannot_be_written(module, tmp_path, monkeypatch, number, words):
    def full(*args):
        raise OSError(number, "no")

    monkeypatch.setattr(tables, "_write_rows", full)
    with pytest.raises(SmolbenchError, match=words):
        module({"t.csv": numbered(20)}).load_hub()
    assert [p for p in (tmp_path / "cache" / "tables").iterdir() if p.is_dir()] == []


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_no_reader_holds_more_than_a_chunk(tmp_path, name):
    n = 3 * readers.CHUNK_ROWS + 1
    path = tmp_path / name
    if name == "t.csv":
        path.write_text(numbered(n))
    elif name == "t.jsonl":
        path.write_text("".join(f'{{"text": "number {i}", "label": 1}}\n' for i in range(n)))
    else:
        pq.write_table(
            pa.table({"text": [f"number {i}" for i in range(n)], "label": [1] * n}), path
        )
    reader = readers.file_reader(path, "text", "label", "utf-8", "train_file")
    chunks = list(reader.chunks())
    assert max(len(chunk.texts) for chunk in chunks) == readers.CHUNK_ROWS
    assert [text for chunk in chunks for text in chunk.texts] == [f"number {i}" for i in range(n)]
    first = 2 if name == "t.csv" else 1
    assert [row for chunk in chunks for row in chunk.numbers] == list(range(first, first + n))


def test_a_moved_file_is_not_needed_to_open_the_module(module, tmp_path):
    data = module({"t.csv": numbered(20)})
    (tmp_path / "t.csv").unlink()
    data.predict_on(["a text"])  # labelling texts needs no data
    data.setup("predict")
    with pytest.raises(SmolbenchError, match=r"no file .*t\.csv"):
        data.setup("fit")


# -- the Hub --------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Stand-in for the Hub: splits of one dataset."""

    def serve(splits, **options):
        def load(dataset_id, *, splits, config, revision):
            assert dataset_id == "org/toy"
            return Source({name: served[name] for name in splits}, "org/toy", "a" * 40)

        served = splits
        monkeypatch.setattr(own_rows, "load_hub", load)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        options = {"val_split": "dev", "cache_dir": str(tmp_path / "cache"), **options}
        return TextFilesDataModule(
            dataset_id="org/toy", text_column="sentence", label_column="mood", **options
        )

    return serve


def rows(moods, names=None):
    columns = {"sentence": [f"{n} {mood}" for n, mood in enumerate(moods)], "mood": moods}
    if names is None:
        return Dataset.from_dict(columns)
    features = Features({"sentence": Value("string"), "mood": ClassLabel(names=names)})
    return Dataset.from_dict(columns, features=features)


def test_hub_dataset_keeps_its_class_names(hub):
    names = ["worse", "better", "as before"]
    splits = {name: rows([2, 0, 1, 0], names) for name in ("train", "dev", "test")}
    data = hub(splits, encode=encode)
    assert data.label_names == names
    assert list(data.split("train").labels) == [2, 0, 1, 0]
    assert len(data.split("val")) == 4
    assert data.facts()["data/id"] == "org/toy"
    assert data.facts()["data/revision"] == "a" * 40


def test_hub_dataset_with_strings_and_no_test_split(hub):
    data = hub({"train": rows(["up", "down"] * 20)}, val_split=None, test_split=None)
    assert data.label_names == ["down", "up"]
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [28, 4, 8]


def test_hub_dataset_with_labels_held_back(hub):
    splits = {"train": rows([0, 1], ["a", "b"]), "test": rows([-1, -1], ["a", "b"])}
    data = hub(splits, val_split=None, val_fraction=0)
    with pytest.raises(SmolbenchError, match=r"org/toy \(test\), row 1.*held back.*test_split"):
        data.load_hub()


def test_hub_dataset_without_the_column(hub):
    data = hub(
        {"train": rows([0, 1]).rename_column("mood", "state")}, val_split=None, test_split=None
    )
    with pytest.raises(
        SmolbenchError, match=r"no column 'mood'.*'sentence', 'state'.*label_column"
    ):
        data.load_hub()


def test_sample_needs_no_files():
    data = TextFilesDataModule(source="sample", train_file="no such file.csv")
    assert data.label_names == ["neg", "pos"]
