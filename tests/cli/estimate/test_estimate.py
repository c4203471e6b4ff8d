"""``smolbench fit --estimate``, through the command line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import smolbench.cli.estimate.command
from smolbench.cli import main
from smolbench.cli.estimate.command import EstimateCLI
from smolbench.cli.estimate.cost import Estimate, Measured, estimate_of
from smolbench.cli.estimate.planned import Planned
from smolbench.cli.estimate.rehearsal import EVALUATED, STEPS, WARM_UP, Part, Rehearsal
from smolbench.cli.estimate.text import duration
from smolbench.data.batching import BatchPlan
from smolbench.utils.extrapolate import Span
from tests.helpers.command import FEW, QUIET

TUNE = [
    "--config=imdb_gpt2",
    "--config=tiny",
    "--data.limit_train=64",
    "--data.limit_val=24",
    "--data.limit_test=40",
    "--data.val_fraction=0.2",
    "--data.batch_size=8",
    "--model.warmup_steps=0",
    "--trainer.log_every_n_steps=1",
    "--trainer.max_epochs=2",
    *QUIET,
]


@pytest.fixture
def estimated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Calls the command and returns what it has found; nothing may be left behind."""
    monkeypatch.chdir(tmp_path)
    found: list[Estimate] = []
    printed = smolbench.cli.estimate.command.print_estimate

    def keep(estimate: Estimate, processes: int, folder: Path) -> None:
        found.append(estimate)
        printed(estimate, processes, folder)

    monkeypatch.setattr(smolbench.cli.estimate.command, "print_estimate", keep)
    monkeypatch.setattr(EstimateCLI, "_tested_alone", lambda _: {})  # takes seconds, see below

    def call(*arguments: str) -> Estimate:
        before = sorted(tmp_path.rglob("*"))
        assert main(["fit", *arguments, "--estimate"]) == 0
        assert sorted(tmp_path.rglob("*")) == before
        return found[-1]

    return call


def written(run: Path) -> int:
    return sum(path.stat().st_size for path in run.rglob("*") if path.is_file())


@pytest.mark.parametrize("recipe", [[*FEW, "--trainer.max_epochs=3"], TUNE], ids=["probe", "tune"])
def test_the_disk_is_what_a_run_takes(recipe, estimated, tmp_path) -> None:
    found = estimated(*recipe)
    assert main(["fit", *recipe, "--run_dir=run"]) == 0
    assert main(["test", "--run_dir=run", "--latency.examples=0"]) == 0
    run = tmp_path / "run"
    for name in ("best.ckpt", "last.ckpt"):
        size = (run / "checkpoints" / name).stat().st_size
        assert found.run_folder[name] == pytest.approx(size, rel=0.02)
    assert found.run_folder_bytes == pytest.approx(written(run), rel=0.05)


def test_a_fine_tuning(estimated, capsys) -> None:
    found = estimated(*TUNE)
    assert (found.steps, found.epochs, found.validations) == (16, 2, 2)
    lines = {line.name: line.span for line in found.fit}
    assert set(lines) == {"preparation", "training steps", "validation", "checkpoints"}
    assert all(0 <= span.low <= span.value <= span.high for span in lines.values())
    assert all(span.value > 0 for span in lines.values())
    assert found.fit_s.value == pytest.approx(sum(span.value for span in lines.values()))
    assert found.test_s.value > 0
    assert any(name == "resident, fit" and mib > 0 for name, mib, _ in found.memory)
    said = capsys.readouterr().out
    assert "Estimate of imdb_gpt2+tiny: 16 steps, 2 epochs" in said
    assert "4 of 8 steps timed" in said


