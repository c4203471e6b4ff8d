from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from smolbench.errors import SmolbenchError
from smolbench.models.encoding.template import TemplateEncoder
from tests.helpers.tiny import (
    CONFIGS,
    EOS,
    SPECIAL_TOKENS,
    TEXTS,
    tiny_backbone,
    tiny_tokenizer,
)

TEMPLATE = "Text:\n{text}\nThe review was"


def pieces(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_is_specials_prefix_text_suffix_specials(name):
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone(name))
    encoder = TemplateEncoder(tokenizer, TEMPLATE, 128)
    head, tail = SPECIAL_TOKENS.get(name, ([], []))
    # a text may begin with a line break, too, so that the template's is not shared
    assert encoder.shared_ids == head + pieces(tokenizer, "Text:")
    rows, front = encoder.rows(TEXTS), pieces(tokenizer, "\n")
    suffix = pieces(tokenizer, "\nThe review was")
    for text, row in zip(TEXTS, rows, strict=True):
        own = pieces(tokenizer, text)
        assert row == (front + own + suffix + tail, len(front), len(own), False)


@pytest.mark.parametrize("name", ["gpt2", "bert", "opt", "t5"])
def test_spaces_in_front_of_the_slot_go_to_the_text(name):
    tokenizer = tiny_tokenizer(name)
    encoder = TemplateEncoder(tokenizer, "Text: {text}\nIt", 128)
    head, tail = SPECIAL_TOKENS.get(name, ([], []))
    assert encoder.shared_ids == head + pieces(tokenizer, "Text:")
    (row,) = encoder.encode([TEXTS[0]])["input_ids"]
    assert row == pieces(tokenizer, f" {TEXTS[0]}") + pieces(tokenizer, "\nIt") + tail
    assert encoder.key() != TemplateEncoder(tokenizer, "Text:{text}\nIt", 128).key()


@pytest.mark.parametrize("name", ["gpt2", "bert", "opt", "t5"])
def test_without_a_template_rows_are_the_tokenizer_s_own(name):
    tokenizer = tiny_tokenizer(name)
    encoder = TemplateEncoder(tokenizer, "{text}", 128)
    rows = encoder.encode(TEXTS)["input_ids"]
    assert [encoder.shared_ids + row for row in rows] == tokenizer(TEXTS)["input_ids"]


@pytest.mark.parametrize("template", [TEMPLATE, "Movie: {text} It was", '"{text}" is'])
@pytest.mark.parametrize("name", ["gpt2", "bert", "opt"])
def test_ids_are_those_of_the_prompt_as_one_text(name, template):
    tokenizer = tiny_tokenizer(name)
    encoder = TemplateEncoder(tokenizer, template, 128)
    rows = encoder.encode([*TEXTS, "It was fine."])["input_ids"]
    for text, row in zip([*TEXTS, "It was fine."], rows, strict=True):
        assert [*encoder.shared_ids, *row] == tokenizer(template.format(text=text))["input_ids"]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["gpt2", "bert", "opt", "t5"])
def test_only_the_text_is_truncated(name, side):
    tokenizer = tiny_tokenizer(name)
    whole = TemplateEncoder(tokenizer, TEMPLATE, 128)
    (one,) = whole.rows(["a"])
    around = len(whole.shared_ids) + len(one.ids) - 1
    text = TEXTS[2]
    own = pieces(tokenizer, text)
    for budget in (1, 3, len(own) - 1, len(own), len(own) + 1):
        encoder = TemplateEncoder(tokenizer, TEMPLATE, around + budget, side)
        (row,) = encoder.encode([text])["input_ids"]
        kept = own[-budget:] if side == "left" else own[:budget]
        assert row == one.ids[: one.start] + kept + one.ids[one.start + 1 :]
        assert len(encoder.shared_ids) + len(row) == around + min(budget, len(own))
    with pytest.raises(SmolbenchError, match=f"max_length is {around}, but the template alone"):
        TemplateEncoder(tokenizer, TEMPLATE, around, side)


@pytest.mark.parametrize("max_length", [0, -1])
def test_a_length_without_room_is_a_sentence(max_length):
    with pytest.raises(SmolbenchError, match="raise max_length"):
        TemplateEncoder(tiny_tokenizer("gpt2"), "{text}", max_length)


@pytest.mark.parametrize("template", ["", "no slot", "{text} and {text}", "{ text }"])
def test_a_template_without_one_slot_is_a_sentence(template):
    with pytest.raises(SmolbenchError, match=r"must hold \{text\} exactly once"):
        TemplateEncoder(tiny_tokenizer("gpt2"), template, 128)


def test_braces_are_just_text():
    tokenizer = tiny_tokenizer("gpt2")
    encoder = TemplateEncoder(tokenizer, '{"a": "{text}"}', 128)
    (row,) = encoder.encode(["{text} {0}"])["input_ids"]
    assert tokenizer.decode([*encoder.shared_ids, *row]) == '{"a": "{text} {0}"}'


