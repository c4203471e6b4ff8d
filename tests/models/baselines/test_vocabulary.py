from __future__ import annotations

import pytest

from smolbench.errors import SmolbenchError
from smolbench.models.baselines.vocabulary import PAD_ID, UNKNOWN_ID, Vocabulary, split_words

TEXTS = ["b a a c", "A b, b!", "d"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's GREAT!", ["it's", "great", "!"]),
        ("don\u2019t -- really?!", ["don't", "really", "?", "!"]),
        ("end.<br /><br />Start", ["end", "br", "br", "start"]),
        ("'quoted' rock'n'roll", ["quoted", "rock'n'roll"]),
        ("7/10, snake_case", ["7", "10", "snake", "case"]),
        ("Größe ÉTÉ 映画", ["größe", "été", "映画"]),
        ("... --- ,", []),
        ("", []),
    ],
)
def test_words_of_a_text(text, words):
    assert split_words(text) == words


def test_words_are_ranked_by_frequency_and_then_by_the_alphabet():
    assert Vocabulary.of_texts(TEXTS, 10, 1).words == ["a", "b", "!", "c", "d"]
    assert Vocabulary.of_texts(reversed(TEXTS), 10, 1).words == ["a", "b", "!", "c", "d"]
    assert Vocabulary.of_texts(TEXTS, 10, 2).words == ["a", "b"]
    assert Vocabulary.of_texts(TEXTS, 1, 1).words == ["a"]


def test_numbers_of_a_text():
    vocabulary = Vocabulary.of_texts(TEXTS, 2, 1)
    assert len(vocabulary) == 4
    assert vocabulary.encode("B, zebra a") == [3, UNKNOWN_ID, 2]
    assert vocabulary.encode(" ... ") == [UNKNOWN_ID]
    assert PAD_ID not in vocabulary.encode("a b zebra")


def test_lines_hold_everything():
    vocabulary = Vocabulary.of_texts(TEXTS, 10, 1)
    again = Vocabulary.of_lines(vocabulary.lines)
    assert again.words == vocabulary.words
    assert again.digest == vocabulary.digest
    assert again.digest != Vocabulary(vocabulary.words[::-1]).digest


@pytest.mark.parametrize(
    ("texts", "min_count", "sentence"),
    [
        (["", "..."], 1, "the training texts have no words"),
        (["a b c"], 2, "3 different words, and none occurs 2 times: lower model.min_count"),
    ],
)
def test_an_empty_vocabulary_is_a_sentence(texts, min_count, sentence):
    with pytest.raises(SmolbenchError, match=sentence):
        Vocabulary.of_texts(texts, 10, min_count)
