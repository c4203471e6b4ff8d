"""The tables and the page of a sweep."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from smolbench.cli.sweep.space import read_space
from smolbench.cli.sweep.table import Result, best_of, number_of, write_tables
from smolbench.runs.record import RunRecord

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SEEDS = read_space(
    ["data.limit_train=100,1000", "seed_everything=0,1", "model.method=full,lora"], []
)


def result(number: int, point: dict[str, str], value: float | None, **facts) -> Result:
    status = "failed" if value is None else "finished"
    facts = {"val/f1_macro": value, **{key.replace("__", "/"): v for key, v in facts.items()}}
    error = "Out of | memory <b>." if value is None else None
    return Result(number, point, status, value, RunRecord(Path("elsewhere"), facts), error)


@pytest.fixture
def curve() -> list[Result]:
    values = [0.5, 0.6, 0.54, 0.8, 0.7, 0.9, 0.72, None]
    return [
        result(i, SEEDS.point(i), value, cost__fit_s=10.0 * (i + 1))
        for i, value in enumerate(values)
    ]


def test_figure_5(tmp_path):
    """Henderson et al. 2025: sorted by validation F1, with all its columns."""
    space = read_space(["model.lr=5e-5,1e-4", "data.batch_size=8,16"], [])
    published = [
        (0.839095, 0.8392, 1742.056741, 1.554688, {}),
        (0.8358, 0.835, 1668.280001, 0.511719, {}),
        (0.843577, 0.84, 1731.900387, 0.644531, {}),
        (
            0.847686,
            0.8478,
            1667.428003,
            0.929688,
            {"test/accuracy": 0.8414, "test/f1_macro": 0.8412},
        ),
    ]
    results = []
    for number, (f1, accuracy, seconds, delta, tested) in enumerate(published):
        facts = {"val/accuracy": accuracy, "cost/fit_s": seconds, "cost/rss_delta_mib": delta}
        found = result(number, space.point(number), f1, **facts, **tested)
        results.append(found)
    assert [r.number for r in best_of(results, "max")] == [3]
    assert [r.number for r in best_of(results, "min")] == [1]
    text = write_tables(tmp_path, "figure_5", space, results, "val/f1_macro", "max")
    lines = [
        [c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line
    ]
    heading = ["trial", "model.lr", "data.batch_size", "val/f1_macro", "val/accuracy"]
    heading += ["runtime, s", "memory delta, MiB", "test/accuracy", "test/f1_macro", "status"]
    assert lines[0] == heading
    assert lines[2:] == [
        ["003", "1e-4", "16", "0.8477", "0.8478", "1,667", "0.93", "0.8414", "0.8412", "finished"],
        ["002", "1e-4", "8", "0.8436", "0.8400", "1,732", "0.64", "", "", "finished"],
        ["000", "5e-5", "8", "0.8391", "0.8392", "1,742", "1.55", "", "", "finished"],
        ["001", "5e-5", "16", "0.8358", "0.8350", "1,668", "0.51", "", "", "finished"],
    ]


def test_summaries_are_shown_by_their_rouge(tmp_path):
    space = read_space(["model.lr=5e-5,1e-4"], [])
    tested = {"test/rouge1": 0.47, "test/rouge2": 0.23, "test/rougeL": 0.39}
    results = [
        result(0, space.point(0), 1.4, **{"val/loss": 1.4, "val/rouge1": 0.46, **tested}),
        result(1, space.point(1), 1.5, **{"val/loss": 1.5, "val/rouge1": 0.45}),
    ]
    text = write_tables(tmp_path, "summaries", space, results, "val/loss", "min")
    heading, _, first, second = (
        [c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line
    )
    best = dict(zip(heading, first, strict=True))
    assert best["val/loss"] == "1.4000"
    assert best["val/rouge1"] == "0.4600"
    assert [best[key] for key in tested] == ["0.4700", "0.2300", "0.3900"]
    assert dict(zip(heading, second, strict=True))["test/rouge1"] == ""


@pytest.mark.parametrize("mode", ["max", "min"])
def test_equal_combinations_are_equally_good_whatever_the_last_bits(tmp_path, mode):
    space = read_space(["model.lr=1e-3,1e-2", "seed_everything=0,1"], [])
    values = (0.5, 0.5, 0.33333334, 0.6666667)  # the latter two are 0.50000002 in the mean
    results = [result(n, space.point(n), value) for n, value in enumerate(values)]
    assert [r.number for r in best_of(results, mode)] == [0, 1]
    text = write_tables(tmp_path, "equal", space, results, "val/accuracy", mode)
    assert "Best by val/accuracy in the mean of 2 seeds: model.lr=1e-3; 1 more is as good." in text
    data = re.search(r'id="data">(.*?)</script>', (tmp_path / "results.html").read_text())
    assert len({row["worth"] for row in json.loads(data[1])["combinations"]["rows"]}) == 1


def test_the_best_in_the_mean_and_complete_ones_first(curve):
    best = best_of(curve, "max")
    assert {said["model.method"] for said in (r.point for r in best)} == {"full"}
    assert [r.number for r in best] == [4, 6]
    only = [r for r in curve if r.number in (5, 7)]
    assert [r.number for r in best_of(only, "max")] == [5]
    assert best_of([], "max") == []


@pytest.mark.parametrize(
    ("text", "number"), [("1e-4", 1e-4), ("x", None), ("inf", None), ("nan", None)]
)
def test_values_that_are_numbers(text, number):
    assert number_of(text) == number


def test_means_over_seeds_and_failures(tmp_path, curve):
    text = write_tables(tmp_path, "curve", SEEDS, curve, "val/f1_macro", "max")
    assert "7 of" not in text, "a failed trial is done, too"
    assert re.search(r"\| +1000 \| full +\| +2 \| +0.7100 ± 0.0141 \| +60.0 \|", text)
    assert re.search(r"\| +1000 \| lora +\| 1 of 2 \| +0.9000 \|", text)
    assert "Trial 007, data.limit\\_train".replace("\\", "") in text
    assert "Out of \\| memory \\<b\\>." in text
    page = (tmp_path / "results.html").read_text()
    assert "<b>" not in page
    assert "Out of | memory &lt;b&gt;." in page


def test_what_is_better_when_smaller_comes_first(tmp_path, curve):
    write_tables(tmp_path, "curve", SEEDS, curve, "val/f1_macro", "min")
    rows = (tmp_path / "results.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["0", "2", "1", "4", "6", "3", "5", "7"]
    page = (tmp_path / "results.html").read_text()
    assert '"falls": true' in page, "its Pareto front runs through the lowest"


def test_a_combination_that_lacks_a_seed_comes_after_the_complete_ones(tmp_path, curve):
    text = write_tables(tmp_path, "curve", SEEDS, curve, "val/f1_macro", "max")
    means = text.split("## Trials")[0].splitlines()
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in means if "|" in line][2:]
    assert [row[2] for row in rows] == ["2", "2", "2", "1 of 2"]
    assert rows[-1][3] == "0.9000", "the highest of all, of its one seed"


LOOK = """
<script>
const found = {};
const select = document.querySelector(".plot select");
found.axes = [...select.options].map((option) => option.textContent);
const look = () => ({
  points: document.querySelectorAll(".plot .point").length,
  lines: [...document.querySelectorAll(".plot .front")].map((p) => p.getAttribute("d")),
  said: document.querySelector(".said").textContent,
});
for (const option of select.options) {
  select.value = option.value;
  select.dispatchEvent(new Event("change"));
  found[option.value] = look();
}
document.querySelector(".plot .point").dispatchEvent(new Event("click"));
found.chosen = document.querySelector("tr.chosen").textContent;
const filter = document.getElementById("filter");
filter.value = "lora";
filter.dispatchEvent(new Event("input"));
found.count = document.getElementById("count").textContent;
const outcome = document.createElement("pre");
outcome.textContent = JSON.stringify(found);
document.body.append(outcome);
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize(("mode", "front"), [("max", 3), ("min", 1)])
def test_in_a_browser(tmp_path, curve, mode, front):
    write_tables(tmp_path, "curve", SEEDS, curve, "val/f1_macro", mode)
    page = tmp_path / "results.html"
    page.write_text(page.read_text().replace("</body>", f"{LOOK}</body>"))
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000",
        "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = json.loads(re.search(r"<pre>(.*)</pre>", done.stdout, flags=re.DOTALL)[1])
    assert found["axes"] == ["data.limit_train", "runtime, s"]
    over_rows = found["data.limit_train"]
    assert over_rows["points"] == 4
    assert len(over_rows["lines"]) == 2, "a curve of each method"
    assert all(line.count("L") == 1 for line in over_rows["lines"])
    assert found["runtime_s"]["said"].startswith("Pareto front: data.limit_train=100")
    assert found["runtime_s"]["said"].count("data.limit_train=") == front
    assert any(f"{mean:.4f}" in found["chosen"] for mean in (0.9, 0.71, 0.57, 0.7, 0.6, 0.52))
    assert found["count"] == "2 of 4 rows"
