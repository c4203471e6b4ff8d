from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from smolbench.cli.command_line import read_invocation
from smolbench.errors import SmolbenchError
from smolbench.runs.recipes import CONFIGS

IMDB = str(CONFIGS / "imdb_probe.yaml")


def make_run(recipe, started="2025-01-01T00:00:00+00:00", *, checkpoints=("best", "last"), **extra):
    """A run folder as a training leaves it; ``recipe`` is a folder below ``runs``."""
    run = Path("runs") / recipe / started.replace(":", "-")
    (run / "checkpoints").mkdir(parents=True)
    known = {"schema": 1, "recipe": recipe, "started_at": started, "attempts": 1, **extra}
    (run / "results.json").write_text(
        json.dumps({key: value for key, value in known.items() if value is not None})
    )
    (run / "config.yaml").write_text("model: {}\n")
    for name in checkpoints:
        (run / "checkpoints" / f"{name}.ckpt").write_bytes(b"weights")
    return run.absolute()


def read(subcommand, *arguments):
    return read_invocation(subcommand, list(arguments))


@pytest.fixture(autouse=True)
def _here(folder_here):
    """Every test has a working directory of its own."""


@pytest.mark.parametrize(
    "given",
    [
        ["--config", "imdb_probe"],
        ["--config=imdb_probe"],
        ["-c", "imdb_probe"],
        ["--config", "configs/imdb_probe.yaml"],
        ["--config=imdb_probe.yaml"],
    ],
)
def test_a_recipe_is_found_by_name_from_any_folder(given):
    call = read("fit", *given, "--model.lr", "3")
    assert call.argv == ["fit", "--config", IMDB, "--model.lr", "3"]
    assert call.recipe == "imdb_probe"
    assert not call.resumes


def test_a_file_goes_before_a_shipped_recipe():
    Path("imdb_probe").write_text("model: {}\n")
    assert read("fit", "--config", "imdb_probe").argv == ["fit", "--config", "imdb_probe"]


def test_an_overlay_has_a_stand_in_for_tasks_that_need_another_one():
    call = read("test", "--config=imdb_few_shot_smollm2-135m", "--config=tiny")
    assert call.argv[4].endswith("tiny/PromptTask.yaml")
    assert call.recipe == "imdb_few_shot_smollm2-135m+tiny"
    call = read("fit", "--config=imdb_probe", "--config=tiny")
    assert call.argv[4].endswith("configs/tiny.yaml")


def test_the_order_of_arguments_stays():
    call = read("fit", "--a=1", "--config=imdb_probe", "--b", "2", "--config", "tiny", "--c")
    tiny = str(CONFIGS / "tiny.yaml")
    assert call.argv == ["fit", "--a=1", "--config", IMDB, "--b", "2", "--config", tiny, "--c"]
    assert call.recipe == "imdb_probe+tiny"


def test_run_options_do_not_reach_lightning():
    call = read("fit", "--config=imdb_probe", "--runs_dir", "elsewhere", "--run_dir=here")
    assert call.argv == ["fit", "--config", IMDB]
    assert call.runs_dir == Path("elsewhere").absolute()
    assert call.run_dir == Path("here").absolute()


def test_all_spellings_of_a_folder_are_the_same_folder():
    run = make_run("imdb_probe")
    call = read("test", "--run_dir", f"runs/../{run.relative_to(Path.cwd())}/.")
    assert call.run_dir == run
    assert call.run.path == run
    checkpoint = read("test", "--ckpt_path", f"{run}/../{run.name}/checkpoints/best.ckpt")
    assert checkpoint.checkpoint == run / "checkpoints" / "best.ckpt"
    assert checkpoint.run.path == run


@pytest.mark.parametrize("option", ["--config", "--ckpt_path", "--run_dir", "--runs_dir", "-c"])
@pytest.mark.parametrize("behind", [[], ["--model.lr", "3"]])
def test_an_option_without_its_value(option, behind):
    with pytest.raises(SmolbenchError, match=r"--\w+ needs a value"):
        read("fit", "--config=imdb_probe", option, *behind)


