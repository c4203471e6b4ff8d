"""Every shipped recipe runs on the tiny model, every overlay fits onto a recipe."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import yaml

from smolbench.cli import main
from smolbench.errors import SmolbenchError
from smolbench.runs.recipes import CONFIGS, DEFAULTS, describe, recipe_names, resolve_config
from tests.helpers.command import QUIET, results

ROOT = Path(__file__).parents[1]
OVERLAYS = [name for name in recipe_names() if name.startswith("trainer/")]
RECIPES = [name for name in recipe_names() if name not in {"tiny", *OVERLAYS}]


UNTRAINED = ["hellaswag_smollm2", *(name for name in RECIPES if "_shot_" in name)]
"""Recipes that score a model as it comes."""


def header(name: str) -> str:
    lines = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    end = next(n for n, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.lstrip("# ") for line in lines[:end])


@pytest.fixture
def files(folder_here):
    """What recipes for a user's own files name."""
    with (folder_here / "reviews.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(200):
            word = "good" if number % 2 else "bad"
            writer.writerow([f"a {word} film, number {number}", "pos" if number % 2 else "neg"])
    return folder_here


def test_there_are_recipes():
    assert "imdb_probe" in RECIPES
    assert "trainer/cpu" in OVERLAYS


def test_the_link_in_the_package_is_the_folder():
    assert CONFIGS.resolve() == ROOT / "configs"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_parses_alone(capsys, folder_here, name):
    assert main(["fit", "--config", f"configs/{name}.yaml", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    written = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    for section in ("model", "data"):
        assert printed[section]["class_path"].endswith(written[section]["class_path"])
        for option, value in written[section].get("init_args", {}).items():
            assert printed[section]["init_args"][option] == value


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_on_the_tiny_model(capsys, files, name):
    overlay = str(ROOT / "configs" / "tiny.yaml")
    few = ["--data.limit_train=24", "--data.limit_test=12", "--data.limit_val=10"]
    few.append("--data.batch_size=12")  # two steps an epoch
    written = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    epochs = min(2, written.get("trainer", {}).get("max_epochs", 2))
    run = ["--config", name, "--config", overlay, *few, *QUIET, f"--trainer.max_epochs={epochs}"]
    if name not in UNTRAINED:
        assert main(["fit", *run]) == 0
    assert main(["test", *run]) == 0
    (folder,) = (path.parent for path in Path("runs").rglob("results.json"))
    found = results(folder)
    assert found["recipe"] == f"{name}+tiny"
    assert found["status"] == "finished"
    assert found["test/n"] == found["data/n_test"] > 0
    assert (folder / "predictions.parquet").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_is(name):
    said = header(name)
    assert name in UNTRAINED or f"smolbench fit  --config configs/{name}.yaml" in said
    assert f"smolbench test --config configs/{name}.yaml" in said
    assert "published" in said.lower()  # the figure and its source, or that there is none
    assert describe(name) == said.splitlines()[0]
    assert describe(name).endswith(".")


DABA = {"model.method": "full", "model.lr": 2e-5, "model.weight_decay": 0.01}
HENDERSON = {"data.downsample": 50_000, "trainer.max_epochs": 3, "model.lr": 1e-4}
HELLASWAG = {"model.r": None, "model.lora_alpha": 32, "model.objective": None}  # so 8 and lm


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("imdb_gpt2", {**DABA, "trainer.max_epochs": 15, "data.val_fraction": 0.1}),
        ("imdb_gpt_neo", {**DABA, "trainer.max_epochs": 15, "data.val_fraction": 0.1}),
        ("ag_news_gpt2", {**DABA, "trainer.max_epochs": 15}),
        ("ag_news_gpt_neo", {**DABA, "trainer.max_epochs": 50}),
        ("sentiment140_lora_opt-125m", {**HENDERSON, "data.batch_size": 16}),
        ("sentiment140_bitfit_opt-125m", {**HENDERSON, "data.batch_size": 8}),
        ("sentiment140_all_distill_opt-125m", {"data.downsample": None, "data.limit_test": 24_000}),
        ("hellaswag_lora_smollm2-135m", {**HELLASWAG, "model.method": "lora"}),
        ("hellaswag_qlora_smollm2-135m", {**HELLASWAG, "model.quantize": "adapted"}),
    ],
)
def test_what_is_published_of_an_experiment_is_what_its_recipe_runs(
    capsys, folder_here, name, published
):
    """Also where it is a default."""
    assert main(["fit", f"--config={name}", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    options = {"trainer": printed["trainer"]}
    options |= {section: printed[section]["init_args"] for section in ("model", "data")}
    for key, value in published.items():
        section, _, option = key.partition(".")
        assert options[section][option] == value, key


ASKED = "Only Answer if this Movie Review is Positive or Negative:"
SHOTS = f"""\
Movie Review: I loved this movie ! So good plot ! {ASKED} Positive
Movie Review: I hated this, could be a lot better {ASKED} Negative
Movie Review: This move was so good I would recommend to all my friends! {ASKED} Positive
"""


@pytest.mark.parametrize("size", ["135m", "360m", "1.7b"])
@pytest.mark.parametrize(("shots", "examples"), [("zero", ""), ("few", SHOTS)])
def test_prompts_are_the_reports_word_for_word(size, shots, examples):
    """Zwicker et al. (2024), section 2.2 and table 1."""
    file = CONFIGS / f"imdb_{shots}_shot_smollm2-{size}.yaml"
    options = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]["init_args"]
    assert options["template"] == f"{examples}Movie Review: {{text}} {ASKED}"
    assert options["label_words"] == {"neg": "Negative", "pos": "Positive"}
    assert options["unknown_as"] == "neg"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_holds_only_what_differs_from_the_defaults(name):
    written = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert list(written) == ["model", "data", *(["trainer"] if name not in UNTRAINED else [])]
    defaults = yaml.safe_load(DEFAULTS.read_text())["trainer"]
    assert not [
        key for key, value in written.get("trainer", {}).items() if defaults.get(key) == value
    ]
    assert not {"accelerator", "devices", "strategy", "precision"} & set(written.get("trainer", {}))


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_fits_onto_a_recipe(capsys, folder_here, name):
    assert main(["fit", "--config=imdb_probe", "--config", name, "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)["trainer"]
    written = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert list(written) == ["trainer"]
    for option in ("accelerator", "devices", "precision"):
        assert printed[option] == written["trainer"][option]
    assert printed["max_epochs"] == 10  # the recipe's


@pytest.mark.parametrize("name", ["tiny", *OVERLAYS])
def test_an_overlay_says_what_it_is(name):
    said = header(name)
    assert "smolbench fit" in said
    assert describe(name).endswith(".")


def test_the_defaults_are_packaged_and_applied(capsys, folder_here):
    assert DEFAULTS.is_file()
    assert DEFAULTS.parent == ROOT / "smolbench"
    packaged = (ROOT / "pyproject.toml").read_text()
    assert '"defaults.yaml"' in packaged
    defaults = yaml.safe_load(DEFAULTS.read_text())
    for subcommand in ("fit", "test", "validate", "predict"):
        assert main([subcommand, "--config=imdb_probe", "--print_config"]) == 0
        printed = yaml.safe_load(capsys.readouterr().out)
        assert printed["trainer"].items() >= defaults["trainer"].items()
    assert main(["fit", "--config=imdb_probe", "--trainer.logger=true", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["logger"] is True


def test_a_copied_recipe_is_a_recipe_of_its_own(folder_here):
    shutil.copy(CONFIGS / "imdb_probe.yaml", "mine.yaml")
    assert resolve_config("mine.yaml") == Path("mine.yaml")
    assert resolve_config("configs/imdb_probe.yaml") == CONFIGS / "imdb_probe.yaml"


def test_what_may_have_been_meant_is_named(folder_here):
    shutil.copy(CONFIGS / "imdb_probe.yaml", "mine.yaml")
    with pytest.raises(SmolbenchError, match=r"Meant may be mine\.yaml.*; `smolbench recipes`"):
        resolve_config("mine")
    with pytest.raises(SmolbenchError, match="Meant may be imdb_probe"):
        resolve_config("imbd_probe")
