"""The option parser, model, data and Trainer of one command: LightningCLI plus run folders.

What LightningCLI does not do by itself and what is done here: find checkpoints in a later process,
refuse to resume under other settings (it would take the checkpoint's, silently), and give every run
a folder with everything needed to repeat it.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import traceback
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, set_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_only

import smolbench.tasks  # noqa: F401 - imported classes can be named without their module
from smolbench.callbacks import (
    BatchWatch,
    ExactResume,
    GracefulStop,
    LatencyMonitor,
    MemoryMonitor,
    MetricsCSV,
    ResultsWriter,
    RunCheckpoint,
    ThroughputMonitor,
    TrainingGuard,
)
from smolbench.callbacks.checkpoint import read_checkpoint
from smolbench.callbacks.ending import why_ended
from smolbench.callbacks.results import packages_here
from smolbench.cli.command_line import Invocation
from smolbench.cli.data_of_run import rows_of_run
from smolbench.cli.loggers import RunLoggers, check_uploads
from smolbench.cli.model_places import name_places
from smolbench.cli.monitors import check_monitors, unknown_metric
from smolbench.cli.option_parser import OptionParser, refuse_null, tell_counts_from_shares
from smolbench.cli.predict_output import Labelled, Said, Summarized
from smolbench.cli.run_folder import choose_folder, identity_of
from smolbench.cli.text_options import as_given, marked, read_yaml
from smolbench.cli.trainer_checks import (
    check_callbacks,
    check_options,
    check_precision,
    check_seed,
    check_training_options,
    keep_apart,
)
from smolbench.cli.training_ends import Profiled
from smolbench.data import BaseDataModule
from smolbench.data.whole_splits import refuse_batch_limits
from smolbench.errors import SmolbenchError
from smolbench.identity import Purpose, compare, said
from smolbench.runs.recipes import DEFAULTS
from smolbench.runs.results import read_results
from smolbench.runs.settings import Settings, read_settings
from smolbench.tasks.base import CHECKPOINT_KEY, BaseTask
from smolbench.tasks.trained_run import say_own_code
from smolbench.utils.notices import warn
from smolbench.utils.progress import draw_library_bars

log = logging.getLogger("smolbench")
_SETTINGS = ("seed_everything", "trainer", "model", "data", "checkpoint", "latency")
_OF_PREDICT = {
    "text": "A text to label; may be repeated.",
    "input": "File of texts: .csv, .tsv, .jsonl or .parquet with a column of them, else a text per "
    "line; - is standard input.",
    "text_column": "Column of the texts in such a table (default: text); the others are kept.",
    "encoding": "Encoding of the file (default: utf-8).",
    "quoting": "What double quotes mean in a .csv or .tsv: quotes (around texts), none (a part of "
    "them), auto (found out; the default).",
    "output": "File to write: .parquet, .csv or .jsonl.",
    "before": "none, for the untrained model, or another run's folder or checkpoint: what that "
    "says stands beside what this one says.",
}
PREDICTED = ("classification", "summarization")
"""Kinds of example whose texts `predict` takes."""
TWO_KINDS = (
    "One of the two models labels texts and the other summarizes them: name two of one kind."
)


class SmolCLI(LightningCLI):
    """LightningCLI for one invocation.

    Args:
        call: What the command line asks for, with its checkpoint already found.
        stop: Handles the signals.
        watch: Knows the current batch.
        texts: Texts to label.
        labels: Names of the classes that they get, where they are known before there is data.
        kinds: Kinds of example that the model may be for; any if there are none.
    """

    def __init__(
        self,
        call: Invocation,
        stop: GracefulStop,
        watch: BatchWatch,
        texts: Sequence[str] = (),
        labels: list[str] | None = None,
        kinds: Collection[str] = (),
    ) -> None:
        self.call = call
        self.stop = stop
        self.watch = watch
        self.texts = texts
        self.labels = labels
        self.kinds = kinds
        self.said: Said | None = None
        self.folder = Path()
        self.summarised = False
        self.config_text: str | None = None
        self.identity: dict[str, Any] = {}
        self.loggers: RunLoggers | None = None
        set_loader("yaml", read_yaml, (yaml.YAMLError,))
        tell_counts_from_shares()
        parser_kwargs: dict[str, Any] = {call.subcommand: {"default_config_files": [str(DEFAULTS)]}}
        super().__init__(
            model_class=BaseTask,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,  # ResultsWriter saves it, once per run
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_class=OptionParser,
            parser_kwargs=parser_kwargs,
            args=marked(call.argv),
        )

    # -- the command line -------------------------------------------------------------------------

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401
        """Read the options; what cannot work is refused before anything is built of them."""
        super().parse_arguments(parser, args)
        self.config = as_given(self.config)
        settings = self.config[self.call.subcommand]
        for section in ("model", "data", "trainer"):
            refuse_null(settings.get(section), section)
        check_options(settings["trainer"])
        if self.call.subcommand == "fit" and not self.call.resumes:
            check_training_options(settings["trainer"])
        seed = settings["seed_everything"]
        if isinstance(seed, bool):
            settings["seed_everything"] = self._drawn_seed()
        else:
            check_seed(seed)

    def _drawn_seed(self) -> int:
        """A seed by chance, where none was wanted: said and recorded, and kept on a resume."""
        if self.call.resumes and self.call.run is not None:
            return int(read_settings(self.call.run.config)["seed_everything"])
        if "LOCAL_RANK" in os.environ:  # the process that launched this one has drawn
            if "PL_GLOBAL_SEED" not in os.environ:
                raise SmolbenchError(
                    "seed_everything is to be drawn, but the launched processes need one seed: "
                    "give a number."
                )
            return int(os.environ["PL_GLOBAL_SEED"])
        seed = secrets.randbelow(2**32)
        log.info("Drawn by chance: seed_everything %s.", seed)
        return seed

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override] # static in Lightning
        """The one that was called: a parser takes as long to build as to use."""
        name = self.call.subcommand
        return {name: super().subcommands()[name]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options beside those of Trainer, model and data.

        The run options are settled in :mod:`smolbench.cli.command_line`, before anything heavy is
        imported; they stand here for ``--help``.
        """
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        # no Lightning class argument: those come behind all callbacks, and this one's place matters
        parser.add_class_arguments(LatencyMonitor, "latency")
        group = parser.add_argument_group("run", "Run folders")
        group.add_argument(
            "--run_dir",
            type=str | None,
            help="Folder this command writes to, or whose checkpoint --ckpt_path last|best means.",
        )
        group.add_argument("--runs_dir", type=str, default="runs", help="Folder of all runs.")
        if self._parsed_subcommand == "fit":
            group.add_argument(
                "--extend",
                action="store_true",
                help="Let a resumed run train for longer although its learning rate falls to 0 "
                "over the steps it was planned for.",
            )
            group.add_argument(
                "--estimate",
                action="store_true",
                help="Train for 20 steps, say what the whole run would take, and leave no run.",
            )
        if self._parsed_subcommand == "predict":
            for option, help_ in _OF_PREDICT.items():
                group.add_argument(f"--{option}", type=str | None, help=help_)

    def _prepare_subcommand_parser(
        self,
        klass: type,
        subcommand: str,
        **kwargs: Any,  # noqa: ANN401
    ) -> LightningArgumentParser:
        # LightningCLI does not tell `add_arguments_to_parser` whose parser it is given
        self._parsed_subcommand = subcommand
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in {"validate", "test"}:
            parser.set_defaults(verbose=False)  # the closing table says it all, and more
        return parser

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as the user gave it.

        LightningCLI would overwrite it, silently, with the hyperparameters in the checkpoint; here
        they are compared instead.
        """

    # -- the run folder ---------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Decide which folder is written to, and refuse what would not be the same run."""
        call = self.call
        self._refuse_misplaced()
        refuse_batch_limits(call.subcommand, self.config[self.subcommand]["trainer"])
        options = self.config[self.subcommand]["model"].get("init_args")
        if options is not None:
            name_places(options, call)
            say_own_code(options)
        settings = self._settings()
        self.folder, fresh = self._choose_folder(settings)
        trainer = self.config[self.subcommand]["trainer"]
        if call.subcommand == "predict":  # nothing is measured: nobody's tracker hears of it
            trainer["logger"] = False
        elif not call.estimate:
            name, step, about = self._run_name(), self._scored_step(), "enable_autolog_hparams"
            self.loggers = RunLoggers(self.folder, name, step, settings=trainer[about])
            trainer["logger"] = self.loggers.settle(trainer["logger"])
            trainer[about] = False  # Lightning knows the model's options alone
        # a resumed run may have become longer
        if fresh or call.resumes:
            self.config_text = yaml.safe_dump(settings, sort_keys=False)
        self.identity = identity_of(call, settings, fresh=fresh)
        if call.checkpoint is not None:
            self._check_checkpoint(read_checkpoint(call.checkpoint))

    def _run_name(self) -> str:
        """The run's name among others, as its folder has it."""
        if self.folder.is_relative_to(self.call.runs_dir):
            return self.folder.relative_to(self.call.runs_dir).as_posix()
        return f"{self.call.recipe}/{self.folder.parent.name}/{self.folder.name}"

    def _scored_step(self) -> int:
        """Optimiser steps of the checkpoint of this command."""
        checkpoint = self.call.checkpoint
        return read_checkpoint(checkpoint).get("global_step", 0) if checkpoint is not None else 0

    def _choose_folder(self, settings: Settings) -> tuple[Path, bool]:
        """The folder, and whether what is written there begins with this command."""
        return choose_folder(self.call, settings)

    def _refuse_misplaced(self) -> None:
        """Refuse in files what is settled before they are read, and would be passed over."""
        call, config = self.call, self.config[self.subcommand]
        settled = {"run_dir": None, "runs_dir": "runs", "extend": False, "estimate": False}
        settled |= dict.fromkeys(_OF_PREDICT)
        settled["ckpt_path"] = str(call.checkpoint) if call.checkpoint is not None else None
        for name, value in settled.items():
            if config.get(name, value) != value:
                raise SmolbenchError(
                    f"{name} stands in a configuration file; give it on the command line: --{name}."
                )
        if config["trainer"]["default_root_dir"] is not None:
            raise SmolbenchError(
                "trainer.default_root_dir is the run's folder; choose it with --run_dir or "
                "--runs_dir."
            )

    def _settings(self) -> Settings:
        dumped = self._parser(self.subcommand).dump(
            self.config[self.subcommand], skip_none=False, format="yaml"
        )
        everything = yaml.safe_load(dumped)
        return {name: everything[name] for name in _SETTINGS if name in everything}

    def _check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse early what could not be loaded later, before any data is read."""
        if not isinstance(checkpoint.get(CHECKPOINT_KEY), dict):
            raise SmolbenchError(f"{self.call.checkpoint} was not written by smolbench.")
        if self.call.subcommand == "fit" and not checkpoint.get("optimizer_states"):
            raise SmolbenchError(
                f"{self.call.checkpoint} holds no optimiser state; training goes on from a "
                "last.ckpt."
            )

    # -- running ----------------------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        """Build model, data and Trainer; what they object to is said as they say it."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            # the option parser puts what a class objects to into words of its own
            if (ours := _cause(error, SmolbenchError)) is not None:
                raise ours from error
            if (said := _objection(self.config[self.subcommand]["trainer"])) is not None:
                raise SmolbenchError(said) from error
            raise
        if isinstance(self.datamodule, BaseDataModule) and self.call.subcommand != "predict":
            rows_of_run(self.datamodule, self.call, self._settings())
        if self.call.checkpoint is not None:
            self.model.before_data(read_checkpoint(self.call.checkpoint))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401 - as Lightning types it
        """A Trainer that writes into the run folder, with the callbacks every run has."""
        draw_library_bars()
        config = self._get(self.config_init, "trainer", default={})
        callbacks = _listed(config["callbacks"])
        always = [
            self.stop,
            self.watch,
            ExactResume(),
            MemoryMonitor(),
            ThroughputMonitor(),
            TrainingGuard(),
            MetricsCSV(self.loggers),
        ]
        # behind all others, so that it finds their measurements complete; but what is measured
        # behind a test must not keep the test from being written
        self.writer = ResultsWriter(self.identity, self.config_text)
        own_bar = any(isinstance(one, ProgressBar) for one in callbacks)
        if config["enable_progress_bar"] is not False and not own_bar:
            always.append(RichProgressBar(leave=False, console_kwargs={"stderr": True}))
        latency = self._get(self.config_init, "latency")
        if self.call.subcommand == "fit":
            check_callbacks(callbacks, logger=bool(config["logger"]))
            check_uploads(self.config[self.subcommand]["trainer"]["logger"], callbacks)
            keep_apart(callbacks, self.folder, log.info)
        # one's own takes the place of a run's
        given = {type(one) for one in callbacks}
        always = [one for one in always if type(one) not in given]
        callbacks = [*always, *callbacks, self.writer, latency]
        if self.call.subcommand == "predict":
            # a few texts, whatever the run was trained on: each rank would see a part of them only
            kwargs |= {"devices": 1, "num_nodes": 1, "strategy": "auto", "plugins": None}
        self.profiled = Profiled(self.folder, config["profiler"], self.call.subcommand)
        if (profiler := self.profiled.profiler()) is not None and not config["fast_dev_run"]:
            kwargs["profiler"] = profiler
        try:
            trainer = super().instantiate_trainer(
                default_root_dir=str(self.folder), callbacks=callbacks, **kwargs
            )
        # an unknown strategy or accelerator, for example, or one whose package is not there
        except (ValueError, TypeError, ImportError) as error:
            raise SmolbenchError(" ".join(str(error).split())) from error
        plugs = "The precision of trainer.plugins" if config["plugins"] else "trainer.precision"
        check_precision(str(trainer.precision), plugs)
        return trainer

    def before_fit(self) -> None:
        """Say where the run goes, and refuse what would stop it later."""
        self.check_training()
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._tell_versions("resume", "goes on")
        log.info("Run folder: %s", self.folder)
        if self._begins:
            self.writer.claim(self.folder)
        self.writer.folder = self.folder
        if (paths := self.model.paths) is not None:
            if self.call.resumes and self.call.run is not None:
                paths.restore(read_results(self.call.run.path))
            paths.on_decision = self.writer.note

    def check_training(self) -> None:
        """Refuse what would stop a training later, before any data is read."""
        self.model.runs_dir = self.call.runs_dir
        self.model.data_to_come = self.datamodule
        self.model.check_inputs()
        trainer: Namespace = self._get(self.config_init, "trainer")
        callbacks = [self._get(self.config_init, "checkpoint"), *_listed(trainer["callbacks"])]
        every = trainer["check_val_every_n_epoch"]
        check_monitors(self.model, callbacks, every, lambda: has_validation(self.datamodule))

    @property
    def _begins(self) -> bool:
        """Whether this process is the one that makes a new run's folder."""
        return getattr(rank_zero_only, "rank", 0) == 0 and not self.call.resumes

    def fit(self, **kwargs: Any) -> None:  # noqa: ANN401 - as Lightning types it
        """Train; what is refused before the training begins leaves no run behind."""
        refused = False
        try:
            self.trainer.fit(**kwargs)
        except SmolbenchError:
            refused = True
            raise
        except (RuntimeError, ValueError, MisconfigurationException) as error:
            if (said := unknown_metric(error, self.trainer) or _objection_in_fit(error)) is None:
                raise  # a fault, after which the run goes on: with what it has decided
            refused = True
            raise SmolbenchError(said) from error
        finally:
            if self._begins:
                self.writer.withdraw(refused=refused)

    def after_fit(self) -> None:
        """Print what came out."""
        self._summarise("val")
        if self.trainer.is_global_zero:
            log.info("The training ended because %s.", why_ended(self.trainer))

    def before_validate(self) -> None:
        """Nothing is scored by mistake."""
        self._require_checkpoint()
        if isinstance(self.datamodule, BaseDataModule) and not len(self.datamodule.split("val")):
            raise SmolbenchError(
                "There is nothing to validate on: data.val_fraction is 0, all of train is trained "
                "on. Use `smolbench test`."
            )

    def after_validate(self) -> None:
        """Print what came out."""
        self._summarise("val")

    def before_test(self) -> None:
        """Nothing is scored by mistake."""
        self._require_checkpoint()

    def after_test(self) -> None:
        """Print what came out."""
        self._summarise("test")

    def before_predict(self) -> None:
        """Hand over the texts."""
        if self.model.kind not in PREDICTED:
            raise SmolbenchError(
                "`smolbench predict` labels or summarizes texts, which "
                f"{type(self.model).__name__} does not: `smolbench test` writes what it says about "
                "every test example to predictions.parquet."
            )
        if self.kinds and self.model.kind not in self.kinds:
            raise SmolbenchError(TWO_KINDS)
        self._require_checkpoint()
        predict_on = getattr(self.datamodule, "predict_on", None)
        if predict_on is None:
            raise SmolbenchError(
                "`smolbench predict` hands texts to a DataModule of smolbench, and "
                f"{type(self.datamodule).__name__} is none: name one, such as --data "
                "TextFilesDataModule, or predict by a Trainer of your own."
            )
        if self.labels is not None:
            self.model.label_names = self.labels
        predict_on(self.texts)

    def predict(self, **kwargs: Any) -> None:  # noqa: ANN401 - as Lightning types it
        """Label or summarize the texts."""
        batches: list[Any] = self.trainer.predict(**kwargs) or []
        if self.model.kind == "summarization":
            self.said = Summarized.of(batches)
        else:
            self.said = Labelled.of(
                batches, self.model.label_names, getattr(self.model, "score_name", "score")
            )

    def _require_checkpoint(self) -> None:
        call = self.call
        if call.checkpoint is None and not call.untrained and not self.model.scored_untrained:
            raise SmolbenchError(call.missing or "There is no checkpoint to score.")
        if call.subcommand != "predict":
            self._tell_versions("score", "is scored")

    def _tell_versions(self, purpose: Purpose, what: str) -> None:
        """Say which libraries have other versions than when the run was trained."""
        if self.call.run is None:
            return
        now = {f"packages/{name}": version for name, version in packages_here().items()}
        before = {name: v for name, v in self.call.run.results().items() if name in now}
        now = {name: now[name] for name in before}
        told = compare(purpose, before, now).told
        if told:
            warn(
                "The run was trained with other versions of libraries than it %s with: %s.",
                what,
                said(told).replace("packages/", ""),
            )

    def _summarise(self, *splits: str) -> None:
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            log.info("fast_dev_run went through; nothing was written.")
            return
        if self.trainer.is_global_zero:
            from smolbench.runs.report.summary import (
                print_summary,  # lazy: rich and the report's tables
            )

            print_summary(self.writer.results, self.folder, splits=splits)
            self.profiled.show()
            self.summarised = True


