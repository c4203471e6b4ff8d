"""Metrics that callbacks and schedulers watch, and a training that has none of that name."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Sequence

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint

from smolbench.callbacks import RunCheckpoint, TrainingPlateau
from smolbench.callbacks.metric_names import not_logged
from smolbench.errors import SmolbenchError
from smolbench.metrics.table import direction, mode_of
from smolbench.protocols import Monitored, offered
from smolbench.tasks.base import BaseTask

Watched = tuple[str, str, Callback]
"""An option, the metric that it names, and who watches it."""
_SINCE_THE_START = ("epoch", "step")
"""What ``ModelCheckpoint`` knows beside the metrics."""


def check_monitors(
    task: BaseTask,
    callbacks: Sequence[Callback],
    every: int | None,
    validates: Callable[[], bool] = lambda: True,
) -> None:
    """Refuse before a training what watches a metric that it will not log, or the wrong way round.

    Where somebody else's code takes part, which may log anything, no name is refused: the training
    says so after its first validation, see :func:`unknown_metric`.

    Args:
        task: What is trained.
        callbacks: What may watch.
        every: Epochs from one validation to the next; ``None`` if they do not count.
        validates: Says whether there is a validation; asked only where one is watched.

    Raises:
        SmolbenchError: Naming the metrics that there will be, or the mode.
    """
    watched = list(_watched(callbacks))
    _check_names(task, callbacks, watched, every)
    of_validation = {f"val/{name}" for name in task.validated()}
    for option, metric, callback in watched:
        strict = getattr(callback, "strict", True)
        if metric in of_validation and strict and not validates():
            raise SmolbenchError(
                f"{option} is {metric!r}, but there is nothing to validate on: data.val_fraction "
                f"is 0. Raise it, or leave out {option}."
            )
    own, own_mode = getattr(task, "monitor", (None, None))
    for one in callbacks:
        if isinstance(one, RunCheckpoint) and (best := one.monitor or own) is not None:
            known = own_mode if own == best else None
            mode_of("checkpoint.mode", best, one.mode or known)
    for _, metric, callback in watched:
        if isinstance(callback, (EarlyStopping, ModelCheckpoint)):
            # of the latter some keep all states or none, whatever they are worth
            ranks = getattr(callback, "save_top_k", 1) not in (-1, 0)
            if ranks and direction(metric) is not None:
                mode_of(f"{type(callback).__name__}.mode", metric, callback.mode)


def _check_names(
    task: BaseTask, callbacks: Sequence[Callback], watched: Sequence[Watched], every: int | None
) -> None:
    roots = {type(one).__module__.partition(".")[0] for one in (task, *callbacks)}
    others = any(isinstance(one, LearningRateMonitor) for one in callbacks)  # it logs, too
    if not (names := task.logged()) or others or not roots <= {"smolbench", "lightning"}:
        return
    for option, metric, callback in watched:
        if isinstance(callback, EarlyStopping) and not callback.strict:
            continue  # it was told to do without
        if isinstance(callback, ModelCheckpoint) and metric in _SINCE_THE_START:
            continue
        if metric not in names:
            raise SmolbenchError(not_logged(option, metric, task, names))
        epochs = task.epochs_between(metric)
        if isinstance(callback, EarlyStopping) and (every or 1) % epochs:
            raise SmolbenchError(
                f"{option} is {metric!r}, which this {type(task).__name__} logs once in {epochs} "
                "epochs: let it be logged in every epoch, validate as seldom "
                f"(trainer.check_val_every_n_epoch {epochs}), or give EarlyStopping strict false."
            )


def unknown_metric(error: Exception, trainer: Trainer) -> str | None:
    """What a training was ended by as sentences, if that was a metric that is not there.

    Args:
        error: What Lightning raised.
        trainer: Which was training.
    """
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if not str(frame.f_globals.get("__name__")).startswith("lightning.pytorch."):
        return None
    module, there = trainer.lightning_module, sorted(trainer.callback_metrics)
    watched = [(option, name) for option, name, _ in _watched(trainer.callbacks)]  # type: ignore[attr-defined]
    watched += [
        (f"The monitor of {type(one.scheduler).__name__}", one.monitor)
        for one in trainer.lr_scheduler_configs
        if one.reduce_on_plateau and one.monitor
    ]
    for option, metric in watched:
        # the error is about this one: it names it, and not as a part of another name
        named = re.search(rf"(?<![\w/]){re.escape(metric)}(?![\w/])", str(error))
        if metric not in there and named:
            return not_logged(option, metric, module, there)
    return None


def _watched(callbacks: Sequence[Callback]) -> Iterator[Watched]:
    """By which option which metric is watched, and who does."""
    for one in callbacks:
        name = "checkpoint" if isinstance(one, RunCheckpoint) else type(one).__name__
        if isinstance(one, TrainingPlateau):
            yield f"{name}.metric", one.metric, one
        monitored = offered(one, Monitored)
        if monitored is not None and isinstance(monitored.monitor, str):
            yield f"{name}.monitor", monitored.monitor, one
