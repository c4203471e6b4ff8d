from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from smolbench.errors import SmolbenchError
from smolbench.models.kernels.prefix import shared_prefix
from smolbench.models.pretrained.backbone import (
    Backbone,
    hidden_states,
    readable_errors,
    shares_prefix,
)
from smolbench.utils.files import cache_root
from tests.helpers.tiny import BIDIRECTIONAL, CAUSAL, CONFIGS, tiny_backbone

CPU = torch.device("cpu")
HAS_SHARED_PREFIX = [name for name in CAUSAL if name not in {"mamba", "lfm2"}]


@pytest.fixture
def own_copy(tmp_path):
    """A folder that a test may spoil."""
    return Path(shutil.copytree(tiny_backbone("llama"), tmp_path / "model"))


@pytest.mark.parametrize("layer", [-1, 0, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_direction_is_found_whatever_the_layer(name, layer):
    facts = Backbone(tiny_backbone(name), None, "float32", layer).facts(CPU)
    assert facts.causal == (name not in BIDIRECTIONAL)


def test_width_is_that_of_the_layer():
    folder = tiny_backbone("opt_350m")
    assert Backbone(folder, None, "float32").config.hidden_size == 16
    assert [Backbone(folder, None, "float32", layer).facts(CPU).width for layer in (-1, 0, 1)] == [
        8,
        16,
        16,
    ]


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_only_the_encoder_of_an_encoder_decoder_is_loaded_and_counted(name):
    backbone = Backbone(tiny_backbone(name), None, "float32")
    model = backbone.load(CPU)
    assert "Decoder" not in "".join(type(module).__name__ for module in model.modules())
    assert backbone.facts(CPU).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_loaded_weights_are_frozen_and_in_evaluation_mode(name):
    model = Backbone(tiny_backbone(name), None, "bfloat16").load(CPU)
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["llama", "bert", "mamba"])
def test_loading_leaves_the_random_state_alone(name):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    Backbone(tiny_backbone(name), None, "float32").load(CPU)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", HAS_SHARED_PREFIX)
def test_a_shared_prefix_is_not_changed_by_use(name):
    model = Backbone(tiny_backbone(name), None, "float32").load(CPU)
    prefix = shared_prefix(model, [5, 6, 7, 8, 9, 10, 11, 12])
    kept = [(keys.clone(), values.clone()) for keys, values in prefix.layers]
    rows = torch.randint(20, 300, (3, 10))
    with torch.inference_mode():
        once = hidden_states(model, -1, rows, prefix=prefix)
        hidden_states(model, -1, rows[:2, :4], prefix=prefix)
        again = hidden_states(model, -1, rows, prefix=prefix)
    assert torch.equal(once, again)
    assert prefix.length == 8
    for (keys, values), before in zip(prefix.layers, kept, strict=True):
        assert torch.equal(keys, before[0])
        assert torch.equal(values, before[1])


@pytest.mark.parametrize("name", ["mamba", "lfm2"])
def test_a_model_without_keys_and_values_has_no_shared_prefix(name):
    model = Backbone(tiny_backbone(name), None, "float32").load(CPU)
    assert not shares_prefix(model, CPU)


@pytest.mark.parametrize("layer", [3, -2])
def test_a_layer_that_does_not_exist_is_a_sentence(layer):
    with pytest.raises(SmolbenchError, match=rf"no layer {layer} .* to 2, and -1 is the last"):
        Backbone(tiny_backbone("llama"), None, "float32", layer).facts(CPU)


def test_facts_are_remembered_and_a_damaged_file_is_made_anew(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("SMOLBENCH_CACHE", str(tmp_path))
    first = Backbone(tiny_backbone("gpt2"), None, "float32").facts(CPU)
    (file,) = (cache_root() / "models").glob("*.json")
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "load", lambda *_: pytest.fail("the weights were loaded"))
        assert Backbone(tiny_backbone("gpt2"), None, "float32").facts(CPU) == first
    for damaged in ("", "{}", json.dumps({"width": 1})):
        file.write_text(damaged)
        assert Backbone(tiny_backbone("gpt2"), None, "float32").facts(CPU) == first
    assert "damaged" in caplog.text


def test_facts_do_not_need_a_writable_cache(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SMOLBENCH_CACHE", str(tmp_path / "file"))  # no folder can be made in it
    assert Backbone(tiny_backbone("gpt2"), None, "float32").facts(CPU).width == 16
    assert "cannot be written" in caplog.text


def test_the_revision_of_a_folder_follows_its_files(own_copy):
    before = Backbone(str(own_copy), None, "float32").revision
    assert Backbone(tiny_backbone("llama"), None, "float32").revision == before
    file = own_copy / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert Backbone(str(own_copy), None, "float32").revision != before


def test_the_revision_of_a_model_on_the_hub_is_its_commit(own_copy, monkeypatch, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--some--model"
    (repository / "snapshots").mkdir(parents=True)
    own_copy.rename(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / "refs" / "v1").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for revision in (None, "v1", commit):
        backbone = Backbone("some/model", revision, "float32")
        assert backbone.revision == commit
        assert backbone.load(CPU).config.hidden_size == 16
        assert backbone.tokenizer.is_fast
    with pytest.raises(SmolbenchError, match="'some/model' at revision 'v2' cannot be loaded"):
        _ = Backbone("some/model", "v2", "float32").revision


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("no/such-model", "hf download no/such-model"),
        ("/no/such/folder", "no such folder.*--model.backbone DIR"),
        ("two words", "give an id such as"),
    ],
)
def test_an_unknown_model_is_a_sentence(name, advice):
    with pytest.raises(SmolbenchError, match=advice):
        _ = Backbone(name, None, "float32").config


def test_a_folder_without_weights_is_a_sentence(own_copy):
    (own_copy / "model.safetensors").unlink()
    with pytest.raises(SmolbenchError, match="cannot be loaded"):
        Backbone(str(own_copy), None, "float32").load(CPU)


@pytest.mark.parametrize("kept", [0, 100, 5000])
def test_truncated_weights_are_a_sentence(own_copy, kept):
    file = own_copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(SmolbenchError, match=r"cannot be loaded.*damaged"):
        Backbone(str(own_copy), None, "float32").load(CPU)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model_type": "unheard_of"}'])
def test_a_spoiled_configuration_is_a_sentence(own_copy, text):
    (own_copy / "config.json").write_text(text)
    with pytest.raises(SmolbenchError, match="cannot be loaded"):
        _ = Backbone(str(own_copy), None, "float32").config


@pytest.mark.parametrize("text", ["", "{}"])
def test_a_spoiled_tokenizer_is_a_sentence(own_copy, text):
    (own_copy / "tokenizer.json").write_text(text)
    with pytest.raises(SmolbenchError, match="cannot be loaded"):
        _ = Backbone(str(own_copy), None, "float32").tokenizer


def drop(folder, prefix):
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = {name: w for name, w in load_file(file).items() if not name.startswith(prefix)}
    save_file(weights, file, metadata={"format": "pt"})


def test_weights_that_lack_a_layer_are_refused(own_copy):
    drop(own_copy, "layers.1.")
    with pytest.raises(SmolbenchError, match=r"incomplete: \d+ are missing, such as layers\.1"):
        Backbone(str(own_copy), None, "float32").load(CPU)


@pytest.mark.parametrize(("name", "prefix"), [("bert", "pooler."), ("bart", "decoder.")])
def test_weights_may_lack_what_is_not_used(name, prefix, tmp_path):
    folder = Path(shutil.copytree(tiny_backbone(name), tmp_path / "model"))
    drop(folder, prefix)
    assert not Backbone(str(folder), None, "float32").facts(CPU).causal


def test_a_full_disk_is_named():
    with (
        pytest.raises(SmolbenchError, match="disk is full"),
        readable_errors("some/model", None),
    ):
        raise OSError(28, "No space left on device")


def test_an_interruption_is_not_an_error_of_the_model():
    with pytest.raises(KeyboardInterrupt), readable_errors("some/model", None):
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", [*HAS_SHARED_PREFIX, *BIDIRECTIONAL])
def test_the_longest_row_the_model_has_positions_for(name):
    limit = Backbone(tiny_backbone(name), None, "float32").max_positions
    assert limit == {"t5": None, "roberta": 126}.get(name, 128)
