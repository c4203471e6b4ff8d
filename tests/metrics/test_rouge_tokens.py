"""Words and sentences that ROUGE counts, in English as rouge_score finds them, and elsewhere."""

# ruff: noqa: RUF001 - other scripts have letters that look like Latin ones

from __future__ import annotations

from collections import Counter

import pytest
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from smolbench.data.samples.samsum import samsum_sample
from smolbench.metrics.rouge import ROUGE, rouge_scores
from smolbench.metrics.rouge_tokens import UnicodeTokenizer, sentences, shares_read, tokenizer_named

SAMPLE = samsum_sample("test")
ENGLISH = [
    *SAMPLE["summary"],
    *SAMPLE["dialogue"],
    "He'll pay $1,299.99 (20% off!) by 12/05/2024, won't he? It's Anna's 3rd e-mail @ 10:30am.",
    "“Don’t run,” she said — the dogs’ running… cost £3–5 or 10 € per km.",
    "RUNNING_fast v2.0b1 x-ray\tcategories\r\nrelational 2nd; a.k.a. <file_name01>  #tag 🎉👍🏽",
]


@pytest.mark.parametrize("use_stemmer", [True, False])
def test_english_has_the_words_of_rouge_score(use_stemmer):
    ours, theirs = UnicodeTokenizer(use_stemmer=use_stemmer), DefaultTokenizer(use_stemmer)
    for text in ENGLISH:
        assert ours.tokenize(text) == theirs.tokenize(text), text
    assert "run" in UnicodeTokenizer(use_stemmer=True).tokenize(ENGLISH[-2])
    assert "running" in UnicodeTokenizer().tokenize(ENGLISH[-2])


def test_where_english_differs():
    """By definition: a letter with an accent is a letter, and compatibility forms are unfolded."""
    text = "The café’s co\u00adoperation on m² and ½ a naïve ﬁle™"
    assert DefaultTokenizer().tokenize(text) == (
        ["the", "caf", "s", "co", "operation", "on", "m", "and", "a", "na", "ve", "le"]
    )
    assert UnicodeTokenizer().tokenize(text) == (
        ["the", "café", "s", "cooperation", "on", "m2", "and", "1", "2", "a", "naïve", "filetm"]
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Анна купила ЁЛКУ в 2024-м.", ["анна", "купила", "ёлку", "в", "2024", "м"]),
        ("वह किताब पढ़ी है।", ["वह", "किताब", "पढ़ी", "है"]),  # vowel signs and points stay
        ("கதை முடிந்தது.", ["கதை", "முடிந்தது"]),
        ("كَتَبَ الولدُ ٣ رسائل؟", ["كَتَبَ", "الولدُ", "٣", "رسائل"]),
        ("می\u200cخواهم بروم", ["میخواهم", "بروم"]),  # not cut at a joiner that is not seen
        ("שָׁלוֹם עולם", ["שָׁלוֹם", "עולם"]),
        ("Große STRASSE, große Straße", ["grosse", "strasse", "grosse", "strasse"]),
        ("cafe\u0301 CAFÉ Ｃａｆé", ["café"] * 3),
        ("한국어 문장을", ["한국어", "문장을"]),
        ("他在2024年用GPT模型。", ["他", "在", "2024", "年", "用", "gpt", "模", "型"]),
        ("東京タワーへ", ["東", "京", "タ", "ワ", "ー", "へ"]),
        ("ｶﾞｲﾄﾞ", ["ガ", "イ", "ド"]),
        ("กินข้าว ๑๒", ["กิ", "น", "ข้", "า", "ว", "๑๒"]),
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("one\u200btwo", ["one", "two"]),
        ("1\ufe0f\u20e3 👨\u200d👩\u200d👧 …!", ["1"]),
        ("", []),
    ],
)
def test_words_of_any_script(text, words):
    assert UnicodeTokenizer().tokenize(text) == words


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("他走了。“你好！”她说。好", ["他走了。", "“你好！”", "她说。", "好"]),
        ("真的？！走", ["真的？！", "走"]),
        ("好．３．５元．", ["好．", "３．５元．"]),
        ("वह गया। वह आया।।", ["वह गया।", "वह आया।।"]),
        ("هل جاء؟ نعم. لا", ["هل جاء؟", "نعم.", "لا"]),
        ("یہ ہے۔وہ", ["یہ ہے۔", "وہ"]),
        ("«Нет.» Потом ушёл.", ["«Нет.»", "Потом ушёл."]),
        ("3.5 руб.\nещё", ["3.5 руб.", "ещё"]),
    ],
)
def test_sentences_of_other_scripts(text, split):
    assert sentences(text, "unicode").split("\n") == split


