from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from smolbench.errors import SmolbenchError
from smolbench.models.prompting.label_words import LabelWords
from tests.helpers.tiny import VOCABULARY, tiny_tokenizer


def words(*given, tokenizer="gpt2", separator=" "):
    return LabelWords(tiny_tokenizer(tokenizer), given, separator)


def text(token, tokenizer="gpt2"):
    return tiny_tokenizer(tokenizer).decode([token])


def test_answers_are_what_stands_behind_the_prompt():
    found = words("good", "Dull")
    tokenizer = tiny_tokenizer("gpt2")
    assert found.ids == [tokenizer(" good")["input_ids"], tokenizer(" Dull")["input_ids"]]
    assert words("good", separator="").ids == [tokenizer("good")["input_ids"]]


def test_a_token_matches_with_any_capitals_and_spaces():
    classes = words("The", "and").token_classes(VOCABULARY)
    for token in range(VOCABULARY):
        meaning = {"the": 0, "and": 1}.get(text(token).strip().casefold())
        if meaning is not None:
            assert classes[token] == meaning
    assert {text(int(n)).strip().casefold() for n in (classes == 0).nonzero()} >= {"the"}


def test_a_first_piece_stands_for_the_word_unless_two_begin_with_it():
    found = words("the", "xylophone")
    (first, *_) = tiny_tokenizer("gpt2")("xylophone")["input_ids"]
    classes = found.token_classes(VOCABULARY)
    matching = {text(int(n)).strip().casefold() for n in (classes == 1).nonzero()}
    assert matching == {text(first)}
    assert "the" not in matching


def test_parts_of_other_characters_do_not_stand_for_a_word():
    tokenizer = tiny_tokenizer("gpt2")
    (first, *rest) = tokenizer("\u597d")["input_ids"]
    assert rest, "a part of the character"
    classes = words("the", "\u597d").token_classes(VOCABULARY)
    assert (classes == 1).nonzero().flatten().tolist() == [first]


def test_scores_beyond_the_tokenizer_stand_for_nothing():
    size = len(tiny_tokenizer("gpt2"))
    classes = words("the", "and").token_classes(size + 7)
    assert classes.shape == (size + 7,)
    assert (classes[size:] == -1).all()


def test_words_that_begin_alike_are_refused():
    with pytest.raises(SmolbenchError, match="No token stands for the label word"):
        words("qqa", "qqb", separator="").token_classes(VOCABULARY)


def test_two_classes_need_two_words():
    with pytest.raises(SmolbenchError, match="not all different"):
        words("Good", "good ")


@pytest.mark.parametrize("word", ["", "   "])
def test_a_word_needs_tokens(word):
    with pytest.raises(SmolbenchError, match="not in the tokenizer's vocabulary"):
        words("good", word)


def test_a_word_outside_the_vocabulary_is_refused():
    with pytest.raises(SmolbenchError, match="'好' is not in the tokenizer's vocabulary"):
        words("good", "好", tokenizer="bert")


def test_a_mark_in_front_of_everything_is_no_part_of_a_word():
    """As Llama 2's tokenizer has it: a space before the prompt, not before the answer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    tokenizer.train_from_iterator(
        ["it is good", "L: it is bad good", "a bad film"] * 9,
        trainers.BpeTrainer(vocab_size=90, show_progress=False),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    found = LabelWords(fast, ["good", "bad"], " ", behind="L:")
    for word, ids in zip(found.words, found.ids, strict=True):
        whole = fast(f"L: {word}", add_special_tokens=False)["input_ids"]
        front = fast("L:", add_special_tokens=False)["input_ids"]
        assert front + ids == whole
        assert ids != fast(f" {word}", add_special_tokens=False)["input_ids"]


def test_a_word_that_another_one_begins_with_is_known():
    assert words("good", "bad").covered == []
    assert words("good", "bad", "good enough").covered == [("good", "good enough")]


def test_words_that_are_the_same_to_the_tokenizer_are_refused(monkeypatch):
    monkeypatch.setattr(
        "smolbench.models.prompting.label_words.ids_behind",
        lambda tokenizer, texts, behind: [[7], [7]],
    )
    with pytest.raises(SmolbenchError, match="'caf\u00e9' and 'cafe' are the same"):
        words("caf\u00e9", "cafe")
