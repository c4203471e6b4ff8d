"""Processes on CPU (gloo): the same numbers as one, exact resume, errors that end all."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from lightning.pytorch import Callback

from smolbench.callbacks import memory, throughput
from smolbench.callbacks.memory import reduce_over_ranks
from smolbench.cli import main
from smolbench.errors import SmolbenchError
from tests.helpers.processes import Process
from tests.helpers.tiny import tiny_summarizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
# what another launcher or an earlier test in this process may have left behind
_LEFT_BEHIND = ("LOCAL_RANK", "RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_", "PL_", "SLURM_")
TRAIN = 120
# three validation and five test batches: the ranks have different numbers of them
SETTINGS = [
    "--config=imdb_probe",
    "--config=tiny",
    "--config=configs/trainer/ddp2_cpu.yaml",
    "--model.dtype=float32",
    "--model.pass_tokens=1024",
    "--data.batch_size=16",
    "--data.val_fraction=0.2",
    f"--data.limit_train={TRAIN}",
    "--data.limit_val=40",
    "--data.limit_test=72",
    "--trainer.enable_progress_bar=false",
]
FIT = [
    *SETTINGS,
    "--trainer.max_epochs=2",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.val_check_interval=0.5",
    "--trainer.log_every_n_steps=1",
    "--checkpoint.every_minutes=1e-6",
    "--trainer.callbacks+=tests.cli.test_ddp.Intruder",
]


class Intruder(Callback):
    """Runs on every rank; what it does beside counting is said by the environment."""

    def setup(self, trainer, pl_module, stage):
        """Write down which rows this rank's frozen network reads and what it measures."""
        start_pass = pl_module.frozen.start_pass
        log = Path(os.environ["ROWS_LOG"] + f".{trainer.global_rank}")
        for module in (memory, throughput):
            module.reduce_over_ranks = self.logging_reduction

        def counting(*args):
            compute = start_pass(*args)
            warm = []  # the first block of a pass is read to warm up, and again

            def compute_and_log(rows):
                if os.environ.get("INTRUDER") == "pass" and trainer.global_rank == 1:
                    raise SmolbenchError("The second rank cannot read this.")
                if warm:
                    with log.open("a") as file:
                        file.write(f"{len(rows)}\n")
                warm.append(True)
                return compute(rows)

            return compute_and_log

        pl_module.frozen.start_pass = counting

    @staticmethod
    def logging_reduction(trainer, values, operation):
        reduced = reduce_over_ranks(trainer, values, operation)
        with Path(os.environ["ROWS_LOG"] + f".{trainer.global_rank}.measured").open("a") as file:
            file.write(json.dumps([operation, list(values), reduced]) + "\n")
        return reduced

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        """Kill all ranks, send a signal to this one, or fail on it."""
        if (trainer.global_rank, trainer.global_step, batch_idx % 2) != (1, 3, 0):
            return
        if os.environ.get("INTRUDER") == "kill":
            os.killpg(os.getpgrp(), signal.SIGKILL)
        if os.environ.get("INTRUDER") == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        if os.environ.get("INTRUDER") == "error":
            raise SmolbenchError("The second rank cannot go on.")