def test_a_text_may_look_like_an_option():
    call = read(
        "predict", "--config=imdb_probe", "--ckpt_path=none", "--text", "--bad", "--text=-x"
    )
    assert call.texts == ["--bad", "-x"]


@pytest.mark.parametrize("option", ["--text", "--input", "--text_column", "--output"])
def test_options_of_predict_are_unknown_elsewhere(option):
    """They are left to the parser, which refuses them."""
    assert option in read("fit", "--config=imdb_probe", option, "x").argv
    assert (
        option not in read("predict", "--config=imdb_probe", "--ckpt_path=none", option, "x").argv
    )


def test_extend_needs_a_run():
    with pytest.raises(SmolbenchError, match="--ckpt_path last"):
        read("fit", "--config=imdb_probe", "--extend")
    make_run("imdb_probe")
    call = read("fit", "--config=imdb_probe", "--extend", "--ckpt_path=last")
    assert call.extend
    assert "--extend" not in call.argv


@pytest.mark.parametrize(
    "shown", ["--help", "-h", "--print_config", "--print_config=skip_default", "--model.help=X"]
)
def test_what_is_only_shown_needs_no_run(shown):
    assert read("test", shown).argv == ["test", shown]
    assert read("fit", "--ckpt_path=last", shown).checkpoint is None


def test_something_that_begins_like_help_is_not_help():
    with pytest.raises(SmolbenchError, match="no run"):
        read("test", "--helpful")


def test_unknown_recipe():
    with pytest.raises(SmolbenchError, match=r"'nope'.*neither a file nor a shipped recipe"):
        read("fit", "--config", "nope")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"model: [\n", r"bad\.yaml.*line 2"),
        (b"\xff\xfe", r"bad\.yaml.*utf-8"),
        (b"", r"bad\.yaml.*empty"),
        (b"- 1\n", r"bad\.yaml.*list"),
        (b"a: 1\n b: 2\n", r"bad\.yaml.*line 2"),
    ],
)
def test_a_broken_configuration_is_named(content, said):
    Path("bad.yaml").write_bytes(content)
    with pytest.raises(SmolbenchError, match=said):
        read("fit", "--config", "bad.yaml")


def test_fit_needs_a_recipe_or_a_model():
    with pytest.raises(SmolbenchError, match="needs --config RECIPE"):
        read("fit")
    with pytest.raises(SmolbenchError, match="needs --config RECIPE"):
        read("fit", "--model.lr", "3")
    assert read("fit", "--model", "ProbeTask", "--data", "IMDbDataModule").recipe == "custom"


# -- which run, which checkpoint ------------------------------------------------------------------


def test_plain_test_takes_the_newest_run_with_a_best_checkpoint():
    make_run("a", "2025-01-01T00:00:00+00:00")
    newest = make_run("b", "2025-03-01T00:00:00+00:00")
    make_run("c", "2025-04-01T00:00:00+00:00", checkpoints=("last",))
    make_run("b", "2025-05-01T00:00:00+00:00", attempts=None)  # a test of its own
    call = read("test")
    assert call.run.path == newest
    assert call.recipe == "b"
    own = str(newest / "config.yaml")
    best = str(newest / "checkpoints" / "best.ckpt")
    assert call.argv == ["test", "--config", own, "--ckpt_path", best]


def test_overrides_come_behind_the_runs_own_config():
    run = make_run("a")
    call = read("test", "--data.limit_test", "5")
    assert call.argv[:3] == ["test", "--config", str(run / "config.yaml")]
    assert call.argv[3:5] == ["--data.limit_test", "5"]


def test_a_named_recipe_means_its_own_newest_run():
    make_run("imdb_probe", "2025-01-01T00:00:00+00:00")
    meant = make_run("imdb_probe", "2025-02-01T00:00:00+00:00")
    make_run("imdb_probe+tiny", "2025-03-01T00:00:00+00:00")
    assert read("test", "--config=imdb_probe").run.path == meant
    assert read("fit", "--config=imdb_probe", "--ckpt_path=last").run.path == meant


