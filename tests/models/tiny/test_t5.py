from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from smolbench.models.tiny.t5 import END, PAD, tiny_t5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_t5(tmp_path_factory.mktemp("cache"))


def test_folder_is_an_ordinary_model_of_flan_t5s_architecture(folder):
    model, report = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.model_type == "t5"
    assert model.config.is_gated_act
    assert not torch.equal(model.lm_head.weight, model.shared.weight)
    assert torch.equal(model.encoder.embed_tokens.weight, model.shared.weight)
    assert not model.config.scale_decoder_outputs
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() < 500_000
    assert model.generation_config.decoder_start_token_id == 0
    found = model(input_ids=torch.tensor([[5, 6, 1]]), labels=torch.tensor([[7, 1]]))
    # no token is likelier than others by much, as after a good initialisation
    assert float(found.loss.detach()) < 1.5 * torch.tensor(model.config.vocab_size).log()


def test_tokenizer_is_lossless_and_ends_rows(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == (PAD, 0)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == (END, 1)
    text = "Tom: <file_photo>\r\nAnn: naïve 🎬 10/10"
    ids = tokenizer(text)["input_ids"]
    assert ids[-1] == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_it_is_the_same_every_time(folder, tmp_path):
    torch.manual_seed(5)
    again = tiny_t5(tmp_path)
    assert again.name == folder.name
    for path in folder.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    assert float(torch.rand(1)) == float(torch.manual_seed(5) and torch.rand(1))