class Job:
    """Runs commands in one folder, with caches of its own."""

    def __init__(self, folder: Path, rows_log: Path | None = None) -> None:
        self.folder = folder
        self.rows_log = rows_log or folder / "rows"

    def run(
        self, *arguments: str, intruder: str = "", launcher: Sequence[str] = (), fresh: bool = False
    ) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(_LEFT_BEHIND)}
        env |= {
            "SMOLBENCH_CACHE": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
            "ROWS_LOG": str(self.rows_log),
            "INTRUDER": intruder,
        }
        command = [*launcher, "-m", "smolbench", *arguments]
        return Process(*command, cwd=self.folder, env=env, fresh=fresh).result()


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A run of two processes, started by torchrun with nothing in its caches."""
    job = Job(tmp_path_factory.mktemp("ddp"))
    done = job.run("fit", *FIT, launcher=TORCHRUN, fresh=True)
    assert done.returncode == 0, done.stderr
    return job


@pytest.fixture(scope="module")
def undisturbed(job):
    (run,) = (job.folder / "runs" / "imdb_probe+tiny").iterdir()  # one folder for both ranks
    return run


def results(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def checkpoint(run: Path, name: str) -> dict:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def test_ranks_share_the_frozen_pass(job, undisturbed):
    first, second = (
        [int(line) for line in Path(f"{job.rows_log}.{rank}").read_text().split()]
        for rank in (0, 1)
    )
    found = results(undisturbed)
    assert sum(first) + sum(second) == found["data/n_train"] + found["data/n_val"] == TRAIN + 40
    assert abs(len(first) - len(second)) <= 2  # whole blocks, dealt in turn, for either split


def test_results_are_of_the_whole_job(undisturbed):
    found = results(undisturbed)
    assert found["status"] == "finished"
    assert found["attempts"] == 1
    assert found["hardware/world_size"] == 2
    assert found["hardware/threads"] == 1
    assert found["strategy"] == "DDPStrategy"
    assert found["cost/cache_reused"] is False
    assert found["val/n"] == 40
    assert found["cost/peak_rss_mib"] > 100
    assert found["cost/head_train_samples_per_s"] > 0
    assert found["cost/fit_s"] > 0


def test_metrics_are_written_once(undisturbed):
    with (undisturbed / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    # 120 rows are 4 batches for either rank, two to a step
    assert [row["step"] for row in rows if row["train/loss"]] == ["1", "2", "3", "4"]
    assert [row["step"] for row in rows if row["val/accuracy"]] == ["1", "2", "3", "4"]


@pytest.fixture(scope="module")
def tested_alone(undisturbed, tmp_path_factory):
    """The test of the job's checkpoint by one process."""
    folder = tmp_path_factory.mktemp("alone")
    one = ["--trainer.devices=1", "--trainer.strategy=auto", "--run_dir=tested"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SMOLBENCH_CACHE", str(folder / "cache"))
        assert main([*scored_by(undisturbed), *one]) == 0
    return folder / "tested"


def scored_by(run: Path) -> list[str]:
    return ["test", *SETTINGS, f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}"]


# of five test batches four ranks get two, one, one and one
@pytest.mark.parametrize("devices", [2, 4])
def test_processes_predict_like_one(job, undisturbed, tested_alone, devices):
    folder = job.folder / f"tested{devices}"
    job = Job(job.folder, rows_log=job.folder / f"rows{devices}")
    done = job.run(
        *scored_by(undisturbed),
        f"--trainer.devices={devices}",
        "--trainer.callbacks+=tests.cli.test_ddp.Intruder",
        f"--data.cache_dir={folder}-cache",
        f"--run_dir={folder}",
    )
    assert done.returncode == 0, done.stderr

    assert results(folder)["hardware/world_size"] == devices
    assert results(tested_alone)["hardware/world_size"] == 1
    for key in ("test/n", "test/accuracy", "data/test_digest"):
        assert results(folder)[key] == results(tested_alone)[key]
    assert results(folder)["test/n"] == 72
    found, expected = (
        pyarrow.parquet.read_table(run / "predictions.parquet").to_pydict()
        for run in (folder, tested_alone)
    )
    assert found.keys() == expected.keys()
    for column in ("index", "label", "prediction"):
        assert found[column] == expected[column]
    for column in found.keys() - {"index", "label", "prediction"}:
        np.testing.assert_allclose(found[column], expected[column], rtol=0, atol=1e-6)
    check_costs_of_the_job(job, results(folder), devices)


def check_costs_of_the_job(job: Job, found: dict, devices: int) -> None:
    """Memory is the largest rank's, throughput that of all together."""
    rows = [Path(f"{job.rows_log}.{rank}").read_text().split() for rank in range(devices)]
    assert all(rows), "a rank had no part in the frozen pass"
    assert sum(int(number) for own in rows for number in own) == found["test/n"]
    measured = [
        [
            json.loads(line)
            for line in Path(f"{job.rows_log}.{rank}.measured").read_text().splitlines()
        ]
        for rank in range(devices)
    ]
    total, largest = [], []
    for of_ranks in zip(*measured, strict=True):
        (operation,) = {operation for operation, _, _ in of_ranks}
        values = np.array([values for _, values, _ in of_ranks])
        over_ranks = values.max(axis=0) if operation == "max" else values.sum(axis=0)
        for _, _, reduced in of_ranks:
            np.testing.assert_allclose(reduced, over_ranks, rtol=1e-12)
        (largest if operation == "max" else total).extend(over_ranks)
        if operation == "sum":
            assert (values[:, 0] > 0).all(), "a rank had no batch"
    rates = [pytest.approx(found["test/n"] / seconds) for seconds in largest if seconds > 0]
    assert found["cost/head_test_samples_per_s"] in rates, "all rows by the slowest rank's seconds"
    # the frozen network's seconds are in it, whoever computed the features
    assert found["cost/test_samples_per_s"] < 0.9 * found["cost/head_test_samples_per_s"]
    assert found["test/n"] in total
    assert found["cost/peak_rss_mib"] in largest
    assert found["cost/test_s"] in largest


def test_killed_and_resumed_job_is_equal(job, undisturbed):
    fit = ["fit", *FIT, "--run_dir=killed"]
    killed = job.run(*fit, intruder="kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = job.folder / "killed"
    assert results(run)["status"] == "running"
    assert checkpoint(run, "last")["global_step"] == 3
    resumed = job.run(*fit, "--ckpt_path=last")
    assert resumed.returncode == 0, resumed.stderr

    assert results(run)["attempts"] == 2
    assert results(run)["cost/cache_reused"] is True
    expected_rows = (undisturbed / "metrics.csv").read_text()
    assert (run / "metrics.csv").read_text() == expected_rows
    for name in ("last", "best"):
        expected, found = checkpoint(undisturbed, name), checkpoint(run, name)
        assert expected["global_step"] == found["global_step"]
        assert expected["state_dict"].keys() == found["state_dict"].keys()
        for key, value in expected["state_dict"].items():
            assert torch.equal(value, found["state_dict"][key]), key


CHOOSE = [
    "--config=hellaswag_full_smollm2-135m",
    "--config=tiny",
    "--config=configs/trainer/ddp2_cpu.yaml",
    "--model.dtype=float32",
    "--data.limit_train=48",
    "--data.limit_val=10",
    "--data.limit_test=21",
    "--data.batch_size=6",
    "--trainer.max_epochs=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--checkpoint.every_minutes=1e-6",
    "--trainer.callbacks+=tests.cli.test_ddp.Killer",
]


class Killer(Callback):
    """Kills all ranks in the middle of the second epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        here = (trainer.global_rank, trainer.global_step) == (1, 6)
        if here and os.environ.get("INTRUDER") == "kill":
            os.killpg(os.getpgrp(), signal.SIGKILL)


def test_processes_that_learn_to_choose(tmp_path):
    """The epoch's losses so far, rank by rank, outlive a kill; scores are those of one process."""
    job = Job(tmp_path)
    fit = ["fit", *CHOOSE]
    done = job.run(*fit, "--run_dir=whole")
    assert done.returncode == 0, done.stderr
    killed = job.run(*fit, "--run_dir=killed", intruder="kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = job.run(*fit, "--run_dir=killed", "--ckpt_path=last")
    assert resumed.returncode == 0, resumed.stderr
    whole, again = (checkpoint(tmp_path / name, "last") for name in ("whole", "killed"))
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, again["state_dict"][key]), key
    (states,) = (
        [one["callbacks"][key] for one in (whole, again)]
        for key in whole["callbacks"]
        if "TrainingPlateau" in key
    )
    assert states[0] == states[1]
    assert len(states[0]["sums"]) == 2

    best = f"--ckpt_path={tmp_path / 'whole' / 'checkpoints' / 'best.ckpt'}"
    scored = []
    for devices in (1, 2):
        run = tmp_path / f"tested{devices}"
        options = [best, f"--trainer.devices={devices}", f"--run_dir={run}"]
        done = job.run("test", *CHOOSE, *options)
        assert done.returncode == 0, done.stderr
        assert results(run)["test/n"] == 21
        scored.append(pyarrow.parquet.read_table(run / "predictions.parquet").to_pydict())
    assert scored[0] == scored[1]


WORDS = [
    "--config=imdb_lstm",
    "--config=tiny",
    "--config=configs/trainer/ddp2_cpu.yaml",
    "--data.limit_train=48",
    "--data.limit_val=10",
    "--data.limit_test=21",
    "--data.batch_size=6",
    "--trainer.max_epochs=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--checkpoint.every_minutes=1e-6",
    "--trainer.callbacks+=tests.cli.test_ddp.Killer",
]


def test_processes_that_learn_from_words(tmp_path):
    """They share one vocabulary, and a kill changes nothing; scores are those of one process."""
    job = Job(tmp_path)
    fit = ["fit", *WORDS]
    done = job.run(*fit, "--run_dir=whole")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "cache" / "vocabularies").iterdir())) == 1
    killed = job.run(*fit, "--run_dir=killed", intruder="kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = job.run(*fit, "--run_dir=killed", "--ckpt_path=last")
    assert resumed.returncode == 0, resumed.stderr
    whole, again = (checkpoint(tmp_path / name, "last") for name in ("whole", "killed"))
    assert whole["smolbench"] == again["smolbench"]
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, again["state_dict"][key]), key

    best = f"--ckpt_path={tmp_path / 'whole' / 'checkpoints' / 'best.ckpt'}"
    scored = []
    for devices in (1, 2):
        run = tmp_path / f"tested{devices}"
        options = [best, f"--trainer.devices={devices}", f"--run_dir={run}"]
        done = job.run("test", *WORDS, *options)
        assert done.returncode == 0, done.stderr
        assert results(run)["test/n"] == 21
        scored.append(pyarrow.parquet.read_table(run / "predictions.parquet").to_pydict())
    one, two = scored
    for name in ("score_neg", "score_pos"):  # one process has more threads: a last bit may differ
        assert one.pop(name) == pytest.approx(two.pop(name), abs=1e-6)
    assert one == two


