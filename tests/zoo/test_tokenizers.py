"""Architectures, tokenizers, tasks: what is read, scored and written is transformers' own.

Beside each text of a task stands a second calculation: the tokenizer's ids of the whole prompt as
one text, and plain transformers on them, in float32, one text at a time.
"""

from __future__ import annotations

import functools
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from smolbench.data import HellaSwagDataModule
from smolbench.data.token_cache import encode_to_cache
from smolbench.models.choice.conventions import word
from smolbench.models.summaries.summarizer import Decoding
from smolbench.tasks import MultipleChoiceTask, ProbeTask, PromptTask, SummarizationTask
from tests.helpers.tokenizers import ENDS, KINDS, made_tokenizer
from tests.helpers.zoo import ZOO, zoo_model
from tests.zoo.test_architectures import DECODERS, PAIRS, WHOLE

CPU = torch.device("cpu")
CASES = ["It was fine.", 'So "good" it hurts', "Dull.\n", "  two hours \u00e9 of it", "a 12 \u4e2d"]
PROMPT = 'He said: "{text}"\nIt is'
WORDS = {"neg": "bad", "pos": "see"}


@functools.cache
def folder(name: str, kind: str, ends: str) -> str:
    """A zoo's model beside a tokenizer of a kind."""
    whole = Path(zoo_model(name))
    made = whole.with_name(f"{whole.name}-{kind}-{ends}".replace(" ", "_").replace(",", ""))
    shutil.copytree(whole, made)
    made_tokenizer(kind, ends).save_pretrained(made)
    return str(made)


def cells(names):
    """All of these models with every kind of tokenizer, or each kind with two of them."""
    if WHOLE:
        ends = itertools.cycle(ENDS)
        return [(name, kind, next(ends)) for name in names for kind in KINDS]
    # every end with every second kind
    both = [(kind, end) for n, kind in enumerate(KINDS) for end in [*ENDS][n % 2 :: 2]]
    return [(names[n * 7 % len(names)], *cell) for n, cell in enumerate(both)]


def around(tokenizer, text):
    """What the tokenizer puts in front of and behind a text."""
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    full = tokenizer(text)["input_ids"]
    begin = next(n for n in range(3) if full[n : n + len(bare)] == bare)
    return full[:begin], full[begin + len(bare) :]


def unended(tokenizer, text):
    """Ids of a text that something follows."""
    return around(tokenizer, text)[0] + tokenizer(text, add_special_tokens=False)["input_ids"]


def summed(model, context, ending):
    """Log-likelihood of an ending behind a context."""
    with torch.inference_mode():
        logs = model(input_ids=torch.tensor([[*context, *ending]])).logits[0].log_softmax(dim=-1)
    return sum(float(logs[len(context) - 1 + n, token]) for n, token in enumerate(ending))


def assert_equal(found, plain):
    assert plain.std(dim=0).max() > 1e-3, "the texts are told apart"
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(("name", "kind", "ends"), cells([*ZOO]))
def test_features(name, kind, ends):
    made = folder(name, kind, ends)
    model, tokenizer = AutoModel.from_pretrained(made).eval(), AutoTokenizer.from_pretrained(made)
    if name in PAIRS:
        model = model.get_encoder()
    task = ProbeTask(
        backbone=made, template=PROMPT, max_length=120, pooling="mean", dtype="float32"
    )
    read = task.frozen.start_reading(CPU)
    plain = []
    for text in CASES:
        begin = len(PROMPT.partition("{")[0])
        encoded = tokenizer(PROMPT.format(text=text), return_offsets_mapping=True)
        with torch.inference_mode():
            states = model(input_ids=torch.tensor([encoded["input_ids"]])).last_hidden_state[0]
        head = len(around(tokenizer, "a")[0])
        spans = encoded["offset_mapping"]
        own = [
            n
            for n, (first, last) in enumerate(spans)
            if n >= head and begin <= first < last <= begin + len(text)
        ]
        plain.append(states[own].mean(dim=0))
    assert_equal(read(task.encode({"text": CASES})), torch.stack(plain))
    singly = [read(task.encode({"text": [text]})) for text in CASES]
    assert_equal(torch.cat(singly), torch.stack(plain))


