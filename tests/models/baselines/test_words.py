"""What a word is, in any script."""

from __future__ import annotations

import re
import unicodedata

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from smolbench.data.samples.imdb import imdb_sample
from smolbench.models.baselines.vocabulary import split_words
from smolbench.models.baselines.words import sklearn_pattern, split_of
from smolbench.utils import notices

ENGLISH = [
    *imdb_sample("train")["text"][:200],
    "It\u2019s rock'n'roll -- snake_case, 7/10 & caf\u00e9\u2026 \u201cna\u00efve\u201d a b!?",
    "1\ufe0f\u20e3 \u2764\ufe0f \U0001f600\U0001f469\u200d\U0001f469 end.<br />Start",
    "\u00c5ngstr\u00f6m \u017c\u00f3\u0142\u0107 \u0416\u0443\u043a 10\u00b2 x\u00b2 \ufb01ne",
]


def test_words_of_english_are_what_they_were():
    usual = TfidfVectorizer().build_analyzer()
    ours = TfidfVectorizer(token_pattern=sklearn_pattern("words-2")).build_analyzer()
    for text in ENGLISH:
        assert ours(text) == usual(text)
        assert split_words(text, "words-2") == split_words(text, "words-1")
    assert split_of("auto", ENGLISH) == "words-2"


@pytest.mark.parametrize(
    "text",
    [
        "\u092f\u0939 \u092b\u093f\u0932\u094d\u092e \u0926\u0940\u0928",  # vowel signs
        "\u0634\u064e\u0645\u0652\u0633 \u0645\u06cc\u200c\u0631\u0648\u0645",  # points, a joiner
        "\u0dc1\u0dca\u200d\u0dbb\u0dd3 \u0dbd\u0d82\u0d9a\u0dcf",  # conjuncts
        "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd \u0baa\u0b9f\u0bae\u0bcd",
        unicodedata.normalize("NFD", "caf\u00e9 ti\u1ebfng"),
        "\ud55c\uad6d\uc5b4 \uc601\ud654",
    ],
)
def test_marks_and_joiners_belong_to_the_word(text):
    assert re.findall(sklearn_pattern("words-2"), text) == text.split()
    assert split_words(text) == unicodedata.normalize("NFC", text).split()
    assert split_of("auto", [text]) == "words-2"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (
            "\u8fd9\u90e8\u7535\u5f71 is good",
            ["\u8fd9", "\u90e8", "\u7535", "\u5f71", "is", "good"],
        ),
        ("\u0e09\u0e31\u0e19", ["\u0e09\u0e31", "\u0e19"]),
        ("\u30ab\u30ec\u30fc\u304c", ["\u30ab", "\u30ec", "\u30fc", "\u304c"]),
        ("\U00020000\u4e00", ["\U00020000", "\u4e00"]),
    ],
)
def test_characters_of_scripts_without_spaces(text, tokens):
    assert split_of("auto", [text]) == "characters-2"
    assert split_words(text, "characters-2") == tokens
    assert re.findall(sklearn_pattern("characters-2"), text) == tokens


def test_a_few_ideographs_do_not_change_the_words_of_others():
    assert split_of("auto", ["a long review of a film \u4e00", "another long one"]) == "words-2"
    assert split_of("characters", ["a review"]) == "characters-2"
    assert split_of("words", ["\u4e00\u4e8c"]) == "words-2"


@pytest.mark.parametrize(
    ("tokens", "text", "said"),
    [
        ("words", "\u8fd9\u90e8\u7535\u5f71" * 9, True),
        ("auto", "\u8fd9\u90e8\u7535\u5f71" * 9, False),
        ("auto", "\U0001f600" * 30, True),
        ("auto", "incomprehensibilities of antidisestablishmentarianism", False),
        ("auto", "\U0001f600", False),
    ],
)
def test_texts_without_words_are_said(tokens, text, said):
    notices.begin()
    split_of(tokens, [text, "a usual text"])
    assert any("hardly a word" in line for line in notices.gathered([], "fit")) == said
