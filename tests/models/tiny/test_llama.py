from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from smolbench.data.samples.imdb import imdb_sample
from smolbench.errors import SmolbenchError
from smolbench.models.tiny import llama as tiny
from smolbench.models.tiny.llama import END, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("cache"))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def mean_pooled(model, tokenizer, texts):
    """Mean over the last hidden states, shape (len(texts), D)."""
    order = np.argsort([len(text) for text in texts])
    pooled = np.empty((len(texts), model.config.hidden_size))
    for rows in np.array_split(order, max(1, len(order) // 50)):
        encoded = [tokenizer(texts[row])["input_ids"] for row in rows]
        mask = torch.zeros(len(rows), max(map(len, encoded)), dtype=torch.long)
        ids = torch.zeros_like(mask)
        for i, row in enumerate(encoded):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        with torch.no_grad():
            hidden = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        total = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        pooled[rows] = total.float().numpy()
    return pooled


def test_folder_is_an_ordinary_model_of_smollm2s_architecture(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert folder.name.startswith("tiny-")
    assert model.config.model_type == "llama"
    assert model.config.tie_word_embeddings
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() < 500_000
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size
    ids = torch.tensor([[5, 6, 7]])
    assert torch.isfinite(model(input_ids=ids).logits).all()


def test_tokenizer_is_lossless_and_has_smollm2s_special_tokens(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.unk_token_id == 0
    assert tokenizer.eos_token == END
    assert tokenizer.pad_token is None
    for text in ("A gem, 10/10!", " two  spaces\n", "naïve 映画 🎬", ""):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert 0 not in ids
    assert len(tokenizer(" wonderful")["input_ids"]) == 1, "trained on the sample"


def test_second_call_builds_nothing(folder, monkeypatch):
    monkeypatch.setattr(tiny, "_build", lambda *_: pytest.fail("built again"))
    assert tiny_model(folder.parent) == folder


def test_files_do_not_depend_on_the_callers_state_and_leave_it_alone(folder, tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with torch.device("meta"):
        again = tiny_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.name == folder.name
    assert contents(again) == contents(folder)


def test_slower_of_two_processes_keeps_the_faster_ones_folder(folder, tmp_path, monkeypatch):
    def build_while_another_process_finishes(built, texts):
        for where, content in ((built, "slower"), (tmp_path / folder.name, "faster")):
            where.mkdir()
            (where / "config.json").write_text(content)

    monkeypatch.setattr(tiny, "_build", build_while_another_process_finishes)
    assert (tiny_model(tmp_path) / "config.json").read_text() == "faster"
    assert [path.name for path in tmp_path.iterdir()] == [folder.name], "nothing is left behind"


def test_failed_build_publishes_nothing(tmp_path, monkeypatch):
    def fail_halfway(built, texts):
        built.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tiny, "_build", fail_halfway)
    with pytest.raises(SmolbenchError, match="No space left"):
        tiny_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_cache_that_cannot_be_written_is_a_sentence(tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    with pytest.raises(SmolbenchError, match="SMOLBENCH_CACHE"):
        tiny_model(file / "cache")


def test_probe_of_its_features_is_clearly_above_chance(folder):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    train, test = imdb_sample("train"), imdb_sample("test")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(mean_pooled(model, tokenizer, train["text"]), train["label"])
    accuracy = probe.score(mean_pooled(model, tokenizer, test["text"]), test["label"])
    assert accuracy >= 0.7
