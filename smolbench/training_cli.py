"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI plus run folders.

What LightningCLI does not do by itself and what is done here: find checkpoints in a later process,
refuse to resume under other settings (it would take the checkpoint's, silently), and give every run
a folder with everything needed to repeat it.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import gc
import logging
import subprocess
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import yaml
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
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
    RunInterrupted,
    ThroughputMonitor,
    TrainingGuard,
)
from smolbench.callbacks.checkpoint import read_checkpoint
from smolbench.data import BaseDataModule
from smolbench.digest import digest
from smolbench.errors import SmolbenchError
from smolbench.invocation import Invocation, Subcommand, read_invocation
from smolbench.predict_input import read_inputs
from smolbench.predict_output import (
    Labelled,
    Said,
    Summarized,
    check_output,
    write_predictions,
)
from smolbench.progress import draw_library_bars
from smolbench.recipes import DEFAULTS
from smolbench.runs.results import FILE_NAME
from smolbench.runs.run_dir import make_folder, new_run_dir
from smolbench.runs.settings import (
    Settings,
    changed_for_scoring,
    check_same_run,
    read_settings,
    series_digest,
)
from smolbench.tasks.task import CHECKPOINT_KEY, BaseTask

log = logging.getLogger("smolbench")
_SETTINGS = ("seed_everything", "trainer", "model", "data", "checkpoint", "latency")
_FULL_OR_FORBIDDEN = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
}


_OF_PREDICT = {
    "text": "A text to label; may be repeated.",
    "input": "File of texts: .csv, .tsv, .jsonl or .parquet with a column of them, else a text per "
    "line; - is standard input.",
    "text_column": "Column of the texts in such a table (default: text); the others are kept.",
    "encoding": "Encoding of the file (default: utf-8).",
    "output": "File to write: .parquet, .csv or .jsonl.",
    "before": "none, for the untrained model, or another run's folder or checkpoint: what that "
    "says stands beside what this one says.",
}


def run(subcommand: Subcommand, arguments: list[str]) -> int:
    """Carry out one subcommand.

    Returns:
        The exit status: 0, or 130 or 143 if a signal ended the run.

    Raises:
        SmolbenchError: For a user's mistake.
    """
    _quieten_libraries()
    call = read_invocation(subcommand, arguments)
    stop, watch = GracefulStop(), BatchWatch()
    stop.take_over()
    try:
        if call.subcommand == "predict" and not call.only_shown:
            _predict(call, stop, watch)
        else:
            SmolCLI(call, stop, watch)
    except RunInterrupted as interruption:
        again = ""
        if call.resumes or (call.made is not None and (call.made / FILE_NAME).is_file()):
            again = " Go on with the same command and --ckpt_path last."
        log.warning("%s%s", interruption, again if subcommand == "fit" else "")
        return interruption.status
    except MisconfigurationException as error:
        raise SmolbenchError(" ".join(str(error).split())) from error
    except OSError as error:
        if error.errno not in _FULL_OR_FORBIDDEN:
            raise
        raise SmolbenchError(
            f"{error.filename or 'A file'} cannot be written ({error.strerror}); free some space "
            "or name another folder."
        ) from error
    except (RuntimeError, MemoryError) as error:
        if (sentence := watch.sentence(error)) is not None:
            raise SmolbenchError(sentence) from error
        if not _lost_another_rank(error):
            raise
        raise SmolbenchError(
            "Another process of this job has ended; why stands in its own message."
        ) from error
    finally:
        stop.give_back()
        _leave_job()
        _remove_empty(call)
    return 0


def _predict(call: Invocation, stop: GracefulStop, watch: BatchWatch) -> None:
    """Label or summarize texts, by two models if they are to stand side by side."""
    inputs = read_inputs(call.texts, call.input, call.text_column, call.encoding)
    check_output(call.output, inputs)
    calls = [call] if call.before is None else [call.before, call]
    known = [labels for one in calls if (labels := _saved_labels(one)) is not None]
    if any(labels != known[0] for labels in known):
        raise SmolbenchError(
            f"The model before tells {', '.join(known[0])} apart and the model after "
            f"{', '.join(known[1])}: they must have the same labels, in the same order."
        )
    labels = known[0] if known else None
    said = []
    for one in calls:
        said.append(SmolCLI(one, stop, watch, inputs.texts, labels).said)
        gc.collect()  # memory holds one model at a time; trainer and model refer to each other
    assert said[-1] is not None, "predict has run"
    if type(said[0]) is not type(said[-1]):
        raise SmolbenchError(
            "One of the two models labels texts and the other summarizes them: name two of one "
            "kind."
        )
    write_predictions(inputs, said[-1], call.output, said[0] if call.before else None)


def _saved_labels(call: Invocation) -> list[str] | None:
    """Names of the classes that the checkpoint's model tells apart."""
    if call.checkpoint is None:
        return None
    origin = read_checkpoint(call.checkpoint).get(CHECKPOINT_KEY)
    signature = origin.get("signature", {}) if isinstance(origin, dict) else {}
    labels: list[str] | None = signature.get("labels")
    return labels