def test_the_memory_of_the_test_is_that_of_a_process_of_its_own(
    monkeypatch, tmp_path, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    ballast = np.ones(300 << 17)  # 300 MiB that no process of its own has
    assert main(["fit", *TUNE, "--estimate"]) == 0
    said = capsys.readouterr().out
    here, alone = (
        float(mib.replace(",", "")) for mib in re.findall(r"resident, +([\d,]+) MiB", said)
    )
    assert alone < here - 0.8 * ballast.nbytes / 2**20
    assert "in the training's process" not in said


def test_a_run_is_not_found_after_it(estimated, capsys) -> None:
    estimated(*TUNE)
    assert main(["test"]) == 2
    assert main(["fit", *TUNE, "--ckpt_path=last"]) == 2
    assert capsys.readouterr().err.count("There is no run") == 2


def test_frozen_passes_are_read_in_part_and_not_kept(estimated, tmp_path, capsys) -> None:
    own = [*FEW, f"--data.cache_dir={tmp_path / 'cache'}", "--trainer.max_epochs=2"]
    assert main(["fit", *own, "--estimate"]) == 0  # what is encoded stays in the cache
    assert not (tmp_path / "cache" / "features").exists()
    found = estimated(*own)
    names = {line.name for line in found.fit}
    assert {"tiny reads train", "tiny reads val"} < names
    assert main(["fit", *own, "--run_dir=run"]) == 0
    entries = (tmp_path / "cache" / "features").glob("*/outputs.f32")
    sizes = sorted(path.stat().st_size for path in entries)
    expected = [found.caches[f"tiny reads {split}"] for split in ("train", "val")]
    assert sizes == sorted(expected)
    again = estimated(*own)
    kept = {line.name: line for line in again.fit}["tiny reads train"]
    assert kept.span == Span.exactly(0.0)
    assert "kept from an earlier run" in kept.note


SMALL = ["--data.limit_train=16", "--data.limit_val=8", "--data.limit_test=8", *QUIET]


@pytest.mark.parametrize(
    "recipe",
    [
        ["--config=imdb_lora_smollm2-135m", "--trainer.accumulate_grad_batches=2"],
        ["--config=imdb_head_smollm2-135m"],
        ["--config=imdb_cnn"],
        ["--config=sentiment140_distill_opt-125m"],
        ["--config=samsum_lora_flan-t5-base"],
        ["--config=hellaswag_lora_smollm2-135m"],
        ["--config=imdb_gpt2", "--data.batch_size=auto", "--data.effective_batch_size=8",
         "--trainer.accumulate_grad_batches=1"],
    ],
    ids=lambda recipe: recipe[0].removeprefix("--config="),
)  # fmt: skip
def test_every_kind_of_task(recipe: list[str], estimated) -> None:
    found = estimated(recipe[0], "--config=tiny", *recipe[1:], *SMALL)
    assert found.fit_s.value > 0
    assert found.test_s.value > 0
    assert found.run_folder["last.ckpt"] > 0


def test_remarks(estimated) -> None:
    plateau = "--trainer.callbacks+=TrainingPlateau"
    clock = "--trainer.max_time=00:01:00:00"
    found = estimated(*TUNE, plateau, clock)
    said = " ".join(found.remarks)
    assert "All epochs are counted" in said
    assert "trainer.max_time" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config=imdb_naive_bayes", "--config=tiny", *QUIET], "nothing to extrapolate"),
        ([*TUNE, "--ckpt_path=last"], "leave out --ckpt_path"),
        ([*TUNE, "--run_dir=here"], "leave out --run_dir"),
        ([*TUNE, "--trainer.fast_dev_run=true"], "fast_dev_run"),
        ([*TUNE, "--trainer.limit_train_batches=0"], "data.limit_train"),
        (["--config=imdb_zero_shot_smollm2-135m", "--config=tiny", *QUIET], "nothing to train"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals(arguments, sentence, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *arguments, "--estimate"]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_part_stands_for_the_whole() -> None:
    lengths = np.random.default_rng(0).integers(5, 500, 4000)
    plan = BatchPlan(lengths, 8, shuffle=True, seed=1)
    rehearsal = Rehearsal()
    chosen = rehearsal.part_of("train", plan, 2)
    part = rehearsal.parts["train"]
    assert len(chosen) == (WARM_UP + STEPS) * 2 == len(part.sizes)
    assert part.size == sum(plan.sizes())
    assert part.sizes[0] == max(plan.sizes())  # the peak of memory shows at once
    timed = part.sizes[part.untimed :]
    assert np.mean(timed) == pytest.approx(np.mean(plan.sizes()), rel=0.05)
    sizes = [len(rows) * lengths[rows].max() for rows in chosen.batches()]
    assert sizes == part.sizes
    whole = BatchPlan(lengths, 8, shuffle=False, seed=1)
    assert len(rehearsal.part_of("test", whole, 1)) == EVALUATED
    assert rehearsal.parts["test"].batches == len(whole)
    assert rehearsal.parts["test"].size == sum(whole.sizes())


def test_a_short_epoch_is_run_as_it_is() -> None:
    plan = BatchPlan(12, 4, shuffle=True, seed=0)
    rehearsal = Rehearsal()
    chosen = rehearsal.part_of("train", plan, 1)
    assert [list(rows) for rows in chosen.batches()] == [list(rows) for rows in plan.batches()]
    assert rehearsal.parts["train"].untimed == 1


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_time_is_linear_in_epochs(epochs: int, tmp_path: Path) -> None:
    train = Part(batches=100, size=1000.0, sizes=[10.0] * 25, untimed=5, unit=1)
    val = Part(batches=10, size=200.0, sizes=[20.0] * 5, untimed=0, unit=1, total_s=6.0)
    for _ in range(20):
        train.timed.add(10.0, 0.5)
    for _ in range(5):
        val.timed.add(20.0, 1.0)
    measured = Measured(
        parts={"train": train, "val": val},
        passes=[],
        accumulate=1,
        preparation_s=3.0,
        encoded_bytes=0,
        write_s={"last": [0.1], "best": [0.2]},
        save_every_s=600.0,
        folder=tmp_path,
    )
    options = {"max_epochs": epochs, "max_steps": -1, "max_time": None, "log_every_n_steps": 10}
    intervals = {"check_val_every_n_epoch": 1, "val_check_interval": None}
    found = estimate_of("recipe", Planned.of({**options, **intervals}), measured)
    lines = {line.name: line.span.value for line in found.fit}
    assert lines["training steps"] == pytest.approx(epochs * 100 * 0.5)
    assert lines["validation"] == pytest.approx(epochs * 10 * 1.0 * 6 / 5)
    assert lines["checkpoints"] == pytest.approx(epochs * 0.3)
    assert lines["preparation"] == 3.0


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (75, "75 s"), (600, "10 min"), (10_865, "3 h 01 min"),
     (200_000, "2 days 7 h")],
)  # fmt: skip
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
