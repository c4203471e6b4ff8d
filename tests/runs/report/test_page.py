from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from smolbench.runs.record import find_folders, read_records
from smolbench.runs.report.leaderboard import build_report
from smolbench.runs.report.page import PARTS, render
from tests.helpers.written_runs import write_run

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
RUNS = {
    "cheap": {"test__accuracy": 0.85, "cost__fit_s": 8.0, "cost__cache_s": None, "method": "bayes"},
    "middle": {"test__accuracy": 0.80, "cost__fit_s": 500.0, "cost__peak_rss_mib": 300.0},
    "dear": {"test__accuracy": 0.95, "cost__fit_s": 9000.0, "method": "full"},
    "failed": {"test__accuracy": 0.99, "status": "failed"},
}  # fmt: skip


class Page(HTMLParser):
    """Elements with their attributes, the text, and the tables of a page."""

    VOID = frozenset({"meta", "link", "input", "br"})

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.tables, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open[-2:]):
            self.tables[-1][-1][-1] += data
        elif self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


@pytest.fixture
def four(tmp_path):
    for name, changes in RUNS.items():
        write_run(tmp_path / "runs" / name, series_digest=name, **changes)
    return tmp_path


def rendered(folder):
    return render(build_report(read_records(find_folders([folder]))[0], 2.0))


def test_every_run_and_published_figure_is_in_the_table(four):
    write_run(four / "runs" / "untested", test__accuracy=...)
    page = Page(rendered(four))
    board, comparisons, beside, unscored = page.tables
    runs = [row[2] for row in board[1:]]
    assert {f"imdb_probe/{name}" for name in RUNS} < set(runs)
    assert "imdb_few_shot_smollm2-1.7b" in runs
    assert [row[0] for row in board[1:] if row[0]] == ["1", "2", "3"]
    assert len(comparisons) == 1 + 1  # one failed, and two are by other methods
    assert [line[-2] for line in beside[1:]] == ["method full", "method bayes"]
    assert unscored[1][0] == "imdb_probe/untested"
    assert "5 runs" in page.text


def test_nothing_is_fetched(four):
    text = rendered(four)
    for tag, attributes in Page(text).elements:
        assert tag not in ("iframe", "object", "embed", "img", "base", "form")
        assert "src" not in attributes
        href = attributes.get("href")
        assert href is None or href.startswith(("#", "data:"))
    for asked in ("url(", "@import", "fetch(", "XMLHttpRequest", "import("):
        assert asked not in text
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text


def test_the_plots_data_are_the_rows(four):
    text = rendered(four)
    plots = json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1]
    )
    (plot,) = plots.values()
    rows = {row["name"]: row for row in plot["rows"]}
    assert rows["imdb_probe/cheap"]["costs"]["training_s"] == {"value": 8.0, "said": "8.00"}
    assert rows["imdb_probe/cheap"]["kind"] == "run"
    assert rows["imdb_probe/failed"]["kind"] == "unranked"
    assert rows["imdb_probe"]["kind"] == "published"
    assert {cost["key"] for cost in plot["costs"] if cost["more"]} == {
        "cache_tokens_per_s",
        "test_samples_per_s",
    }
    ids = {attributes.get("id") for _, attributes in Page(text).elements}
    assert {row["id"] for row in plot["rows"]} <= ids


def test_what_stands_in_results_is_text_only(tmp_path):
    evil = "</script><script>alert(1)</script>"
    write_run(tmp_path / "a", recipe=evil, model__id=evil, method=evil, data__id=evil)
    text = rendered(tmp_path)
    assert "alert(1)</script>" not in text
    assert Page(text).tables[0][1][3] == evil
    assert len([tag for tag, _ in Page(text).elements if tag == "script"]) == 2


def test_each_run_has_its_details(tmp_path):
    write_run(
        tmp_path / "a",
        test__labels=["neg", "p|os"],
        test__confusion=[[1200, 34], [5, 678]],
        test__class_precision=[0.5, None],
        test__class_n=[1234, 683],
        packages__torch="2.9.0",
        prompt__example="Review:\n<b>",
    )
    write_run(tmp_path / "b", seed=1, test__labels=["a"], test__confusion=[["x", 1]])
    page = Page(rendered(tmp_path))
    _, _, classes, confusion = page.tables
    assert classes == [
        ["class", "precision", "examples"],
        ["neg", "0.5000", "1,234"],
        ["p|os", "", "683"],
    ]
    assert confusion == [
        ["true \\ predicted", "neg", "p|os"],
        ["neg", "1,200", "34"],
        ["p|os", "5", "678"],
    ]
    assert {"torch 2.9.0", "Review: <b>", "imdb_probe/a", "imdb_probe/b"} <= set(page.text)
    ids = {attributes.get("id") for _, attributes in page.elements}
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert links
    assert all(link.removeprefix("#") in ids for link in links)


def test_the_same_runs_are_the_same_page(four):
    assert rendered(four) == rendered(four)


def test_it_fits_phones_and_both_colour_schemes(four):
    text = rendered(four)
    assert 'name="viewport" content="width=device-width' in text
    css = (PARTS / "report.css").read_text()
    light, dark = (set(re.findall(r"--\w+(?=:)", part)) for part in css.split("@media (prefers", 1))
    assert light == dark  # a colour of one scheme only would be that of the other