def has_validation(data: object) -> bool:
    """Whether there are validation rows: held out, or the dataset's own, for which it is read."""
    if not isinstance(data, BaseDataModule) or data.val_fraction > 0:
        return True
    return len(data.split("val")) > 0


def _listed(callbacks: Any) -> list[Any]:  # noqa: ANN401 - none, one or several
    return callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []


def _objection(trainer: Namespace) -> str | None:
    """What a logger lacks (its package), or a callback objects to.

    The option parser has tried all that `trainer.logger` and `trainer.callbacks` may be, and its
    error is of the first of these; so each is built once more, as what it is.
    """
    outer = sys.exception()
    for option, kind in (("logger", Logger), ("callbacks", Callback)):
        given = trainer[option]
        for one in given if isinstance(given, list) else [given]:
            if not isinstance(one, Namespace):  # true, false, null
                continue
            parser = ArgumentParser(exit_on_error=False)
            parser.add_argument("--one", type=kind)
            try:
                parser.instantiate_classes(Namespace(one=one))  # type: ignore[no-untyped-call]
            except Exception as raised:  # whatever a class raises
                error: BaseException = raised
                while (cause := error.__cause__ or error.__context__) not in (None, outer):
                    error = cause
                name = one["class_path"].rpartition(".")[2]
                said = str(error).strip() or type(error).__name__
                return f"trainer.{option} {name}: {said.splitlines()[0]}"
    return None


def _objection_in_fit(error: Exception) -> str | None:
    """What Lightning itself refuses when a training is set up; ``None`` of any other error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    own = str(frame.f_globals.get("__name__")).startswith("lightning.pytorch.")
    if not own or not isinstance(error, (ValueError, MisconfigurationException)):
        return None
    return f"Lightning refuses to train: {' '.join(str(error).split())}"


def _cause(error: BaseException, *kinds: type[BaseException]) -> BaseException | None:
    """The first error of some kinds among an error and its causes."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, kinds):
        cause = cause.__cause__ or cause.__context__
    return cause
