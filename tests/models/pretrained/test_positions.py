from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoModel,
    BartConfig,
    BertConfig,
    CamembertConfig,
    Data2VecTextConfig,
    EsmConfig,
    GPT2Config,
    IBertConfig,
    LEDConfig,
    LlamaConfig,
    LongformerConfig,
    MambaConfig,
    MPNetConfig,
    OPTConfig,
    PegasusConfig,
    RobertaConfig,
    T5Config,
    XLMRobertaConfig,
)

from smolbench.errors import SmolbenchError
from smolbench.models.pretrained import positions as positions_module
from smolbench.models.pretrained.backbone import Backbone
from smolbench.models.pretrained.positions import Positions, positions_of
from smolbench.tasks import SummarizationTask
from tests.helpers.tiny import BERT, CONFIGS, LLAMA, OPT, SMALL, tiny_backbone

PAIR = {
    **SMALL,
    "d_model": 16,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "decoder_start_token_id": 2,
}
BEHIND = {**BERT, "max_position_embeddings": 66}  # rows, of which the first are no text's
CASES = {
    "roberta": (lambda: RobertaConfig(**BEHIND), 64),
    "roberta, padding 0": (lambda: RobertaConfig(**{**BEHIND, "pad_token_id": 0}), 65),
    "xlm-roberta": (lambda: XLMRobertaConfig(**BEHIND), 64),
    "camembert": (lambda: CamembertConfig(**BEHIND), 64),
    "mpnet": (lambda: MPNetConfig(**BEHIND), 64),
    "longformer": (lambda: LongformerConfig(**BEHIND, attention_window=4), 64),
    "esm": (lambda: EsmConfig(**BEHIND, position_embedding_type="absolute"), 64),
    "ibert": (lambda: IBertConfig(**BEHIND), 64),
    "data2vec": (lambda: Data2VecTextConfig(**BEHIND), 64),
    "bert": (lambda: BertConfig(**BERT), 128),
    "gpt2": (CONFIGS["gpt2"], 128),
    "padding beyond": (
        lambda: GPT2Config(**{**SMALL, "pad_token_id": 399}, n_embd=16, n_head=2),
        1024,
    ),
    "opt": (lambda: OPTConfig(**OPT), 128),
}


@pytest.mark.parametrize("name", CASES)
def test_as_many_tokens_as_the_network_runs_over(name):
    make, expected = CASES[name]
    config = make()
    state = torch.get_rng_state()
    assert positions_of(config) == Positions(expected, expected)
    assert torch.equal(state, torch.get_rng_state())
    model = AutoModel.from_config(make()).eval()
    rows = torch.full((1, expected + 1), 5)
    with torch.no_grad():
        model(input_ids=rows[:, :expected])
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=rows)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (lambda: BartConfig(**PAIR, max_position_embeddings=48), (48, 48)),
        (lambda: PegasusConfig(**PAIR, max_position_embeddings=48), (48, 48)),
        (
            lambda: LEDConfig(
                **PAIR,
                max_encoder_position_embeddings=64,
                max_decoder_position_embeddings=24,
                attention_window=4,
            ),
            (64, 24),
        ),
        (CONFIGS["t5"], (None, None)),  # relative distances
        (lambda: T5Config(**{**SMALL, "pad_token_id": 0}), (None, None)),
        # no table: what the configuration says, however much it is
        (lambda: LlamaConfig(**{**LLAMA, "max_position_embeddings": 131072}), (131072, 131072)),
        (lambda: MambaConfig(**SMALL, hidden_size=16, num_hidden_layers=2), (None, None)),
    ],
)
def test_what_is_read_and_what_is_written(config, expected):
    assert positions_of(config()) == Positions(*expected)


def test_they_are_found_once(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("SMOLBENCH_CACHE", str(tmp_path))
    config = CONFIGS["roberta"]()
    first = positions_of(config)
    (file,) = (tmp_path / "models").glob("*.json")
    with monkeypatch.context() as patch:
        patch.setattr(positions_module, "_find", lambda *_, **__: pytest.fail("looked again"))
        assert positions_of(CONFIGS["roberta"]()) == first
    for damaged in ("", "{}", '{"read": "many", "written": 1}'):
        file.write_text(damaged)
        assert positions_of(config) == first
    assert "damaged" in caplog.text
    assert json.loads(file.read_text()) == {"read": 126, "written": 126}


def test_longer_rows_are_refused_with_a_sentence():
    backbone = Backbone(tiny_backbone("roberta"), None, "float32")
    with pytest.raises(SmolbenchError, match=r"max_length is 127, but .* for 126 tokens only"):
        backbone.template_encoder("{text}", 127, "right")
    assert backbone.template_encoder("{text}", 126, "right").max_length == 126


def test_documents_and_summaries_have_limits_of_their_own(monkeypatch):
    def task(longest):
        return SummarizationTask(
            backbone=tiny_backbone("bart"), max_new_tokens=longest, max_summary_length=longest
        )

    assert task(128).max_length == 128
    with pytest.raises(SmolbenchError, match="positions for 128 tokens, which leaves no room"):
        _ = task(129).max_length
    monkeypatch.setattr(Backbone, "positions", Positions(read=64, written=32))
    assert task(32).max_length == 64
    with pytest.raises(SmolbenchError, match="positions for 32 tokens, which leaves no room"):
        _ = task(33).max_length
