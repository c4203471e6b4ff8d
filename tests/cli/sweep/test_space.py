from __future__ import annotations

import math

import pytest

from smolbench.cli.sweep.space import parsed, read_space, said, slug
from smolbench.errors import SmolbenchError


def test_a_grid_is_every_combination_in_the_order_given():
    space = read_space(["model.lr=5e-5,1e-4", "data.batch_size=8,16"], [])
    assert space.size == 4
    assert [said(point) for point in space.grid()] == [
        "model.lr=5e-5 data.batch_size=8",
        "model.lr=5e-5 data.batch_size=16",
        "model.lr=1e-4 data.batch_size=8",
        "model.lr=1e-4 data.batch_size=16",
    ]
    for index, point in enumerate(space.grid()):
        params = space.params(point)
        assert space.index(params) == index
        assert space.texts(params) == point


def test_values_may_be_lists_and_keys_may_have_dashes():
    space = read_space(["--model.shot_seeds=[0,1],[2,3]", "model.r=null,8"], [])
    assert [tuple(point.values()) for point in space.grid()] == [
        ("[0,1]", "null"),
        ("[0,1]", "8"),
        ("[2,3]", "null"),
        ("[2,3]", "8"),
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [("5e-5", 5e-5), ("8", 8), ("true", True), ("null", None), ("nan", "nan"), ("[1]", "[1]")],
)
def test_values(text, value):
    assert parsed(text) == value
    assert type(parsed(text)) is type(value)


@pytest.mark.parametrize(
    ("grids", "ranges", "sentence"),
    [
        ([], [], "nothing to sweep"),
        (["model.lr"], [], "must have the form KEY=VALUE,VALUE"),
        (["=3"], [], "must have the form"),
        (["model.lr="], [], "must have the form"),
        (["model.lr=1,,2"], [], "has an empty value"),
        (["model.lr=5e-5,0.00005"], [], "has the value 0.00005 twice"),
        (["model.lr=1", "model.lr=2"], [], "model.lr is swept twice"),
        (["model.lr=1"], ["model.lr=1:2"], "model.lr is swept twice"),
        ([], ["model.lr=1"], "must be two numbers"),
        ([], ["model.lr=a:b"], "must be two numbers"),
        ([], ["model.lr=1:2:lin"], "must be two numbers"),
        ([], ["model.lr=2:1"], "must rise"),
        ([], ["model.lr=0:1:log"], "must rise and lie above 0"),
    ],
)
def test_what_is_refused(grids, ranges, sentence):
    with pytest.raises(SmolbenchError, match=sentence):
        read_space(grids, ranges)


def test_random_points_are_the_same_for_a_seed_and_more_of_them_begin_the_same():
    space = read_space(["data.batch_size=8,16,32"], ["model.lr=1e-5:1e-3:log", "model.r=1:4"])
    assert space.size is None
    few, many = space.drawn(20, seed=1), space.drawn(40, seed=1)
    assert many[:20] == few
    assert space.drawn(20, seed=2) != few
    points = [point for _, point in many]
    assert all(1e-5 <= float(point["model.lr"]) <= 1e-3 for point in points)
    below = sum(float(point["model.lr"]) < 1e-4 for point in points)
    assert 10 <= below <= 30, "as many per decade"
    assert {point["model.r"] for point in points} == {"1", "2", "3", "4"}
    for point in points:
        assert space.texts(space.params(point)) == point


def test_random_points_of_a_grid_do_not_repeat():
    space = read_space(["a=1,2,3", "b=1,2,3"], [])
    drawn = space.drawn(6, seed=0)
    assert len({index for index, _ in drawn}) == 6
    assert all(space.point(index) == point for index, point in drawn)
    assert len(space.drawn(100, seed=0)) == 9


def test_random_whole_numbers_do_not_repeat():
    space = read_space(["b=x,y"], ["a=1:4", "c=1:9:log"])
    assert space.size is None
    assert space.distinct == 2 * 4 * 9
    drawn = [tuple(point.values()) for _, point in space.drawn(50, seed=0)]
    assert len(set(drawn)) == 50
    assert len(space.drawn(1000, seed=0)) == 72
    assert read_space([], ["a=0.5:4"]).distinct is None


def test_the_ends_of_a_logarithmic_range_have_as_large_a_share_as_by_optuna():
    optuna = pytest.importorskip("optuna")
    space = read_space([], ["n=1:4:log"])
    counts = dict.fromkeys("1234", 0)
    for seed in range(4000):
        counts[space.drawn(1, seed)[0][1]["n"]] += 1
    width = math.log(4.5) - math.log(0.5)
    for n, count in counts.items():
        share = (math.log(int(n) + 0.5) - math.log(int(n) - 0.5)) / width
        assert count / 4000 == pytest.approx(share, abs=0.025), n
    sampler = optuna.samplers.RandomSampler(seed=0)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler)
    asked = [study.ask().suggest_int("n", 1, 4, log=True) for _ in range(500)]
    assert asked.count(1) / 500 == pytest.approx(counts["1"] / 4000, abs=0.06)


def test_probes_have_every_value_once():
    space = read_space(["a=1,2", "b=x,y"], ["c=0.5:2"])
    probes = space.probes()
    assert [option for option, _ in probes] == ["a=1", "a=2", "b=x", "b=y", "c=0.5", "c=2"]
    assert probes[3][1] == {"a": "1", "b": "y", "c": "0.5"}


def test_names_of_folders():
    assert slug({"model.lr": "5e-5", "data.batch_size": "8"}) == "lr=5e-5,batch_size=8"
    assert slug({"model.backbone": "facebook/opt 125m"}) == "backbone=facebook-opt-125m"
    assert slug({"a": "../../x"}) == "a=..-..-x"
    assert len(slug({"a": "x" * 500})) == 80
    assert math.isfinite(float(parsed("1e308")))
