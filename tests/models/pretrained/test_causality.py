from __future__ import annotations

import pytest
import torch
from transformers import AutoModel

from smolbench.models.pretrained.backbone import Backbone
from smolbench.models.pretrained.causality import effect_of_padding, is_causal, trial_rows
from smolbench.models.pretrained.classifier import classify, load_classifier
from smolbench.tasks.distillation.classifying_teachers import HubTeacher, Reading
from tests.helpers.tiny import tiny_backbone
from tests.helpers.zoo import ZOO, zoo_model

NEIGHBOURS = ["fnet", "convbert"]
"""Encoders with layers that mix a token with those beside it, whatever a mask says."""


def network(name, dtype=torch.float32):
    model = AutoModel.from_pretrained(zoo_model(name), dtype=dtype)
    return model.get_encoder() if ZOO[name].kind == "pair" else model


def test_what_looks_ahead_is_found_in_every_architecture():
    # what an expert multiplies depends on all tokens of a row, and so may the last bits
    names = ZOO.keys() - {"mixtral", "qwen2_moe"}
    causal = {n for n in names if ZOO[n].kind == "decoder" and not ZOO[n].looks_ahead}
    assert {name for name in names if is_causal(network(name))} == causal


@pytest.mark.parametrize(
    ("name", "expected"), [("llama", True), ("mamba", True), ("llama_both_ways", False)]
)
def test_it_is_found_in_bfloat16_too(name, expected):
    assert is_causal(network(name, torch.bfloat16)) == expected


def test_a_glance_at_the_next_token_is_enough():
    model = network("llama")
    glance = model.layers[1].register_forward_hook(lambda _, __, out: out + out.roll(-1, 1) / 100)
    assert not is_causal(model)
    glance.remove()
    assert is_causal(model)


@pytest.mark.parametrize("training", [True, False])
def test_asking_changes_nothing(training):
    model = network("gpt2").train(training)
    assert model.config.resid_pdrop > 0, "dropout would show"
    before = torch.get_rng_state()
    assert is_causal(model)
    assert effect_of_padding(model) == "unseen"
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training == training for module in model.modules())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mamba", "unseen"), ("llama_both_ways", "masked"), ("bert", "masked"), ("t5", "masked")]
    + [(name, "seen") for name in NEIGHBOURS],
)
def test_what_padding_does_is_found(name, expected):
    assert effect_of_padding(network(name)) == expected


def test_trial_rows_hold_no_special_tokens():
    model = network("gemma3")
    rows = trial_rows(model, 50, 200)
    assert rows.shape == (50, 200)
    assert rows.max() < 400
    assert not {0, 1, 2, 5, 6, 7} & set(rows.unique().tolist()), "pictures' tokens among them"
    assert torch.equal(rows, trial_rows(model, 50, 200))
    short = AutoModel.from_pretrained(tiny_backbone("roberta"))
    assert trial_rows(short, 1, 200).shape == (1, 64), "no more than there are positions for"


# -- classifiers that look ahead -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "llama_both_ways", "gemma3_both_ways", *NEIGHBOURS])
def test_a_row_is_classified_as_if_it_were_alone(name):
    model = load_classifier(Backbone(zoo_model(name), None, "float32"), 3, 0).eval()
    lengths = torch.tensor([5, 30, 12, 5])
    ids = trial_rows(model, 4, 30)
    mask = (torch.arange(30) < lengths[:, None]).long()
    padding = effect_of_padding(model)
    found = classify(model, ids.masked_fill(mask == 0, 1), mask, padding=padding)
    with torch.no_grad():
        alone = [
            model(input_ids=ids[n : n + 1, :length]).logits
            for n, length in enumerate(lengths.tolist())
        ]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-4)
    assert found.grad_fn is not None, "it can be trained"


def test_a_teacher_that_looks_ahead_is_given_masks(tmp_path):
    backbone = Backbone(zoo_model("llama_both_ways"), None, "float32")
    load_classifier(backbone, 2, 0).save_pretrained(tmp_path)
    backbone.tokenizer.save_pretrained(tmp_path)
    teacher = HubTeacher(str(tmp_path), Reading(60, "right", "float32"))
    task = teacher.build(["neg", "pos"])
    task.configure_model()
    texts = ["Dull.", "The plot is thin, the acting wooden, and the ending comes too late."]
    read = task.start_reading()
    with torch.no_grad():
        alone = torch.cat([task(read([text])) for text in texts])
        torch.testing.assert_close(task(read(texts)), alone, rtol=1e-5, atol=1e-5)