def test_error_on_one_rank_ends_both(job):
    failed = job.run("fit", *FIT, "--run_dir=failed", intruder="error")
    # the first rank finds the connection closed, or Lightning's observer ends it
    assert failed.returncode in {2, -signal.SIGKILL}
    assert "smolbench: error: The second rank cannot go on.\n" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert results(job.folder / "failed")["status"] != "finished"


def test_error_on_one_rank_in_the_frozen_pass_ends_both_with_its_sentence(job):
    fit = [*FIT, "--run_dir=unread", f"--data.cache_dir={job.folder}/unread-cache"]
    failed = job.run("fit", *fit, intruder="pass")
    assert failed.returncode == 2, failed.stderr
    sentence = "smolbench: error: The second rank cannot read this.\n"
    assert failed.stderr.count(sentence) == 2, failed.stderr
    assert "Traceback" not in failed.stderr
    assert "Another process" not in failed.stderr
    assert not (job.folder / "unread" / "checkpoints").exists()


def test_error_of_the_process_that_prepares_the_data_ends_both_with_its_sentence(job):
    (job.folder / "file").touch()
    fit = [*FIT, "--run_dir=unprepared", f"--data.cache_dir={job.folder}/file"]
    failed = job.run("fit", *fit)
    assert failed.returncode == 2, failed.stderr
    said = [line for line in failed.stderr.splitlines() if "smolbench: error:" in line]
    assert len(said) == 2, failed.stderr
    assert said[0] == said[1]
    assert "The cache folder" in said[0]
    assert "Traceback" not in failed.stderr
    assert not (job.folder / "unprepared").exists()


