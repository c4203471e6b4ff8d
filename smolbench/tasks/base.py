"""The base of all tasks: optimiser, schedule, and checkpoints that hold only what was trained."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.distributed
from lightning.pytorch import LightningDataModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from smolbench.callbacks.checkpoint import read_checkpoint
from smolbench.data.batching import Rows
from smolbench.data.columns import column_digest
from smolbench.data.datamodule import BaseDataModule, require_values
from smolbench.data.token_cache import TokenTable
from smolbench.errors import SmolbenchError
from smolbench.identity import compare
from smolbench.models.export.check import Trial
from smolbench.models.export.exported import Exported
from smolbench.models.frozen.rehearsal import PassRehearsal
from smolbench.models.kernels.paths import Paths
from smolbench.models.pretrained.adaptation import parameter_count
from smolbench.models.pretrained.reach import Reach
from smolbench.protocols import KeepsRows, offered
from smolbench.tasks.accumulation import planned_steps, weight_of_batch
from smolbench.tasks.batch_size import largest_batch
from smolbench.tasks.logged import LogsByStage
from smolbench.utils.digest import is_digest, text_digest
from smolbench.utils.files import cache_root
from smolbench.utils.notices import warn
from smolbench.utils.ranks import TrainerRanks

Schedule = Literal["constant", "linear", "cosine"]
Warmup = int | float
"""Optimiser steps, or (a float) their share of all planned ones."""
CHECKPOINT_KEY = "smolbench"
_PATHS = "paths"
ROWS = "rows"
"""Where a checkpoint has the digest of its run's rows."""
_KNOWN_BY = {"backbone": "revision", "teacher": "teacher_digest"}
"""Names in a signature, and what tells by a digest whom they are of."""
ALONE = (
    "A training batch holds one example, and the network normalises over the examples of a batch "
    "(BatchNorm), so that it needs two: raise data.batch_size, give more rows, or take a network "
    "without it (of a probe model.head linear)."
)
_ENDLESS = "but the training has no planned end: give trainer.max_epochs or max_steps"


