"""What README and docs tell people to type works, and what they point to exists."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from smolbench.cli import main
from smolbench.models.tiny.llama import tiny_model
from smolbench.utils.files import cache_root
from tests.helpers.command import rows

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
# pages of the site that are other files, or made of docstrings
OF_THE_SITE = {"index", "contributing", "changelog", "benchmarks", "api"}
PAGES = [
    README,
    *(page for page in sorted(ROOT.glob("docs/**/*.md")) if page.stem not in OF_THE_SITE),
    ROOT / "CONTRIBUTING.md",
]
LINES_OF_README = 150


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [
        line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()
    ]
    fits = [line.split("#")[0].strip() for line in lines if line.startswith("smolbench fit")]
    return list(dict.fromkeys(fits))


@pytest.mark.parametrize("command", commands())
def test_fit_command_is_understood(command, folder_here, capsys):
    arguments = shlex.split(command)[1:]
    if "--ckpt_path" in arguments:
        place = arguments.index("--ckpt_path")
        del arguments[place : place + 2]
    if "--print_config" not in arguments:
        arguments.append("--print_config")
    assert main(arguments) == 0
    assert "class_path" in capsys.readouterr().out


def test_the_quick_look_learns(folder_here):
    """By the recipe's own batches and rate, whose warm-up few rows would not outlast."""
    (look,) = (line for line in README.read_text().splitlines() if line.endswith("# a quick look"))
    arguments = shlex.split(look.split("#")[0])[1:]
    place = arguments.index("imdb_probe") + 1
    tiny = ["--config", "tiny", "--data.batch_size=90", "--model.lr=1e-4"]
    arguments[place:place] = [*tiny, "--trainer.log_every_n_steps=1", "--run_dir=run"]
    assert main(arguments) == 0
    steps = [row for row in rows(folder_here / "run") if row["train/lr"]]
    rates, losses = ([float(row[f"train/{name}"]) for row in steps] for name in ("lr", "loss"))
    assert len(steps) == 60
    assert max(rates) == pytest.approx(1e-4)
    assert rates.index(max(rates)) == 6
    assert sum(losses[-5:]) < sum(losses[:5])


def test_python_runs_as_it_stands(folder_here, capsys):
    """Except for what needs a network: the tokenizer is the tiny model's, the data the sample."""
    code = "".join(blocks(ROOT / "docs/python.md", "python"))
    tokenizer, data = '"HuggingFaceTB/SmolLM2-135M"', "IMDbDataModule("
    assert tokenizer in code
    assert data in code
    code = code.replace(tokenizer, repr(str(tiny_model(cache_root() / "models"))))
    code = code.replace(data, 'IMDbDataModule(source="sample", limit_train=64, limit_val=32, ')
    exec(compile(code, "python.md", "exec"), {})
    assert "cost/train_tokens_per_s" in capsys.readouterr().out
    assert (folder_here / "my_run" / "checkpoints" / "last.ckpt").is_file()


def test_the_notebook_runs_as_it_stands(folder_here, monkeypatch, capfd):
    """Without a network; commands in this process, which has imported what they need."""
    notebook = json.loads((ROOT / "docs/quickstart.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        code = "".join(cell["source"])
        for line in re.findall(r"^!smolbench (.*)$", code, flags=re.MULTILINE):
            assert main(shlex.split(line.removesuffix(" > /dev/null"))) == 0, line
        exec(compile(re.sub(r"(?m)^!.*$", "", code), "quickstart.ipynb", "exec"), names)
    assert names["results"]["test/n"] == 200
    assert len(names["predictions"]) == 200
    assert "imdb_logistic_regression+tiny" in capfd.readouterr().out  # the report


def test_nothing_tells_to_install_the_package_of_the_same_name():
    """``smolbench`` on PyPI is somebody else's."""
    texts = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "docs/quickstart.ipynb"]
    texts += [*ROOT.glob("smolbench/**/*.py"), *ROOT.glob("callbacks/*.py"), ROOT / "docs/conf.py"]
    wrong = re.compile(r"pip install (?:-\S+ )*[\"']?smolbench(?![-\w])")
    assert not [file for file in texts if wrong.search(file.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_points_to_exists(page):
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    here = [target for target in targets if "://" not in target]
    assert not [target for target in here if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_a_page_names_exist(page):
    """In backticks, from the project's root; ``<name>`` stands for one that is to be written."""
    named = re.findall(
        r"`((?:smolbench|callbacks|tests|configs|docs|benchmarks|\.ci|\.github)/[^`\s<>]+)`",
        page.read_text(encoding="utf-8"),
    )
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_readme_is_short_and_leads_to_every_page():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES_OF_README
    pages = [page.relative_to(ROOT).as_posix() for page in PAGES[1:]]
    assert not [page for page in pages if f"]({page})" not in text]
