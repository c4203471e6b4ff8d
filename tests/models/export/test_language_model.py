from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from smolbench.errors import SmolbenchError
from smolbench.models.quantization import keep_gradients
from smolbench.tasks import MultipleChoiceTask, SummarizationTask
from tests.helpers.tiny import TEXTS, tiny_language_model, tiny_summarizer


def trained(kind, **options):
    task = MultipleChoiceTask(
        **{"backbone": tiny_language_model(kind), "dtype": "float32", "method": "full", **options}
    )
    return perturbed(task)


def perturbed(task):
    task.configure_model()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in task.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return task.eval()


def logits(model, tokenizer):
    with torch.inference_mode():
        rows = [tokenizer(text, return_tensors="pt") for text in TEXTS]
        return torch.cat([model.eval()(**row).logits[:, -1] for row in rows])


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (expected.std(dim=0) > 1e-3).any(), "the texts are told apart"


@pytest.mark.parametrize(
    ("kind", "method"),
    [("gpt2", "full"), ("opt", "full"), ("gpt_neo", "full"), ("llama", "lora"), ("gpt2", "lora")],
)
def test_plain_transformers_says_the_same(tmp_path, kind, method):
    task = trained(kind, method=method)
    expected = logits(task.model, task.backbone.tokenizer)
    made = task.export(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same(logits(model, AutoTokenizer.from_pretrained(tmp_path)), expected)
    assert made.pipeline == "text-generation"
    assert not any("Fused" in type(m).__name__ for m in model.modules())


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_goes_onto_its_base_model(tmp_path, method):
    task = trained("llama", method=method)
    expected = logits(task.model, task.backbone.tokenizer)
    made = task.export(tmp_path, adapter=True)
    names: dict = {}
    # the card's own code, in float32
    code = made.usage.partition("rows = ")[0].replace("FOLDER", str(tmp_path))
    exec(code.replace("torch.bfloat16", "torch.float32"), names)
    keep_gradients(names["model"])
    assert isinstance(names["model"], PeftModel)
    assert_same(logits(names["model"], names["tokenizer"]), expected)


@pytest.mark.parametrize("adapter", [False, True])
def test_the_code_on_the_card_writes_on(tmp_path, capsys, adapter):
    made = trained("llama", method="lora").export(tmp_path, adapter=adapter)
    exec(made.usage.replace("FOLDER", str(tmp_path)), {})
    assert capsys.readouterr().out


def test_an_adapter_on_an_adapter_is_merged_only(tmp_path):
    first = tmp_path / "first"
    first.mkdir()
    trained("llama", method="lora").export(first, adapter=True)
    (tmp_path / "second").mkdir()
    with pytest.raises(SmolbenchError, match=r"itself an adapter .* leave out --adapter"):
        trained("llama", method="lora", backbone=str(first)).export(
            tmp_path / "second", adapter=True
        )
    task = trained("llama", method="lora", backbone=str(first))
    expected = logits(task.model, task.backbone.tokenizer)
    (tmp_path / "third").mkdir()
    task.export(tmp_path / "third")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "third")
    assert_same(logits(model, AutoTokenizer.from_pretrained(tmp_path / "third")), expected)


def test_four_bits_are_not_merged(tmp_path):
    with pytest.raises(SmolbenchError, match="cannot be merged"):
        trained("llama", method="qlora").export(tmp_path)


def test_what_is_not_trained_is_not_exported(tmp_path):
    with pytest.raises(SmolbenchError, match="trained nothing that another library loads"):
        trained("llama", method="none").export(tmp_path)


# -- summaries ------------------------------------------------------------------------------------


def summarizer(kind, **options):
    return perturbed(
        SummarizationTask(
            **{
                "backbone": tiny_summarizer(kind),
                "dtype": "float32",
                "method": "full",
                "max_length": 60,
                "max_summary_length": 16,
                "max_new_tokens": 8,
                **options,
            }
        )
    )


def first_token_logits(model, task, texts=TEXTS):
    """Of the task's own rows."""
    found = []
    with torch.inference_mode():
        for row in task.encode({"document": texts})["input_ids"]:
            rows = {"input_ids": torch.tensor([row])}
            if not task.causal:
                rows["decoder_input_ids"] = torch.tensor([[model.config.decoder_start_token_id]])
            found.append(model.eval()(**rows).logits[:, -1])
    return torch.cat(found)


@pytest.mark.parametrize("kind", ["t5", "bart", "llama"])
@pytest.mark.parametrize(("method", "adapter"), [("full", False), ("lora", False), ("lora", True)])
def test_a_summarizer_reads_its_template_and_writes(tmp_path, capsys, kind, method, adapter):
    task = summarizer(kind, method=method)
    expected = first_token_logits(task.model, task)
    made = task.export(tmp_path, adapter=adapter)
    names: dict = {}
    exec(made.usage.replace("FOLDER", str(tmp_path)), names)
    assert capsys.readouterr().out
    found = []
    with torch.inference_mode():
        for text in TEXTS:
            rows = names["tokenizer"](text, truncation=True, return_tensors="pt")
            if not task.causal:
                start = names["model"].config.decoder_start_token_id
                rows["decoder_input_ids"] = torch.tensor([[start]])
            found.append(names["model"].eval()(**rows).logits[:, -1])
    assert_same(torch.cat(found), expected)
    assert made.pipeline == "summarization"
    assert "num_beams=4" in made.usage
