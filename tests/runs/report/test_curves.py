from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from smolbench.errors import SmolbenchError
from smolbench.runs.report.curves import Curve, draw, read_curves

METRICS = """\
step,epoch,train/loss,train/lr,val/loss,val/accuracy,val/accuracy_stderr,val/n
1,0,0.9,0.1,,,,
2,0,0.7,0.2,0.8,0.5,0.1,10
3,1,nan,0.2,,,,
4,1,0.5,0.1,0.6,0.75,0.1,10
"""


def test_metrics_by_split_loss_first_and_learning_rate_last(tmp_path):
    (tmp_path / "metrics.csv").write_text(METRICS)
    assert read_curves(tmp_path) == (
        Curve(
            "loss",
            (("train", ((1, 0.9), (2, 0.7), (4, 0.5))), ("val", ((2, 0.8), (4, 0.6)))),
        ),
        Curve("accuracy", (("val", ((2, 0.5), (4, 0.75))),)),
        Curve("lr", (("train", ((1, 0.1), (2, 0.2), (3, 0.2), (4, 0.1))),)),
    )


def test_long_trainings_are_thinned_out(tmp_path):
    lines = "".join(f"{n},{n * 0.5}\n" for n in range(5000))
    (tmp_path / "metrics.csv").write_text(f"step,train/loss\n{lines}")
    ((_, points),) = read_curves(tmp_path)[0].lines
    assert len(points) == 400
    assert points[0] == (0, 0)
    assert points[-1] == (4999, 2499.5)


@pytest.mark.parametrize("text", ["", "step,epoch\n", "a,b\n1,2\n", "step,train/loss\n1,0.5\n"])
def test_nothing_to_draw(tmp_path, text):
    assert read_curves(tmp_path) == ()
    (tmp_path / "metrics.csv").write_text(text)
    assert read_curves(tmp_path) == ()


def test_rows_of_another_length_are_read(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,train/loss\n1,0.5,9,9\n2\n3,0.25\n")
    assert read_curves(tmp_path)[0].lines == (("train", ((1, 0.5), (3, 0.25))),)


def test_a_damaged_file_is_a_sentence(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(b"step,train/loss\n1,\xff\n")
    with pytest.raises(SmolbenchError, match=r"metrics\.csv cannot be read"):
        read_curves(tmp_path)


def test_points_stand_where_their_values_do():
    curve = Curve('a "<b>', (("train", ((0, 0.0), (5, 0.5), (10, 1.0))), ("val", ((10, 0.5),))))
    svg = ElementTree.fromstring(draw(curve))
    lines = [e.get("points") for e in svg if e.tag.endswith("polyline")]
    assert [len(points.split()) for points in lines] == [3, 1]
    first, middle, last = (tuple(map(float, p.split(","))) for p in lines[0].split())
    assert first[0] < middle[0] < last[0]
    assert first[1] > middle[1] > last[1], "up is more"
    assert middle == pytest.approx([(a + b) / 2 for a, b in zip(first, last, strict=True)])
    assert svg.get("aria-label") == 'a "<b> over the steps'


def test_a_constant_has_a_place():
    svg = draw(Curve("lr", (("train", ((1, 0.1), (2, 0.1))),)))
    assert not re.search("nan|inf", svg)
