"""A run's loggers: one TensorBoard version, MLflow run or W&B run, whatever commands it takes."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, dict_to_namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from smolbench.callbacks.metrics_csv import Row
from smolbench.errors import SmolbenchError
from smolbench.runs.results import read_results
from smolbench.runs.settings import flatten, read_settings
from smolbench.utils.digest import digest
from smolbench.utils.files import write_atomically

FILE_NAME = "loggers.json"
"""Where a run folder has what its loggers were told."""
_GOES_ON_BY = ("run_id", "experiment_key", "id", "version")
"""By which argument a logger goes on with what it began: the first that it has."""
_ABOUT = ("recipe", "seed", "git_revision", "started_at", "config_digest", "parent_run")
_ABOUT_ALL = ("packages/", "hardware/")


class RunLoggers:
    """Give a run's loggers what its files hold: settings, rows of ``metrics.csv``, test scores.

    A command that goes on with a run, or tests it, goes on in the same TensorBoard version, MLflow
    run or W&B run; the run folder has its name. Each row is sent once: rows that a resumed training
    makes again are the same, and are left out. A logger that joins later is given all rows.

    Args:
        folder: The run folder.
        name: The run's, for loggers that would draw one by chance; seeds being fixed, they would
            draw the same for every run.
        step: Optimiser step of the state that is tested or validated.
        settings: Whether they are told the settings (``trainer.enable_autolog_hparams``).
    """

    def __init__(self, folder: Path, name: str, step: int, *, settings: bool = True) -> None:
        self._path = folder / FILE_NAME
        self._folder, self._name, self._step, self._settings = folder, name, step, settings
        self._keys: list[str] = []
        self._loggers: list[Logger] = []
        self._joined: set[str] = set()
        self._again: list[Row] = []
        self._told: dict[str, dict[str, Any]] = {}
        if self._path.is_file():
            self._told = json.loads(self._path.read_text(encoding="utf-8"))

    def settle(self, given: Any) -> Any:  # noqa: ANN401 - true, false, a class or several
        """The option ``trainer.logger`` with the names and runs that its loggers go on with."""
        if isinstance(given, list):
            return [self._settle_one(one) for one in given]
        return self._settle_one(given) if given else given

    def _settle_one(self, given: Any) -> Any:  # noqa: ANN401
        default = not isinstance(given, Namespace)  # `true` is what Lightning thinks best
        key = "default" if default else digest(json.loads(json.dumps(given.as_dict(), default=str)))
        self._keys.append(key)
        known = self._told.get(key, {})
        if default and known.get("class") == TensorBoardLogger.__name__:
            path = f"{TensorBoardLogger.__module__}.{TensorBoardLogger.__qualname__}"
            options = {"save_dir": str(self._folder), "version": known["version"]}
            return dict_to_namespace({"class_path": path, "init_args": options})
        # a CSVLogger removes what it finds
        if default or given["class_path"].endswith(".CSVLogger"):
            return given
        settled = given.clone()
        options = settled.get("init_args") or {}
        goes_on_by = next((name for name in _GOES_ON_BY if name in options), None)
        named_by = "run_name" if "run_name" in options else "name"
        if goes_on_by is not None and options[goes_on_by] is None:
            options[goes_on_by] = known.get("version")
        if named_by in options and options[named_by] is None and goes_on_by != "version":
            options[named_by] = self._name
        return settled

    def begin(self, trainer: Trainer, rows: Sequence[Row], again: Sequence[Row]) -> None:
        """See :class:`smolbench.callbacks.metrics_csv.TakesRows`."""
        self._loggers, self._again = trainer.loggers, list(again)
        about = self._about() if self._settings else {}
        for key, logger in zip(self._keys, self._loggers, strict=True):
            told = self._told.get(key)
            if told is None or told["version"] != logger.version:
                if about:
                    logger.log_hyperparams(about)
                for row in rows:
                    _send(logger, row)
                self._joined.add(key)
                self._told[key] = {
                    "class": type(logger).__name__,
                    "version": logger.version,
                    "hyperparameters": about,
                }
            elif trainer.state.fn == "fit" and about and told["hyperparameters"] != about:
                told["hyperparameters"] = about
                with suppress(Exception):  # MLflow keeps what it has; a resume changes no result
                    logger.log_hyperparams(about)
        self._write()

    def take(self, row: Row, hidden: Collection[str]) -> None:
        """See :class:`smolbench.callbacks.metrics_csv.TakesRows`."""
        known = bool(self._again) and self._again.pop(0) == row
        for key, logger in zip(self._keys, self._loggers, strict=True):
            if not known or key in self._joined:
                _send(logger, {name: v for name, v in row.items() if name not in hidden})

    def tested(self, metrics: Mapping[str, float | int]) -> None:
        """See :class:`smolbench.callbacks.metrics_csv.TakesRows`."""
        now = {"step": self._step, **metrics}
        for key, logger in zip(self._keys, self._loggers, strict=True):
            if now not in (tested := self._told[key].setdefault("tested", [])):
                logger.log_metrics(dict(metrics), step=self._step)
                logger.save()
                tested.append(now)
        self._write()

    def _about(self) -> dict[str, Any]:
        """Settings and what else is known when a run begins, flat."""
        results = read_results(self._folder)
        known = {k: v for k, v in results.items() if k in _ABOUT or k.startswith(_ABOUT_ALL)}
        return {**flatten(read_settings(self._folder / "config.yaml")), **known}

    def _write(self) -> None:
        if self._keys:
            write_atomically(self._path, json.dumps(self._told, indent=2, default=str) + "\n")


def _send(logger: Logger, row: Mapping[str, str]) -> None:
    metrics = {name: float(cell) for name, cell in row.items() if name != "step"}
    logger.log_metrics(metrics, step=int(row["step"]))
    logger.save()


def check_uploads(given: Any, callbacks: Sequence[Callback]) -> None:  # noqa: ANN401
    """Refuse `log_model` where there is nothing that it would upload.

    Args:
        given: The option ``trainer.logger``.
        callbacks: Those of the trainer that were asked for.

    Raises:
        SmolbenchError: Saying what would be uploaded.
    """
    for one in given if isinstance(given, list) else [given]:
        options = one.get("init_args") if isinstance(one, Namespace) else None
        if not options or not options.get("log_model"):
            continue
        if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
            raise SmolbenchError(
                f"trainer.logger {one['class_path'].rpartition('.')[2]} has log_model, which "
                "uploads what a ModelCheckpoint writes, and there is none: add one to "
                "trainer.callbacks, or leave log_model out (`smolbench export` writes the model "
                "as a folder for others)."
            )


@contextmanager
def loggers_in_a_sentence(more: Callable[[], str]) -> Iterator[None]:
    """Say in a sentence that a logger has failed.

    Args:
        more: What to do next, as a further sentence.

    Raises:
        SmolbenchError: If the error has come out of a logger.
    """
    try:
        yield
    except SmolbenchError:
        raise
    except Exception as error:  # whatever a logger raises, or what it writes to
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if isinstance(logger := frame.f_locals.get("self"), Logger):
                said = " ".join(str(error).split()) or type(error).__name__
                raise SmolbenchError(
                    f"trainer.logger {type(logger).__name__} has failed ({said.rstrip('.')}): mend "
                    f"that, or do without it, --trainer.logger false.{more()}"
                ) from error
        raise