@pytest.mark.parametrize("name", ["gpt2", "bert"])
@pytest.mark.parametrize(
    ("suffix", "anchor", "until"),
    [
        ("\nthe review was", "review", "\nthe review"),
        ("\nthe review was", "was", "\nthe review was"),
        (" a review, the review: a", "review", " a review, the review"),  # the last one
        (" zyxwvut: a", "zyxwvut", " zyxwvut"),  # several tokens
        (" was it good, was it?", "was it", " was it good, was it"),
        ("review", "review", "review"),
        (" a (b)", "b)", " a (b)"),
    ],
)
def test_the_anchor_is_the_last_token_of_the_word_s_last_occurrence(name, suffix, anchor, until):
    tokenizer = tiny_tokenizer(name)
    encoder = TemplateEncoder(tokenizer, "x {text}" + suffix, 128)
    for text in ("It was fine ", "Dull."):
        (row,) = encoder.encode([text])["input_ids"]
        row = row[: len(row) + 1 - encoder.anchor_offset(anchor)]
        # [SEP] is behind it
        assert [*encoder.shared_ids, *row] == tokenizer(f"x {text}{until}")["input_ids"][
            : -1 if name == "bert" else None
        ]


def test_several_tokens_of_an_anchor_are_indeed_several():
    assert len(pieces(tiny_tokenizer("gpt2"), "zyxwvut")) > 1
    assert len(pieces(tiny_tokenizer("bert"), "zyxwvut")) > 1


@pytest.mark.parametrize("anchor", ["", "missing", "Text"])
def test_an_anchor_that_is_not_behind_the_slot_is_a_sentence(anchor):
    encoder = TemplateEncoder(tiny_tokenizer("gpt2"), TEMPLATE, 128)
    with pytest.raises(SmolbenchError, match=r"does not stand behind \{text\}"):
        encoder.anchor_offset(anchor)


def test_an_anchor_that_the_tokenizer_drops_is_a_sentence():
    encoder = TemplateEncoder(tiny_tokenizer("bert"), "{text} \n it is", 128)
    with pytest.raises(SmolbenchError, match="which the tokenizer drops"):
        encoder.anchor_offset("\n")


def test_a_row_without_tokens_becomes_one_end_of_text():
    encoder = TemplateEncoder(tiny_tokenizer("gpt2"), "{text}", 128)
    assert encoder.encode(["", "a"]) == {
        "input_ids": [[EOS], pieces(tiny_tokenizer("gpt2"), "a")],
        "text_length": [0, 1],
    }


def test_an_empty_text_leaves_the_template():
    encoder = TemplateEncoder(tiny_tokenizer("gpt2"), TEMPLATE, 128)
    (row,) = encoder.rows([""])
    whole = pieces(encoder.tokenizer, "Text:\n\nThe review was")
    assert [*encoder.shared_ids, *row.ids] == whole
    assert row.length == 0
    encoder = TemplateEncoder(tiny_tokenizer("bert"), "{text}", 128)
    assert encoder.encode([" \n"]) == {"input_ids": [[EOS]], "text_length": [0]}


def words(*specials):
    """A tokenizer of whole words, with no special token but those given."""
    vocabulary = {word: i for i, word in enumerate(["a", "b", *specials])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="b"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_a_row_without_tokens_and_no_end_of_text_is_a_sentence():
    encoder = TemplateEncoder(PreTrainedTokenizerFast(tokenizer_object=words()), "{text}", 128)
    with pytest.raises(SmolbenchError, match="A text is empty"):
        encoder.encode(["a", ""])


def test_a_tokenizer_without_a_fast_version_is_a_sentence():
    from transformers import CanineTokenizer

    with pytest.raises(SmolbenchError, match="has no fast version"):
        TemplateEncoder(CanineTokenizer(), "{text}", 128)


def test_a_tokenizer_whose_special_tokens_change_the_text_is_a_sentence():
    class Changing(PreTrainedTokenizerFast):
        def __call__(self, text, add_special_tokens=True, **options):
            encoded = super().__call__(text, add_special_tokens=False, **options)
            if add_special_tokens:
                encoded["input_ids"] = [i + 1 for i in encoded["input_ids"]]
            return encoded

    with pytest.raises(SmolbenchError, match="not supported"):
        TemplateEncoder(Changing(tokenizer_object=words()), "{text}", 128)


def test_the_key_changes_with_everything_that_changes_ids():
    def key(name="gpt2", template=TEMPLATE, max_length=64, side="right"):
        return TemplateEncoder(tiny_tokenizer(name), template, max_length, side).key()

    assert key() == key()
    others = [key("bert"), key("opt"), key(template="{text}"), key(max_length=65), key(side="left")]
    assert all(key() != other for other in others)


def test_a_saved_truncation_of_the_tokenizer_is_not_obeyed():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words("</s>"), eos_token="</s>")
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    encoder = TemplateEncoder(tokenizer, "a b a {text} a b a", 128)
    assert len(encoder.shared_ids) == 3
    assert encoder.encode(["a b a b a"])["text_length"] == [5]
    key = encoder.key()
    tokenizer.backend_tokenizer.enable_truncation(2)
    assert TemplateEncoder(tokenizer, "a b a {text} a b a", 128).key() == key