def test_signal_to_one_rank_stops_both_after_the_step(job):
    # both by Lightning's own launcher, as users start them
    stopped = job.run("fit", *FIT, "--run_dir=stopped", intruder="terminate", fresh=True)
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    run = job.folder / "stopped"
    assert results(run)["status"] == "interrupted"
    assert checkpoint(run, "last")["global_step"] == 4  # the step in which it came is finished


def test_ranks_share_a_teachers_pass(job, undisturbed, tmp_path, monkeypatch):
    """The logits are those of one process, and the student keeps nothing of the teacher."""
    fit = [
        "fit",
        "--config=imdb_full_smollm2-135m",
        *(option for option in SETTINGS[1:] if "pass_tokens" not in option),
        "--model=DistillationTask",
        f"--model.teacher={undisturbed}",
        "--model.max_length=64",
        "--trainer.max_epochs=1",
    ]
    done = job.run(*fit, "--run_dir=distilled")
    assert done.returncode == 0, done.stderr
    found = results(job.folder / "distilled")
    assert found["hardware/world_size"] == 2
    assert found["teacher/run"] == str(undisturbed.resolve())
    assert found["teacher/same_rows"] is True
    monkeypatch.chdir(tmp_path)
    one = ["--trainer.devices=1", "--trainer.strategy=auto", f"--data.cache_dir={tmp_path}"]
    assert main([*fit, *one, "--run_dir=alone"]) == 0
    (shared,), (alone,) = (
        list((cache / "teachers").glob("*/outputs.f32"))
        for cache in (job.folder / "cache", tmp_path)
    )
    assert shared.parent.name == alone.parent.name
    logits, expected = (np.fromfile(file, np.float32) for file in (shared, alone))
    assert len(logits) == 2 * TRAIN
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    names = [
        checkpoint(run, "best")["state_dict"].keys()
        for run in (job.folder / "distilled", tmp_path / "alone")
    ]
    assert names[0] == names[1]


