"""A run that was killed and resumed ends like one that never was: bit by bit, row by row."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from smolbench.cli import main
from tests.helpers.kill import Killed

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
def test_killed_and_resumed_run_is_equal(undisturbed, workplace, hook, n, workers, minutes):
    run = [*RUN, f"--data.num_workers={workers}", f"--checkpoint.every_minutes={minutes}"]
    dying = [
        *run,
        "--trainer.callbacks+=tests.helpers.kill.KillAt",
        f"--trainer.callbacks.hook={hook}",
        f"--trainer.callbacks.n={n}",
    ]
    with pytest.raises(Killed):
        main(dying)
    config = workplace / "run" / "config.yaml"
    assert "KillAt" in config.read_text()
    config.write_text(remove_callbacks(config.read_text()))
    assert main([*run, "--ckpt_path=last"]) == 0

    expected, found = state(undisturbed), state(workplace / "run")
    assert expected["state_dict"].keys() == found["state_dict"].keys()
    for name, value in expected["state_dict"].items():
        assert torch.equal(value, found["state_dict"][name]), name
    assert expected["global_step"] == found["global_step"]
    assert rows(undisturbed) == rows(workplace / "run")
    assert best(undisturbed).keys() == best(workplace / "run").keys()
    for name, value in best(undisturbed).items():
        assert torch.equal(value, best(workplace / "run")[name]), name


def best(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]


def remove_callbacks(text: str) -> str:
    import yaml

    settings = yaml.safe_load(text)
    settings["trainer"]["callbacks"] = None
    return yaml.safe_dump(settings, sort_keys=False)
