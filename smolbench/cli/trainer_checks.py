"""Options and callbacks of the Trainer that cannot work here, each refused with its reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    Checkpoint,
    DeviceStatsMonitor,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
    WeightAveraging,
)

from smolbench.callbacks import RunCheckpoint
from smolbench.errors import SmolbenchError

_AVERAGES = (
    "keeps other weights than it has validated, and copies frozen ones: give AveragedWeights, "
    "which averages what trains"
)
_REFUSED: dict[type[Callback], str] = {
    WeightAveraging: _AVERAGES,
    StochasticWeightAveraging: _AVERAGES,
    BaseFinetuning: "changes during the training what trains, which model.method says once",
    ModelPruning: "renames the weights, so that no checkpoint of the run would fit",
    LearningRateFinder: (
        "would train at another rate than the run records: compare rates by `smolbench sweep`"
    ),
    BatchSizeFinder: (
        "would train with other batches than the run records: data.batch_size auto finds the "
        "largest ones"
    ),
    SpikeDetection: (
        "cannot load its own state, so that the run could not go on: every run has a "
        "TrainingGuard, which ends it when the loss is not finite"
    ),
    RunCheckpoint: (
        "is there already: checkpoint.monitor, checkpoint.mode and checkpoint.every_minutes set it"
    ),
}
_TO_A_LOGGER = (DeviceStatsMonitor, LearningRateMonitor, ThroughputMonitor)
_AT_LEAST: dict[str, float] = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "max_epochs": 1,
    "max_steps": 1,
    "min_epochs": 0,
    "min_steps": 0,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 0,
    "gradient_clip_val": 0,
}
_ENDLESS = -1
"""What max_epochs, max_steps and num_sanity_val_steps mean no limit by."""
_LARGEST_SEED = 2**32 - 1
OWN_FOLDER = "callback_checkpoints"
"""Where callbacks of the user's write checkpoints, if they do not say."""


def check_options(trainer: Mapping[str, Any]) -> None:
    """Refuse values of the Trainer's options that cannot work, before there is a Trainer.

    Raises:
        SmolbenchError: Naming the option, and what is allowed.
    """
    for name, least in _AT_LEAST.items():
        value = trainer.get(name)
        endless = name in {"max_epochs", "max_steps", "num_sanity_val_steps"}
        if value is None or (endless and value == _ENDLESS):
            continue
        if value < least:
            allowed = f"{least:g} or more" + (", or -1 for no limit" if endless else "")
            raise SmolbenchError(f"trainer.{name} is {value}, and must be {allowed}.")
    interval = trainer.get("val_check_interval")
    if isinstance(interval, (int, float)) and interval <= 0:
        raise SmolbenchError(
            f"trainer.val_check_interval is {interval}: give a number of batches, or a share of an "
            "epoch above 0 and up to 1.0 (data.val_fraction 0 trains without validation)."
        )
    check_precision(str(trainer.get("precision")))
    strategy = trainer.get("strategy")
    options = strategy.get("init_args") if isinstance(strategy, Namespace) else None
    started = (options or {}).get("start_method") or "popen"
    given = str(strategy) if started == "popen" else f"one with start_method {started}"
    if given.startswith(("ddp_spawn", "ddp_fork", "ddp_notebook", "one with")):
        raise SmolbenchError(
            f"trainer.strategy is {given}, whose processes cannot hand their results "
            "back: take ddp."
        )
    plugins = trainer.get("plugins")
    for plugin in plugins if isinstance(plugins, list) else [plugins]:
        if str(_class_path(plugin)).endswith("AsyncCheckpointIO"):
            raise SmolbenchError(
                "trainer.plugins AsyncCheckpointIO writes checkpoints behind the run's back, which "
                "takes them for complete: leave it out; a write takes moments here, because a "
                "checkpoint holds only what trains."
            )


def check_precision(precision: str, option: str = "trainer.precision") -> None:
    """Refuse number formats that what trains would not stay in.

    Args:
        precision: The option, or what a plugin of the Trainer says of itself.
        option: What has settled it.

    Raises:
        SmolbenchError: Naming those that work.
    """
    if (precision.endswith("-true") and precision != "32-true") or precision in {"64", "16"}:
        raise SmolbenchError(
            f"{option} is {precision}, but what trains stays in float32: leave it at "
            "32-true, or take bf16-mixed or 16-mixed; model.dtype is the format of what is frozen."
        )
    if precision.startswith("transformer-engine"):
        raise SmolbenchError(
            f"{option} is {precision}, which replaces layers of the network, so that no "
            "checkpoint would fit it without: take bf16-mixed."
        )


