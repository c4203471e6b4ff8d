from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BigBirdConfig,
)

from smolbench.data import IMDbDataModule
from smolbench.models.memory.footprint import training_memory
from smolbench.models.pretrained.adaptation import LoRAOptions, adapt
from smolbench.models.pretrained.backbone import Backbone
from smolbench.models.pretrained.classifier import classify
from smolbench.models.pretrained.reach import Reach, outermost, reach
from smolbench.tasks import FineTuneTask, SummarizationTask
from tests.helpers.tiny import BERT, tiny_backbone
from tests.helpers.training import plain_trainer
from tests.helpers.zoo import zoo_model

PICTURES = ("model.vision_tower.", "model.multi_modal_projector.")
METHODS = ["full", "lora", "qlora", "bitfit_added"]


def of_classifier(model):
    return reach(model, lambda ids, mask: classify(model, ids, mask, padding="masked"))


def built(name="gemma3", method="full", **options):
    if "lora" in method:
        options["target_modules"] = ["q_proj", "v_proj"]
    made = FineTuneTask(
        backbone=zoo_model(name),
        method=method,
        num_classes=2,
        dtype="float32",
        max_length=40,
        **options,
    )
    made.configure_model()
    return made


# -- what no text reaches --------------------------------------------------------------------------


def test_a_vision_tower_is_found():
    model = AutoModelForSequenceClassification.from_pretrained(zoo_model("gemma3"))
    found = of_classifier(model)
    pictures = {name for name, _ in model.named_parameters() if name.startswith(PICTURES)}
    assert found == Reach(frozenset(pictures), frozenset())
    assert outermost(model, found.unused) == ["model.vision_tower", "model.multi_modal_projector"]


@pytest.mark.parametrize("kind", ["llama", "gpt_neo", "opt_350m", "bert", "roberta"])
def test_all_of_a_network_for_texts_is_reached(kind):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_backbone(kind))
    assert of_classifier(model) == Reach()


def test_a_pooler_that_the_head_does_not_read_is_found():
    model = AutoModelForSequenceClassification.from_config(BigBirdConfig(**BERT))
    found = of_classifier(model)
    assert found.unused == {"bert.pooler.weight", "bert.pooler.bias"}
    adapt(model, "bitfit", LoRAOptions(), 0, found.unused)
    assert not model.bert.pooler.bias.requires_grad, "though it is counted to the head"


def test_finding_out_leaves_the_network_as_it_was():
    model = AutoModelForSequenceClassification.from_pretrained(zoo_model("gemma3")).train()
    model.model.language_model.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    before = torch.get_rng_state()
    of_classifier(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_nothing_is_kept_for_a_backward_pass():
    model = AutoModelForSequenceClassification.from_pretrained(tiny_backbone("llama"))
    outputs = []

    def run(ids, mask):
        outputs.append(classify(model, ids, mask, padding="masked"))
        return outputs[-1]

    reach(model, run)
    with pytest.raises(RuntimeError, match="nothing was kept"):
        outputs[0].sum().backward()


@pytest.mark.parametrize("method", METHODS)
def test_what_no_text_reaches_neither_trains_nor_gets_anything(method):
    made = built(method=method)
    added = {"lora_A", "lora_B"} if "lora" in method else {"bias"}
    bare = dict(
        AutoModelForSequenceClassification.from_pretrained(zoo_model("gemma3")).named_parameters()
    )
    trained = {name for name, p in made.model.named_parameters() if p.requires_grad}
    assert trained
    for name, parameter in made.model.named_parameters():
        if name.startswith(PICTURES):
            assert not parameter.requires_grad, name
            assert name in bare, f"{name} was added"
        elif method != "full" and set(name.split(".")) & added:
            assert name in trained
    assert made.facts()["model/unused_params"] == sum(
        p.numel() for name, p in bare.items() if name.startswith(PICTURES)
    )


def test_a_network_with_a_vision_tower_trains_and_says_what_stays(tmp_path, caplog):
    made = FineTuneTask(backbone=zoo_model("gemma3"), dtype="float32", max_length=40, lr=1e-2)
    data = IMDbDataModule(
        source="sample",
        limit_train=8,
        limit_val=4,
        limit_test=4,
        batch_size=4,
        cache_dir=str(tmp_path),
    )
    with caplog.at_level("INFO", logger="smolbench"):
        plain_trainer(tmp_path, max_epochs=1).fit(made, data)
    facts = made.facts()
    assert (
        facts["model/unused_params"] + facts["model/trainable_params"]
        == facts["model/total_params"]
    )
    unused = f"no text reaches {facts['model/unused_params']:,}"
    (line,) = (message for message in caplog.messages if unused in message)
    assert line.endswith("model.model.vision_tower, model.model.multi_modal_projector")
    folder = tmp_path / "export"
    folder.mkdir()
    made.export(folder)
    kept = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    given = AutoModelForSequenceClassification.from_pretrained(zoo_model("gemma3")).state_dict()
    for name, value in given.items():
        assert name.startswith("score") or torch.equal(kept[name], value) == name.startswith(
            PICTURES
        )


def test_where_all_is_reached_the_line_says_nothing_of_it(tmp_path, caplog):
    made = built("llama")
    assert made.facts()["model/unused_params"] == 0
    assert made.unused == frozenset()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_footprint_leaves_out_what_no_text_reaches(method):
    options = LoRAOptions(dropout=0.0, targets=("q_proj", "v_proj"))
    backbone = Backbone(zoo_model("gemma3"), None, "float32")
    expected = built(method=method).facts()["model/trainable_params"]
    found = training_memory(backbone, method, 2, 16, torch.float32, options)
    assert found.trainable == expected


# -- mixtures of experts ---------------------------------------------------------------------------


def test_experts_that_no_token_was_sent_to_are_in_use():
    model = AutoModelForSeq2SeqLM.from_pretrained(zoo_model("switch_transformers"))

    def run(ids, mask):
        return model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids).logits

    for router in (m for m in model.modules() if type(m).__name__.endswith("Router")):
        nn.init.zeros_(router.classifier.weight)  # all tokens go to the first
    found = reach(model, run)
    layers = ["encoder.block.1.layer.1", "decoder.block.1.layer.2"]
    assert found.experts == {
        f"{layer}.mlp.experts.expert_{n}" for layer in layers for n in range(4)
    }
    assert not found.unused


def test_layers_of_a_stack_are_no_experts():
    model = AutoModelForSequenceClassification.from_pretrained(tiny_backbone("llama"))
    model.model.layers[1].spare = nn.Linear(2, 2)
    found = of_classifier(model)
    assert found == Reach(frozenset({"model.layers.1.spare.weight", "model.layers.1.spare.bias"}))


def test_the_guard_knows_the_experts(tmp_path):
    made = SummarizationTask(
        backbone=zoo_model("switch_transformers"), method="full", max_length=60, dtype="float32"
    )
    made.configure_model()
    expert = "model.encoder.block.1.layer.1.mlp.experts.expert_3"
    assert expert in made.routed_modules
    assert made.get_submodule(expert).wi.weight.requires_grad
