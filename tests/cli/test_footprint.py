from __future__ import annotations

import json
import subprocess
import sys

import pytest

from smolbench.cli import main
from tests.helpers.tiny import tiny_backbone, tiny_language_model


def test_tables(capsys):
    models = [tiny_language_model("llama"), tiny_language_model("gpt2")]
    assert main(["footprint", *models, "--batch_size=2", "--length=16"]) == 0
    said = capsys.readouterr().out
    for column in ("bf16", "int8", "int4", "NF4 with scales", "embeddings", "activations"):
        assert column in said
    assert all(said.count(f"\n{model} ") == 5 for model in models)  # three methods


def test_json(capsys):
    model = tiny_language_model("llama")
    run = ["footprint", model, "--json", "--method=bitfit_added", "--length=16", "--batch_size=2"]
    assert main(run) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert facts["model"] == model
    assert facts["bytes"]["bf16"] == 2 * facts["parameters"]["total"]
    assert facts["bytes"]["int4"] < facts["bytes"]["nf4"] < facts["bytes"]["int8"]
    (training,) = facts["training"]
    assert training["method"] == "bitfit_added"
    parts = ("weights", "optimizer", "step")
    assert training["total"] == sum(training[part] for part in parts)
    assert training["step"] >= max(training["activations"], training["gradients"])


def test_encoder_decoders_have_weights_but_no_training(capsys):
    assert main(["footprint", tiny_backbone("t5"), "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert facts["training"] == []
    assert facts["cache_bytes_per_token"] == 2 * 2 * 16 * 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no/such_model"], "cannot be loaded"),
        ([], "required: models"),
        (["tiny", "--length=0"], "no whole number of at least 1"),
        (["tiny", "--method=magic"], "invalid choice: 'magic'"),
        (["tiny", "--length=999999"], "tokens only"),
        ([tiny_backbone("t5"), "--method=full"], "encoder-decoder"),
        ([tiny_backbone("llama"), "--method=bitfit", "--length=9"], "use bitfit_added"),
    ],
)
def test_bad_input_is_a_sentence(capfd, arguments, sentence):
    assert main(["footprint", *arguments]) == 2
    assert sentence in " ".join(capfd.readouterr().err.split())


def test_help_needs_no_torch():
    code = (
        "import sys; from smolbench.cli import main; status = main(['footprint', '--help']); "
        "sys.exit(status or 7 * ('torch' in sys.modules or 'transformers' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "key-value cache" in " ".join(done.stdout.split())
