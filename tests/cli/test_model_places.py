"""A run goes on wherever its model's folder lies: folders are known by what they hold."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from smolbench.cli import main
from smolbench.cli.command_line import Invocation
from smolbench.cli.model_places import as_named_now, by_content
from smolbench.errors import SmolbenchError
from smolbench.models.pretrained.backbone import Backbone
from smolbench.runs.results import write_results
from smolbench.runs.run_dir import Run
from smolbench.runs.settings import check_same_run, series_digest
from smolbench.tasks.base import CHECKPOINT_KEY, verify_signature
from tests.helpers.command import ONE_EPOCH, QUIET, config, results
from tests.helpers.tiny import tiny_backbone, tiny_summarizer
from tests.models.pretrained.test_language_model import saved_adapter

SMALL = [
    *QUIET,
    ONE_EPOCH,
    "--latency.examples=0",
    "--data.limit_train=16",
    "--data.limit_val=8",
    "--data.limit_test=8",
    "--data.batch_size=8",
    "--model.dtype=float32",
]
CLASSIFY = ["--config=imdb_gpt2", "--config=tiny", *SMALL, "--model.max_length=48"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run that was given its model by a relative path, and with the model."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(tiny_backbone("gpt2"), folder / "models/net")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        arguments = [*CLASSIFY, "--model.method=lora", "--model.backbone=models/net"]
        assert main(["fit", *arguments, "--run_dir=run"]) == 0
    return folder


@pytest.fixture
def home(made, tmp_path, monkeypatch):
    """The same in a working directory of the test's own; the model lies where it was."""
    shutil.copytree(made, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def renamed(made, home):
    """The run, and the model under another name; nothing lies where it was."""
    Path("models/net").rename("models/renamed")
    text = Path("run/config.yaml").read_text()
    Path("run/config.yaml").write_text(text.replace(str(made), str(home)))
    return home


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main([*arguments]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_settings_name_a_folder_by_its_whole_path(made, capsys, tmp_path, monkeypatch):
    place = str(made / "models/net")
    assert config(made / "run")["model"]["init_args"]["backbone"] == place
    assert results(made / "run")["model/id"] == place
    monkeypatch.chdir(tmp_path)
    assert main(["predict", f"--run_dir={made / 'run'}", "--text=A gem."]) == 0
    assert capsys.readouterr().out.startswith(("neg\t", "pos\t"))


def test_a_run_whose_model_was_renamed(renamed, capsys):
    place = "--model.backbone=models/renamed"
    for command in (
        ["predict", "--run_dir=run", "--text=A gem."],
        ["test", "--run_dir=run"],
        ["fit", "--run_dir=run", "--ckpt_path=last", "--trainer.max_epochs=2", "--extend"],
        ["export", "run", "out"],
    ):
        said = refused(capsys, *command)
        assert "models/net, which is not there now" in said
        assert "--model.backbone DIR" in said
    assert main(["predict", "--run_dir=run", place, "--text=A gem."]) == 0
    assert main(["test", "--run_dir=run", place]) == 0
    assert "test/accuracy" in results(Path("run"))
    assert [path.parent.name for path in renamed.rglob("results.json")] == ["run"]
    assert main(["export", "run", "out", "--model.backbone", "models/renamed"]) == 0
    assert main(["predict", "--run_dir=run", place, "--before=run", "--text=A gem."]) == 0
    more = ["--ckpt_path=last", "--trainer.max_epochs=2", "--extend"]
    assert main(["fit", "--run_dir=run", *more, place]) == 0
    assert config(Path("run"))["model"]["init_args"]["backbone"] == str(renamed / "models/renamed")
    assert main(["predict", "--run_dir=run", "--text=A gem."]) == 0  # it knows the place now


def test_other_weights_in_the_new_place_are_refused(renamed, capsys):
    other = f"--model.backbone={tiny_backbone('gpt2', seed=1)}"
    for command in (
        ["predict", "--run_dir=run", "--text=A gem."],
        ["test", "--run_dir=run"],
        ["fit", "--run_dir=run", "--ckpt_path=last", "--trainer.max_epochs=2", "--extend"],
    ):
        assert "holds another model than" in refused(capsys, *command, other)
    said = refused(capsys, "export", "run", "out", "--model.backbone", "nowhere")
    assert "nowhere, which is not there now" in said
    said = refused(capsys, "export", "run", "out", *other.split("="))
    assert "trained with other settings" in said
    assert not Path("out").exists()


def test_other_weights_in_the_same_place_are_refused(made, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(made)
    killed, kept = tmp_path / "killed", tmp_path / "kept"
    shutil.copytree("run", killed)
    shutil.rmtree(killed / "checkpoints")  # killed before its first one
    shutil.copytree("models/net", kept)
    shutil.copytree(tiny_backbone("gpt2", seed=1), "models/net", dirs_exist_ok=True)
    try:
        more = ["--ckpt_path=last", "--trainer.max_epochs=2", "--extend"]
        for command in (["test", "--run_dir=run"], ["fit", "--run_dir=run", *more]):
            assert "have changed since the run" in refused(capsys, *command)
        before = results(killed)
        assert "have changed since" in refused(capsys, "fit", f"--run_dir={killed}", *more)
        assert results(killed) == before
    finally:
        shutil.copytree(kept, "models/net", dirs_exist_ok=True)


def test_a_run_of_an_earlier_version_kept_a_relative_path(renamed):
    text = Path("run/config.yaml").read_text()
    Path("run/config.yaml").write_text(text.replace(f"{renamed}/models/net", "models/net"))
    assert main(["test", "--run_dir=run", "--model.backbone=models/renamed"]) == 0
    assert "test/accuracy" in results(Path("run"))
    Path("models/renamed").rename("models/net")
    assert main(["test", "--run_dir=run"]) == 0
    assert [path.parent.name for path in renamed.rglob("results.json")] == ["run"]


def test_a_teacher_whose_model_was_renamed(renamed, capsys):
    student = ["fit", *CLASSIFY, "--model=DistillationTask", "--model.max_length=32"]
    student += ["--model.teacher=run", "--run_dir=student"]
    said = refused(capsys, *student)
    assert "models/net, which is not there now" in said
    assert "--model.teacher_backbone DIR" in said
    assert main([*student, "--model.teacher_backbone=models/renamed"]) == 0
    assert config(Path("student"))["model"]["init_args"]["teacher"] == str(renamed / "run")
    # the teacher moves, too
    Path("run").rename("moved")
    Path("models/renamed").rename("models/again")
    more = ["fit", "--run_dir=student", "--ckpt_path=last", "--trainer.max_epochs=2", "--extend"]
    more += ["--model.teacher=moved", "--model.teacher_backbone=models/again"]
    assert main(more) == 0
    assert main(["test", "--run_dir=student"]) == 0
    said = refused(capsys, *student[:-2], "--model.teacher=tiny", "--model.teacher_backbone=x")
    assert "is for a teacher that is a run" in said


KINDS = {
    "ProbeTask": ["--config=imdb_probe"],
    "MultipleChoiceTask": ["--config=hellaswag_smollm2", "--model.method=lora"],
    "SummarizationTask": [
        "--config=samsum_flan-t5-base",
        "--model.rouge_examples=0",
        "--model.samples=0",
        "--model.max_new_tokens=4",
        "--model.max_summary_length=8",
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_runs_of_every_task_find_their_model_again(kind, folder_here):
    if kind == "MultipleChoiceTask":  # which also takes a folder with an adapter
        saved_adapter(Path("net"))
    else:
        shutil.copytree(tiny_summarizer("gpt2" if kind == "ProbeTask" else "t5"), "net")
    recipe, *rest = KINDS[kind]
    arguments = [recipe, "--config=tiny", *SMALL, *rest]
    assert main(["fit", *arguments, "--model.backbone=net", "--run_dir=run"]) == 0
    Path("net").rename("moved")
    assert main(["test", "--run_dir=run", "--model.backbone=moved"]) == 0
    assert results(Path("run"))["test/n"] == 8


# -- what is compared ------------------------------------------------------------------------------


def settings(backbone, **options):
    return {"model": {"class_path": "x", "init_args": {"backbone": str(backbone), **options}}}


def call(tmp_path, revision):
    write_results(tmp_path, {"model/revision": revision, "attempts": 1})
    return Invocation("fit", [], run=Run(tmp_path))


def test_seeds_on_one_model_are_a_series_wherever_it_lies(tmp_path):
    shutil.copytree(tiny_backbone("gpt2"), tmp_path / "net")
    here, there = (
        series_digest(by_content(settings(place)))
        for place in (tiny_backbone("gpt2"), tmp_path / "net")
    )
    other = series_digest(by_content(settings(tiny_backbone("gpt2", seed=1))))
    assert here == there != other
    by_id = settings("some/model")
    assert by_content(by_id) == by_id


def test_a_run_that_was_stopped_at_once_compares_what_it_can(tmp_path):
    shutil.copytree(tiny_backbone("gpt2"), tmp_path / "net")
    before, now = settings(tiny_backbone("gpt2")), settings(tmp_path / "net")
    assert as_named_now(before, now, call(tmp_path, None)) == now
    content = Backbone(tiny_backbone("gpt2"), None, "float32").revision
    assert as_named_now(settings("/gone"), now, call(tmp_path, content)) == now
    commit = "0123456789abcdef0123456789abcdef01234567"
    by_id = settings("some/model")
    assert as_named_now(by_id, now, call(tmp_path, commit)) == by_id  # no folder's content


def test_an_option_that_is_new_changes_no_run_that_lacks_it():
    before = settings("some/model")
    check_same_run(before, settings("some/model", trust_remote_code=False), extend=False)
    assert series_digest(before) == series_digest(settings("some/model", trust_remote_code=False))
    with pytest.raises(SmolbenchError, match="trust_remote_code was False, is True"):
        check_same_run(before, settings("some/model", trust_remote_code=True), extend=False)


@pytest.mark.parametrize(
    ("revision", "loads"),
    [("0123456789abcdef0123", True), ("main", False)],
)
def test_a_checkpoint_asks_for_content_not_for_names(revision, loads):
    saved = {"backbone": "models/a", "revision": revision, "method": "full"}
    checkpoint = {CHECKPOINT_KEY: {"task": "T", "signature": saved}}
    if loads:
        verify_signature(checkpoint, "T", {**saved, "backbone": "/elsewhere/b"})
        saved["teacher"], saved["teacher_digest"] = "runs/t", "0123456789abcdef0123"
        verify_signature(checkpoint, "T", {**saved, "teacher": "/elsewhere/t"})
    else:
        with pytest.raises(SmolbenchError, match="backbone was 'models/a'"):
            verify_signature(checkpoint, "T", {**saved, "backbone": "/elsewhere/b"})
    with pytest.raises(SmolbenchError, match="revision was"):
        verify_signature(checkpoint, "T", {**saved, "revision": "f" * 20})
