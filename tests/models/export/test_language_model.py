from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from smolbench.errors import SmolbenchError
from smolbench.models.export import network
from smolbench.models.export.check import PER_TOKEN, Trial
from smolbench.models.export.network import write_network
from smolbench.models.pretrained.backbone import Backbone
from smolbench.models.pretrained.quantization import keep_gradients
from smolbench.models.summaries import rows as summary_rows
from smolbench.tasks import MultipleChoiceTask, SummarizationTask
from tests.helpers.tiny import EOS, TEXTS, tiny_language_model, tiny_summarizer
from tests.helpers.zoo import ZOO, zoo_model


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
def test_the_code_on_the_card_writes_on_as_the_run_does(tmp_path, capsys, adapter):
    task = trained("llama", method="lora")
    tokenizer = task.backbone.tokenizer
    rows = tokenizer("She put the kettle on and", return_tensors="pt")
    written = task.model.generate(**rows, max_new_tokens=20, do_sample=False)
    made = task.export(tmp_path, adapter=adapter)
    exec(made.usage.replace("FOLDER", str(tmp_path)), {})
    assert capsys.readouterr().out == tokenizer.decode(written[0]) + "\n"


@pytest.mark.parametrize(
    ("convention", "max_length", "dtype"),
    [("lm_eval", None, "float32"), ("llm_c", 60, "float32"), ("smollm2", 60, "bfloat16")],
)
def test_scores_of_endings_are_those_of_the_run(
    tmp_path, monkeypatch, convention, max_length, dtype
):
    """Also where contexts are cut."""
    options = {"convention": convention, "max_length": max_length, "dtype": dtype}
    task = trained("llama", method="lora", **options)
    made = task.export(tmp_path)
    assert (made.check.unit, made.check.run_dtype, made.check.n) == (PER_TOKEN, dtype, 20)
    assert made.check.difference < (1e-4 if dtype == "float32" else 0.2)
    cut = network.mean_log_probability
    monkeypatch.setattr(
        "smolbench.tasks.export.mean_log_probability",
        lambda model, ending, input_ids: cut(model, ending, input_ids=input_ids[-len(ending) :]),
    )
    with pytest.raises(SmolbenchError, match="log-probabilities per token, in nats, differ"):
        trained("llama", method="lora", **options).export(tmp_path)


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


DOCUMENT = "Ann: Are you coming at eight? Ben: Nine, sorry. Ann: Fine, I will save you a seat."
"""What the card's code summarizes."""
TRIAL = Trial({"document": TEXTS, "summary": TEXTS[::-1]}, "known ones")
OWN_WAY = {
    "num_beams": 3,
    "max_length": 5,
    "min_length": 2,
    "do_sample": True,
    "temperature": 0.6,
    "top_k": 5,
    "no_repeat_ngram_size": 2,
    "repetition_penalty": 1.3,
    "length_penalty": 2.0,
    "early_stopping": True,
    "eos_token_id": [EOS, 60],
}
"""A base model's own generation settings; some decide about a run's texts, most are overruled."""


def with_its_own_way(kind, folder):
    shutil.copytree(tiny_summarizer(kind), folder)
    file = folder / "generation_config.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps({**known, **OWN_WAY}))
    file = folder / "config.json"
    tasks = {"summarization": {"prefix": "translate: ", "min_length": 30, "num_beams": 2}}
    known = json.loads(file.read_text())
    file.write_text(json.dumps({**known, "task_specific_params": tasks, "prefix": "translate: "}))
    return str(folder)


@pytest.mark.parametrize("kind", ["t5", "bart", "llama"])
@pytest.mark.parametrize(
    ("method", "adapter", "num_beams"),
    [("full", False, 4), ("lora", False, 1), ("lora", True, 4)],
)
def test_a_summarizer_reads_its_template_and_writes_as_the_run_does(
    tmp_path, capsys, monkeypatch, kind, method, adapter, num_beams
):
    base = with_its_own_way(kind, tmp_path / "base")
    task = summarizer(kind, method=method, backbone=base, num_beams=num_beams)
    expected = first_token_logits(task.model, task)
    texts = [*TEXTS, DOCUMENT]
    with torch.inference_mode():
        ids = task.start_answering()(texts)
    if method == "full":  # one of the tokens that it writes is its line break
        word = task.backbone.tokenizer.convert_ids_to_tokens(int(ids[-1, 2]))
        monkeypatch.setattr(summary_rows, "LINE_BREAKS", (word,))
    written = [task._texts(row[None])[0] for row in ids]
    assert ("\n" in written[-1]) == (method == "full")
    folder = tmp_path / "made"
    folder.mkdir()
    made = task.export(folder, adapter=adapter, trial=TRIAL)
    assert made.check.n == len(TEXTS) + 1
    assert made.check.unit == PER_TOKEN
    both_ways = 2 if num_beams > 1 else 1
    assert (made.check.texts, made.check.texts_differ) == (both_ways * (len(TEXTS) + 1), 0)
    names: dict = {}
    exec(made.usage.replace("FOLDER", str(folder)), names)
    assert capsys.readouterr().out.strip() == written[-1]
    model, tokenizer = names["model"].eval(), names["tokenizer"]
    found = []
    with torch.inference_mode():
        for text, row in zip(texts, ids, strict=True):
            rows = tokenizer(text, truncation=True, return_tensors="pt")
            if not adapter:  # its configuration is the model's own
                whole = model.generate(**rows)[0]
                begin = rows["input_ids"].shape[1] if task.causal else 1
                assert whole[begin:].tolist() == row[row >= 0].tolist()
            if not task.causal:
                rows["decoder_input_ids"] = torch.tensor([[model.config.decoder_start_token_id]])
            found.append(model(**rows).logits[:, -1])
    assert_same(torch.cat(found[: len(TEXTS)]), expected)
    assert made.pipeline == "summarization"
    assert f"num_beams={num_beams}" in made.usage
    config = json.loads((folder / "config.json").read_text()) if not adapter else {}
    assert not {"task_specific_params", "prefix"} & {*config}


def test_a_summarizer_that_writes_in_another_way_is_refused(tmp_path, monkeypatch):
    base = with_its_own_way("bart", tmp_path / "base")
    task = summarizer("bart", backbone=base)
    own = task.model.generation_config
    own.max_length = None
    monkeypatch.setattr("smolbench.tasks.summarize.whole_generation_config", lambda *_: own)
    with pytest.raises(SmolbenchError, match="texts that both wrote differ"):
        task.export(tmp_path / "base", trial=TRIAL)


@pytest.mark.parametrize(
    ("scaled", "own", "said"),
    [(True, False, True), (False, False, False), (False, True, False)],
)
def test_a_t5_says_whose_head_it_has(tmp_path, scaled, own, said):
    """As transformers 4 reads it: tied and scaled, or a head of its own and not scaled."""
    config = CONFIG_MAPPING["t5"](**ZOO["t5"].options, tie_word_embeddings=scaled)
    model = AutoModelForSeq2SeqLM.from_config(config)
    if own:
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    expected = model.lm_head.weight.detach().clone()
    write_network(model, Backbone(zoo_model("t5"), None, "float32"), None, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is said
    held = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in held) is not said
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, expected)
    assert again.config.scale_decoder_outputs is scaled