def test_an_overlay_for_the_trainer_is_no_part_of_the_name():
    run = make_run("imdb_probe+tiny")
    call = read("test", "--config=imdb_probe", "--config=trainer/cpu", "--config=tiny")
    assert call.recipe == "imdb_probe+tiny"
    assert call.run.path == run


def test_a_runs_own_config_means_this_run():
    old = make_run("imdb_probe", "2025-01-01T00:00:00+00:00")
    make_run("imdb_probe", "2025-02-01T00:00:00+00:00")
    for arguments in (["test"], ["fit", "--ckpt_path=last"]):
        call = read(*arguments, "--config", str(old / "config.yaml"))
        assert call.run.path == old
        assert call.recipe == "imdb_probe"
    assert read("fit", "--config", str(old / "config.yaml")).run is None  # the same once more


def test_recipe_names_with_signs_of_a_pattern():
    Path("a[1]*.yaml").write_text("model: {}\n")
    run = make_run("a[1]*")
    make_run("a1", "2025-02-01T00:00:00+00:00")
    assert read("test", "--config", "a[1]*.yaml").run.path == run


def test_run_dir_is_where_last_and_best_are_read_from():
    make_run("b", "2026-01-01T00:00:00+00:00")
    run = make_run("a")
    for subcommand, options, name in [
        ("test", [], "best"),
        ("test", ["--ckpt_path=best"], "best"),
        ("test", ["--ckpt_path=last"], "last"),
        ("validate", [], "best"),
        ("predict", [], "best"),
        ("fit", ["--ckpt_path=last"], "last"),
    ]:
        call = read(subcommand, "--run_dir", str(run), *options)
        assert call.run.path == run
        assert call.checkpoint == run / "checkpoints" / f"{name}.ckpt"


def test_runs_dir_moves_everything():
    make_run("a")
    Path("runs").rename("moved")
    with pytest.raises(SmolbenchError, match="There is no run"):
        read("test")
    assert read("test", "--runs_dir=moved").run.path.parent == Path("moved/a").absolute()


def test_without_any_run_it_is_said_what_to_do():
    with pytest.raises(SmolbenchError, match=r"no run with a best checkpoint.*smolbench fit"):
        read("test")
    with pytest.raises(SmolbenchError, match=r"no run of imdb_probe below"):
        read("fit", "--config=imdb_probe", "--ckpt_path=last")
    call = read("test", "--config=imdb_probe")  # a task may need no checkpoint
    assert call.checkpoint is None
    assert "--ckpt_path none" in call.missing
    for asked in ("best", "last"):  # unless one is asked for
        with pytest.raises(SmolbenchError, match=f"no run with a {asked} checkpoint"):
            read("test", "--config=imdb_probe", f"--ckpt_path={asked}")


def test_an_older_run_answers_with_a_word(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("smolbench"), "propagate", True)
    older = make_run("a", "2025-01-01T00:00:00+00:00")
    newer = make_run("a", "2026-01-01T00:00:00+00:00", checkpoints=("last",))
    for subcommand, options in (("predict", []), ("test", ["--config=a.yaml"])):
        caplog.clear()
        Path("a.yaml").write_text("model: {}")
        assert read(subcommand, *options).run.path == older
        assert set(caplog.messages) == {
            f"The newest run, {newer}, has no best checkpoint: an older one is taken, {older}."
        }
    caplog.clear()
    assert read("fit", "--config=a.yaml", "--ckpt_path=last").run.path == newer
    assert caplog.messages == []


def test_a_damaged_results_file_is_passed_over_with_a_word(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("smolbench"), "propagate", True)
    older = make_run("a", "2025-01-01T00:00:00+00:00")
    newer = make_run("a", "2025-02-01T00:00:00+00:00")
    (newer / "results.json").write_text("{")
    with caplog.at_level("WARNING", logger="smolbench"):
        assert read("test").run.path == older
    assert str(newer) in caplog.text
    with pytest.raises(SmolbenchError, match=r"results\.json cannot be read"):
        read("test", "--run_dir", str(newer))


