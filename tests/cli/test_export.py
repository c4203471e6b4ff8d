from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import skops.io
from transformers import pipeline as plain_pipeline

from smolbench.cli import main
from smolbench.models.export import check
from smolbench.models.export.probe_loader import Probe
from tests.helpers.command import results
from tests.helpers.written_runs import MULTIPLE_CHOICE, write_run

FIT = [
    "fit",
    "--config=imdb_gpt2",
    "--config=tiny",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.max_epochs=1",
    "--model.max_length=48",
    "--data.limit_train=32",
    "--data.limit_val=16",
    "--data.limit_test=16",
    "--data.batch_size=8",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with one finished and tested run, ``run``."""
    folder = tmp_path_factory.mktemp("place")
    assert main([*FIT, "--model.method=lora", f"--run_dir={folder / 'run'}"]) == 0
    assert main(["test", f"--run_dir={folder / 'run'}", "--latency.examples=0"]) == 0
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    """An empty working folder beside that run."""
    (tmp_path / "run").symlink_to(place / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder):
    return {path.name for path in Path(folder).iterdir()}


def left(folder):
    return sorted(names(folder) - {"run"})


def test_a_run_becomes_a_folder_that_labels_as_the_run_does(here, capsys):
    assert main(["export", "run", "new/out"]) == 0
    assert left(here) == ["new"]
    assert left(here / "new") == ["out"]
    texts = ["A gem.", "Two hours I will never get back.", "Dull. " * 40]
    assert (
        main(["predict", "--run_dir=run", *(f"--text={t}" for t in texts), "--output=l.jsonl"]) == 0
    )
    said = [json.loads(line) for line in (here / "l.jsonl").read_text().splitlines()]
    label = plain_pipeline("text-classification", model="new/out", top_k=None, device="cpu")
    for scores, expected in zip(label(texts, truncation=True), said, strict=True):
        found = {f"score_{one['label']}": one["score"] for one in scores}
        # the run computes in bfloat16 where the processor does
        assert found["score_pos"] == pytest.approx(expected["score_pos"], abs=0.02)
        assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    known = json.loads((here / "new/out/smolbench.json").read_text())
    assert known["labels"] == ["neg", "pos"]
    assert known["checkpoint"] == "best.ckpt"
    compared = known["check"]
    assert compared["n"] == 17, "all 16 of its test split, and one that is cut"
    assert "from the 16 of the run's test split" in compared["examples"]
    assert compared["run_dtype"] == results(here / "run")["model/dtype"]
    assert compared["difference"] <= compared["allowed"] < 0.1
    assert (
        f"differ by {compared['difference']:.2g} at most"
        in (here / "new/out/README.md").read_text()
    )


@pytest.mark.parametrize("gone", ["data", "rows"])
def test_without_the_runs_own_test_split_built_in_texts_are_compared(here, caplog, gone):
    """Nothing is downloaded, and rows that were not scored are none of the run's."""
    copy = here / "copy"
    shutil.copytree(here / "run", copy)
    settings = (copy / "config.yaml").read_text()
    if gone == "data":
        settings = settings.replace("source: sample", "source: hub")
    else:
        settings = settings.replace("limit_test: 16", "limit_test: 15")
    (copy / "config.yaml").write_text(settings)
    assert main(["export", "copy", "out"]) == 0
    why = {
        "data": "The dataset stanfordnlp/imdb is not in the cache.",
        "rows": "It holds other rows than when the run was tested.",
    }
    assert f"because the run's own test split cannot be read here: {why[gone]}" in caplog.text
    known = json.loads((here / "out/smolbench.json").read_text())["check"]
    assert known["n"] == 41
    assert "built-in ones, not the run's own" in known["examples"]


def test_the_card_says_what_the_results_say(here):
    assert main(["export", "run", "out"]) == 0
    card = (here / "out/README.md").read_text()
    found = results(here / "run")
    accuracy, error = found["test/accuracy"], found["test/accuracy_stderr"]
    assert f"| accuracy | {accuracy:.4f} | {error:.4f} |" in card
    assert "## Cost" in card
    assert "/tmp" not in card.partition("## Made with")[0]


def test_an_adapter_is_exported_alone(here):
    assert main(["export", "run", "out", "--adapter"]) == 0
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(names("out"))
    assert "library_name: peft" in (here / "out/README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "checkpoint", "scored"),
    [
        (["run", "out", "--ckpt_path", "last"], "last.ckpt", False),
        (["run/checkpoints/last.ckpt", "out"], "last.ckpt", False),
        (["run/checkpoints/best.ckpt", "out"], "best.ckpt", True),
        (["run", "out", "--ckpt_path", "run/checkpoints/last.ckpt"], "last.ckpt", False),
    ],
)
def test_any_checkpoint_of_the_run(here, arguments, checkpoint, scored):
    assert main(["export", *arguments]) == 0
    card = (here / "out/README.md").read_text()
    assert f"checkpoint `{checkpoint}`" in card
    assert ("was not scored" in card) != scored
    assert ("model-index" in card) == scored


def test_probes_and_classical_baselines(here):
    few = ["--data.limit_train=32", "--data.limit_test=16", "--trainer.enable_progress_bar=false"]
    fit = ["fit", "--config=imdb_probe", "--config=tiny", *few, "--trainer.max_epochs=1"]
    assert main([*fit, "--run_dir=probe"]) == 0
    assert main(["export", "probe", "probe_out"]) == 0
    assert set(Probe.load("probe_out")(["A gem."])[0]) == {"neg", "pos"}
    known = json.loads((here / "probe_out/smolbench.json").read_text())["check"]
    assert (known["n"], known["run_dtype"]) == (17, known["export_dtype"])
    fit = ["fit", "--config=imdb_linear_svm", "--config=tiny", *few, "--run_dir=svm"]
    assert main(fit) == 0
    assert main(["export", "svm", "svm_out"]) == 0
    pipeline = skops.io.load("svm_out/pipeline.skops", trusted=["scipy.sparse._csr.csr_matrix"])
    assert pipeline.predict(["A gem."]).shape == (1,)
    assert json.loads((here / "svm_out/labels.json").read_text()) == ["neg", "pos"]
    assert "library_name: sklearn" in (here / "svm_out/README.md").read_text()


# -- what is refused ------------------------------------------------------------------------------


def refused(capsys, *arguments):
    assert main(["export", *arguments]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_an_export_that_fails_leaves_nothing_behind(here, capsys, monkeypatch):
    monkeypatch.setattr(check, "_gap", lambda *_: float("nan"))
    assert "says something else" in refused(capsys, "run", "new/deep/out")
    assert left(here) == []


def test_a_replacement_that_fails_leaves_what_was_there(here, capsys, monkeypatch):
    assert main(["export", "run", "out"]) == 0
    before = (here / "out/README.md").read_bytes()
    monkeypatch.setattr(check, "_gap", lambda *_: float("nan"))
    assert "says something else" in refused(capsys, "run", "out", "--overwrite")
    assert (here / "out/README.md").read_bytes() == before
    assert left(here) == ["out"]


def test_only_an_export_is_ever_replaced(here, capsys):
    assert main(["export", "run", "out"]) == 0
    assert "--overwrite" in refused(capsys, "run", "out")
    (here / "out/notes").mkdir()
    (here / "out/notes/mine.txt").write_text("mine")
    assert main(["export", "run", "out", "--overwrite", "--adapter"]) == 0
    assert (here / "out/notes/mine.txt").read_text() == "mine", "it is no file of an export"
    assert "model.safetensors" not in names("out")
    assert "notes/mine.txt" not in json.loads((here / "out/smolbench.json").read_text())["files"]
    (here / "out/model.safetensors").write_text("mine, too")
    assert "move it away" in refused(capsys, "run", "out", "--overwrite")
    assert (here / "out/model.safetensors").read_text() == "mine, too"
    assert "adapter_config.json" in names("out")
    (here / "out/model.safetensors").unlink()
    (here / "out/smolbench.json").write_text("{}")
    assert "does not list its files" in refused(capsys, "run", "out", "--overwrite")
    (here / "mine").mkdir()
    (here / "mine/thesis.txt").touch()
    assert "holds no export" in refused(capsys, "run", "mine", "--overwrite")
    assert names("mine") == {"thesis.txt"}
    (here / "empty").mkdir()
    assert main(["export", "run", "empty"]) == 0
    assert "is a file" in refused(capsys, "run", "mine/thesis.txt")


def test_runs_that_cannot_be_exported(here, capsys):
    write_run(here / "killed", status="interrupted")
    assert "not finished (it is interrupted)" in refused(capsys, "killed", "out")
    write_run(here / "bare")
    assert "has no checkpoint best.ckpt" in refused(capsys, "bare", "out")
    write_run(here / "scored", MULTIPLE_CHOICE, attempts=...)
    assert "is no training" in refused(capsys, "scored", "out")
    write_run(here / "strange")
    (here / "strange/checkpoints").mkdir()
    (here / "strange/checkpoints/best.ckpt").write_bytes(
        (here / "run/checkpoints/best.ckpt").read_bytes()
    )
    (here / "strange/config.yaml").write_text("model: {class_path: nowhere.Task}")
    assert "nowhere.Task of the run" in refused(capsys, "strange", "out")
    (here / "strange/config.yaml").write_text("model: {class_path: smolbench.cli.main}")
    assert "is no class" in refused(capsys, "strange", "out")
    (here / "strange/config.yaml").write_text("model: {class_path: smolbench.tasks.ProbeTask}")
    assert "cannot be rebuilt" in refused(capsys, "strange", "out")
    assert "There is no run nothing" in refused(capsys, "nothing", "out")
    assert "There is no checkpoint" in refused(capsys, "run", "out", "--ckpt_path", "nothing.ckpt")
    (here / "loose.ckpt").touch()
    assert "does not lie in" in refused(capsys, "loose.ckpt", "out")
    assert left(here) == ["bare", "killed", "loose.ckpt", "scored", "strange"]


def test_a_damaged_checkpoint_is_refused(here, capsys):
    (here / "broken").mkdir()
    for name in ("results.json", "config.yaml"):
        (here / "broken" / name).write_bytes((here / "run" / name).read_bytes())
    (here / "broken/checkpoints").mkdir()
    whole = (here / "run/checkpoints/best.ckpt").read_bytes()
    (here / "broken/checkpoints/best.ckpt").write_bytes(whole[: len(whole) // 2])
    assert "is damaged or not a checkpoint" in refused(capsys, "broken", "out")


# -- the Hub --------------------------------------------------------------------------------------


class Hub:
    """What stands in for the Hub; it remembers what is asked of it."""

    def __init__(self, exists=False, broken=False, holds=()):
        self.exists, self.broken, self.holds, self.calls = exists, broken, holds, []

    def __call__(self):
        return self

    def repo_exists(self, repo_id):
        return self.exists

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append(("create", repo_id, private, exist_ok))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def file_exists(self, repo_id, name):
        return name in self.holds

    def upload_folder(
        self, *, repo_id, folder_path, commit_message, allow_patterns, delete_patterns
    ):
        if self.broken:
            raise ConnectionError("the line is dead")
        self.calls.append(("upload", repo_id, sorted(allow_patterns), delete_patterns))


def test_a_push_makes_a_repository_and_fills_it(here, monkeypatch):
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    assert main(["export", "run", "out", "--push", "me/model", "--private"]) == 0
    created, uploaded = hub.calls
    assert created == ("create", "me/model", True, False)
    assert uploaded == ("upload", "me/model", sorted(names("out")), [])
    card = (here / "out/README.md").read_text()
    assert 'model="me/model"' in card
    assert card.count("# model\n") == 1


def test_a_repository_that_exists_is_refused_before_anything_is_done(here, monkeypatch, capsys):
    hub = Hub(exists=True)
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    assert "exists already" in refused(capsys, "run", "out", "--push", "me/model")
    assert hub.calls == []
    assert left(here) == []
    assert main(["export", "run", "out", "--push", "me/model", "--overwrite"]) == 0
    assert hub.calls[0] == ("create", "me/model", False, True)


def test_in_a_repository_only_what_an_export_wrote_is_replaced(here, monkeypatch, capsys):
    hub = Hub(exists=True, holds=["smolbench.json"])
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    mark = here / "mark.json"
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo_id, name: str(mark))
    mark.write_text(json.dumps({"files": ["README.md", "old[1].bin"]}))
    assert main(["export", "run", "out"]) == 0
    written = sorted(names("out"))
    (here / "out/secret.txt").touch()
    assert main(["export", "run", "out", "--push", "me/model", "--overwrite"]) == 0
    assert hub.calls[1] == ("upload", "me/model", written, ["README.md", "old[[]1].bin"])
    mark.write_text("{}")
    assert "does not list its files" in refused(
        capsys, "run", "out", "--push", "me/model", "--overwrite"
    )


def test_a_push_that_fails_keeps_the_folder(here, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub(broken=True))
    said = refused(capsys, "run", "out", "--push", "me/model")
    assert "is written, but the repository me/model" in said
    assert "the line is dead" in said
    assert left(here) == ["out"]


def test_what_needs_a_folder_of_this_machine_is_not_pushed(here, monkeypatch, capsys):
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    said = refused(capsys, "run", "out", "--push", "me/model", "--adapter")
    assert "nobody else has" in said
    assert hub.calls == []
    assert left(here) == []


def test_private_is_for_the_hub(here, capsys):
    assert "add --push" in refused(capsys, "run", "out", "--private")


def test_help_and_mistakes_need_no_torch(here):
    code = (
        "import sys; from smolbench.cli import main\n"
        "assert main(['export', '--help']) == 0\n"
        "assert main(['export', 'nothing', 'out']) == 2\n"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
