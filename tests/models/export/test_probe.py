from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest
import torch

from smolbench.errors import SmolbenchError
from smolbench.models.export.check import Trial
from smolbench.models.export.probe import LOADER
from smolbench.models.export.probe_loader import Probe
from smolbench.tasks import FineTuneTask, ProbeTask
from tests.helpers.tiny import TEXTS, tiny_backbone

LABELS = ["neg", "pos"]
TRIAL = Trial({"text": TEXTS}, "known ones")
TEMPLATE = "Review: {text}\nSentiment:"


def trained(kind="llama", task=ProbeTask, **options):
    made = task(
        **{"backbone": tiny_backbone(kind), "dtype": "float32", "max_length": 50, **options}
    )
    made.label_names = LABELS
    made.configure_model()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
        for buffer in made.buffers():
            if buffer.is_floating_point():
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=draw))
    return made.eval()


def own_logits(task, texts):
    with torch.inference_mode():
        return task(task.start_reading()(texts))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head": "linear", "pooling": "last", "template": TEMPLATE},
        {"pooling": "anchor", "anchor": "Sentiment", "template": TEMPLATE},
        {"pooling": "max", "layer": 1, "template": "So: {text}"},
        {"pooling": "mean", "max_length": 24, "truncation_side": "left", "template": TEMPLATE},
        {"kind": "bert", "pooling": "first"},
        {"kind": "t5", "template": TEMPLATE},
        {"kind": "opt_350m", "layer": -1},
        {"task": FineTuneTask, "method": "head", "template": TEMPLATE},
    ],
    ids=str,
)
def test_the_loader_says_the_same(tmp_path, options):
    task = trained(**options)
    texts = [*TEXTS, " ".join(TEXTS), "It"]
    expected = own_logits(task, texts)
    made = task.export(tmp_path, trial=TRIAL)
    assert made.framework == "smolbench"
    found = Probe.load(tmp_path).logits(texts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert expected.std(dim=0).min() > 1e-3, "the texts are told apart"
    known = json.loads((tmp_path / "probe.json").read_text())
    assert known["labels"] == LABELS
    assert known["template"] == options.get("template", "{text}")


def test_an_empty_text_is_read_as_in_training(tmp_path):
    task = trained()
    expected = own_logits(task, ["", "It"])
    task.export(tmp_path, trial=TRIAL)
    torch.testing.assert_close(
        Probe.load(tmp_path).logits(["", "It"]), expected, rtol=1e-4, atol=1e-4
    )


def test_the_script_stands_alone(tmp_path):
    task = trained()
    expected = own_logits(task, ["A gem."]).softmax(dim=1)
    task.export(tmp_path, trial=TRIAL)
    assert "smolbench" not in LOADER.read_text()
    done = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "probe.py"), "A gem."],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    label, score, text = done.stdout.rstrip().split("\t")
    assert label == LABELS[int(expected.argmax())]
    assert float(score) == pytest.approx(float(expected.max()), abs=1e-3)
    assert text == "A gem."


def test_a_probe_in_bfloat16_is_loaded_in_bfloat16(tmp_path):
    task = trained(dtype="bfloat16")
    made = task.export(tmp_path, trial=TRIAL)
    probe = Probe.load(tmp_path)
    assert next(probe.backbone.parameters()).dtype == torch.bfloat16
    torch.testing.assert_close(probe.logits(TEXTS), own_logits(task, TEXTS), rtol=0.1, atol=0.1)
    assert any("bfloat16" in limit for limit in made.limits)


def test_the_code_on_the_card_says_what_the_run_says(tmp_path, capsys):
    task = trained(template=TEMPLATE)
    expected = own_logits(task, ["Two hours I will never get back.", "A gem."]).softmax(dim=1)
    made = task.export(tmp_path, trial=TRIAL)
    sys.modules.pop("probe", None)
    exec(made.usage.replace("FOLDER", str(tmp_path)), {})
    for line, row in zip(capsys.readouterr().out.splitlines(), expected, strict=True):
        label, _, scores = line.partition(" ")
        assert label == LABELS[int(row.argmax())]
        found = ast.literal_eval(scores)
        assert found == pytest.approx(dict(zip(LABELS, row.tolist(), strict=True)), abs=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_that_lost_the_beginning_of_its_prompt_is_refused(tmp_path, monkeypatch, dtype):
    """The script reads whole prompts; a run whose path reads less said something else."""
    prompt = "I loved it: good. I hated it: bad. "
    task = trained(template=prompt + TEMPLATE, dtype=dtype, max_length=120)
    made = task.export(tmp_path, trial=TRIAL)
    assert (made.check.run_dtype, made.check.export_dtype) == (dtype, dtype)
    assert made.check.n == len(TEXTS) + 1
    lost = trained(template="{text}\nSentiment:", dtype=dtype, max_length=120)
    monkeypatch.setattr(task, "start_answering", lost.start_answering)
    with pytest.raises(
        SmolbenchError, match="says something else than the run's model: on 8 texts"
    ):
        task.export(tmp_path, trial=TRIAL)


@pytest.mark.parametrize("task", [ProbeTask, FineTuneTask])
def test_a_probe_has_no_adapters(tmp_path, task):
    options = {"method": "head"} if task is FineTuneTask else {}
    with pytest.raises(SmolbenchError, match="--adapter is for runs of the methods lora"):
        trained(task=task, **options).export(tmp_path, adapter=True)
