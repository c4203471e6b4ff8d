"""What tasks refuse before a network is loaded: tokens without embeddings, code of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from smolbench.cli import main
from smolbench.data import HellaSwagDataModule, IMDbDataModule, SAMSumDataModule
from smolbench.errors import SmolbenchError
from smolbench.models.pretrained.backbone import Backbone
from smolbench.tasks import (
    DistillationTask,
    FineTuneTask,
    MultipleChoiceTask,
    ProbeTask,
    PromptTask,
    SummarizationTask,
)
from smolbench.tasks.distillation.summarization import SummaryDistillationTask
from tests.helpers.command import ONE_EPOCH, QUIET, config, results
from tests.helpers.tiny import VOCABULARY, tiny_backbone, tiny_language_model
from tests.helpers.training import plain_trainer

LIMITS = {"limit_train": 8, "limit_val": 4, "limit_test": 4, "batch_size": 4}
DATA = {
    "classification": IMDbDataModule,
    "multiple_choice": HellaSwagDataModule,
    "summarization": SAMSumDataModule,
}
TASKS = {
    FineTuneTask: {"max_length": 48},
    ProbeTask: {"max_length": 48},
    PromptTask: {"max_length": 48},
    MultipleChoiceTask: {"method": "full"},
    SummarizationTask: {"max_length": 48, "max_new_tokens": 4, "max_summary_length": 8},
}


def run(task, folder, **options):
    """Train for a step, or score what is not trained; the network may not be loaded in vain."""
    data = DATA[task.kind](source="sample", cache_dir=str(folder / "cache"), **LIMITS, **options)
    trainer = plain_trainer(folder, max_steps=1)
    if isinstance(task, PromptTask):
        trainer.test(task, data, verbose=False)
    else:
        trainer.fit(task, data)


# -- tokens without embeddings ---------------------------------------------------------------------


def with_token(folder, token, name="gpt2"):
    """A model whose tokenizer has been given a token, and its network no embedding for it."""
    shutil.copytree(tiny_language_model(name), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) <= VOCABULARY
    # as many as make the ids end behind the network's table
    tokenizer.add_tokens([f"[SPARE{n}]" for n in range(VOCABULARY - len(tokenizer))])
    tokenizer.add_tokens([token])
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def unloaded(monkeypatch):
    """No weights may be read."""
    monkeypatch.setattr(Backbone, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))


REFUSAL = rf"needs the token '{{}}' \(id {VOCABULARY}\), but .* has embeddings for {VOCABULARY} tok"


@pytest.mark.parametrize("kind", TASKS, ids=lambda kind: kind.__name__)
def test_a_token_of_the_texts(unloaded, tmp_path, kind):
    place = with_token(tmp_path / "net", " the" if kind is not SummarizationTask else " and")
    task = kind(backbone=place, dtype="float32", **TASKS[kind])
    with pytest.raises(SmolbenchError, match=REFUSAL.format(".*")):
        run(task, tmp_path)


@pytest.mark.parametrize(
    "task",
    [
        lambda place: FineTuneTask(backbone=place, template="[NEW] {text}", max_length=48),
        lambda place: ProbeTask(backbone=place, template="{text} [NEW]", max_length=48),
        lambda place: PromptTask(
            backbone=place, label_words={"neg": "bad", "pos": "[NEW]"}, max_length=48
        ),
        lambda place: PromptTask(backbone=place, template="[NEW] {text}:", max_length=48),
    ],
)
def test_a_token_of_the_template_or_of_an_answer(unloaded, tmp_path, task):
    place = with_token(tmp_path / "net", "[NEW]")
    with pytest.raises(SmolbenchError, match=REFUSAL.format(r"\[NEW\]")):
        run(task(place), tmp_path)


def test_a_token_that_nothing_needs_harms_nobody(tmp_path):
    place = with_token(tmp_path / "net", "[NEW]")
    run(FineTuneTask(backbone=place, dtype="float32", max_length=48), tmp_path)


def test_a_padding_token(unloaded, tmp_path):
    place = Path(with_token(tmp_path / "net", "[NEW]"))
    settings = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**settings, "pad_token_id": VOCABULARY}))
    with pytest.raises(SmolbenchError, match=REFUSAL.format(r"\[NEW\]")):
        run(FineTuneTask(backbone=str(place), max_length=48), tmp_path)


def test_texts_that_were_encoded_for_another_network(unloaded, tmp_path):
    """The cache knows tokenizers, not networks: its ids are looked at, too."""
    place = Path(with_token(tmp_path / "net", " the"))
    settings = json.loads((place / "config.json").read_text())
    shutil.copytree(place, tmp_path / "larger")
    larger = json.dumps({**settings, "vocab_size": VOCABULARY + 1})
    (tmp_path / "larger/config.json").write_text(larger)
    data = IMDbDataModule(source="sample", cache_dir=str(tmp_path / "cache"), **LIMITS)
    trainer = plain_trainer(tmp_path)
    data.trainer = trainer
    trainer.strategy.connect(FineTuneTask(backbone=str(tmp_path / "larger"), max_length=48))
    data.setup("test")  # encoded, with ids that the other one lacks
    task = FineTuneTask(backbone=str(place), max_length=48)
    task.encode = lambda _: pytest.fail("encoded again")
    with pytest.raises(SmolbenchError, match=REFUSAL.format(".*")):
        plain_trainer(tmp_path).test(
            task, IMDbDataModule(source="sample", cache_dir=str(tmp_path / "cache"), **LIMITS)
        )


def test_a_token_of_a_teacher(tmp_path):
    place = Path(with_token(tmp_path / "net", " the"))
    network = AutoModelForSequenceClassification.from_pretrained(
        place, id2label={0: "neg", 1: "pos"}, pad_token_id=0
    )
    network.save_pretrained(place)
    task = DistillationTask(backbone=tiny_backbone("gpt2"), teacher=str(place), max_length=48)
    with pytest.raises(SmolbenchError, match=REFUSAL.format(".*")):
        run(task, tmp_path)
    student = tmp_path / "student"
    shutil.copytree(place, student)
    shutil.copytree(tiny_language_model("gpt2"), student, dirs_exist_ok=True)
    # the student has embeddings for its tokens, and the teacher does not
    tokenizer = AutoTokenizer.from_pretrained(place)
    tokenizer.save_pretrained(student)
    settings = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps({**settings, "vocab_size": VOCABULARY + 1}))
    options = {**TASKS[SummarizationTask], "backbone": str(student), "teacher": str(place)}
    with pytest.raises(SmolbenchError, match=REFUSAL.format(".*")):
        run(SummaryDistillationTask(**options), tmp_path)


def test_a_token_of_a_text_to_label(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with_token(tmp_path / "net", "[NEW]")
    fit = ["fit", "--config=imdb_gpt2", "--config=tiny", *QUIET, ONE_EPOCH, "--run_dir=run"]
    fit += [f"--data.{name}={value}" for name, value in LIMITS.items()]
    assert main([*fit, "--model.max_length=48", "--model.backbone=net"]) == 0
    assert main(["predict", "--run_dir=run", "--text=A gem."]) == 0
    capsys.readouterr()
    assert main(["predict", "--run_dir=run", "--text=A [NEW] gem."]) == 2
    assert "needs the token '[NEW]'" in capsys.readouterr().err


# -- code of its own -------------------------------------------------------------------------------

CODE = """\
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model
from .configuration_own import OwnConfig

