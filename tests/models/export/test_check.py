from __future__ import annotations

from pathlib import Path

import pytest
import torch

from smolbench.errors import SmolbenchError
from smolbench.models.export.check import PER_TOKEN, Expected, check_export

RUN = torch.tensor([[0.8, 0.2], [0.5004, 0.4996], [0.1, 0.9]])
NOWHERE = Path("nowhere")


def moved(by, row=0):
    """What the run says, but for one row, whose first class gets more."""
    found = RUN.clone()
    found[row] += torch.tensor([by, -by])
    return found


def compared(in_float32, in_bfloat16=None, run="float32", export="float32", **options):
    said = {torch.float32: in_float32, torch.bfloat16: in_bfloat16}
    expected = Expected(RUN, run, "texts", lambda loaded: loaded, **options)
    return check_export(expected, NOWHERE, lambda folder, dtype: said[dtype], export)


def test_in_float32_a_thousandth_is_allowed_and_written_down():
    check = compared(moved(0.0009))
    assert check.difference == pytest.approx(0.0009, abs=1e-6)
    assert (check.n, check.labels_differ, check.texts) == (3, 0, None)
    said = " ".join(check.lines())
    assert "on 3 texts" in said
    assert "differ by 0.0009 at most; allowed were 0.001" in said
    assert check.facts()["difference"] == check.difference
    assert compared(moved(-0.0009, row=1)).labels_differ == 1, "its margin is below a thousandth"


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (moved(0.002), "the probabilities differ by up to 0.002, where 0.001 can be rounding"),
        (moved(float("nan")), "differ by up to nan"),
        (RUN[:2], "differ by up to inf"),
        (RUN[:, :1], "differ by up to inf"),
    ],
)
def test_in_float32_more_is_refused(found, fault):
    with pytest.raises(SmolbenchError, match=rf"says something else .* 3 texts, .*{fault}"):
        compared(found)


def test_in_float32_another_choice_is_refused_where_the_margin_is_clear():
    run = torch.tensor([[0.5006, 0.4994]])
    expected = Expected(run, "float32", "texts", lambda loaded: loaded)
    with pytest.raises(SmolbenchError, match="choose differently where the margin"):
        check_export(expected, NOWHERE, lambda folder, dtype: run - torch.tensor([0.0009, -0.0009]))


def test_in_bfloat16_the_librarys_own_rounding_is_the_measure():
    """Four times as much as the export itself differs between the two formats."""
    check = compared(moved(0.039), moved(0.029), run="bfloat16")
    assert (check.difference, check.allowed) == pytest.approx((0.039, 0.04), abs=1e-6)
    with pytest.raises(SmolbenchError, match=r"by up to 0.041, where 0.04 can be rounding"):
        compared(moved(0.041), moved(0.031), run="bfloat16")
    assert "transformers' own bfloat16" in " ".join(check.lines())


def test_in_bfloat16_choices_are_counted_and_a_thousandth_is_always_allowed():
    check = compared(moved(0.0), moved(-0.0009, row=1), run="bfloat16", export="bfloat16")
    assert (check.allowed, check.labels_differ) == (pytest.approx(0.0036, abs=1e-5), 1)
    assert compared(moved(0.0009), moved(0.0009), run="bfloat16").allowed == 0.001


def test_texts_may_differ_where_ties_are_near_but_not_often():
    written = [str(n) for n in range(10)]
    options = {"written": written, "unit": PER_TOKEN}
    one_off, two_off = ["9", *written[1:]], ["9", "9", *written[2:]]
    check = compared(RUN, let_write=lambda loaded: one_off, **options)
    assert (check.texts, check.texts_differ) == (10, 1)
    with pytest.raises(SmolbenchError, match="2 of 10 texts that both wrote differ"):
        compared(RUN, let_write=lambda loaded: two_off, **options)
    rounded = compared(RUN, RUN, run="bfloat16", let_write=lambda loaded: two_off, **options)
    assert rounded.texts_differ == 2


def test_what_cannot_be_run_is_refused():
    def broken(folder, dtype):
        raise IndexError("index out of range\nin self")

    expected = Expected(RUN, "float32", "texts", lambda loaded: loaded)
    with pytest.raises(SmolbenchError, match=r"cannot be loaded again and run.*range in self"):
        check_export(expected, NOWHERE, broken)
