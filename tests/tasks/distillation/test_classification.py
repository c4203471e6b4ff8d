from __future__ import annotations

import copy
import csv
import gc
import json
import math
import re
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from transformers import AutoModelForSequenceClassification

from smolbench.cli import main
from smolbench.data import AGNewsDataModule, IMDbDataModule, Sentiment140DataModule
from smolbench.errors import SmolbenchError
from smolbench.tasks import DistillationTask, FineTuneTask
from smolbench.tasks.distillation.classifying_teachers import (
    ClassifyingTeachers,
    Reading,
    RunTeacher,
)
from smolbench.tasks.distillation.find_teacher import find_teacher
from smolbench.tasks.distillation.student import distillation_loss
from tests.helpers.command import assert_equal_runs, results, weights
from tests.helpers.kill import die
from tests.helpers.tiny import tiny_backbone, tiny_tokenizer
from tests.helpers.training import plain_trainer

LIMITS = {"limit_train": 48, "limit_val": 16, "limit_test": 16, "batch_size": 8}
QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--trainer.max_epochs=1",
    *(f"--data.{name}={value}" for name, value in LIMITS.items()),
]
TEACHER = ["--config=imdb_gpt2", "--config=tiny", *QUIET, "--model.max_length=48"]
STUDENT = ["--config=imdb_gpt2", "--config=tiny", "--model=DistillationTask", *QUIET]
STUDENT += ["--model.max_length=32"]


def trained(folder: Path, *options: str) -> Path:
    assert main(["fit", *TEACHER, "--model.lr=3e-3", f"--run_dir={folder}", *options]) == 0
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a teacher of another architecture and tokenizer than the students'."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        bert = [f"--model.backbone={tiny_backbone('bert')}", "--model.dtype=float32"]
        bert += ["--trainer.max_epochs=10"]
        trained(folder / "bert", *bert)
        test = ["test", *TEACHER, "--model.lr=3e-3", *bert]
        assert main([*test, "--run_dir=bert", "--ckpt_path=best"]) == 0
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("SMOLBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def loaded(monkeypatch):
    """How often a teacher's weights were put into its network."""
    calls = []
    fill = RunTeacher.fill
    monkeypatch.setattr(
        RunTeacher, "fill", lambda self, task, *rest: (calls.append(task), fill(self, task, *rest))
    )
    return calls


def data(**options):
    return IMDbDataModule(source="sample", **{**LIMITS, **options})


def student(teacher, kind="opt", task=DistillationTask, **options):
    options = {"dtype": "float32", "max_length": 60, "lr": 1e-3, **options}
    return task(teacher=str(teacher), backbone=tiny_backbone(kind), **options)


def padding_tokenizer(kind):
    tokenizer = copy.deepcopy(tiny_tokenizer(kind))
    tokenizer.pad_token = "<pad>"
    return tokenizer


def texts_and_labels(module):
    examples = module.split("train").examples
    return list(examples["text"]), torch.tensor(examples["label"])


# -- the loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 2.0), (1.0, 4.0), (0.0, 3.0), (0.3, 0.7)])
def test_loss_and_gradient_are_the_formulas(alpha, temperature):
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(6, 4, generator=generator) for _ in range(2))
    labels = torch.tensor([0, 3, 1, 2, 2, 0])
    logits.requires_grad_(True)
    loss = distillation_loss(logits, teacher, labels, alpha, temperature)
    (gradient,) = torch.autograd.grad(loss, logits)

    exact = logits.detach().double().requires_grad_(True)
    p = (teacher.double() / temperature).softmax(1)
    q = (exact / temperature).softmax(1)
    soft = (p * (p.log() - q.log())).sum(1).mean()
    hard = -exact.softmax(1)[range(6), labels].log().mean()
    expected = alpha * temperature**2 * soft + (1 - alpha) * hard
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    (by_autograd,) = torch.autograd.grad(expected, exact)
    torch.testing.assert_close(gradient.double(), by_autograd, rtol=1e-4, atol=1e-6)
    # and by hand: the softmax's derivative, with one T of the two left over
    onehot = torch.eye(4, dtype=torch.float64)[labels]
    by_hand = alpha * temperature * (q - p) + (1 - alpha) * (exact.softmax(1) - onehot)
    torch.testing.assert_close(gradient.double(), by_hand.detach() / 6, rtol=1e-4, atol=1e-6)


