from __future__ import annotations

import json

import pytest

from smolbench.errors import SmolbenchError
from smolbench.models.pretrained import missing_packages
from smolbench.models.pretrained.backbone import Backbone
from smolbench.models.pretrained.missing_packages import advice_on_packages

TIKTOKEN = ValueError("`tiktoken` is required to read a `tiktoken` file. Install it with ...")


@pytest.fixture
def installed(monkeypatch):
    """Modules that are there, among those that are looked for."""
    modules: set[str] = set()
    monkeypatch.setattr(missing_packages, "_is_installed", modules.__contains__)
    return modules


@pytest.mark.parametrize(
    ("there", "named"),
    [
        (set(), "the packages sentencepiece and protobuf, which are not installed"),
        ({"google.protobuf"}, "the package sentencepiece, which is not installed"),
        ({"sentencepiece"}, "the package protobuf, which is not installed"),
    ],
)
def test_a_tokenizer_that_sentencepiece_reads(installed, tmp_path, there, named):
    """As DeBERTa-v3 and mT5 come: a vocabulary of sentencepiece and no tokenizer.json."""
    installed |= there
    config = {"model_type": "deberta-v2", "vocab_size": 400}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "spm.model").write_bytes(b"no vocabulary")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(SmolbenchError) as refusal:
        _ = Backbone(str(tmp_path), None, "float32").tokenizer
    said = str(refusal.value)
    assert named in said
    assert "`pip install sentencepiece protobuf` (the extra `sentencepiece`)" in said
    assert "tiktoken" not in said


def test_a_tokenizer_that_tiktoken_reads(installed, tmp_path):
    (tmp_path / "tiktoken.model").touch()
    said = advice_on_packages(TIKTOKEN, str(tmp_path))
    assert "the package tiktoken, which is not installed: run `pip install tiktoken`." in said
    installed.add("tiktoken")
    assert advice_on_packages(TIKTOKEN, str(tmp_path)) is None  # the file is at fault


def test_a_folder_without_a_tokenizer_lacks_no_package(installed, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(SmolbenchError, match="files may be damaged"):
        _ = Backbone(str(tmp_path), None, "float32").tokenizer


def test_a_damaged_vocabulary_is_not_blamed_on_a_package(installed, tmp_path):
    installed |= {"sentencepiece", "google.protobuf"}
    (tmp_path / "spm.model").touch()
    assert advice_on_packages(TIKTOKEN, str(tmp_path)) is None


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (
            ImportError(
                "This modeling file requires the following packages that were not found in your "
                "environment: einops, timm. Run `pip install einops timm`"
            ),
            "the packages einops and timm, which are not installed: run `pip install einops timm`",
        ),
        (
            ImportError(
                "\nMarianTokenizer requires the sacremoses library but it was not found in your "
                "environment. You can install it with pip:\n`pip install sacremoses`."
            ),
            "the package sacremoses",
        ),
        (ModuleNotFoundError("No module named 'a.b'", name="a.b"), "the package a, which"),
    ],
)
def test_other_packages(error, named):
    assert named in advice_on_packages(error, "some/model")


def test_other_errors():
    assert advice_on_packages(OSError("no such file"), "some/model") is None
    assert advice_on_packages(ImportError("cannot import name 'x'"), "some/model") is None
