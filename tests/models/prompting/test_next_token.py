"""Scores behind prompts equal those of the plain Hugging Face model on the whole rows."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from smolbench.models.pretrained.language_model import LanguageModel, load_language_model
from smolbench.models.prompting.next_token import Prompted, first_answer
from tests.helpers.tiny import CAUSAL, VOCABULARY, tiny_language_model

SHARED = [7, 50, 60, 9, 11, 70, 80]
ROWS = [[20, 21, 22, 23, 24], [30], [40, 41, 42]]
ANSWERS = [[100], [101, 102, 103], [101, 104], [105]]


def plain(architecture):
    folder = tiny_language_model(architecture)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def prompted(architecture, shared=SHARED):
    backbone = LanguageModel(tiny_language_model(architecture), None, "float32")
    return Prompted(load_language_model(backbone, torch.float32), shared)


def padded():
    lengths = torch.tensor([len(row) for row in ROWS])
    ids = torch.zeros(len(ROWS), int(lengths.max()), dtype=torch.long)
    for n, row in enumerate(ROWS):
        ids[n, : len(row)] = torch.tensor(row)
    return ids, lengths


def expected(model, shared, row):
    """Log-probabilities of the next token of one whole row."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([shared + row])).logits[0, -1].log_softmax(dim=-1)


@pytest.mark.parametrize("shared", [SHARED, []], ids=["shared", "nothing shared"])
@pytest.mark.parametrize("architecture", CAUSAL)
def test_next_token(architecture, shared):
    model = plain(architecture)
    found = prompted(architecture, shared).next_token(*padded())
    assert found.shape == (len(ROWS), VOCABULARY)
    for n, row in enumerate(ROWS):
        torch.testing.assert_close(found[n], expected(model, shared, row), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shared", [SHARED, []], ids=["shared", "nothing shared"])
@pytest.mark.parametrize("architecture", CAUSAL)
def test_continuations(architecture, shared):
    model = plain(architecture)
    found = prompted(architecture, shared).continuations(*padded(), ANSWERS)
    for n, row in enumerate(ROWS):
        for c, answer in enumerate(ANSWERS):
            steps = [
                expected(model, shared, row + answer[:place])[token]
                for place, token in enumerate(answer)
            ]
            assert found[n, c].item() == pytest.approx(sum(steps).item(), abs=1e-4)


def test_the_head_sees_one_position_per_row():
    subject = prompted("llama")
    seen = []
    head = subject.model.get_output_embeddings()
    head.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].shape))
    subject.next_token(*padded())
    assert seen == [(len(ROWS), 16)]


def test_the_shared_beginning_is_run_once():
    subject = prompted("llama")
    seen = []
    subject.model.base_model.embed_tokens.register_forward_hook(
        lambda _, inputs, output: seen.append(tuple(inputs[0].shape))
    )
    for _ in range(2):
        subject.next_token(*padded())
    own = sum(len(row) for row in ROWS)  # neither the beginning nor any padding
    assert seen == [(1, own), (1, own)]


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "gpt_neo"])
def test_a_row_may_end_where_the_positions_do(architecture):
    """The padding of a short row behind it must not ask for more."""
    long = [(7 * n) % 390 + 5 for n in range(128 - len(SHARED) - 2)]
    rows, lengths = torch.zeros(2, len(long), dtype=torch.long), torch.tensor([len(long), 3])
    rows[0], rows[1, :3] = torch.tensor(long), torch.tensor(ROWS[2])
    found = prompted(architecture).continuations(rows, lengths, ANSWERS)
    model = plain(architecture)
    (answer,) = (answer for answer in ANSWERS if len(answer) == 3)
    for n, row in enumerate([long, ROWS[2]]):
        steps = [
            expected(model, SHARED, row + answer[:place])[token]
            for place, token in enumerate(answer)
        ]
        score = found[n, ANSWERS.index(answer)].item()
        assert score == pytest.approx(sum(steps).item(), abs=1e-4)


# -- the rule of the report ------------------------------------------------------------------------


def test_the_first_of_the_likeliest_tokens_that_stands_for_a_class():
    log_probs = torch.tensor([[-1.0, -2, -3, -4], [-4, -1, -2, -3], [-2, -4, -1, -3]])
    token_classes = torch.tensor([-1, 1, -1, 0])
    scores, unknown = first_answer(log_probs, token_classes, k=3, default=0)
    assert scores.argmax(dim=1).tolist() == [1, 1, 0]
    assert unknown.tolist() == [False, False, False]
    assert scores[1].tolist() == pytest.approx([-3, -1])
    scores, unknown = first_answer(log_probs, token_classes, k=1, default=0)
    assert unknown.tolist() == [True, False, True]
    assert scores.argmax(dim=1).tolist() == [0, 1, 0]
    _, unknown = first_answer(log_probs, token_classes, k=99, default=0)
    assert not unknown.any()


def test_unknown_may_stand_for_another_class():
    log_probs = torch.tensor([[-1.0, -2, -3]])
    scores, unknown = first_answer(log_probs, torch.tensor([-1, 1, 0]), k=1, default=1)
    assert unknown.all()
    assert scores.argmax(dim=1).tolist() == [1]
