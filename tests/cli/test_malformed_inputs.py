"""Malformed input over the whole command line: a sentence, exit status 2, nothing lost."""

from __future__ import annotations

import gzip
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from smolbench.cli import main

GOOD = "text,label\n" + "".join(f"number {n},{'yes' if n % 2 else 'no'}\n" for n in range(20))
OLD_RUN = Path("runs/text_files_probe+tiny/2026-01-01_00-00-00")


def text(content: str, encoding: str = "utf-8") -> bytes:
    return content.encode(encoding)


def parquet(**columns: list) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def jsonl(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def checkpoint(content: object) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


ROWS = {"text": ["a", "b", "c", "d"], "label": ["x", "y", "x", "y"]}
PARQUET = parquet(**ROWS)
MANY_LABELS = text("text,label\n" + "".join(f"a,{n}\n" for n in range(10_001)))


@dataclass
class Case:
    """One malformed input.

    Attributes:
        name: What is wrong.
        words: What the message must say.
        arguments: Options behind the common ones; with ``command``, the whole command line.
        files: Files in the working directory; the first is the training file if not told otherwise.
        command: A command line that does not begin as the others do.
    """

    name: str
    words: list[str]
    files: dict[str, bytes | Callable[[Path], None] | None] | None = None
    arguments: tuple[str, ...] = ()
    command: tuple[str, ...] | None = None

    def argv(self) -> list[str]:
        if self.command is not None:
            return [*self.command, *self.arguments]
        argv = ["fit", "--config", "text_files_probe", "--config", "tiny", "--data.source", "files"]
        if not any(a.startswith("--data.train_file") for a in self.arguments):
            argv += ["--data.train_file", next(iter(self.files or {"good.csv": b""}))]
        return [*argv, "--trainer.accelerator", "cpu", *self.arguments]


def data(name: str, file: str, content: bytes | None, *words: str, options: str = "") -> Case:
    """A malformed training file."""
    return Case(name, list(words), {file: content}, tuple(options.split()))


def option(name: str, arguments: str, *words: str) -> Case:
    """Good data, a bad option."""
    return Case(name, list(words), None, tuple(arguments.split()))


def second(name: str, split: str, file: str, content: bytes | None, *words: str) -> Case:
    """Good training data, a malformed file beside it."""
    files = {"good.csv": text(GOOD), file: content}
    return Case(name, list(words), files, (f"--data.{split}_file", file))


def command(name: str, line: str, *words: str, **files: bytes | Callable) -> Case:
    """Another command line; double underscores in the names of files stand for the full stop."""
    named = {key.replace("__", "."): content for key, content in files.items()}
    return Case(name, list(words), named, (), tuple(line.split()))


RECIPE = "--config text_files_probe --config tiny --data.source files --data.train_file good.csv"

CASES = [
    # -- a user's own files: what is there
    Case("file missing", ["no file", "gone.csv"], {}, ("--data.train_file", "gone.csv")),
    data("folder given", "here.csv", None, "here.csv", "folder"),
    data("file empty", "t.csv", b"", "t.csv", "empty"),
    data("gzip of nothing", "t.csv.gz", gzip.compress(b""), "t.csv.gz", "empty"),
    data("header only", "t.csv", b"text,label\n", "t.csv", "no rows"),
    data("blank lines only", "t.csv", b"\n\n\n", "t.csv", "columns"),
    data("jsonl blank", "t.jsonl", b"\n\n", "t.jsonl", "no rows"),
    data("ending unknown", "t.txt", text(GOOD), "t.txt", "ending", ".parquet"),
    data("spreadsheet", "t.xlsx", b"PK\3\4", "t.xlsx", "ending", ".csv"),
    data("json array's ending", "t.json", b"[]", "t.json", "ending", ".jsonl"),
    # -- columns
    data("no text column", "t.csv", b"review,label\na,x\n", "'text'", "'review'", "text_column"),
    data("no label column", "t.csv", b"text,stars\na,1\n", "'label'", "'stars'", "label_column"),
    data(
        "column asked for",
        "t.csv",
        text(GOOD),
        "'body'",
        "'label'",
        options="--data.text_column body",
    ),
    data("column twice", "t.csv", b"text,label,text\na,x,b\n", "2 columns", "'text'"),
    data("semicolons", "t.csv", b"text;label\na;x\n", "'text;label'", "commas"),
    data("commas in tsv", "t.tsv", b"text,label\na,x\n", "'text,label'", "tabs"),
    data("no header", "t.csv", b"I loved it,yes\nI did not,no\n", "'I loved it'", "first row"),
    data(
        "parquet text not UTF-8",
        "t.parquet",
        parquet(
            text=pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xe0", b"b"]).buffers()),
            label=["x", "y"],
        ),
        "t.parquet is not valid",
        "UTF-8",
    ),
    data("parquet column", "t.parquet", parquet(text=["a"], y=[1]), "'label'", "'text', 'y'"),
    option(
        "columns the same", "--data.text_column label", "text_column", "label_column", "'label'"
    ),
    # -- rows of a CSV
    data("text empty", "t.csv", b"text,label\na,x\n,y\n", "t.csv, row 3", "text is empty"),
    data("text blank", "t.csv", b'text,label\na,x\n"  ",y\n', "t.csv, row 3", "text is empty"),
    data("label empty", "t.csv", b"text,label\na,x\nb,\n", "t.csv, row 3", "label is missing"),
    data("row counted past blank lines", "t.csv", b"text,label\na,x\n\n\n,y\n", "row 5", "empty"),
    data("row spans lines", "t.csv", b'text,label\n"a\nb\nc",x\n,y\n', "row 3", "line 5", "empty"),
    data("row too long", "t.csv", b"text,label\na, b,x\n", "row 2", "3 fields", "header has 2"),
    data("row too short", "t.csv", b"text,label\na,x\nb\n", "row 3", "1 field,", "header has 2"),
    data("tsv row too long", "t.tsv", b"text\tlabel\na\tb\tx\n", "t.tsv, row 2", "3 fields"),
    data("quote unclosed", "t.csv", b'text,label\na,x\n"b,y\nc,x\n', "row 3", "never closed"),
    data("quote in field", "t.csv", b'text,label\n"a" b,x\n', "row 2", "quote twice"),
    data("far down", "t.csv", text("text,label\n" + "a,x\nb,y\n" * 3000 + ",x\n"), "row 6002"),
    # -- bytes
    data(
        "latin-1", "t.csv", text("text,label\na,x\ncafé,y\n", "latin-1"), "row 3", "0xE9", "utf-8"
    ),
    data("mixed encodings", "t.csv", text("text,label\né,x\n") + b"\xe9,y\n", "row 3", "0xE9"),
    data("label latin-1", "t.csv", text("text,label\na,né\n", "latin-1"), "row 2", "label"),
    data("utf-16", "t.csv", text(GOOD, "utf-16"), "UTF-16", "--data.encoding utf-16"),
    data("not utf-16", "t.csv", text(GOOD), "t.csv", "utf-16", options="--data.encoding utf-16"),
    data(
        "not ascii",
        "t.csv",
        text("text,label\né,x\n"),
        "row 2",
        "ascii",
        options="--data.encoding ascii",
    ),
    data("nul", "t.csv", b"text,label\na,x\nb\0,y\n", "row 3", "NUL"),
    data("nul in label", "t.csv", b"text,label\na,x\nb,y\0\n", "row 3", "NUL"),
    data("half a character", "t.jsonl", b'{"text": "\\ud83d", "label": 1}\n', "line 1", "ud83d"),
    data("gzip cut", "t.csv.gz", gzip.compress(text(GOOD))[:-20], "t.csv.gz", "gzip"),
    data("no gzip", "t.csv.gz", text(GOOD), "t.csv.gz", "gzip"),
    option("encoding unknown", "--data.encoding utf-9", "'utf-9'", "cp1252"),
    option("encoding of no text", "--data.encoding base64", "'base64'", "utf-8"),
    # -- JSON lines
    data(
        "json broken",
        "t.jsonl",
        jsonl({"text": "a", "label": 1}) + b'{"text": \n',
        "line 2",
        "JSON",
    ),
    data("json array", "t.jsonl", b'[\n{"text": "a", "label": 1}\n]\n', "line 1", "array"),
    data("json array in a line", "t.jsonl", jsonl([{"text": "a"}]), "line 1", "object", "array"),
    data("json number", "t.jsonl", jsonl({"text": "a", "label": 1}, 5), "line 2", "5", "object"),
    data("json deep", "t.jsonl", b"[" * 100_000, "line 1", "JSON"),
    data("json key missing", "t.jsonl", jsonl({"text": "a"}), "line 1", "no 'label'", "'text'"),
    data(
        "json text nested", "t.jsonl", jsonl({"text": {"a": 1}, "label": 1}), "line 1", "an object"
    ),
    data("json text number", "t.jsonl", jsonl({"text": 7, "label": 1}), "line 1", "a number", "7"),
    data("json text null", "t.jsonl", jsonl({"text": None, "label": 1}), "line 1", "missing"),
    data("json label nested", "t.jsonl", jsonl({"text": "a", "label": [1]}), "line 1", "a list"),
    data("json label null", "t.jsonl", jsonl({"text": "a", "label": None}), "label is missing"),
    # -- Parquet
    data("parquet cut", "t.parquet", PARQUET[: len(PARQUET) // 2], "t.parquet", "Parquet"),
    data("no parquet", "t.parquet", text(GOOD), "t.parquet", "not a whole Parquet"),
    data("parquet empty", "t.parquet", b"", "t.parquet", "empty"),
    data("parquet numbers", "t.parquet", parquet(text=[1, 2], label=[0, 1]), "'text'", "int64"),
    data("parquet gap", "t.parquet", parquet(text=["a", None], label=[0, 1]), "row 2", "missing"),
    data("parquet lists", "t.parquet", parquet(text=["a"], label=[[1]]), "'label'", "list"),
    data(
        "parquet float", "t.parquet", parquet(text=["a"], label=[1.5]), "row 1", "1.5", "fraction"
    ),
    # -- labels
    data("label with fraction", "t.csv", b"text,label\na,1\nb,2.5\n", "row 3", "2.5", "fraction"),
    data("one class", "t.csv", b"text,label\na,x\nb,x\nc,x\n", "'x'", "two classes"),
    data("one row of a class", "t.csv", text(GOOD + "odd,z\n"), "'z' (1)", "val_fraction"),
    data("two rows of a class", "t.csv", text(GOOD + "odd,z\nodder,z\n"), "'z' (2)", "3 rows"),
    data("column of no labels", "t.csv", MANY_LABELS, "10000", "label_column"),
    second(
        "test label unknown",
        "test",
        "e.csv",
        b"text,label\na,yes\nb,maybe\n",
        "e.csv, row 3",
        "'maybe'",
        "good.csv",
        "'no', 'yes'",
    ),
    second(
        "val label unknown",
        "val",
        "e.jsonl",
        jsonl({"text": "a", "label": 1}),
        "e.jsonl, line 1",
        "'1'",
    ),
    second("test text empty", "test", "e.csv", b"text,label\n,yes\n", "e.csv, row 2", "empty"),
    second("test file missing", "test", "gone.csv", lambda path: None, "test_file", "gone.csv"),
    second("val file is a folder", "val", "v.csv", None, "val_file", "v.csv", "folder"),
    # -- where the data is, and how it is split
    Case("no data", ["--data.train_file", "dataset_id"], {}, ("--data.train_file=null",)),
    option("two sources", "--data.dataset_id org/x", "dataset_id", "good.csv", "one of them"),
    Case("hub without id", ["dataset_id"], {}, ("--data.source=hub", "--data.train_file=null")),
    Case(
        "not in the cache",
        ["org/x", "cache"],
        {},
        ("--data.train_file=null", "--data.source=hub", "--data.dataset_id=org/x"),
    ),
    option("revision of a file", "--data.revision main", "revision", "'main'", "Hub"),
    option("source unknown", "--data.source kaggle", "source", "kaggle"),
    option("test share 0", "--data.test_fraction 0", "test_fraction", "0.0"),
    option("test share above 1", "--data.test_fraction 20", "test_fraction", "20"),
    option("test share too small", "--data.test_fraction 0.01", "test_fraction", "19 and 1"),
    option("val share 1", "--data.val_fraction 1", "val_fraction", "1.0"),
    option("val share negative", "--data.val_fraction -0.1", "val_fraction", "-0.1"),
    option("val share leaves nothing", "--data.val_fraction 0.99", "val_fraction", "0 and 16"),
    option("limit leaves one class", "--data.limit_train 1", "class", "limit_train"),
    option("limit negative", "--data.limit_train -5", "limit_train", "-5"),
    option("limit mode unknown", "--data.limit_mode random", "limit_mode", "random"),
    option("batch size 0", "--data.batch_size 0", "batch_size", "0"),
    option("batch size a word", "--data.batch_size many", "batch_size", "many"),
    option("workers negative", "--data.num_workers -1", "num_workers", "-1"),
    Case(
        "cache is a file",
        ["folder", "--data.cache_dir"],
        {"good.csv": text(GOOD), "c": b""},
        ("--data.cache_dir", "c"),
    ),
    # -- the model's and the trainer's options
    option("data option unknown", "--data.nope 1", "nope"),
    option("model option unknown", "--model.nope 1", "nope"),
    option("option unknown", "--nope 1", "nope"),
    option("lr negative", "--model.lr -1", "lr", "-1"),
    option("lr a word", "--model.lr fast", "lr", "fast"),
    option("dropout 2", "--model.dropout 2", "dropout", "2"),
    option("anchor missing", "--model.pooling anchor", "anchor"),
    option("pooling unknown", "--model.pooling median", "pooling", "median"),
    option("template without slot", "--model.template none", "{text}", "none"),
    option("max_length too small", "--model.max_length 0", "max_length", "0"),
    option("backbone unknown", "--model.backbone org/none", "org/none"),
    option("precision unknown", "--trainer.precision 7", "precision", "7"),
    option("epochs a word", "--trainer.max_epochs ten", "max_epochs", "ten"),
    # -- commands and configurations
    command("subcommand unknown", "train", "train", "fit"),
    command("option first", "--config tiny fit", "subcommand"),
    command("recipes with more", "recipes all", "recipes", "all"),
    command("no recipe", "fit", "--config"),
    command("option without value", "fit --config", "--config", "value"),
    command("recipe unknown", "fit --config imdb_prob", "imdb_prob", "Meant may be imdb_probe"),
    command("recipe is no yaml", "fit --config r.yaml", "r.yaml", r__yaml=b"model: [1,\n"),
    command("recipe is a list", "fit --config r.yaml", "r.yaml", r__yaml=b"- 1\n"),
    command("recipe is bytes", "fit --config r.yaml", "r.yaml", r__yaml=b"\xff\xfe\0"),
    command("recipe is empty", "fit --config r.yaml", "r.yaml", r__yaml=b""),
    command(
        "class unknown", "fit --config r.yaml", "NoTask", r__yaml=b"model:\n  class_path: NoTask\n"
    ),
    command(
        "key unknown", "fit --config r.yaml", "modle", r__yaml=b"modle:\n  class_path: ProbeTask\n"
    ),
    # -- checkpoints and runs
    command("checkpoint missing", f"test {RECIPE} --ckpt_path no.ckpt", "no.ckpt"),
    command("nothing to resume", f"fit {RECIPE} --runs_dir none --ckpt_path last", "none"),
    command("nothing to test", f"test {RECIPE} --runs_dir none", "checkpoint", "none"),
    command(
        "checkpoint is no checkpoint",
        f"test {RECIPE} --ckpt_path c.ckpt",
        "c.ckpt",
        c__ckpt=b"not one",
    ),
    command("checkpoint empty", f"test {RECIPE} --ckpt_path c.ckpt", "c.ckpt", c__ckpt=b""),
    command(
        "checkpoint of another",
        f"test {RECIPE} --ckpt_path c.ckpt",
        "c.ckpt",
        "smolbench",
        c__ckpt=checkpoint({"state_dict": {}}),
    ),
    command(
        "checkpoint is a list",
        f"test {RECIPE} --ckpt_path c.ckpt",
        "c.ckpt",
        c__ckpt=checkpoint([1]),
    ),
    command("best is no last", f"fit {RECIPE} --ckpt_path best", "best.ckpt", "last"),
    command("run folder taken", f"fit {RECIPE} --run_dir {OLD_RUN}", str(OLD_RUN), "last"),
    command("old run corrupt", f"test {RECIPE}", "best.ckpt"),
    command(
        "old run of other settings",
        f"fit {RECIPE} --ckpt_path last",
        "not the run",
        "data.batch_size",
    ),
    command("text missing", f"predict {RECIPE} --ckpt_path none --input no.txt", "no.txt"),
]


@pytest.fixture
def folder(folder_here: Path) -> Path:
    """A working directory with good data and an older run whose checkpoints cannot be read."""
    (folder_here / "good.csv").write_text(GOOD)
    old = folder_here / OLD_RUN
    (old / "checkpoints").mkdir(parents=True)
    for name, content in (
        (
            "results.json",
            '{"schema": 1, "recipe": "text_files_probe+tiny", "attempts": 1, "status": "finished"}',
        ),
        ("config.yaml", "seed_everything: 0\n"),
        ("metrics.csv", "step,train/loss\n1,0.5\n"),
        ("checkpoints/best.ckpt", "cut off"),
        ("checkpoints/last.ckpt", "cut off"),
    ):
        (old / name).write_text(content)
    return folder_here


@pytest.fixture(autouse=True)
def _fresh_handlers():
    """The handler that main() adds must write to this test's stderr."""
    logging.getLogger("smolbench").handlers.clear()
    yield
    logging.getLogger("smolbench").handlers.clear()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_there_are_enough_cases():
    assert len({case.name for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_malformed_input(case, folder, capsys):
    for name, content in (case.files or {}).items():
        if content is None:
            (folder / name).mkdir()
        elif callable(content):
            content(folder / name)
        else:
            (folder / name).write_bytes(content)
    before = contents(folder)
    try:
        status = main(case.argv())
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr().err
    assert status == 2, said
    assert "Traceback" not in said
    assert "Error(" not in said
    message = " ".join(said.split())
    missing = [word for word in case.words if word not in message]
    assert not missing, message
    if "smolbench: error: " in message:  # else the option parser's own message
        assert re.fullmatch(r"\S.*\.\)?", message.split("smolbench: error: ")[1]), message
    else:
        assert re.search(r"error: \S+", message), message
    after = contents(folder)
    assert {name: after.get(name) for name in before} == before
    assert contents(folder / "runs") == {k: v for k, v in before.items() if "/runs/" in k}