def test_loss_is_computed_in_float32_under_autocast():
    logits = torch.tensor([[9.0, 9.001]], dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = distillation_loss(logits, torch.tensor([[1.0, 2.0]]), torch.tensor([0]), 0.5, 2.0)
    assert loss.dtype == torch.float32
    plain = distillation_loss(
        logits.float(), torch.tensor([[1.0, 2.0]]), torch.tensor([0]), 0.5, 2.0
    )
    assert torch.equal(loss, plain)


class Damped(DistillationTask):
    """Training in which a last bit's difference stays one.

    Adam divides each gradient by its own size, so that where it should be zero, mere rounding moves
    a weight by the whole rate; with a large epsilon such gradients move nothing.
    """

    def configure_optimizers(self):
        configured = super().configure_optimizers()
        for group in configured["optimizer"].param_groups:
            group["eps"] = 1e-2
        return configured


class InTheLoop(Damped):
    """The plain way: the teacher reads every batch, by transformers and its own tokenizer."""

    def prepare(self, module, run, max_length=48):
        self.texts, _ = texts_and_labels(module)
        saved = FineTuneTask.load_from_checkpoint(run / "checkpoints" / "best.ckpt")
        # in a list: no submodule, or it would train too
        self.live = [saved.model.eval()]
        self.tokens = padding_tokenizer("bert")
        self.longest = max_length

    def loss(self, batch):
        rows = [self.texts[n] for n in batch["index"].tolist()]
        encoded = self.tokens(
            rows,
            truncation=True,
            max_length=self.longest,
            padding=True,
            return_tensors="pt",
            return_token_type_ids=False,
        )
        with torch.no_grad():
            logits = self.live[0](**encoded).logits
        return distillation_loss(self(batch), logits, batch["labels"], self.alpha, self.temperature)


def losses(task, module, root, **options):
    found = []

    def keep(loss, keep=task.loss):
        value = keep(loss)
        found.append(value.item())
        return value

    task.loss = keep
    plain_trainer(root, max_steps=50, max_epochs=-1, **options).fit(task, module)
    return found


@pytest.mark.parametrize(("method", "lr"), [("full", 2e-2), ("lora", 3e-2)])
def test_fifty_steps_are_those_with_the_teacher_in_the_loop(cache, home, tmp_path, method, lr):
    options = {"method": method, "lr": lr, "alpha": 0.7, "temperature": 1.5}
    seed_everything(0)
    cached = losses(student(home / "bert", task=Damped, **options), data(), tmp_path)
    seed_everything(0)
    plain = student(home / "bert", task=InTheLoop, **options)
    module = data()
    module._loaded()
    plain.prepare(module, home / "bert")
    expected = losses(plain, module, tmp_path)
    assert len(cached) == len(expected) == 50
    np.testing.assert_allclose(cached, expected, rtol=0, atol=1e-3)
    assert max(expected) - min(expected) > 0.03, "nothing was learned, so nothing compared"


# -- the teacher's logits -------------------------------------------------------------------------


def logits_of(task, module):
    """The teacher's logits as the training sees them, by row number."""
    rows = task.trainer.train_dataloader.rows.batch(np.arange(len(module.split("train"))))
    assert rows["input_ids" if task.head is None else "features"] is not None
    return rows["teacher_logits"]


def lesson(teacher, tmp_path, module=None, **options):
    module = module or data()
    task = student(teacher, **options)
    plain_trainer(tmp_path, max_steps=1).fit(task, module)
    return logits_of(task, module), task


def predicted(run, texts, tmp_path):
    """What the run itself says of texts, through the command line."""
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(texts))
    out = tmp_path / "scores.csv"
    checkpoint = run / "checkpoints" / "best.ckpt"
    command = ["predict", f"--config={run / 'config.yaml'}", f"--ckpt_path={checkpoint}"]
    assert main([*command, "--input", str(file), "--output", str(out)]) == 0
    with out.open() as rows:
        return torch.tensor(
            [[float(row["score_neg"]), float(row["score_pos"])] for row in csv.DictReader(rows)]
        )