class OwnClassifier(GPT2ForSequenceClassification):
    config_class = OwnConfig

class OwnLanguageModel(GPT2LMHeadModel):
    config_class = OwnConfig

class OwnModel(GPT2Model):
    config_class = OwnConfig
"""
CONFIGURATION = """\
from transformers import GPT2Config

class OwnConfig(GPT2Config):
    model_type = "own-gpt2"
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    """A model of an architecture that only its own files know; nobody answers questions."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    monkeypatch.chdir(tmp_path)
    place = Path(shutil.copytree(tiny_language_model("gpt2"), tmp_path / "net"))
    settings = json.loads((place / "config.json").read_text())
    settings["model_type"] = "own-gpt2"
    settings["auto_map"] = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModel": "modeling_own.OwnModel",
        "AutoModelForCausalLM": "modeling_own.OwnLanguageModel",
        "AutoModelForSequenceClassification": "modeling_own.OwnClassifier",
    }
    (place / "config.json").write_text(json.dumps(settings))
    (place / "configuration_own.py").write_text(CONFIGURATION)
    (place / "modeling_own.py").write_text(CODE)
    return str(place)


@pytest.mark.parametrize("kind", TASKS, ids=lambda kind: kind.__name__)
def test_code_of_its_own_runs_where_it_is_allowed(own_code, tmp_path, kind):
    options = {"backbone": own_code, "dtype": "float32", **TASKS[kind]}
    with pytest.raises(SmolbenchError, match=r"has Python code of its own.*trust_remote_code true"):
        run(kind(**options), tmp_path)
    task = kind(**options, trust_remote_code=True)
    run(task, tmp_path)
    assert task.facts()["model/trust_remote_code"] is True
    assert task.backbone.runs_own_code
    assert task.backbone.max_positions == 512
    plain = kind(**{**options, "backbone": tiny_language_model("gpt2")}, trust_remote_code=True)
    assert not plain.backbone.runs_own_code


def test_code_is_a_part_of_what_a_model_is_known_by(own_code):
    def revision(trusted):
        return Backbone(own_code, None, "float32", trust_remote_code=trusted).revision

    before = revision(True), revision(False)
    assert before[0] != before[1]
    with (Path(own_code) / "modeling_own.py").open("a") as file:
        file.write("# other code\n")
    assert revision(True) != before[0]
    assert revision(False) == before[1]


def test_a_run_keeps_the_permission_and_says_so(own_code, tmp_path, capsys):
    fit = ["fit", "--config=imdb_gpt2", "--config=tiny", *QUIET, ONE_EPOCH, "--latency.examples=0"]
    fit += [f"--data.{name}={value}" for name, value in LIMITS.items()]
    fit += ["--model.max_length=48", f"--model.backbone={own_code}", "--run_dir=run"]
    assert main(fit) == 2
    assert main([*fit, "--model.trust_remote_code=true"]) == 0
    assert config(Path("run"))["model"]["init_args"]["trust_remote_code"] is True
    assert results(Path("run"))["model/trust_remote_code"] is True
    for command in (["predict", "--run_dir=run", "--text=A gem."], ["test", "--run_dir=run"]):
        capsys.readouterr()
        assert main(command) == 0
        assert "Python code among the files of" in capsys.readouterr().err
    capsys.readouterr()
    assert main(["export", "run", "out"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "Python code among the files of" in said[0]
    assert "runs Python code of its own, which an export would have to hand on" in said[-1]
    # a run that teaches brings its permission along; a model by its name has none
    student = [*fit[:-2], "--model=DistillationTask", "--run_dir=student"]
    assert main([*student, "--model.teacher=run"]) == 0
    capsys.readouterr()
    student[-1] = "--run_dir=other"
    assert main([*student, f"--model.teacher={own_code}"]) == 2
    assert "which runs only for teachers that are runs" in capsys.readouterr().err


def test_the_footprint_of_code_of_its_own(own_code, capsys):
    assert main(["footprint", own_code]) == 2
    assert "--trust_remote_code" in capsys.readouterr().err
    small = ["--method=full", "--length=64", "--json"]
    found = []
    for arguments in ([own_code, "--trust_remote_code"], [tiny_language_model("gpt2")]):
        assert main(["footprint", *arguments, *small]) == 0
        found += json.loads(capsys.readouterr().out)
    own, plain = ({**one, "model": "", "revision": ""} for one in found)
    assert own == plain