SUMMARIZE = [
    "--config=samsum_flan-t5-base",
    "--config=tiny",
    "--config=configs/trainer/ddp2_cpu.yaml",
    "--model.dtype=float32",
    "--model.max_new_tokens=8",
    "--model.rouge_examples=7",
    "--data.batch_size=4",
    "--data.limit_train=16",
    "--data.limit_val=13",
    "--data.limit_test=21",
    "--latency.examples=0",
    "--trainer.enable_progress_bar=false",
]


def test_summaries_are_those_of_one_process(tmp_path):
    """Scores with their intervals, texts and samples, whatever the number of processes."""
    job = Job(tmp_path)
    found = {}
    for devices in (1, 2, 4):
        options = ["--ckpt_path=none", f"--trainer.devices={devices}", f"--run_dir=on{devices}"]
        done = job.run("test", *SUMMARIZE, *options)
        assert done.returncode == 0, done.stderr
        run = tmp_path / f"on{devices}"
        scores = {k: v for k, v in results(run).items() if k.startswith("test/")}
        table = pyarrow.parquet.read_table(run / "predictions.parquet").to_pydict()
        samples = json.loads((run / "samples.json").read_text())
        found[devices] = scores, table, samples
    assert found[1][0]["test/n"] == 21
    assert found[1][0]["test/rouge1_high"] > 0
    assert found[1] == found[2] == found[4]


def test_processes_that_learn_to_summarize(tmp_path):
    """Both write summaries in the validation; the first one writes the sample."""
    job = Job(tmp_path)
    done = job.run("fit", *SUMMARIZE, "--trainer.max_epochs=1", "--run_dir=run")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert results(run)["val/rouge_n"] == 7
    samples = json.loads((run / "samples.json").read_text())
    assert checkpoint(run, "best")["smolbench"]["samples"] == samples
    assert len(samples) == 3


def test_validation_summaries_are_those_of_one_process(tmp_path):
    """In bfloat16, too, where a row is rounded otherwise beside others."""
    job = Job(tmp_path)
    found = {}
    for devices in (1, 2):
        options = ["--ckpt_path=none", f"--trainer.devices={devices}", f"--run_dir=on{devices}"]
        options += ["--model.method=none", "--model.dtype=bfloat16"]
        done = job.run("validate", *SUMMARIZE, *options)
        assert done.returncode == 0, done.stderr
        said = results(tmp_path / f"on{devices}")
        found[devices] = {k: v for k, v in said.items() if k.startswith("val/")}
    assert found[1]["val/rouge_n"] == 7
    assert found[1] == found[2]


@pytest.fixture
def steady(tmp_path):
    """Two summarizers of one vocabulary and without dropout."""
    folders = []
    for seed in (0, 1):
        folder = tmp_path / f"t5-{seed}"
        shutil.copytree(tiny_summarizer("t5", seed=seed), folder)
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, "dropout_rate": 0.0}))
        folders.append(str(folder))
    return folders


def test_two_processes_learn_from_a_teacher_as_one_does(tmp_path, steady):
    """A step of two batches of 8 is one of 16, each token weighing alike; no rank's teacher is
    another's."""
    job = Job(tmp_path)
    moments = []
    for devices in (1, 2):
        options = [option for option in SUMMARIZE[1:] if "batch_size" not in option]
        done = job.run(
            "fit",
            "--config=samsum_distill_flan-t5-small",
            *options,
            f"--model.backbone={steady[0]}",
            f"--model.teacher={steady[1]}",
            f"--data.batch_size={16 // devices}",
            f"--trainer.devices={devices}",
            "--trainer.max_steps=1",
            "--model.warmup_steps=0",
            f"--run_dir=on{devices}",
        )
        assert done.returncode == 0, done.stderr
        (state,) = checkpoint(tmp_path / f"on{devices}", "last")["optimizer_states"]
        # a tenth of the only gradient so far
        moments.append({n: one["exp_avg"] for n, one in state["state"].items()})
    assert sum(float(moment.abs().sum()) for moment in moments[0].values()) > 0
    for name, expected in moments[0].items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(moments[1][name], expected, rtol=1e-3, atol=1e-4 * scale)