@pytest.mark.parametrize(("name", "kind", "ends"), cells(DECODERS))
def test_prompts(name, kind, ends):
    made = folder(name, kind, ends)
    tokenizer = AutoTokenizer.from_pretrained(made)
    model = AutoModelForCausalLM.from_pretrained(made).eval()
    task = PromptTask(
        backbone=made, template=PROMPT, label_words=WORDS, max_length=120, dtype="float32"
    )
    task.label_names = list(WORDS)
    task.configure_model()
    answer = task.start_answering()
    plain = []
    for text in CASES:
        ids = unended(tokenizer, PROMPT.format(text=text))
        answers = [
            unended(tokenizer, f"{PROMPT.format(text=text)} {word}")[len(ids) :]
            for word in WORDS.values()
        ]
        if kind == "bytes, no words":  # an answer would join the prompt's last word
            answers = task.words.ids
        plain.append([summed(model, ids, ending) for ending in answers])
    plain = torch.tensor(plain).log_softmax(dim=1)
    assert_equal(answer(CASES).log(), plain)
    assert_equal(torch.cat([answer([text]) for text in CASES]).log(), plain)


@pytest.mark.parametrize(("name", "kind", "ends"), cells(DECODERS))
def test_choices(name, kind, ends, tmp_path):
    made = folder(name, kind, ends)
    tokenizer = AutoTokenizer.from_pretrained(made)
    model = AutoModelForCausalLM.from_pretrained(made).eval()
    task = MultipleChoiceTask(backbone=made, dtype="float32", max_length=500)
    asked = HellaSwagDataModule(source="sample", limit_test=2).split("test").examples[:]
    n = len(asked["ctx"])

    def columns(start, stop):
        return {name: values[start:stop] for name, values in asked.items()}

    table = encode_to_cache(tmp_path, "asked", columns, n, task.encode, "Encoding")
    rows = task.rows("test", table, np.zeros(n, dtype=np.int64))
    task.eval()
    with torch.inference_mode():
        found = task(rows.batch(np.arange(n)))
        singly = torch.cat([task(rows.batch(np.array([row]))) for row in range(n)])
    plain = []
    for row in range(n):
        question = word("lm_eval", {name: values[row] for name, values in asked.items()})
        context = unended(tokenizer, question.context)
        wholes = [unended(tokenizer, question.context + ending) for ending in question.endings]
        plain.append([summed(model, context, whole[len(context) :]) for whole in wholes])
    plain = torch.tensor(plain)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=2e-3)
    torch.testing.assert_close(singly, plain, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize(("name", "kind", "ends"), cells([*PAIRS, *DECODERS]))
def test_summaries(name, kind, ends):
    made = folder(name, kind, ends)
    tokenizer = AutoTokenizer.from_pretrained(made)
    pair = name in PAIRS
    loader = AutoModelForSeq2SeqLM if pair else AutoModelForCausalLM
    model = loader.from_pretrained(made).eval()
    task = SummarizationTask(
        method="none",
        backbone=made,
        template=PROMPT,
        max_length=100,
        max_new_tokens=5,
        max_summary_length=8,
        dtype="float32",
    )
    task.configure_model()
    answer = task.eval().start_answering()
    for beams in (1, 2):
        task.decoding = Decoding(5, beams)
        with torch.no_grad():
            found = task._texts(answer(CASES))
            assert found == [task._texts(answer([text]))[0] for text in CASES]
        plain = []
        for text in CASES:
            prompt = PROMPT.format(text=text)
            ids = tokenizer(prompt)["input_ids"] if pair else unended(tokenizer, prompt)
            written = model.generate(
                torch.tensor([ids]), max_new_tokens=5, num_beams=beams, do_sample=False
            )[0]
            written = written[1 if pair else len(ids) :]
            plain.append(tokenizer.decode(written, skip_special_tokens=True).strip())
        assert found == plain