def check_training_options(trainer: Mapping[str, Any]) -> None:
    """Refuse to begin a training that lacks what a run needs, or whose options have no effect.

    Raises:
        SmolbenchError: Naming the option, and what to give instead.
    """
    _check_max_time(trainer.get("max_time"))
    if trainer.get("barebones"):
        raise SmolbenchError(
            "trainer.barebones leaves out what a run is made of (its checkpoints, metrics and "
            "validation): leave it out; `smolbench fit --estimate` measures what a run takes."
        )
    if trainer.get("enable_checkpointing") is False:
        raise SmolbenchError(
            "trainer.enable_checkpointing is false, but a run is tested and gone on with by its "
            "checkpoints, which hold only what trains: leave it out."
        )
    if trainer.get("model_registry") is not None:
        raise SmolbenchError(
            f"trainer.model_registry is {trainer['model_registry']}, but nothing is uploaded "
            "there: leave it out; `smolbench export` writes the model as a folder for others."
        )
    if trainer.get("gradient_clip_algorithm") is not None and not trainer.get("gradient_clip_val"):
        raise SmolbenchError(
            f"trainer.gradient_clip_algorithm is {trainer['gradient_clip_algorithm']}, but nothing "
            "is clipped without trainer.gradient_clip_val: give both."
        )
    for unit in ("epochs", "steps"):
        least, most = trainer.get(f"min_{unit}"), trainer.get(f"max_{unit}")
        if least is not None and most not in (None, _ENDLESS) and least > most:
            raise SmolbenchError(
                f"trainer.min_{unit} is {least}, above trainer.max_{unit}, which is {most}."
            )
    nodes = trainer.get("num_nodes") or 1
    launched = any(one.detect() for one in (TorchElasticEnvironment, SLURMEnvironment))
    if nodes > 1 and not launched and not os.environ.get("MASTER_ADDR"):
        raise SmolbenchError(
            f"trainer.num_nodes is {nodes}, but nothing says where the other nodes are: start the "
            "command on each by torchrun or srun, or set MASTER_ADDR and NODE_RANK there."
        )


def check_seed(seed: float) -> None:
    """Refuse a seed that NumPy does not take.

    Raises:
        SmolbenchError: Saying what is allowed.
    """
    if not 0 <= seed <= _LARGEST_SEED:
        raise SmolbenchError(
            f"seed_everything is {seed}, and must be a whole number from 0 to {_LARGEST_SEED:,}."
        )


def check_callbacks(callbacks: Sequence[Callback], *, logger: bool) -> None:
    """Refuse callbacks of a training that cannot work.

    Args:
        callbacks: Those that were asked for.
        logger: Whether there is one.

    Raises:
        SmolbenchError: Naming the callback, and what does what it is for.
    """
    for one in callbacks:
        for refused, reason in _REFUSED.items():
            if isinstance(one, refused):
                raise SmolbenchError(f"trainer.callbacks {type(one).__name__} {reason}.")
        if isinstance(one, _TO_A_LOGGER) and not logger:
            raise SmolbenchError(
                f"trainer.callbacks {type(one).__name__} writes to a logger only, and there is "
                "none: give one by trainer.logger, such as true."
            )
        remaining = one.time_remaining() if isinstance(one, Timer) else None
        if remaining is not None and remaining <= 0:
            raise SmolbenchError(
                "trainer.callbacks Timer has no time to train in: give a duration above 0."
            )


def keep_apart(callbacks: Iterable[Callback], folder: Path, say: Callable[[str], None]) -> None:
    """Let checkpoints of others have a folder of their own, not that of the run's.

    Args:
        callbacks: Those that were asked for.
        folder: The run folder.
        say: Called with a sentence.

    Raises:
        SmolbenchError: If one was told to write among the run's.
    """
    own = folder / "checkpoints"
    for one in callbacks:
        given = getattr(one, "dirpath", None)
        if not isinstance(one, Checkpoint):
            continue
        if isinstance(one, ModelCheckpoint) and given is None:
            one.dirpath = str(folder / OWN_FOLDER)
            say(f"{type(one).__name__} writes to {one.dirpath}.")
        elif isinstance(given, (str, os.PathLike)) and Path(given).resolve() == own.resolve():
            raise SmolbenchError(
                f"{type(one).__name__}.dirpath is {given}, where the run keeps the "
                "checkpoints that it goes on from: give another folder."
            )


def _check_max_time(given: object) -> None:
    """Refuse a training that may take no time, or a time that cannot be read.

    Raises:
        SmolbenchError: Saying how a time is given.
    """
    if given is None:
        return
    try:
        remaining = Timer(given).time_remaining()  # type: ignore[arg-type] # whatever was typed
    except (MisconfigurationException, TypeError):
        remaining = 0.0
    if not remaining or remaining <= 0:
        raise SmolbenchError(
            f"trainer.max_time is {given}: give days, hours, minutes and seconds above 0, such as "
            "00:02:30:00."
        )


def _class_path(given: object) -> object:
    return given["class_path"] if isinstance(given, Namespace) else given