def test_a_run_without_config():
    run = make_run("a")
    (run / "config.yaml").unlink()
    with pytest.raises(SmolbenchError, match=r"no config\.yaml; name its recipe"):
        read("test")
    assert read("test", "--config=imdb_probe", "--run_dir", str(run)).run.path == run


def test_none_is_the_untrained_model():
    make_run("imdb_probe")
    call = read("test", "--config=imdb_probe", "--ckpt_path=none")
    assert call.untrained
    assert call.run is None
    assert call.checkpoint is None


def test_fit_with_none_is_a_fresh_start():
    make_run("imdb_probe")
    call = read("fit", "--config=imdb_probe", "--ckpt_path=none")
    assert (call.run, call.checkpoint, call.untrained) == (None, None, False)


def test_a_checkpoint_by_its_path():
    run = make_run("imdb_probe")
    file = run / "checkpoints" / "last.ckpt"
    call = read("test", "--ckpt_path", os.path.relpath(file))
    assert call.checkpoint == file
    assert call.run.path == run
    assert call.argv[:3] == ["test", "--config", str(run / "config.yaml")]
    call = read("fit", "--ckpt_path", str(file), "--run_dir", str(run))
    assert call.resumes


def test_a_checkpoint_from_elsewhere():
    Path("other.ckpt").write_bytes(b"")
    call = read("test", "--config=imdb_probe", "--ckpt_path=other.ckpt")
    assert call.run is None
    with pytest.raises(SmolbenchError, match="needs --config RECIPE"):
        read("test", "--ckpt_path=other.ckpt")
    with pytest.raises(SmolbenchError, match="does not lie in a run folder"):
        read("fit", "--config=imdb_probe", "--ckpt_path=other.ckpt")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nope.ckpt", "There is no checkpoint"),
        (".", "There is no checkpoint"),
        ("", "--ckpt_path needs a value"),
    ],
)
def test_a_checkpoint_that_does_not_exist(given, said):
    with pytest.raises(SmolbenchError, match=said):
        read("test", "--config=imdb_probe", f"--ckpt_path={given}")


# -- going on -------------------------------------------------------------------------------------


def test_training_does_not_go_on_from_weights_only():
    run = make_run("imdb_probe")
    for given in ("best", str(run / "checkpoints" / "best.ckpt")):
        with pytest.raises(SmolbenchError, match=r"weights only.*--ckpt_path last"):
            read("fit", "--config=imdb_probe", "--ckpt_path", given)


def test_a_run_killed_before_its_first_checkpoint_is_meant_too():
    make_run("imdb_probe", "2025-01-01T00:00:00+00:00")
    killed = make_run("imdb_probe", "2025-02-01T00:00:00+00:00", checkpoints=())
    call = read("fit", "--ckpt_path=last")
    assert call.run.path == killed
    assert call.checkpoint is None
    assert call.resumes


def test_a_test_on_its_own_is_nothing_to_go_on_from():
    run = make_run("imdb_probe", attempts=None, checkpoints=())
    for arguments in (["--run_dir", str(run)], []):
        with pytest.raises(SmolbenchError, match="There is no run"):
            read("fit", "--config=imdb_probe", "--ckpt_path=last", *arguments)


def test_training_goes_on_in_its_own_folder():
    run = make_run("imdb_probe")
    file = str(run / "checkpoints" / "last.ckpt")
    with pytest.raises(SmolbenchError, match="leave out --run_dir"):
        read("fit", "--ckpt_path", file, "--run_dir", "elsewhere")


def test_a_run_dir_that_is_a_file():
    Path("file").touch()
    with pytest.raises(SmolbenchError, match="file; name a folder"):
        read("fit", "--config=imdb_probe", "--run_dir=file")