def _leave_job() -> None:
    """Leave the process group while Python is whole, and the other processes to themselves.

    Lightning's observer would kill this process if it saw one of the others end first, with the
    status that says why.

    The group's worker threads live as long as anything refers to it; one that drops a tensor while
    the interpreter shuts down aborts the process (torch 2.13), and with it the job's exit status.
    """
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._child_processes = []
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()  # the trainer and its parts refer to each other, and to the group
        torch.distributed.destroy_process_group()


def _lost_another_rank(error: BaseException) -> bool:
    """Whether a collective call failed because another process is gone."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    gone = ("closed by peer", "reset by peer", "Broken pipe")  # gloo has no type of its own
    return distributed and (
        isinstance(error, torch.distributed.DistError) or any(text in str(error) for text in gone)
    )


def _remove_empty(call: Invocation) -> None:
    """Remove the folder that was made for a command if nothing came into it."""
    with contextlib.suppress(OSError):
        if call.made is not None:
            call.made.rmdir()
        if call.made is not None and call.made.parents[1] == call.runs_dir:
            call.made.parent.rmdir()
            call.runs_dir.rmdir()


class SmolCLI(LightningCLI):
    """LightningCLI for one invocation.

    Args:
        call: What the command line asks for, with its checkpoint already found.
        stop: Handles the signals.
        watch: Knows the current batch.
        texts: Texts to label.
        labels: Names of the classes that they get, where they are known before there is data.
    """

    def __init__(
        self,
        call: Invocation,
        stop: GracefulStop,
        watch: BatchWatch,
        texts: Sequence[str] = (),
        labels: list[str] | None = None,
    ) -> None:
        self.call = call
        self.stop = stop
        self.watch = watch
        self.texts = texts
        self.labels = labels
        self.said: Said | None = None
        self.folder = Path()
        self.config_text: str | None = None
        self.identity: dict[str, Any] = {}
        parser_kwargs: dict[str, Any] = {call.subcommand: {"default_config_files": [str(DEFAULTS)]}}
        super().__init__(
            model_class=BaseTask,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,  # ResultsWriter saves it, once per run
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs=parser_kwargs,
            args=call.argv,
        )

    # -- the command line -------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override] # static in Lightning
        """The one that was called: a parser takes as long to build as to use."""
        name = self.call.subcommand
        return {name: super().subcommands()[name]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options beside those of Trainer, model and data.

        The run options are settled in :mod:`smolbench.invocation`, before anything heavy is
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
        settings = self._settings()
        parent = call.run
        fresh = True
        if call.resumes:
            assert parent is not None
            check_same_run(read_settings(parent.config), settings, extend=call.extend)
            self.folder, fresh = parent.path, False
            if call.checkpoint is None:
                log.info("%s has no checkpoint yet: it starts from the beginning.", parent.path)
        elif call.subcommand == "predict":
            self.folder = call.run_dir or (parent.path if parent else Path.cwd())
        elif parent is not None and call.subcommand != "fit":
            changed = changed_for_scoring(read_settings(parent.config), settings)
            own = call.run_dir not in (None, parent.path) or bool(changed)
            own = own or call.checkpoint != parent.checkpoint("best")
            self.folder = self._new_folder() if own else parent.path
            fresh = own
        else:
            self.folder = self._new_folder()
        # a resumed run may have become longer
        if fresh or call.resumes:
            self.config_text = yaml.safe_dump(settings, sort_keys=False)
        self.identity = self._identity(settings, fresh=fresh)
        if call.checkpoint is not None:
            self._check_checkpoint(read_checkpoint(call.checkpoint))

    def _refuse_misplaced(self) -> None:
        """Refuse in files what is settled before they are read, and would be passed over."""
        call, config = self.call, self.config[self.subcommand]
        settled = {"run_dir": None, "runs_dir": "runs", "extend": False}
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

    def _new_folder(self) -> Path:
        """The folder of a new run; rank 0 makes it, and tells the others later."""
        call = self.call
        resumed = call.run.path if call.run is not None else None
        chosen = call.run_dir if call.run_dir != resumed else None
        if getattr(rank_zero_only, "rank", 0) != 0:
            return chosen or call.runs_dir
        if chosen is None:
            call.made = new_run_dir(call.runs_dir, call.recipe)
            return call.made
        if (chosen / FILE_NAME).exists():
            raise SmolbenchError(
                f"{chosen} holds a run already: name another --run_dir"
                + (", or go on with it by --ckpt_path last." if call.subcommand == "fit" else ".")
            )
        call.made = chosen if make_folder(chosen) else None
        return chosen

    def _settings(self) -> Settings:
        dumped = self._parser(self.subcommand).dump(
            self.config[self.subcommand], skip_none=False, format="yaml"
        )
        everything = yaml.safe_load(dumped)
        return {name: everything[name] for name in _SETTINGS if name in everything}

    def _identity(self, settings: Settings, *, fresh: bool) -> dict[str, Any]:
        call = self.call
        identity: dict[str, Any] = {
            "recipe": call.recipe,
            "config_digest": digest(settings),
            "series_digest": series_digest(settings),
            "git_revision": _git_revision(),
            "seed": settings["seed_everything"],
        }
        if not fresh and call.subcommand != "fit":
            return {}  # a test with the run's own settings adds to what the run says of itself
        identity["started_at"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        scored = call.subcommand != "fit"
        identity["parent_run"] = str(call.run.path) if scored and call.run else None
        identity["checkpoint"] = str(call.checkpoint) if scored and call.checkpoint else None
        return identity

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
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, SmolbenchError):
                cause = cause.__cause__ or cause.__context__
            raise cause or error from error
        if self.call.checkpoint is not None:
            self.model.before_data(read_checkpoint(self.call.checkpoint))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401 - as Lightning types it
        """A Trainer that writes into the run folder, with the callbacks every run has."""
        draw_library_bars()
        config = self._get(self.config_init, "trainer", default={})
        callbacks = config["callbacks"] or []
        if not isinstance(callbacks, list):
            callbacks = [callbacks]
        always = [
            self.stop,
            self.watch,
            ExactResume(),
            MemoryMonitor(),
            ThroughputMonitor(),
            TrainingGuard(),
            MetricsCSV(),
        ]
        # behind all others, so that it finds their measurements complete; but what is measured
        # behind a test must not keep the test from being written
        self.writer = ResultsWriter(self.identity, self.config_text)
        if config["enable_progress_bar"] is not False:
            always.append(RichProgressBar(leave=False))
        latency = self._get(self.config_init, "latency")
        callbacks = [*always, *callbacks, self.writer, latency]
        if self.call.subcommand == "predict":
            # a few texts, whatever the run was trained on: each rank would see a part of them only
            kwargs |= {"devices": 1, "num_nodes": 1, "strategy": "auto", "plugins": None}
        try:
            return super().instantiate_trainer(
                default_root_dir=str(self.folder), callbacks=callbacks, **kwargs
            )
        except ValueError as error:  # an unknown strategy or accelerator, for example
            raise SmolbenchError(" ".join(str(error).split())) from error

    def before_fit(self) -> None:
        """Say where the run goes, and refuse what would stop it later."""
        self.model.runs_dir = self.call.runs_dir
        self.model.check_inputs()
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        log.info("Run folder: %s", self.folder)
        if self._begins:
            self.writer.claim(self.folder)

    @property
    def _begins(self) -> bool:
        """Whether this process is the one that makes a new run's folder."""
        return getattr(rank_zero_only, "rank", 0) == 0 and not self.call.resumes

    def fit(self, **kwargs: Any) -> None:  # noqa: ANN401 - as Lightning types it
        """Train; what fails before the training begins leaves no run behind."""
        try:
            self.trainer.fit(**kwargs)
        finally:
            if self._begins:
                self.writer.withdraw()

    def after_fit(self) -> None:
        """Print what came out."""
        self._summarise("val")

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
        if self.model.kind not in {"classification", "summarization"}:
            raise SmolbenchError(
                "`smolbench predict` labels or summarizes texts, which "
                f"{type(self.model).__name__} does not: `smolbench test` writes what it says about "
                "every test example to predictions.parquet."
            )
        self._require_checkpoint()
        if self.labels is not None:
            self.model.label_names = self.labels
        self.datamodule.predict_on(self.texts)

    def predict(self, **kwargs: Any) -> None:  # noqa: ANN401 - as Lightning types it
        """Label or summarize the texts."""
        batches: list[Any] = self.trainer.predict(**kwargs) or []
        if self.model.kind == "summarization":
            self.said = Summarized.of(batches)
        else:
            self.said = Labelled.of(batches, self.model.label_names)

    def _require_checkpoint(self) -> None:
        call = self.call
        if call.checkpoint is None and not call.untrained and not self.model.scored_untrained:
            raise SmolbenchError(call.missing or "There is no checkpoint to score.")

    def _summarise(self, *splits: str) -> None:
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            log.info("fast_dev_run went through; nothing was written.")
            return
        if self.trainer.is_global_zero:
            from smolbench.runs.summary import print_summary  # lazy: rich and the report's tables

            print_summary(self.writer.results, self.folder, splits=splits)


def _git_revision() -> str | None:
    """Commit of the checkout that smolbench runs from, marked if it has changes; else ``None``."""
    try:
        # installed into an environment within somebody's project, it is not of that project
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    return done.stdout.strip()


def _quieten_libraries() -> None:
    """Hide what libraries print on every start and what says nothing about this run."""
    import transformers  # lazy: keeps this module's import cheap for --help of other commands

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # the devices found, the seed, tips for other products; warnings still come through
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # on some processors it asks for a package that fetches other kernels from the Hub at import
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    for harmless in (
        ".*treespec, LeafSpec.*",  # lightning 2.6 with torch 2.13
        ".*It is recommended to use `self.log.*sync_dist.*",  # metrics are of all ranks' rows
        "Total length of `list` across ranks is zero.*",  # no validation was asked for
    ):
        warnings.filterwarnings("ignore", message=harmless)
    # recipe names in sys.argv have become paths in the arguments handed on
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