def test_published_scores_know_sentences_of_english_only():
    assert sentences("他走了。好 वह गया। वह आया") == "他走了。好 वह गया। वह आया"


def test_english_is_scored_alike():
    texts = [text for text in ENGLISH if text.isascii()]
    assert [sentences(text, "unicode") for text in texts] == [sentences(text) for text in texts]
    pairs = texts, texts[1:] + texts[:1]
    found = [rouge_scores(*pairs, lambda n: None, name) for name in ("rouge_score", "unicode")]
    assert (found[0] == found[1]).all()
    assert found[0].any()


# references and summaries, divided by hand: a list of words per sentence
DIVIDED = {
    "ru": [
        ("Анна купила торт. Иван его съел!", ["анна купила торт", "иван его съел"]),
        ("Торт съел Иван. Анна купила его?", ["торт съел иван", "анна купила его"]),
    ],
    "hi": [
        ("राम ने किताब पढ़ी। सीता घर गई।", ["राम ने किताब पढ़ी", "सीता घर गई"]),
        ("सीता किताब पढ़ी। राम घर गई।", ["सीता किताब पढ़ी", "राम घर गई"]),
    ],
    "zh": [
        ("安娜买了蛋糕。他吃了3块！", ["安 娜 买 了 蛋 糕", "他 吃 了 3 块"]),
        ("他买了3块蛋糕！安娜吃了。", ["他 买 了 3 块 蛋 糕", "安 娜 吃 了"]),
    ],
    "ar": [
        ("اشترت آنا كعكة. هل أكلها علي؟", ["اشترت آنا كعكة", "هل أكلها علي"]),
        ("هل اشترت علي كعكة؟ أكلها آنا.", ["هل اشترت علي كعكة", "أكلها آنا"]),
    ],
}


@pytest.mark.parametrize("language", DIVIDED)
def test_scores_are_those_of_rouge_score_for_the_words(language):
    """Second calculation: each word by hand, under a name that rouge_score's tokenizer keeps."""
    (reference, its_words), (summary, other_words) = DIVIDED[language]
    (found,) = rouge_scores([reference], [summary], lambda n: None, "unicode")
    names: dict[str, str] = {}
    renamed = [
        "\n".join(
            " ".join(names.setdefault(word, f"w{len(names)}") for word in line.split())
            for line in lines
        )
        for lines in (its_words, other_words)
    ]
    expected = RougeScorer(list(ROUGE)).score(*renamed)
    assert found.tolist() == [expected[name].fmeasure for name in ROUGE]
    assert found[2] < found[3]  # the sentences are found, too
    # ROUGE-1 by its definition: twice the common words over all words
    one, other = (Counter(" ".join(lines).split()) for lines in (its_words, other_words))
    assert found[0] == pytest.approx(2 * (one & other).total() / (one + other).total())
    assert rouge_scores([reference], [summary], lambda n: None)[0, 1] == 0  # by letters a to z


def test_how_much_of_a_text_is_read():
    texts = ["Anna bought a cake.", "Анна купила торт.", "Иван 2024", "naïve", "👍🏽 ...", "किताब"]
    assert shares_read(texts, "rouge_score").tolist() == [1, 0, 0.5, 0.8, 0, 0]
    assert shares_read(texts, "unicode").tolist() == [1, 1, 1, 1, 0, 1]
    for name in ("rouge_score", "unicode"):  # as it is written, not its stem; down to one letter
        assert shares_read(["running", "x", "é"], name).tolist() == [1, 1, float(name == "unicode")]


def test_the_stemmer_is_asked_for_by_name_and_made_once():
    assert tokenizer_named(name="unicode", use_stemmer=False).tokenize("Äpfel") == ["äpfel"]
    plain = tokenizer_named("rouge_score", use_stemmer=False)
    assert plain is tokenizer_named("rouge_score", use_stemmer=False)
    assert plain is not tokenizer_named("rouge_score", use_stemmer=True)
    with pytest.raises(TypeError):
        UnicodeTokenizer(True)
