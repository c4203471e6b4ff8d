from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from smolbench.errors import SmolbenchError
from smolbench.models.prompting.shots import choose_shots

LABELS = np.arange(60) % 3
NAMES = ("a", "b", "c")


def chosen(count, seed, text_of=str):
    return choose_shots(LABELS, NAMES, count, seed, text_of)


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_classes_are_balanced(count):
    rows = chosen(count, 0)
    assert len(set(rows)) == count
    counts = Counter(LABELS[rows].tolist())
    assert max(counts.values()) - min(counts.get(k, 0) for k in range(3)) <= 1


def test_examples_stand_in_no_order_of_their_classes():
    """They are drawn class by class in turns, but a prompt must not end each round alike."""
    orders = [LABELS[chosen(9, seed)].tolist() for seed in range(20)]
    in_turns = [order for order in orders if order[:3] == order[3:6] == order[6:]]
    assert len(in_turns) < 3
    assert len({tuple(order) for order in orders}) > 15
    # every class comes last in some prompts, and first
    for place in (0, -1):
        assert {order[place] for order in orders} == {0, 1, 2}


def test_a_seed_draws_the_same_again_and_another_seed_others():
    assert chosen(6, 1) == chosen(6, 1)
    assert chosen(6, 1) != chosen(6, 2)


def test_texts_that_cannot_stand_in_a_prompt_are_passed_over():
    def text_of(row):
        return {0: " ", 3: "with {text} in it"}.get(row, "fine")

    assert not {0, 3} & set(chosen(54, 0, text_of))
    with pytest.raises(SmolbenchError, match="too few training examples of the class 'a'"):
        chosen(60, 0, text_of)
