from __future__ import annotations

import pytest

from smolbench.errors import SmolbenchError
from smolbench.models.choice.conventions import ChoiceEncoder, word
from tests.helpers.tiny import EOS, tiny_tokenizer

ARTICLE = {
    "activity_label": "Home and Garden",
    "ctx_a": "[header] How to mow [title] Start early. [step] Mow  on.",
    "ctx_b": "",
    "ctx": "[header] How to mow [title] Start early. [step] Mow  on.",
    "endings": ["[substeps] Go on.", "Stop  here.", " Rest.", "Naïve é."],
}
VIDEO = {
    "activity_label": "Washing a car",
    "ctx_a": "A man sprays a car.",
    "ctx_b": "then, McDonald",
    "ctx": "A man sprays a car. then, McDonald",
    "endings": [", the man rests.", "he dries it.", "it rains.", "a dog barks."],
}


def test_lm_eval_strips_and_removes_marks():
    question = word("lm_eval", ARTICLE)
    assert question.context == "Home and Garden: How to mow. Start early. Mow on."
    assert question.endings == ("  Go on.", " Stop here.", " Rest.", " Naïve é.")
    assert question.lengths == (7, 10, 5, 8)  # characters, without the blank that joins
    assert question.n_bytes == (7, 10, 5, 10)
    # capitalize() lowers the rest
    expected = "Washing a car: A man sprays a car. Then, mcdonald"
    assert word("lm_eval", VIDEO).context == expected


def test_smollm2_keeps_blanks():
    question = word("smollm2", ARTICLE)
    assert question.context == "Home and Garden: How to mow. Start early. Mow on. "
    assert question.endings[2] == "  Rest."
    assert question.lengths == (7, 10, 6, 8)
    assert word("smollm2", VIDEO).context.endswith("mcdonald ")


def test_llm_c_takes_the_raw_text_and_divides_by_tokens():
    question = word("llm_c", VIDEO)
    assert question.context == VIDEO["ctx"]
    assert question.endings[0] == " , the man rests."
    assert question.lengths is None
    encoder = ChoiceEncoder(tiny_tokenizer("gpt2"), "llm_c", 500)
    encoded = encoder.encode({name: [value] for name, value in VIDEO.items()})
    assert encoded["lengths"] == encoded["ending_tokens"]


@pytest.mark.parametrize("convention", ["lm_eval", "smollm2", "llm_c"])
@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_ids_are_those_of_context_and_endings(kind, convention):
    tokenizer = tiny_tokenizer(kind)
    encoder = ChoiceEncoder(tokenizer, convention, 500)
    rows = [ARTICLE, VIDEO]
    encoded = encoder.encode({name: [row[name] for row in rows] for name in ARTICLE})
    for number, row in enumerate(rows):
        question = word(convention, row)
        ids, sizes = encoded["input_ids"][number], encoded["ending_tokens"][number]
        start = len(ids) - sum(sizes)
        context = ids[:start]
        assert (context[0] == EOS) == (kind == "opt")
        for ending, size in zip(question.endings, sizes, strict=True):
            whole = tokenizer.decode([*context, *ids[start : start + size]])
            assert whole.removeprefix("</s>") == question.context + ending
            start += size


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_an_ending_behind_an_empty_context_is_scored_whole(kind):
    tokenizer = tiny_tokenizer(kind)
    row = {**VIDEO, "activity_label": "[mark", "ctx_a": "a", "ctx_b": "b]"}
    assert word("lm_eval", row).context == ""
    encoded = ChoiceEncoder(tokenizer, "lm_eval", 500).encode({k: [v] for k, v in row.items()})
    text = "".join(f" {ending}" for ending in row["endings"])
    start = "</s>" if kind == "opt" else tokenizer.bos_token
    assert tokenizer.decode(encoded["input_ids"][0]) == start + text


def test_solved_examples_stand_in_front():
    tokenizer = tiny_tokenizer("gpt2")
    encoder = ChoiceEncoder(tokenizer, "lm_eval", 500, [{**VIDEO, "label": 3}])
    assert encoder.prompt == f"{word('lm_eval', VIDEO).context} a dog barks.\n\n"
    encoded = encoder.encode({name: [value] for name, value in ARTICLE.items()})
    text = tokenizer.decode(encoded["input_ids"][0])
    assert text.startswith(encoder.prompt + word("lm_eval", ARTICLE).context)
    shared = encoded["shared"][0]
    assert 0 < shared <= len(encoder.prompt_ids)
    assert encoded["input_ids"][0][:shared] == encoder.prompt_ids[:shared]
    assert encoder.key() != ChoiceEncoder(tokenizer, "lm_eval", 500).key()


def test_an_ending_longer_than_the_model_reads_is_refused():
    encoder = ChoiceEncoder(tiny_tokenizer("gpt2"), "lm_eval", 5)
    with pytest.raises(SmolbenchError, match=r"The ending ', the man rests\.' has \d+ tokens"):
        encoder.encode({name: [value] for name, value in VIDEO.items()})
