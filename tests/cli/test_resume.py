"""A run that was killed and resumed ends like one that never was: bit by bit, row by row."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
import yaml

from smolbench.callbacks import MetricsCSV
from smolbench.cli import main
from smolbench.models.choice import scoring_trials
from smolbench.models.frozen import cache as frozen_cache
from smolbench.models.pretrained import backbone
from smolbench.tasks import ProbeTask
from tests.helpers.command import FEW, config, results, weights
from tests.helpers.kill import Killed, die

RUN = [
    "fit",
    "--config=imdb_probe",
    "--config=tiny",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--trainer.max_epochs=3",
    "--trainer.val_check_interval=0.5",
    "--trainer.accumulate_grad_batches=2",
    "--data.val_fraction=0.2",
    "--data.limit_train=200",
    "--run_dir=run",
]


def state(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(RUN) == 0
    return folder / "run"


@pytest.mark.parametrize(
    ("hook", "n", "workers", "minutes"),
    [
        ("on_train_batch_start", 1, 0, 1e-6),
        ("on_train_batch_start", 6, 2, 1e-6),
        ("on_train_batch_start", 12, 0, 10),
        ("on_train_batch_end", 3, 2, 1e-6),
        ("on_train_batch_end", 11, 0, 1e-6),
        ("on_train_batch_end", 11, 0, 10),
        ("on_before_optimizer_step", 4, 0, 1e-6),
        ("on_validation_batch_start", 2, 0, 1e-6),
        ("on_validation_epoch_end", 2, 2, 10),
        ("on_validation_end", 3, 0, 1e-6),
        ("on_validation_end", 4, 0, 10),
        ("on_train_epoch_start", 2, 0, 1e-6),
        ("on_train_epoch_end", 1, 0, 10),
        ("on_train_epoch_end", 3, 2, 1e-6),
        ("on_train_end", 1, 0, 10),
    ],
)
def test_killed_and_resumed_run_is_equal(undisturbed, folder_here, hook, n, workers, minutes):
    run = [*RUN, f"--data.num_workers={workers}", f"--checkpoint.every_minutes={minutes}"]
    die(run, hook, n)
    assert main([*run, "--ckpt_path=last"]) == 0
    assert_equal(undisturbed, folder_here / "run")


@pytest.mark.parametrize(
    "kills",
    [
        # each pair dies right after a checkpoint that ended an epoch, and dies again
        [("on_train_epoch_start", 2), ("on_validation_start", 3)],
        [("on_train_epoch_start", 2), ("on_train_epoch_end", 2)],
        [("on_train_batch_start", 8), ("on_train_batch_start", 5), ("on_train_epoch_end", 1)],
        [("on_validation_batch_start", 10), ("on_train_epoch_start", 1)],
    ],
)
def test_a_run_killed_again_and_again_is_equal(undisturbed, folder_here, kills):
    run = [*RUN, "--checkpoint.every_minutes=1e-6"]
    for attempt, (hook, n) in enumerate(kills):
        die(run if attempt == 0 else [*run, "--ckpt_path=last"], hook, n)
    assert main([*run, "--ckpt_path=last"]) == 0
    assert_equal(undisturbed, folder_here / "run")


FINE_TUNE = [
    *(option for option in RUN if option != "--config=imdb_probe"),
    "--model.max_length=32",
    "--data.batch_size=20",
    "--data.limit_train=80",
    "--data.limit_val=20",
    "--trainer.max_epochs=2",
    "--checkpoint.every_minutes=1e-6",
]


@pytest.mark.parametrize("method", ["full", "head", "lora", "qlora", "bitfit_added"])
def test_a_fine_tuning_killed_and_resumed_is_equal(folder_here, method):
    """Dropout of the adapters included."""
    recipe = "fit", f"--config=imdb_{method}_smollm2-135m"
    whole = [*recipe, *FINE_TUNE[1:], "--run_dir=whole"]
    assert main(whole) == 0
    for hook, n in (("on_train_batch_end", 3), ("on_validation_end", 2)):
        run = [*recipe, *FINE_TUNE[1:], f"--run_dir={hook}"]
        die(run, hook, n)
        assert main([*run, "--ckpt_path=last"]) == 0
        assert_equal(folder_here / "whole", folder_here / hook)


@pytest.mark.parametrize("recipe", ["imdb_probe", "imdb_lora_smollm2-135m"])
def test_averaged_weights_are_what_is_validated_kept_and_resumed(folder_here, recipe):
    options = ["--trainer.callbacks+=AveragedWeights", "--trainer.callbacks.decay=0.8"]
    options += ["--model.lr=0.01", "--model.warmup_steps=0"]
    fit = ["fit", f"--config={recipe}", *FINE_TUNE[1:], "--model.max_length=90", *options]
    assert main([*fit, "--run_dir=whole"]) == 0
    for hook, n in (("on_train_batch_end", 3), ("on_validation_end", 2)):
        run = [*fit, f"--run_dir={hook}"]
        die(run, hook, n)
        assert main([*run, "--ckpt_path=last"]) == 0
        assert_equal(folder_here / "whole", folder_here / hook)
    kept = results(folder_here / "whole")["val/loss"]
    last = state(folder_here / "whole")
    (raw,) = (s["raw"] for k, s in last["callbacks"].items() if "AveragedWeights" in k)
    names = {name for name in last["state_dict"] if name in raw}
    assert names == set(raw), "nothing that is frozen is saved"
    assert not all(torch.equal(last["state_dict"][name], raw[name]) for name in names)
    assert main(["validate", "--run_dir=whole"]) == 0
    assert results(folder_here / "whole")["val/loss"] == pytest.approx(kept, abs=1e-6)


class FallingProbe(ProbeTask):
    """Its learning rate falls after every epoch."""

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=0, threshold=10.0
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": "val/loss", "frequency": 1},
        }


@pytest.mark.parametrize("interval", ["1.0", "0.4"])
def test_a_rate_that_falls_with_a_validation_is_resumed(folder_here, interval):
    """With the second interval an epoch ends behind its last validation."""
    fit = [*RUN, "--model=tests.cli.test_resume.FallingProbe", "--data.limit_train=100"]
    fit += [f"--trainer.val_check_interval={interval}", "--trainer.accumulate_grad_batches=1"]
    fit += ["--data.batch_size=20", "--trainer.max_epochs=4"]
    assert main([*fit, "--run_dir=whole"]) == 0
    rates = [g["lr"] for g in state(Path("whole"))["optimizer_states"][0]["param_groups"]]
    assert rates == [pytest.approx(1e-3 * 0.5**4)]
    kills = [("on_train_batch_end", 6, 1e-6), ("on_train_epoch_start", 3, 1e-6)]
    kills += [("on_validation_end", 3, 10), ("on_train_epoch_end", 2, 10)]
    for hook, n, minutes in kills:
        run = [*fit, f"--run_dir={hook}", f"--checkpoint.every_minutes={minutes}"]
        die(run, hook, n)
        assert main([*run, "--ckpt_path=last"]) == 0
        assert_equal(folder_here / "whole", folder_here / hook)
        ends = [state(Path(name))["optimizer_states"][0] for name in ("whole", hook)]
        assert ends[0]["param_groups"] == ends[1]["param_groups"]


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.check_val_every_n_epoch=2", "--trainer.max_epochs=3"],
        ["--trainer.max_steps=5", "--trainer.check_val_every_n_epoch=2"],
        ["--trainer.max_steps=3"],
        ["--trainer.callbacks+=Timer", "--trainer.callbacks.duration=00:00:00:01"],
    ],
)
def test_the_last_state_is_validated_and_may_win(folder_here, options):
    fit = [*RUN, "--trainer.val_check_interval=1.0", "--data.limit_train=100"]
    fit += ["--data.batch_size=20", "--trainer.accumulate_grad_batches=1"]
    fit += ["--model.warmup_steps=0", "--model.schedule=constant", "--checkpoint.monitor=val/loss"]
    fit += ["--trainer.max_epochs=2000", *options]
    assert main(fit) == 0
    last = state(Path("run"))["global_step"]
    assert [row["step"] for row in rows(Path("run")) if row["val/loss"]][-1] == str(last)
    # goes on where it stands: an epoch is neither left out nor begun anew
    if "--trainer.max_epochs=3" in options:
        assert results(Path("run"))["best/step"] == last, "it gets better with every step"
        assert main([*fit, "--trainer.max_epochs=5", "--ckpt_path=last"]) == 0
        assert main([*fit, "--trainer.max_epochs=5", "--run_dir=whole"]) == 0
        assert state(Path("run"))["global_step"] == state(Path("whole"))["global_step"]
        for name, value in state(Path("whole"))["state_dict"].items():
            assert torch.equal(value, state(Path("run"))["state_dict"][name]), name


def test_a_training_that_was_stopped_goes_on_within_its_epoch(folder_here, monkeypatch):
    """By ``max_time``, for example, in an epoch that has no validation of its own."""
    fit = [*RUN, "--trainer.val_check_interval=1.0", "--trainer.check_val_every_n_epoch=2"]
    fit += ["--data.limit_train=100", "--data.batch_size=20", "--model.schedule=constant"]
    fit += ["--trainer.accumulate_grad_batches=1"]
    assert main([*fit, "--run_dir=whole"]) == 0
    for step in (3, 5, 13):
        run = [*fit, f"--run_dir={step}"]
        with monkeypatch.context() as patch:
            patch.setattr(MetricsCSV, "on_train_batch_start", stop_behind(step), raising=False)
            assert main(run) == 0
        assert rows(Path(str(step)))[-1]["step"] == str(step)
        assert rows(Path(str(step)))[-1]["val/loss"]
        assert main([*run, "--ckpt_path=last"]) == 0
        assert state(Path(str(step)))["global_step"] == 15
        for name, value in state(Path("whole"))["state_dict"].items():
            assert torch.equal(value, state(Path(str(step)))["state_dict"][name]), name


def stop_behind(step):
    def on_train_batch_start(self, trainer, *args):
        trainer.should_stop |= trainer.global_step + 1 >= step

    return on_train_batch_start


def test_without_a_validation_the_last_state_is_kept_and_a_line_says_so(folder_here, caplog):
    with caplog.at_level("INFO", logger="smolbench"):
        assert main([*RUN, "--trainer.val_check_interval=1.0", "--data.val_fraction=0"]) == 0
    assert "No validation says which state is the best" in caplog.text


@pytest.mark.parametrize("network", ["cnn", "lstm"])
def test_a_network_on_words_killed_and_resumed_is_equal(folder_here, network):
    recipe = ["fit", f"--config=imdb_{network}", *FINE_TUNE[1:]]
    assert main([*recipe, "--run_dir=whole"]) == 0
    for hook, n in (("on_train_batch_end", 3), ("on_validation_end", 2)):
        run = [*recipe, f"--run_dir={hook}"]
        die(run, hook, n)
        assert main([*run, "--ckpt_path=last"]) == 0
        assert_equal(folder_here / "whole", folder_here / hook)


CHOOSE = [
    *FINE_TUNE[2:],
    "--model.max_length=150",
    "--model.warmup_steps=0",
    "--data.batch_size=16",
    "--data.limit_train=48",
    "--data.limit_val=8",
    "--trainer.max_epochs=4",
]


@pytest.mark.parametrize(
    ("method", "objective"), [("full", "lm"), ("lora", "choice"), ("qlora", "lm")]
)
def test_a_training_to_choose_killed_and_resumed_is_equal(folder_here, method, objective):
    """It ends early, after the same epoch."""
    stop = {"class_path": "TrainingPlateau", "init_args": {"min_delta": 1000.0}}
    Path("early.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [stop]}}))
    recipe = ["fit", f"--config=hellaswag_{method}_smollm2-135m", "--config=tiny"]
    recipe += ["--config=early.yaml", *CHOOSE, f"--model.objective={objective}"]
    whole = [*recipe, "--run_dir=whole"]
    assert main(whole) == 0
    assert rows(Path("whole"))[-1]["epoch"] == "1", "the loss never falls by 1000"
    # in the middle of the last epoch, and when it is known to be the last
    for hook, n in (("on_train_batch_end", 5), ("on_validation_end", 6)):
        run = [*recipe, f"--run_dir={hook}"]
        die(run, hook, n)
        assert main([*run, "--ckpt_path=last"]) == 0
        assert_equal(folder_here / "whole", folder_here / hook)


@pytest.mark.parametrize("method", ["full", "head", "lora", "qlora", "bitfit"])
def test_a_distillation_killed_and_resumed_is_equal(folder_here, method):
    recipe = ["fit", "--config=sentiment140_distill_opt-125m", *FINE_TUNE[1:]]
    recipe += [f"--model.method={method}"]
    assert main([*recipe, "--run_dir=whole"]) == 0
    for hook, n in (("on_train_batch_end", 3), ("on_validation_end", 2)):
        run = [*recipe, f"--run_dir={hook}"]
        die(run, hook, n)
        assert main([*run, "--ckpt_path=last"]) == 0
        assert_equal(folder_here / "whole", folder_here / hook)


def test_of_tied_checkpoints_the_better_one_is_kept(folder_here):
    """On a small file many epochs have one accuracy; a kill forgets no loss they differ in."""
    words = ("a dull and slow mess", "a warm and lovely film")
    lines = [f"{words[n % 2]} {n},{('neg', 'pos')[n % 2]}" for n in range(40)]
    Path("rows.csv").write_text("\n".join(["text,label", *lines]))
    run = ["fit", "--config=text_files_probe", "--config=tiny", "--data.source=files"]
    run += ["--data.train_file=rows.csv", "--data.batch_size=8", "--model.warmup_steps=0"]
    run += [*RUN[3:6], "--trainer.max_epochs=4", "--run_dir=run"]
    assert main(run) == 0
    found = results(Path("run"))
    validations = [row for row in rows(Path("run")) if row["val/accuracy"]]
    accuracy, loss = ([float(row[f"val/{m}"]) for row in validations] for m in ("accuracy", "loss"))
    tied = [epoch for epoch, value in enumerate(accuracy) if value == max(accuracy)]
    assert len(tied) > 1
    assert loss[tied[-1]] < loss[tied[0]], "they get better, though not by their accuracy"
    assert found["best/epoch"] == min(tied, key=loss.__getitem__)
    assert found["val/loss"] == min(loss[epoch] for epoch in tied)
    again = [*run[:-1], "--run_dir=again"]
    die(again, "on_train_epoch_start", tied[0] + 2)
    assert main([*again, "--ckpt_path=last"]) == 0
    assert_equal(Path("run"), Path("again"))
    assert results(Path("again"))["best/epoch"] == found["best/epoch"]


def assert_equal(expected: Path, found: Path) -> None:
    one, other = state(expected), state(found)
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    assert one["global_step"] == other["global_step"]
    assert rows(expected) == rows(found)
    assert best(expected).keys() == best(found).keys()
    for name, value in best(expected).items():
        assert torch.equal(value, best(found)[name]), name


def best(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]


# -- what was decided about fast paths ------------------------------------------------------------


def test_a_pass_that_was_killed_goes_on_by_the_path_it_began(folder_here, monkeypatch):
    """Although this process finds a faster one right, too."""
    run = [*RUN, "--data.limit_train=60", "--trainer.max_epochs=1", "--model.pass_tokens=200"]

    def without_prefix(*options: str, dies: bool = False) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(backbone, "shares_prefix", lambda *_: False)
            if dies:
                calls = []
                save = frozen_cache._save

                def die_at_the_third(*given):
                    calls.append(given)
                    if len(calls) == 3:
                        raise Killed
                    return save(*given)

                patch.setattr(frozen_cache, "_save", die_at_the_third)
                with pytest.raises(Killed):
                    main([*run, *options])
            else:
                assert main([*run, *options]) == 0

    monkeypatch.setenv("SMOLBENCH_CACHE", "one")
    without_prefix("--run_dir=whole")
    monkeypatch.setenv("SMOLBENCH_CACHE", "two")
    without_prefix("--run_dir=killed", dies=True)
    assert results(Path("killed"))["paths/prefix"] is False, "it is kept before the pass begins"
    for facts in Path("two/models").glob("*.json"):
        facts.unlink()
    assert main([*run, "--run_dir=killed", "--ckpt_path=last"]) == 0
    assert_equal(folder_here / "whole", folder_here / "killed")
    assert results(Path("killed"))["paths/prefix"] is False
    monkeypatch.setenv("SMOLBENCH_CACHE", "three")
    assert main([*run, "--run_dir=other"]) == 0
    assert results(Path("other"))["paths/prefix"] is True


def test_scores_are_computed_by_the_paths_of_the_runs_beginning(folder_here, monkeypatch):
    recipe = ["fit", "--config=hellaswag_full_smollm2-135m", "--config=tiny", *CHOOSE]
    recipe += ["--trainer.max_epochs=2"]
    packed = {}
    for name, kill in (("whole", None), ("killed", ("on_train_batch_end", 5))):
        run = [*recipe, f"--run_dir={name}"]
        with monkeypatch.context() as patch:
            patch.setattr(scoring_trials._Trials, "packed", lambda *_: False)
            if kill is None:
                assert main(run) == 0
            else:
                die(run, *kill)
        if kill is not None:
            assert main([*run, "--ckpt_path=last"]) == 0
        assert main(["test", f"--run_dir={name}", "--data.limit_test=8"]) == 0
        packed[name] = results(Path(name))["paths/packed"]
    assert_equal(folder_here / "whole", folder_here / "killed")
    assert packed == {"whole": False, "killed": False}


def test_more_steps_and_the_device_by_another_name(folder_here):
    fit = [option for option in FEW if "accelerator" not in option]
    fit = ["fit", *fit, "--trainer.max_epochs=3", "--model.schedule=constant"]
    cpu, auto = "--trainer.accelerator=cpu", "--trainer.accelerator=auto"
    assert main([*fit, cpu, "--trainer.max_steps=5", "--run_dir=whole"]) == 0
    parts = [*fit, "--run_dir=parts"]
    assert main([*parts, cpu, "--trainer.max_steps=3"]) == 0
    more = ["--ckpt_path=last", "--trainer.max_steps=5"]
    assert main([*parts, *more, auto]) == (2 if torch.cuda.is_available() else 0)
    assert main([*parts, *more, cpu]) == 0
    before, after = (weights(folder_here / run) for run in ("whole", "parts"))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert config(folder_here / "parts")["trainer"]["max_steps"] == 5