CLICKS = """
<script>
const all = (selector) => [...document.querySelectorAll(selector)];
const rows = () => all(".board tr[id]").filter((row) => !row.hidden);
const names = () => rows().map((row) => row.cells[2].textContent);
const heading = (label) => all(".board th").find((cell) => cell.textContent === label);
const click = (label) => { heading(label).querySelector("button").click(); return names(); };
const change = (id, value) => {
  const input = document.getElementById(id);
  if (typeof value === "string") input.value = value; else input.checked = value;
  input.dispatchEvent(new Event(typeof value === "string" ? "input" : "change"));
  return names();
};
const said = () => document.querySelector(".said").textContent;
const found = {};
found.given = names();
found.unpublished = change("published", false);
found.dearest = click("fit + cache, s");
found.cheapest = click("fit + cache, s");
found.sorted = heading("fit + cache, s").getAttribute("aria-sort");
found.front = said();
const select = document.querySelector(".plot select");
select.value = "peak_rss_mib";
select.dispatchEvent(new Event("change"));
found.front_of_memory = said();
select.value = "test_samples_per_s";
select.dispatchEvent(new Event("change"));
found.front_of_speed = said();
found.ranked = change("unranked", false);
found.points = document.querySelectorAll(".plot .point").length;
found.filtered = change("filter", "BAYES");
found.count = document.getElementById("count").textContent;
document.querySelector(".plot .point").dispatchEvent(new Event("click"));
found.said = said();
found.chosen = document.querySelector("tr.chosen").cells[2].textContent;
const link = document.querySelector("tr.chosen a");
found.named = document.querySelector(link.getAttribute("href") + " summary").textContent;
all("details").forEach((one) => { one.open = true; });
found.overflow = document.documentElement.scrollWidth - window.innerWidth;
found.width = window.innerWidth;
const outcome = parent.document.createElement("pre");
outcome.textContent = JSON.stringify(found);
parent.document.body.append(outcome);
</script>
"""


def browsed(page, *options):
    """What the page's script has found, in a browser."""
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000",
        f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=2000", *options,
        "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return json.loads(re.search(r"<pre>(.*)</pre>", done.stdout, flags=re.DOTALL)[1])


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [390, 1300])
def test_in_a_browser(four, width):
    page = four / "page.html"
    clicked = html.escape(rendered(four).replace("</body>", f"{CLICKS}</body>"))
    # a window is never as narrow as a phone, a frame may be
    style = f"width: {width}px; height: 900px; border: 0"
    page.write_text(f'<meta charset="utf-8"><iframe style="{style}" srcdoc="{clicked}"></iframe>')
    found = browsed(page)
    cheap, middle, dear, failed = (f"imdb_probe/{name}" for name in RUNS)
    assert len(found["given"]) > 10
    assert found["unpublished"] == [dear, cheap, middle, failed]
    assert found["dearest"] == [dear, middle, failed, cheap]
    assert found["cheapest"] == found["dearest"][::-1]
    assert found["sorted"] == "ascending"
    assert found["front"] == f"Pareto front: {cheap}, {dear}"
    assert found["front_of_memory"] == f"Pareto front: {middle}, {dear}"
    assert found["front_of_speed"] == f"Pareto front: {dear}"
    assert found["ranked"] == [cheap, middle, dear]
    assert found["points"] == 3
    assert found["filtered"] == [cheap]
    assert found["count"].startswith("1 of ")
    assert found["said"].startswith(f"{cheap}: accuracy 0.8500 ± 0.0020; bayes")
    assert found["chosen"] == cheap
    assert found["named"] == cheap
    assert found["overflow"] <= 0
    assert found["width"] == width


LOOK = """
<script>
const colour = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
const found = { dark: matchMedia("(prefers-color-scheme: dark)").matches };
found.paper = colour("body", "backgroundColor");
found.band = colour("tr.published td", "backgroundColor");
found.on_paper = [colour("body", "color"), colour(".faint", "color"), colour("td a", "color"),
  colour("tr.unranked td", "color"), colour(".plot text", "fill"), colour(".dot", "fill")];
found.on_band = [colour("tr.published td", "color"), colour("th", "color"),
  colour("select", "color")];
const link = document.querySelector("td a");
const named = document.querySelector(link.getAttribute("href"));
found.open = [named.open];
addEventListener("hashchange", () => {
  found.open.push(named.open);
  found.facts = named.querySelector("dl").getBoundingClientRect().height;
  const outcome = document.createElement("pre");
  outcome.textContent = JSON.stringify(found);
  document.body.append(outcome);
});
link.click();
</script>
"""


def contrast(one, other):
    """The ratio of two colours' luminances, as WCAG 2 has it."""

    def luminance(colour):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, brighter = sorted((luminance(one), luminance(other)))
    return (brighter + 0.05) / (darker + 0.05)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_both_colour_schemes_can_be_read_and_a_name_opens_its_run(four, scheme):
    page = four / "page.html"
    page.write_text(rendered(four).replace("</body>", f"{LOOK}</body>"))
    number = ("dark", "light").index(scheme)  # as Chromium numbers them
    found = browsed(page, f"--blink-settings=preferredColorScheme={number}")
    assert found["dark"] == (scheme == "dark")
    assert found["paper"] == ("rgb(20, 23, 27)" if found["dark"] else "rgb(255, 255, 255)")
    assert min(contrast(colour, found["paper"]) for colour in found["on_paper"]) >= 4.5
    assert min(contrast(colour, found["band"]) for colour in found["on_band"]) >= 4.5
    assert found["open"] == [False, True]
    assert found["facts"] > 0