@pytest.mark.parametrize(
    "options",
    [
        ["--model.method=full"],
        ["--model.method=lora"],
        ["--model.method=qlora"],
        ["--model.method=bitfit_added"],
        ["--model.method=head"],
        ["--model=ProbeTask", "--model.template=It is {text} so much", "--model.max_length=48"],
        ["--model=DistillationTask", "--model.teacher=tiny", "--model.max_length=48"],
    ],
    ids=lambda options: options[0].partition("=")[2] if len(options) == 1 else options[0],
)
def test_every_classification_run_can_teach(cache, folder_here, options):
    run = trained(folder_here / "teacher", "--model.dtype=float32", *options)
    found, task = lesson(run, folder_here)
    texts, _ = texts_and_labels(data())
    texts = [" ".join(text.split()) for text in texts]  # one line each
    module = data()
    if texts == texts_and_labels(module)[0]:
        expected = predicted(run, texts, folder_here)
        torch.testing.assert_close(found.softmax(1), expected, rtol=0, atol=2e-5)
    else:
        pytest.fail("the sample's texts have line breaks: compare otherwise")
    assert (expected.std(dim=0) > 0).all()
    said = task.facts()
    assert said["teacher/run"] == str(run)
    assert said["teacher/method"] == results(run)["method"]


def test_a_checkpoint_of_a_run_is_the_run(cache, home, tmp_path):
    by_run, _ = lesson(home / "bert", tmp_path)
    by_file, _ = lesson(home / "bert/checkpoints/best.ckpt", tmp_path)
    assert torch.equal(by_run, by_file)


def test_a_model_with_a_trained_head_teaches(cache, tmp_path):
    folder = tmp_path / "classifier"
    torch.manual_seed(1)
    network = AutoModelForSequenceClassification.from_pretrained(
        tiny_backbone("bert"), id2label={0: "NEGATIVE", 1: "POSITIVE"}
    ).eval()
    network.classifier.weight.data.normal_()
    network.save_pretrained(folder)
    tiny_tokenizer("bert").save_pretrained(folder)
    found, task = lesson(folder, tmp_path, max_length=40)
    texts, _ = texts_and_labels(data())
    encoded = padding_tokenizer("bert")(
        texts,
        truncation=True,
        max_length=40,
        padding=True,
        return_tensors="pt",
        return_token_type_ids=False,
    )
    with torch.no_grad():
        expected = network(**encoded).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert task.facts()["teacher/id"] == str(folder)


def test_the_built_in_teacher_knows_something(cache, tmp_path):
    module = data(limit_train=200)
    found, task = lesson("tiny", tmp_path, module)
    labels = texts_and_labels(module)[1]
    assert (found.argmax(1) == labels).float().mean() > 0.7
    assert task.facts()["teacher/id"] == "tiny"


def test_the_built_in_teacher_knows_many_classes(cache, tmp_path):
    module = AGNewsDataModule(source="sample", **{**LIMITS, "limit_train": 100})
    found, _ = lesson("tiny", tmp_path, module)
    assert found.shape == (100, 4)
    assert (found.argmax(1) == texts_and_labels(module)[1]).float().mean() > 0.7


def test_a_second_run_reads_the_cache_and_loads_no_teacher(cache, home, tmp_path, loaded):
    first, one = lesson(home / "bert", tmp_path)
    assert len(loaded) == 1
    second, other = lesson(home / "bert", tmp_path, kind="gpt2", method="lora", alpha=0.9)
    assert len(loaded) == 1
    assert torch.equal(first, second)
    facts = [task.facts() for task in (one, other)]
    assert [said["cost/cache_reused"] for said in facts] == [False, True]
    assert facts[0]["cost/cache_s"] == facts[1]["cost/cache_s"] > 0


def test_each_choice_of_rows_has_its_own_logits(cache, home, tmp_path, loaded):
    whole, _ = lesson(home / "bert", tmp_path)
    part_of_data = data(limit_train=20)
    part, _ = lesson(home / "bert", tmp_path, part_of_data)
    assert len(loaded) == 2
    texts = texts_and_labels(data())[0]
    where = [texts.index(text) for text in texts_and_labels(part_of_data)[0]]
    assert where != list(range(20))
    torch.testing.assert_close(part, whole[where], rtol=1e-4, atol=1e-4)