class BaseTask(LogsByStage, ABC):
    """What every task shares.

    A task says how an example becomes token ids (:meth:`encode`, :meth:`encoder_key`), builds what
    trains in :meth:`configure_model`, and says in :meth:`signature` which settings a checkpoint of
    it depends on.

    Args:
        lr: Peak learning rate of AdamW.
        weight_decay: Decoupled weight decay, on matrices only (not on biases and norms).
        warmup_steps: Optimiser steps over which the learning rate rises from 0 to ``lr``: a whole
            number, or a share of all planned steps such as 0.1.
        schedule: What the learning rate does after the warm-up: stays, or falls to 0 at the end of
            training along a line or half a cosine.
    """

    kind: ClassVar[str]
    """Kind of example: ``classification``, ``summarization`` or ``multiple_choice``."""
    monitor: tuple[str, Literal["min", "max"]]
    """Validation metric that decides which checkpoint is the best, and its better direction."""
    tie_breaker: str = "val/loss"
    """Validation loss that decides between checkpoints that are equal by what is monitored."""
    method: str = "own"
    """How the model is adapted, as it stands in results: ``probe``, ``full``, ``lora``..."""
    convention: str | None = None
    """Which of several rules in use the scores follow; ``None`` where there is but one."""
    pad_token_id: int = 0
    runs_dir: Path = Path("runs")
    """Where a run is looked for that is named by its recipe."""
    data_to_come: LightningDataModule | None = None
    """The DataModule that a Trainer will have; the command line says so before there is one."""
    rehearsal: PassRehearsal | None = None
    """Given where a run is only estimated: frozen passes then read a part of their rows."""
    reach: Reach | None = None
    """What texts reach in ``model``, a pretrained network that trains; ``None`` without one."""

    def __init__(
        self,
        *,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        warmup_steps: Warmup = 0,
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__()
        require_values(type(self), "kind")
        if lr <= 0 or weight_decay < 0 or warmup_steps < 0:
            raise SmolbenchError(
                f"model.lr must be positive, weight_decay and warmup_steps not negative; given are "
                f"lr={lr}, weight_decay={weight_decay}, warmup_steps={warmup_steps}."
            )
        if isinstance(warmup_steps, float) and not 0 <= warmup_steps < 1:
            raise SmolbenchError(
                f"model.warmup_steps is {warmup_steps}: give a whole number of optimiser steps, or "
                "a share of the planned ones of at least 0 and below 1, such as 0.1."
            )
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.schedule = schedule
        # a checkpoint lacks the frozen rest; what it must hold, on_load_checkpoint sees to
        self.strict_loading = False
        self._gathered: list[tuple[torch.Tensor, ...]] = []
        self._built = False
        self._matrices: frozenset[str] | None = None
        self._drawn_from: str | None = None

    @abstractmethod
    def encode(self, examples: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        """Turn a batch of examples, as columns, into columns of token ids and numbers."""

    @abstractmethod
    def encoder_key(self) -> dict[str, Any]:
        """Everything that :meth:`encode` depends on, as plain JSON, for naming a cache."""

    def check_tokens(self, table: TokenTable) -> None:
        """Refuse token ids that the network cannot look up.

        Called for every split, before the network is loaded.

        Args:
            table: The split as :meth:`encode` gave it.

        Raises:
            SmolbenchError: Naming a token.
        """

    @abstractmethod
    def signature(self) -> dict[str, Any]:
        """Settings that a trained state is only valid with, as plain values.

        They are saved in every checkpoint and compared when one is loaded.
        """

    def check_inputs(self) -> None:
        """Refuse what would stop a training later.

        The command line calls it before any process is started and any data read.

        Raises:
            SmolbenchError: Saying what is wrong.
        """

    def validated(self) -> tuple[str, ...]:
        """Names of the metrics, without ``val/``, that a validation can be compared by.

        Empty where that is not known before one has run.
        """
        return ()

    def monitor_on(self, data: object) -> tuple[str, Literal["min", "max"]]:
        """What :attr:`monitor` is for a DataModule, before a Trainer has both."""
        return self.monitor

    def logged(self) -> tuple[str, ...]:
        """Names of the metrics of a training that can be watched; empty where not known before."""
        names = tuple(f"val/{name}" for name in self.validated())
        steps = type(self).training_step is BaseTask.training_step
        return (*names, "train/loss", "train/lr") if names and steps else names

    def epochs_between(self, metric: str) -> int:
        """Epochs from one that logs a metric of :meth:`logged` to the next one that does."""
        return 1

    def remarks_on_estimate(self) -> list[str]:
        """What there is to be known about an estimate of a run of this task, as sentences.

        Raises:
            SmolbenchError: If a part of such a run says nothing about the whole.
        """
        return []

    def before_data(self, checkpoint: Mapping[str, Any]) -> None:
        """Take from the checkpoint of this command what encoding needs: a vocabulary, for example.

        The command line calls it before any data is read; weights are loaded later.

        Args:
            checkpoint: As it was saved.

        Raises:
            SmolbenchError: If it does not belong to this task.
        """
        saved = checkpoint.get(CHECKPOINT_KEY)
        if self.paths is not None and isinstance(saved, Mapping):
            self.paths.restore(saved.get(_PATHS) or {})

    @property
    def paths(self) -> Paths | None:
        """By which paths the run's network is run; ``None`` where no network is loaded."""
        return getattr(getattr(self, "backbone", None), "paths", None)

    @property
    def run_device(self) -> torch.device:
        """Where the network will run, also before Lightning has moved this module there."""
        return self._trainer.strategy.root_device if self._trainer else self.device

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """What a training step minimises, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} has no loss of a single batch.")

    def checked_loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss of a training batch.

        Raises:
            SmolbenchError: If the network cannot learn from one example alone.
        """
        try:
            return self.loss(batch)
        except ValueError as error:
            if len(batch["labels"]) == 1 and any(isinstance(m, _BatchNorm) for m in self.modules()):
                raise SmolbenchError(ALONE) from error
            raise

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Loss of a batch; see :meth:`loss` and :meth:`batch_weight`. Logged is the batch's own."""
        loss = self.checked_loss(batch)
        rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        size = len(batch["labels"])
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        self.log("train/lr", rate, batch_size=size)
        return loss * self.batch_weight(batch_idx)

    def batch_weight(self, batch_idx: int) -> float:
        """By what a batch's loss is multiplied, so that a step's is the mean over all its rows.

        A task whose loss is a mean over something else than rows overrides it.

        Args:
            batch_idx: Number of the batch in its epoch.
        """
        return weight_of_batch(self.trainer, batch_idx)

    # -- the data ---------------------------------------------------------------------------------

    @property
    def any_data(self) -> LightningDataModule | None:
        """The DataModule of the trainer this task is attached to, whosever it is."""
        return getattr(self._trainer, "datamodule", None)

    @property
    def data(self) -> BaseDataModule:
        """The DataModule of the trainer this task is attached to.

        Raises:
            SmolbenchError: If there is none of smolbench.
        """
        if not isinstance(found := self.any_data, BaseDataModule):
            has = "none" if found is None else f"a {type(found).__name__}"
            raise SmolbenchError(
                f"{type(self).__name__} reads the examples of a smolbench DataModule, and has "
                f"{has}: give one to the Trainer, as datamodule=."
            )
        return found

    drawn: str = ""
    """What is drawn from the rows of a training, if anything is."""
    drawn_for: ClassVar[tuple[str, ...]] = ()
    """Stages in which that must be of the DataModule at hand."""

    def _draw(self) -> None:
        """Note that something is drawn from the training rows."""
        self._drawn_from = self._training_rows()

    def _training_rows(self) -> str:
        split = self.data.split("train")
        labels = "" if split.labels is None else split.labels.tobytes().hex()
        texts = (column_digest(split.examples, name) for name in self.data.content)
        return text_digest((*texts, labels))

    def setup(self, stage: str) -> None:
        """Refuse data of other training rows than those that something was drawn from.

        Raises:
            SmolbenchError: Saying what it is.
        """
        super().setup(stage)
        if self._drawn_from is None or stage not in self.drawn_for:
            return
        if isinstance(self.any_data, BaseDataModule) and self._training_rows() != self._drawn_from:
            raise SmolbenchError(
                f"This {type(self).__name__} has {self.drawn} of other training rows than this "
                f"{type(self.any_data).__name__}'s: make a new one for other data."
            )

    @property
    def cache_dir(self) -> Path:
        """Where outputs of frozen networks are kept: where the data keeps its own."""
        data = self.any_data
        return data.cache_dir if isinstance(data, BaseDataModule) else cache_root(None)

    # -- the network ------------------------------------------------------------------------------

    @property
    def can_build(self) -> bool:
        """Whether all is known that :meth:`build_model` needs."""
        return True

    def build_model(self) -> None:
        """Make what is trained and scored; called once, by :meth:`configure_model`."""

    def configure_model(self) -> None:
        """Build the model, once; what goes wrong on one process is said by all of them."""
        if self._built or not self.can_build:
            return
        with TrainerRanks(self._trainer).together() if self._trainer else nullcontext():
            if self._trainer is not None and self.paths is not None:
                self.paths.ranks = TrainerRanks(self._trainer)
                begun = Path(str(self._trainer.ckpt_path))
                if begun.is_file():  # what goes on there goes on as it began
                    self.before_data(read_checkpoint(begun))
            self.build_model()
        self._built = True
        # a strategy that spreads weights over processes makes them flat
        self._matrices = frozenset(n for n, p in self.named_parameters() if p.ndim > 1)

    @property
    def unused(self) -> frozenset[str]:
        """Names of the parameters that no text reaches: they stay as they are."""
        return frozenset(f"model.{name}" for name in (self.reach or Reach()).unused)

    @property
    def routed_modules(self) -> frozenset[str]:
        """Names of modules that a batch may pass by, for a guard of gradients."""
        return frozenset(f"model.{name}" for name in (self.reach or Reach()).experts)

    # -- rows of an evaluation --------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forget what an interrupted evaluation has left."""
        self._gathered = []

    def on_test_epoch_start(self) -> None:
        """Forget what an interrupted evaluation has left."""
        self._gathered = []

    def _keep(self, index: torch.Tensor, *columns: torch.Tensor) -> None:
        """Keep what a batch says of its examples until the split is whole.

        Args:
            index: Numbers of the examples, shape ``(B,)``.
            *columns: Each of shape ``(B, ...)``.
        """
        self._gathered.append(tuple(column.cpu() for column in (index, *columns)))

    def _gather(self) -> tuple[torch.Tensor, ...]:
        """All ranks' kept rows, ``index`` and columns, in the order of the split; forgets them."""
        collected, self._gathered = self._gathered, []
        return self._merged(collected)

    def _merged(self, collected: list[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
        """All ranks' rows in the order of the split; nothing if there are none.

        Args:
            collected: This rank's batches, each the numbers of its rows and their columns.
        """
        if self.trainer.world_size > 1:
            parts: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, collected)
            collected = [batch for part in parts for batch in part]
        if not collected:
            return ()
        columns = [torch.cat(column) for column in zip(*collected, strict=True)]
        order = columns[0].argsort()
        return tuple(column[order] for column in columns)

    # -- training ---------------------------------------------------------------------------------

    def largest_batch(self, rows: Rows, effective: int) -> int:
        """The most examples per step that fit, a divisor of ``effective``, on every rank.

        Args:
            rows: The training rows.
            effective: Examples per optimiser step and process.
        """
        with TrainerRanks(self.trainer).together():
            found = largest_batch(self, rows, effective)
        if self.trainer.world_size > 1:
            each: list[int] = [found] * self.trainer.world_size
            torch.distributed.all_gather_object(each, found)
            found = min(each)
        return found

    @property
    def scored_untrained(self) -> bool:
        """Whether all scored weights come pretrained, so that testing needs no checkpoint."""
        return False

    @property
    def seed(self) -> int:
        """The run's seed (``seed_everything``)."""
        return int(os.environ.get("PL_GLOBAL_SEED", "0"))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW on what trains, with warm-up and schedule per optimiser step."""
        if self.trainer.max_epochs == self.trainer.max_steps == -1:
            if self.schedule != "constant":
                raise SmolbenchError(
                    f"model.schedule is {self.schedule!r}, {_ENDLESS}, or take the schedule "
                    "'constant'."
                )
            self.check_warmup(math.inf)
        trained = [(_plain_name(n), p) for n, p in self.named_parameters() if p.requires_grad]
        if not trained:
            raise SmolbenchError(f"{type(self).__name__} has nothing to train.")
        known = self._matrices
        matrices = {n for n, p in trained if (p.ndim > 1 if known is None else n in known)}
        groups = [
            {"params": [p for n, p in trained if n in matrices], "weight_decay": self.weight_decay},
            {"params": [p for n, p in trained if n not in matrices], "weight_decay": 0.0},
        ]
        # the fused kernel: one pass over the weights where the device has it
        fused = self.device.type in {"cpu", "cuda"}
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=self.lr, fused=fused)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, and free the gradients: Lightning keeps them through the next forward pass."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    def _lr_factor(self, step: int) -> float:
        # At step 0 the length of the training is neither needed nor may it be asked for: Lightning
        # would build the training loader now, and a resumed run would then never be told its
        # position in it.
        if not step:
            return float(not self.warmup_steps)
        total = planned_steps(self.trainer)
        return lr_factor(step, warmup_of(self.warmup_steps, total), total, self.schedule)

    def on_train_start(self) -> None:
        """Refuse a warm-up that outlasts the training, now that the training loader is there.

        Raises:
            SmolbenchError: Saying what is planned, and what to give.
        """
        trial = self.trainer.fast_dev_run or self.rehearsal is not None  # type: ignore[attr-defined]
        if self.warmup_steps and not trial:
            self.check_warmup(planned_steps(self.trainer))

    def check_warmup(self, planned: float) -> None:
        """Refuse a warm-up that outlasts the training; remark one that outlasts half of it.

        Args:
            planned: Optimiser steps of the whole training.

        Raises:
            SmolbenchError: Saying what is planned, and what to give.
        """
        given = f"model.warmup_steps is {self.warmup_steps}"
        if not 0 <= planned < math.inf:  # Lightning says -1 of a loader without a length
            if isinstance(self.warmup_steps, float) and self.warmup_steps:
                raise SmolbenchError(
                    f"{given}, a share of the planned steps, {_ENDLESS}, or a whole number of "
                    "steps to warm up."
                )
            return
        warmup = warmup_of(self.warmup_steps, planned)
        advice = (
            "give a share of the planned steps such as --model.warmup_steps 0.1, or train longer"
        )
        if warmup > planned:
            raise SmolbenchError(
                f"{given}, but only {planned:,.0f} optimiser steps are planned, so that the "
                f"learning rate would never reach {self.lr}: {advice} (trainer.max_epochs, smaller "
                "batches, more rows)."
            )
        if warmup > planned / 2 and self.trainer.is_global_zero:
            warn(
                "%s, which is %s of the %s planned optimiser steps: the learning rate rises for "
                "more than half of the training. Mostly better: %s.",
                given,
                f"{warmup:,}",
                f"{planned:,.0f}",
                advice,
            )

    def trained_names(self) -> set[str]:
        """Names in the state dict that a checkpoint must hold.

        These are the parameters that train, and the buffers of modules that hold such parameters
        (BatchNorm's running statistics).
        """
        names = {name for name, p in self.named_parameters() if p.requires_grad}
        for prefix, module in self.named_modules():
            if any(p.requires_grad for p in module.parameters(recurse=False)):
                kept = module._buffers.keys() - module._non_persistent_buffers_set
                names |= {f"{prefix}.{name}" if prefix else name for name in kept}
        return {_plain_name(name) for name in names}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was trained, and say what it was trained on."""
        names = self.trained_names()
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if name in names
        }
        checkpoint[CHECKPOINT_KEY] = {"task": type(self).__name__, "signature": self.signature()}
        if self.paths is not None:
            checkpoint[CHECKPOINT_KEY][_PATHS] = self.paths.facts()
        keeps = offered(self.any_data, KeepsRows)
        if keeps is not None and (rows := keeps.kept_rows()) is not None:
            checkpoint[CHECKPOINT_KEY][ROWS] = rows.digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a state that does not belong to these settings.

        Raises:
            SmolbenchError: If the checkpoint is not from this task, was trained with other
                settings, or lacks a trained weight.
        """
        verify_signature(checkpoint, type(self).__name__, self.signature())
        if "state_dict" not in checkpoint:
            return  # a strategy that spreads weights over processes (FSDP) has loaded them itself
        expected, found = self.trained_names(), set(checkpoint["state_dict"])
        if expected != found:
            raise SmolbenchError(
                "The checkpoint does not fit: missing are "
                f"{sorted(expected - found) or 'none'}, unexpected are "
                f"{sorted(found - expected) or 'none'}."
            )

    def export(
        self, folder: Path, *, adapter: bool = False, trial: Trial | None = None
    ) -> Exported:
        """Write the trained model so that others load it without smolbench.

        Args:
            folder: An existing, empty folder.
            adapter: Whether only the adapters are written, not the network they belong to.
            trial: What is compared before it is kept; built-in examples if not given.

        Returns:
            What was written, for its model card.

        Raises:
            SmolbenchError: If there is nothing to export, or it cannot be exported honestly.
        """
        raise SmolbenchError(
            f"This {type(self).__name__} has trained nothing that another library loads, so there "
            "is nothing to export."
        )

    def facts(self) -> dict[str, Any]:
        """What results say about the model."""
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        facts = {
            "task": type(self).__name__,
            "method": self.method,
            "convention": self.convention,
            "model/trainable_params": trainable,
            **(self.paths.facts() if self.paths is not None else {}),
        }
        if self.reach is not None:
            facts["model/unused_params"] = parameter_count(self, self.unused)
        return facts


def _plain_name(name: str) -> str:
    """A parameter's name without what FSDP and its activation checkpoints put into it."""
    return name.replace("_fsdp_wrapped_module.", "").replace("_checkpoint_wrapped_module.", "")


def warmup_of(warmup_steps: Warmup, planned: float) -> int:
    """Optimiser steps of a warm-up; a share is rounded up, as in ``transformers``.

    Args:
        warmup_steps: Their number, or a share.
        planned: Steps of the whole training.
    """
    if isinstance(warmup_steps, int):
        return warmup_steps
    return math.ceil(round(warmup_steps * planned, 6))  # 0.07 * 100 is 7.000000000000001


def lr_factor(step: int, warmup_steps: int, total_steps: float, schedule: Schedule) -> float:
    """Share of the peak learning rate at an optimiser step (counted from 0).

    The same as ``transformers.get_scheduler`` for these schedules.
    """
    if step < warmup_steps:
        return step / max(1, warmup_steps)
    if schedule == "constant" or math.isinf(total_steps):
        return 1.0
    progress = (step - warmup_steps) / max(1.0, total_steps - warmup_steps)
    if schedule == "linear":
        return max(0.0, 1.0 - progress)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def saved_signature(checkpoint: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    """The settings that a checkpoint was trained with.

    Raises:
        SmolbenchError: If it is from another program or task.
    """
    origin = checkpoint.get(CHECKPOINT_KEY)
    if not isinstance(origin, Mapping):
        raise SmolbenchError("The checkpoint was not written by smolbench.")
    if origin.get("task") != task:
        raise SmolbenchError(f"The checkpoint is of a {origin.get('task')}, not of a {task}.")
    signature: Mapping[str, Any] = origin.get("signature", {})
    return signature


def verify_signature(
    checkpoint: Mapping[str, Any], task: str, signature: Mapping[str, Any]
) -> None:
    """Compare a checkpoint's settings with those it is loaded under.

    Raises:
        SmolbenchError: If it is from another program or task, or a setting differs; all
            differences are listed.
    """
    saved = saved_signature(checkpoint, task)
    # what a checkpoint of an earlier version does not name was not there to be set
    before, now = (
        {f"signature.{k}": one.get(k) for k in {**saved, **signature}} for one in (saved, signature)
    )
    differing = {name.partition(".")[2] for name in compare("score", before, now).refused}
    for name, content in _KNOWN_BY.items():
        # a folder that was moved, or named by another path: what it holds is the same
        if content not in differing and is_digest(saved.get(content)):
            differing.discard(name)
    differences = [
        f"{key} was {saved.get(key)!r}, is {signature.get(key)!r}" for key in sorted(differing)
    ]
    if differences:
        encoder = (
            " (The encoder is the tokenizer and the way in which this version of smolbench turns a "
            "template and a text into token ids.)"
        )
        raise SmolbenchError(
            f"The checkpoint was trained with other settings: {'; '.join(differences)}. Use the "
            "settings it was trained with, or train anew."
            + (encoder if "encoder" in differing else "")
        )
