from __future__ import annotations

import re

import pytest

from smolbench.runs.recipes import CONFIGS, recipe_names
from smolbench.runs.report.published import FILE, published_figures

FIGURES = published_figures()


@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f"{f.recipe}-{f.metric}-{f.value}")
def test_a_figure_is_that_of_the_recipes_header(figure):
    assert figure.recipe in recipe_names()
    assert figure.source
    assert 0 < figure.value < 1
    if figure.model not in ("HuggingFaceTB/SmolLM2-360M", "HuggingFaceTB/SmolLM2-1.7B") or (
        figure.dataset != "Rowan/hellaswag"
    ):
        text = (CONFIGS / f"{figure.recipe}.yaml").read_text(encoding="utf-8")
        header = " ".join(line for line in text.splitlines() if line.startswith("#"))
        stated = {float(number) for number in re.findall(r"\d+\.\d+", header)}
        percent = {round(number / 100, 6) for number in stated}
        assert figure.value in stated | percent


def test_every_line_of_the_file_is_a_figure_and_none_stands_twice():
    assert len(FIGURES) == len(FILE.read_text(encoding="utf-8").splitlines()) - 1
    assert len(set(FIGURES)) == len(FIGURES)


def test_a_test_set_is_told_by_its_size():
    figure = next(f for f in FIGURES if f.recipe == "sentiment140_lora_opt-125m")
    assert figure.of_test_set(figure.dataset, 4_990, None)  # ten tweets were empty once cleaned
    assert not figure.of_test_set(figure.dataset, 359, None)
    assert not figure.of_test_set(figure.dataset, None, None)
    assert not figure.of_test_set("sample/sentiment140", 5_000, None)


def test_numbers_that_a_source_leaves_open_are_the_recipes():
    for figure in FIGURES:
        assert set(figure.unstated) <= {"n_train", "epochs", "n_test"}
        assert None not in [getattr(figure, name) for name in figure.unstated]
    quoted = [figure for figure in FIGURES if "quoted" in figure.note or "not named" in figure.note]
    assert quoted
    assert all({"n_train", "n_test"} <= set(figure.unstated) for figure in quoted)
