"""Prompts of all kinds of tokenizers: ids of the whole as one text, and only the text is cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from smolbench.data import HellaSwagDataModule
from smolbench.errors import SmolbenchError
from smolbench.models.choice.conventions import ChoiceEncoder, word
from smolbench.models.encoding.seams import bare_tokenizer, ids_behind, special_tokens
from smolbench.models.encoding.template import TemplateEncoder
from smolbench.models.export.probe_loader import Probe
from smolbench.models.export.tokenizer import load_tokenizer, write_tokenizer
from smolbench.models.prompting.label_words import LabelWords
from smolbench.models.summaries.rows import SummaryEncoder
from tests.helpers.tiny import TEXTS, VOCABULARY
from tests.helpers.tokenizers import ENDS, KINDS, made_tokenizer

TEMPLATES = [
    "{text}",
    "Review: {text} This was",
    '"I loved it" ; good ; "{text}" ; this review is :',
    "Text:\n{text}\nIt was",
    "It was {text}",
    "{text}\n\nLabel:",
    "({text})",
    " {text}",
]
SIGNS = [" ", "  ", "\n", ".", "..", '"', "(", ")", "\t", ":", "\r\n", "\u00a0", "1", "12"]
ODD = ["\u00e9", "e\u0301", "\u0338", "\u4e2d\u6587", "\U0001f600", "zq"]
PARTS = st.sampled_from([*TEXTS[:3], "It was", "good", *SIGNS, *ODD])
DRAWN = st.lists(PARTS, max_size=8).map("".join)
given_texts = settings(derandomize=True, deadline=None, max_examples=20, database=None)


def whole(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
@given_texts
@given(texts=st.lists(DRAWN, min_size=1, max_size=4), ends=st.sampled_from([*ENDS]))
def test_ids_are_those_of_the_whole_prompt(kind, texts, ends):
    tokenizer = made_tokenizer(kind, ends)
    for template in TEMPLATES:
        encoder = TemplateEncoder(tokenizer, template, 512)
        encoded = encoder.encode(texts)
        for n, text in enumerate(texts):
            prompt = template.replace("{text}", text)
            row = [*encoder.shared_ids, *encoded["input_ids"][n]]
            expected = tokenizer(prompt)["input_ids"]
            if not whole(tokenizer, text.strip()) and row[:-1] == expected:
                assert row.pop() == tokenizer.eos_token_id  # it stands for a text without tokens
            assert row == expected, (template, text)


@pytest.mark.parametrize("kind", KINDS)
@given_texts
@given(text=DRAWN, side=st.sampled_from(["left", "right"]), template=st.sampled_from(TEMPLATES))
def test_only_the_text_loses_an_end(kind, text, side, template):
    tokenizer = made_tokenizer(kind, "both")
    encoder = TemplateEncoder(tokenizer, template, 512)
    (row,) = encoder.rows([text])
    tokens = [*encoder.shared_ids, *row.ids]
    start = len(encoder.shared_ids) + row.start
    own = tokens[start : start + row.length]
    for kept in {0, 1, row.length // 2, row.length - 1} & {*range(row.length)}:
        longest = len(tokens) - row.length + kept
        try:
            short = TemplateEncoder(tokenizer, template, longest, side)
            (cut,) = short.rows([text])
        except SmolbenchError:
            assert kept <= 1  # no room for another text
            continue
        few = own[len(own) - kept :] if side == "left" else own[:kept]
        assert [*short.shared_ids, *cut.ids] == [
            *tokens[:start],
            *few,
            *tokens[start + row.length :],
        ]
        assert (cut.length, cut.cut) == (kept, True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ends", ENDS)
def test_no_end_stands_where_something_follows(kind, ends):
    tokenizer = made_tokenizer(kind, ends)
    head, tail = special_tokens(tokenizer)
    assert tokenizer("a")["input_ids"] == [*head, *whole(tokenizer, "a"), *tail]
    assert bool(tail) == (ends in ("eos", "both"))
    encoder = TemplateEncoder(tokenizer, "Review: {text} This was", 512, goes_on=True)
    words = LabelWords(tokenizer, ["good", "bad"], " ", " This was")
    summaries = SummaryEncoder(tokenizer, "Review: {text} This was", 512, 64, causal=True)
    for text, answer in itertools.product(TEXTS, ["good", "bad"]):
        answered = head + whole(tokenizer, f"Review: {text} This was {answer}")
        row = [*encoder.shared_ids, *encoder.encode([text])["input_ids"][0]]
        pair = summaries.encode({"document": [text], "summary": [answer]})
        assert pair["input_ids"] == [row]
        if kind != "bytes, no words":  # there the answer changes the prompt
            assert [*row, *words.ids[words.words.index(answer)]] == answered
            assert [*row, *pair["labels"][0][:-1]] == answered
            assert pair["labels"][0][-1] == tokenizer.eos_token_id


def test_the_key_says_whether_a_row_is_left_open():
    def key(ends, **options):
        return TemplateEncoder(made_tokenizer("bytes", ends), "{text}", 64, **options).key()

    assert key("eos") != key("eos", goes_on=True)
    assert key("bos") == key("bos", goes_on=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ends", ["none", "both"])
def test_parts_are_what_a_saved_tokenizer_says(kind, ends, tmp_path):
    tokenizer = made_tokenizer(kind, ends)
    config = LlamaConfig(pad_token_id=1, vocab_size=VOCABULARY)
    for number, template in enumerate(TEMPLATES):
        encoder = TemplateEncoder(tokenizer, template, 40, joined=False)
        folder = tmp_path / str(number)
        folder.mkdir()
        write_tokenizer(encoder, config, TEXTS, folder)
        saved = load_tokenizer(folder)(TEXTS, truncation=True)["input_ids"]
        rows = encoder.encode(TEXTS)["input_ids"]
        assert saved == [[*encoder.shared_ids, *row] for row in rows]
        joined = TemplateEncoder(tokenizer, template, 40)
        if kind == "bytes, no words" or set(template) & set('"(\n'):
            continue  # signs may meet
        for text in TEXTS:
            apart = [*encoder.shared_ids, *encoder.encode([text])["input_ids"][0]]
            assert apart == [*joined.shared_ids, *joined.encode([text])["input_ids"][0]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_an_exported_probe_reads_the_same_rows(kind, side):
    tokenizer = made_tokenizer(kind, "bos" if side == "left" else "none")
    texts = [*TEXTS, "", " ", '."', "\n a", " ".join(TEXTS)]
    for template in TEMPLATES:
        encoder = TemplateEncoder(tokenizer, template, 40, side)
        shared, rows = encoder.shared_ids, encoder.rows(texts)
        reader = object.__new__(Probe)
        reader.tokenizer, reader.device = tokenizer, "cpu"
        reader.settings = {
            "template": template,
            "head_ids": encoder.head_ids,
            "tail_ids": encoder.tail_ids,
            "shared": len(shared),
            "empty_id": encoder.end_of_text(),
            "max_length": 40,
            "truncation_side": side,
        }
        ids, mask, starts, lengths = reader._rows(texts)
        read = [row[row_mask.bool()].tolist() for row, row_mask in zip(ids, mask, strict=True)]
        assert read == [[*shared, *row.ids] for row in rows]
        assert starts.tolist() == [len(shared) + row.start for row in rows]
        assert lengths.tolist() == [row.length for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_behind_another_has_no_blank_of_its_own(kind):
    tokenizer = made_tokenizer(kind, "both")
    front = whole(tokenizer, "It was:")
    for text in (" good", " a warm film", " was"):
        together = whole(tokenizer, f"It was:{text}")
        if together[: len(front)] == front:
            assert ids_behind(tokenizer, [text], "It was:") == [together[len(front) :]]
    bare = bare_tokenizer(tokenizer)
    assert (bare is None) == ("blank" not in kind or kind == "bpe, no blank")


@pytest.mark.parametrize("kind", ["bytes", "bpe, blank first", "unigram, words", "wordpiece"])
@pytest.mark.parametrize("ends", ENDS)
def test_endings_are_those_of_lm_eval(kind, ends):
    """By its own class; a special token that would end a context is left out by `add_bos_token`."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    tokenizer = made_tokenizer(kind, ends)
    # lm_eval adds both or none; what it adds at the end stands inside, so `both` is read as `bos`
    theirs = huggingface.HFLM.__new__(huggingface.HFLM)
    theirs.tokenizer = made_tokenizer(kind, "bos" if ends == "both" else ends)
    theirs.add_bos_token = False if ends == "eos" else None
    theirs.backend = "causal"
    theirs.custom_prefix_token_id = None
    asked = HellaSwagDataModule(source="sample", limit_test=3).split("test").examples[:]
    encoded = ChoiceEncoder(tokenizer, "lm_eval", 500).encode(asked)
    for row, (ids, sizes) in enumerate(
        zip(encoded["input_ids"], encoded["ending_tokens"], strict=True)
    ):
        question = word("lm_eval", {name: values[row] for name, values in asked.items()})
        pairs = [theirs._encode_pair(question.context, ending) for ending in question.endings]
        assert ids == [*pairs[0][0], *(token for _, ending in pairs for token in ending)]
        assert sizes == [len(ending) for _, ending in pairs]


def test_an_empty_context_is_one_special_token():
    row = {"activity_label": "", "ctx_a": "", "ctx_b": "", "ctx": "", "endings": ["It was.", "So"]}
    columns = {name: [value] for name, value in row.items()}
    for ends, first in (("none", 0), ("bos", 0), ("eos", 0)):
        tokenizer = made_tokenizer("bytes", ends)
        encoded = ChoiceEncoder(tokenizer, "llm_c", 500).encode(columns)
        endings = [whole(tokenizer, " It was."), whole(tokenizer, " So")]
        assert encoded["input_ids"] == [[first, *endings[0], *endings[1]]]