def test_a_head_on_cached_features_learns_from_a_teacher(cache, home, tmp_path, loaded):
    found, task = lesson(home / "bert", tmp_path, method="head")
    assert task.facts()["method"] == "distill_head"
    batch = task.trainer.train_dataloader.rows.batch(np.arange(3))
    assert set(batch) == {"features", "labels", "teacher_logits", "index"}
    plain, _ = lesson(home / "bert", tmp_path)
    assert torch.equal(found, plain)
    assert len(loaded) == 1
    assert task.facts()["cost/cache_s"] > task._lesson.seconds


# -- the teacher is no part of the student --------------------------------------------------------


def test_the_teacher_is_neither_kept_nor_saved_nor_trained(cache, home, tmp_path, loaded):
    _, task = lesson(home / "bert", tmp_path)
    networks = [weakref.ref(teacher) for teacher in loaded]
    loaded.clear()
    gc.collect()
    assert [network() for network in networks] == [None]
    assert not [name for name, _ in task.named_modules() if "bert" in name or "teacher" in name]
    alone = FineTuneTask(backbone=tiny_backbone("opt"), num_classes=2, max_length=60)
    alone.configure_model()
    assert set(task.state_dict()) == set(alone.state_dict())
    task.trainer.save_checkpoint(tmp_path / "student.ckpt")
    saved = torch.load(tmp_path / "student.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == alone.trained_names()


def test_a_student_is_scored_and_used_without_its_teacher(capsys, cache, home, folder_here):
    shutil.copytree(home / "bert", "teacher")
    run = [*STUDENT, "--model.teacher=teacher", "--run_dir=student"]
    assert main(["fit", *run]) == 0
    fitted = results(Path("student"))
    assert fitted["method"] == "distill_full"
    assert fitted["task"] == "DistillationTask"
    assert fitted["teacher/run"] == str(folder_here / "teacher")
    assert fitted["teacher/id"] == tiny_backbone("bert")
    assert fitted["teacher/test_accuracy"] == results(Path("teacher"))["test/accuracy"]
    assert fitted["teacher/same_rows"] is True
    assert fitted["teacher/digest"]
    assert fitted["cost/cache_s"] > 0
    assert fitted["cost/cache_reused"] is False
    shutil.rmtree("teacher")
    shutil.rmtree(cache / "teachers")
    assert main(["test", *run, "--ckpt_path=best"]) == 0
    assert results(Path("student"))["test/n"] == 16
    assert results(Path("student"))["teacher/id"] == fitted["teacher/id"]
    assert main(["predict", *run, "--ckpt_path=best", "--text=Fine.", "--output=out.csv"]) == 0
    changed = ["--model.alpha=0.9", "--ckpt_path=student/checkpoints/best.ckpt"]
    assert main(["test", *STUDENT, "--model.teacher=teacher", *changed]) == 2
    assert "alpha was 0.5, is 0.9" in capsys.readouterr().err
    made = DistillationTask.load_from_checkpoint("student/checkpoints/best.ckpt")
    for name, value in weights(Path("student"), "best").items():
        assert torch.equal(made.state_dict()[name], value), name


# -- which teacher --------------------------------------------------------------------------------


def found_in(folder, given, **options):
    reading = Reading(48, "right", "float32")
    return find_teacher(given, ClassifyingTeachers(reading), runs_dir=folder / "runs", **options)


def copied(run: Path, folder: Path, **changes: object) -> Path:
    """A run's copy that says something else of itself."""
    shutil.copytree(run, folder)
    said = {**results(folder), **changes}
    (folder / "results.json").write_text(json.dumps(said))
    return folder


def test_a_recipe_stands_for_its_newest_finished_run(home, tmp_path):
    runs = tmp_path / "runs" / "imdb_gpt2"
    old = copied(home / "bert", runs / "old", started_at="2020")
    new = copied(home / "bert", runs / "new", started_at="2021")
    copied(home / "bert", runs / "unfinished", started_at="2022", status="interrupted")
    bare = copied(home / "bert", runs / "without", started_at="2023")
    (bare / "checkpoints" / "best.ckpt").unlink()
    scored = copied(home / "bert", runs / "scored", started_at="2024")
    said = {name: value for name, value in results(scored).items() if name != "attempts"}
    (scored / "results.json").write_text(json.dumps(said))
    newest = found_in(tmp_path, "imdb_gpt2")
    assert newest.run.path == new.resolve()
    assert found_in(tmp_path, "configs/imdb_gpt2.yaml").run.path == new.resolve()
    # of the same content is the same teacher, wherever it lies
    assert newest.identity == found_in(tmp_path, str(old)).identity
    assert newest.identity == found_in(tmp_path, str(old / "config.yaml")).identity


def test_the_tiny_student_of_a_recipe_has_a_tiny_teacher(home, tmp_path):
    copied(home / "bert", tmp_path / "runs" / "imdb_gpt2" / "real")
    built_in = found_in(tmp_path, "imdb_gpt2", tiny_student=True)
    assert built_in.name == "tiny"
    assert "the built-in tiny one stands in" in built_in.remark
    tiny = copied(home / "bert", tmp_path / "runs" / "imdb_gpt2+tiny" / "run")
    found = found_in(tmp_path, "imdb_gpt2", tiny_student=True)
    assert found.run.path == tiny.resolve()
    # a training that began with the other goes on with it
    identity = built_in.identity
    assert found_in(tmp_path, "imdb_gpt2", tiny_student=True, identity=identity).name == "tiny"


def test_a_resumed_training_keeps_the_teacher_it_began_with(capsys, cache, home, folder_here):
    """Though a newer run of the recipe has finished since."""
    other = trained(folder_here / "other", "--seed_everything=1")
    teachers = folder_here / "runs" / "mine"
    first = copied(home / "bert", teachers / "first", started_at="2020")
    run = [*STUDENT, "--model.teacher=mine", "--trainer.max_epochs=2"]
    run += ["--checkpoint.every_minutes=1e-6"]
    assert main(["fit", *run, "--run_dir=whole"]) == 0
    die(["fit", *run, "--run_dir=killed"], "on_train_batch_end", 4)
    copied(other, teachers / "second", started_at="2021")
    assert found_in(folder_here, "mine").run.path.name == "second"
    assert main(["fit", *run, "--run_dir=killed", "--ckpt_path=last"]) == 0
    assert results(Path("killed"))["teacher/run"] == str(first.resolve())
    assert_equal_runs(Path("whole"), Path("killed"))
    die(["fit", *run, "--run_dir=orphan", f"--model.teacher={first}"], "on_train_batch_end", 4)
    die(["fit", *run, "--run_dir=lost"], "on_train_batch_end", 4)
    shutil.rmtree(first)
    shutil.copytree(other, first)
    capsys.readouterr()
    resumed = [*run, "--ckpt_path=last", "--run_dir=orphan", f"--model.teacher={first}"]
    assert main(["fit", *resumed]) == 2
    assert "teacher_digest" in capsys.readouterr().err


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "model.teacher is missing"),
        ({"teacher": "x", "alpha": 1.01}, r"model.alpha must be in \[0, 1\]"),
        ({"teacher": "x", "alpha": -0.1}, "model.alpha"),
        ({"teacher": "x", "alpha": math.nan}, "model.alpha"),
        ({"teacher": "x", "temperature": 0.0}, "temperature positive"),
        ({"teacher": "x", "temperature": math.inf}, "temperature positive"),
        ({"teacher": "x", "r": 4}, "model.r is for the method lora"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, words):
    with pytest.raises(SmolbenchError, match=words):
        DistillationTask(**options)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("imdb_full_smollm2-135m", ["no finished run", "smolbench fit --config imdb_full"]),
        ("mine", ["no finished run of mine", "--model.teacher"]),
        ("unfinished", ["no finished training", "interrupted", "--ckpt_path last"]),
        ("scored", ["no finished training", "only scored"]),
        ("without", ["has no checkpoint best.ckpt"]),
        ("without/checkpoints/last.ckpt", []),
        ("other_task", ["PlainModule", "cannot teach"]),
        ("unknown_task", ["smolbench.nothing.Task", "cannot be found"]),
        ("elsewhere.ckpt", ["does not lie in a run's folder"]),
        ("empty", ["neither a run nor a model"]),
        ("no/such/run/folder", ["There is no run, checkpoint or model"]),
        ("nobody/nothing", ["'nobody/nothing'", "tried in vain"]),
        ("headless", ["without a trained classification head", "BertModel"]),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(home, tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    copied(home / "bert", Path("unfinished"), status="interrupted")
    copied(home / "bert", tmp_path / "runs" / "mine" / "failed", status="failed")
    (copied(home / "bert", Path("without")) / "checkpoints" / "best.ckpt").unlink()
    said = {name: value for name, value in results(home / "bert").items() if name != "attempts"}
    (copied(home / "bert", Path("scored")) / "results.json").write_text(json.dumps(said))
    for name, task in (
        ("other_task", "tests.helpers.plain.PlainModule"),
        ("unknown_task", "smolbench.nothing.Task"),
    ):
        settings = copied(home / "bert", Path(name)) / "config.yaml"
        text = settings.read_text()
        assert "smolbench.tasks.FineTuneTask" in text
        settings.write_text(text.replace("smolbench.tasks.FineTuneTask", task))
    shutil.copy(home / "bert/checkpoints/best.ckpt", "elsewhere.ckpt")
    Path("empty").mkdir()
    shutil.copytree(tiny_backbone("bert"), "headless")
    if not words:
        assert found_in(tmp_path, given).checkpoint.name == "last.ckpt"
        return
    with pytest.raises(SmolbenchError) as refused:
        found_in(tmp_path, given)
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert str(refused.value).count(". ") <= 4


def test_a_teacher_is_looked_for_before_anything_else(capsys, cache, folder_here):
    run = [*STUDENT, "--model.teacher=no/such/run", "--config=trainer/cpu"]
    assert main(["fit", *run]) == 2
    assert "There is no run, checkpoint or model no/such/run" in capsys.readouterr().err
    assert not Path("runs").exists()
    assert not (cache / "tokens").exists()


def test_a_teacher_of_other_labels_or_data_is_refused(capsys, cache, home, folder_here):
    named = f"--model.teacher={home / 'bert'}"
    other = [option for option in STUDENT if option != "--config=imdb_gpt2"]
    assert main(["fit", "--config=ag_news_gpt2", *other, named]) == 2
    assert "knows the labels neg, pos, but the data has World" in capsys.readouterr().err
    assert main(["fit", "--config=sentiment140_full_opt-125m", *other, named]) == 2
    assert "was trained on sample/imdb, but this run learns from sample/sentiment140" in (
        " ".join(capsys.readouterr().err.split())
    )


def test_a_teacher_that_may_have_seen_what_is_scored_is_told(caplog, cache, home, tmp_path):
    _, task = lesson(home / "bert", tmp_path, data(split_seed=3))
    assert re.search(r"because \d+ of \d+ validation rows are among those it", caplog.text)
    assert task.facts()["teacher/same_rows"] is False


@pytest.mark.parametrize(
    ("names", "accepted"),
    [
        (["NEGATIVE", "POSITIVE"], True),
        (["LABEL_0", "LABEL_1"], True),
        (["POSITIVE", "NEGATIVE"], False),
        (["neg", "neutral", "pos"], False),
        (["LABEL_0", "LABEL_1", "LABEL_2"], False),
    ],
)
def test_labels_of_a_model_are_compared_as_far_as_it_names_them(tmp_path, names, accepted):
    network = AutoModelForSequenceClassification.from_pretrained(
        tiny_backbone("bert"), id2label=dict(enumerate(names))
    )
    network.save_pretrained(tmp_path)
    tiny_tokenizer("bert").save_pretrained(tmp_path)
    teacher = found_in(tmp_path, str(tmp_path))
    if accepted:
        teacher.check(["neg", "pos"], data())
        return
    with pytest.raises(SmolbenchError, match="knows the labels"):
        teacher.check(["neg", "pos"], data())


def test_without_a_datamodule_of_smolbench_it_says_so(cache, tmp_path):
    task = student("tiny", num_classes=2)
    with pytest.raises(SmolbenchError, match="smolbench DataModule"):
        plain_trainer(tmp_path, max_steps=1).fit(task, [])


def test_a_second_dataset_is_asked_about_as_the_first_one_is(home, cache, tmp_path):
    """By a student that has been trained with this teacher already."""
    task = student(home / "bert")
    plain_trainer(tmp_path, max_steps=1).fit(task, data())
    other = Sentiment140DataModule(source="sample", **LIMITS)
    with pytest.raises(SmolbenchError, match="was trained on sample/imdb, but this run learns"):
        plain_trainer(tmp_path, max_steps=1).fit(task, other)
