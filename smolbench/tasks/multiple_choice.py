"""Multiple choice: a causal language model says which ending follows, as it is or trained to."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback

from smolbench.data.token_cache import TokenTable
from smolbench.errors import SmolbenchError
from smolbench.metrics.multiple_choice import Choices, multiple_choice_metrics
from smolbench.metrics.uncertainty import ties
from smolbench.models.choice.conventions import ChoiceEncoder, Convention
from smolbench.models.choice.rows import ChoiceRows
from smolbench.models.choice.scoring import log_likelihoods
from smolbench.models.export.check import Trial
from smolbench.models.export.exported import Exported
from smolbench.models.kernels.paths import ways_of
from smolbench.models.kernels.prefix import SharedPrefix, shared_prefix
from smolbench.models.pretrained.adaptation import Quantize, describe, parameter_count
from smolbench.models.pretrained.backbone import DType
from smolbench.models.pretrained.language_model import (
    LanguageModel,
    language_model_skeleton,
    load_language_model,
)
from smolbench.tasks.accumulation import weight_of_batch
from smolbench.tasks.base import BaseTask, Schedule, Warmup
from smolbench.tasks.pretrained import (
    ADAPTERS,
    autocast,
    load_adapted,
    lora_options,
    lora_signature,
    refuse_in_four_bits,
    refuse_unused,
)
from smolbench.utils.notices import warn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("smolbench")

Batch = dict[str, torch.Tensor]
Method = Literal["none", "full", "lora", "qlora"]
Objective = Literal["lm", "choice"]
_TRAINING = ("full", *ADAPTERS)
_MIN_PREFIX = 16
"""Tokens from which on a shared beginning is worth a pass of its own."""


class MultipleChoiceTask(BaseTask):
    """Choose among endings by their log-likelihood under a causal language model.

    With ``method: none`` the model is scored as it comes and nothing trains. An ending's score is
    the sum of its tokens' log-probabilities behind the context; a question whose endings share
    their context is one row, and the language-model head runs at scored positions only, in training
    too. ``acc_norm`` is by score per unit of length, and what that is, like the wording, depends
    on ``convention``.

    Args:
        method: What trains. ``none``: nothing. ``full``: everything. ``lora``: low-rank adapters.
            ``qlora``: the same on weights held in 4 bits.
        objective: What training minimises, ``lm`` if not given. ``lm``: the mean negative
            log-likelihood of the right ending's tokens; the wrong endings are not read.
            ``choice``: the cross-entropy over the log-likelihoods of all endings.
        convention: ``lm_eval``: as lm-evaluation-harness; ``acc_norm`` is per character.
            ``smollm2``: as the model cards of SmolLM2, with other blanks. ``llm_c``: as llm.c, with
            the raw context; ``acc_norm`` is per token. Scores of different conventions are not
            comparable.
        num_fewshot: Solved examples from the training split in front of every context, the same
            for all; for scoring only.
        fewshot_seed: Seed of their draw.
        backbone: A model id on the Hub, a folder with a model or with a peft adapter, or ``tiny``
            for the built-in model.
        revision: Branch, tag or commit of the backbone.
        trust_remote_code: Whether Python code among the backbone's files may run, with all that
            you may do on this machine: read it first. A model that needs it is refused without.
        max_length: Most tokens that are read in one row; as many as the model has positions for if
            not given. Longer contexts lose their beginning, as in lm_eval, and are counted.
        dtype: What the network computes in; ``auto`` is bfloat16 where it is native. With
            ``trainer.precision`` bf16-mixed or 16-mixed that decides.
        shared_context: Whether the endings of a question share a row, where the architecture
            allows it; else each is read behind a context of its own, with the same result.
        r: Rank of the adapters (``lora``, ``qlora``); 8 if not given.
        lora_alpha: Scale of the adapters' output, divided by ``r``; 2 ``r`` if not given.
        lora_dropout: Dropout in front of the adapters; 0.05 if not given.
        target_modules: Ends of the names of the linear layers that get an adapter; peft's choice
            for the architecture if not given: query and value projections.
        quantize: Which linear layers ``qlora`` holds in 4 bits: ``all`` (if not given) or only the
            ``adapted`` ones.
        gradient_checkpointing: Compute the layers' activations again in the backward pass instead
            of keeping them: less memory, more time, the same result.
        lr: Peak learning rate of AdamW.
        weight_decay: Decoupled weight decay, on matrices only.
        warmup_steps: Optimiser steps over which the learning rate rises from 0, or (0.1) their
            share of all planned steps.
        schedule: What the learning rate does after the warm-up.

    Raises:
        SmolbenchError: If the settings contradict each other.
    """

    kind: ClassVar[str] = "multiple_choice"
    monitor: tuple[str, Literal["min", "max"]] = ("val/acc_norm", "max")
    drawn = "solved examples"
    drawn_for = ("fit", "validate", "test")

    def __init__(
        self,
        *,
        method: Method = "none",
        objective: Objective | None = None,
        convention: Convention = "lm_eval",
        num_fewshot: int = 0,
        fewshot_seed: int = 0,
        backbone: str = "HuggingFaceTB/SmolLM2-135M",
        revision: str | None = None,
        trust_remote_code: bool = False,
        max_length: int | None = None,
        dtype: DType = "auto",
        shared_context: bool = True,
        r: int | None = None,
        lora_alpha: int | None = None,
        lora_dropout: float | None = None,
        target_modules: list[str] | None = None,
        quantize: Quantize | None = None,
        gradient_checkpointing: bool = False,
        lr: float = 2e-5,
        weight_decay: float = 0.01,
        warmup_steps: Warmup = 0,
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__(
            lr=lr, weight_decay=weight_decay, warmup_steps=warmup_steps, schedule=schedule
        )
        self.save_hyperparameters()
        refuse_unused(
            method,
            {
                "objective": (objective, _TRAINING),
                "r": (r, ADAPTERS),
                "lora_alpha": (lora_alpha, ADAPTERS),
                "lora_dropout": (lora_dropout, ADAPTERS),
                "target_modules": (target_modules, ADAPTERS),
                "quantize": (quantize, ("qlora",)),
                "gradient_checkpointing": (gradient_checkpointing or None, _TRAINING),
            },
        )
        if num_fewshot < 0 or fewshot_seed < 0 or (max_length is not None and max_length < 2):
            raise SmolbenchError(
                "model.num_fewshot and fewshot_seed must not be negative, and max_length at least "
                f"2; given are {num_fewshot}, {fewshot_seed} and {max_length}."
            )
        if fewshot_seed and not num_fewshot:
            raise SmolbenchError(
                f"model.fewshot_seed is {fewshot_seed}, but there are no examples to draw: give "
                "num_fewshot, too, or leave it out."
            )
        self.lora = lora_options(r, lora_alpha, lora_dropout, target_modules)
        self.method: Method = method
        self.objective: Objective = objective or "lm"
        self._wording: Convention = convention
        self.num_fewshot = num_fewshot
        self.fewshot_seed = fewshot_seed
        self.shared_context = shared_context
        self.quantize: Quantize = quantize or "all"
        self.gradient_checkpointing = gradient_checkpointing
        self._max_length = max_length
        self.backbone = LanguageModel(
            backbone, revision, dtype, trust_remote_code=trust_remote_code
        )
        refuse_in_four_bits(method, self.backbone)
        self.model: PreTrainedModel | None = None
        self._compute = torch.float32
        self._in_four_bits: dict[str, Any] = {}
        self._right_lengths = np.zeros(0, dtype=np.int64)  # of the training split
        self._prefix_ids: list[int] = []
        self._prefix: SharedPrefix | None = None
        self._test_predictions: dict[str, np.ndarray] | None = None

    @property
    def scored_untrained(self) -> bool:
        """Whether the model is scored as it comes."""
        return self.method == "none"

    @property
    def tie_breaker(self) -> str:  # type: ignore[override] # follows from the options
        """The loss of the objective."""
        return "val/ending_loss" if self.objective == "lm" else "val/choice_loss"

    @property
    def convention(self) -> str:  # type: ignore[override] # follows from the options
        """How examples are worded and scored, and behind how many solved ones."""
        return f"{self._wording}, {self.num_fewshot}-shot" if self.num_fewshot else self._wording

    # -- text to batches --------------------------------------------------------------------------

    @property
    def max_length(self) -> int:
        """Most tokens in a row.

        Raises:
            SmolbenchError: If rows could be longer than the backbone reads.
        """
        limit = self.backbone.max_positions
        if self._max_length is None:
            return self.backbone.reads
        if limit is not None and self._max_length > limit:
            raise SmolbenchError(
                f"model.max_length is {self._max_length}, but {self.backbone.given} has positions "
                f"for {limit} tokens only."
            )
        return self._max_length

    @cached_property
    def encoder(self) -> ChoiceEncoder:
        """The convention with the backbone's tokenizer and the solved examples."""
        return ChoiceEncoder(self.backbone.tokenizer, self._wording, self.max_length, self._shots())

    def _shots(self) -> list[dict[str, Any]]:
        """Solved examples, drawn from the training split."""
        if not self.num_fewshot:
            return []
        train = self.data.split("train")
        assert train.labels is not None, "a training split has them"
        self._draw()
        if self.num_fewshot > len(train):
            raise SmolbenchError(
                f"model.num_fewshot is {self.num_fewshot}, but there are {len(train)} training "
                "examples only."
            )
        draw = np.random.default_rng(self.fewshot_seed)
        chosen = draw.choice(len(train), self.num_fewshot, replace=False).tolist()
        return [{**train.examples[row], "label": int(train.labels[row])} for row in chosen]

    def encode(self, examples: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        """Token ids, see :class:`~smolbench.models.choice.conventions.ChoiceEncoder`."""
        return self.encoder.encode(examples)

    def encoder_key(self) -> dict[str, Any]:
        """See the base class."""
        return self.encoder.key()

    def check_tokens(self, table: TokenTable) -> None:
        """See the base class; solved examples stand in the rows."""
        self.backbone.require_embeddings([table.ragged["input_ids"].largest])

    def rows(self, split: str, table: TokenTable, labels: np.ndarray) -> ChoiceRows:
        """Questions of a split as rows.

        Args:
            split: Name of the split; rows to train on may hold the right ending alone.
            table: The split's token ids.
            labels: Numbers of the right endings, shape ``(N,)``.
        """
        self.configure_model()
        assert self.model is not None, "it has just been loaded"
        ways = ways_of(self.model)
        branching = self.shared_context and ways.branches
        alone = split == "train" and self.objective == "lm"
        if alone:
            sizes = table.ragged["ending_tokens"].padded(np.arange(len(table)), 0)
            self._right_lengths = sizes[np.arange(len(table)), np.asarray(labels)]
        made = ChoiceRows(table, labels, self.max_length, shared=branching, only_right=alone)
        cut = int((~made.fitting).sum())
        if cut:
            warn(
                "%d of %d contexts (%s) are longer than the %d tokens that are read, together with "
                "their longest ending; they lose their beginning.",
                cut,
                len(made),
                split,
                self.max_length,
            )
        self._prefix_ids, self._prefix = [], None
        common = int(table.scalars["shared"].min())
        # its keys and values are those of weights that change no more
        settled = self._trainer is None or self.trainer.state.fn != "fit"
        if common >= _MIN_PREFIX and ways.prefix and settled and not cut:
            # something of every context must be left to predict from
            shortest = int(made.context_lengths.min())
            self._prefix_ids = table.ragged["input_ids"][0][: min(common, shortest - 1)].tolist()
            prefix = len(self._prefix_ids)
            made = ChoiceRows(table, labels, self.max_length, shared=branching, prefix=prefix)
        return made

    # -- the network ------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """None; but what cannot be trained is refused here, before any data is read."""
        if self.trainer.state.fn != "fit":
            return []
        if self.method == "none":
            raise SmolbenchError(
                "model.method 'none' scores the model as it comes, so there is nothing to train: "
                f"use `smolbench test`, or one of the methods {', '.join(_TRAINING)}."
            )
        if self.num_fewshot:
            raise SmolbenchError(
                "model.num_fewshot is for scoring: leave it out of the training, and give it to "
                "`smolbench test`."
            )
        return []

    def build_model(self) -> None:
        """Load the network and let the method's parameters train."""
        _ = self.max_length  # what does not fit is an error before anything is loaded
        adapted = load_adapted(
            self.backbone,
            self.method,
            lora=self.lora,
            quantize=self.quantize,
            gradient_checkpointing=self.gradient_checkpointing,
            seed=self.seed,
            load=load_language_model,
            skeleton=language_model_skeleton,
            trainer=self._trainer,
            device=self.run_device,
        )
        self.model = adapted.model
        self._compute, self._in_four_bits = adapted.compute, adapted.in_four_bits
        self.reach = adapted.reach

    def on_fit_start(self) -> None:
        """Say in one line what trains."""
        if self.trainer.is_global_zero:
            log.info("%s", describe(self, self.method, parameter_count(self), self.unused))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Log-likelihoods of the endings in nats, float32, shape ``(B, C)``."""
        assert self.model is not None, "configure_model runs first"
        compute = torch.float32 if self.method == "none" else self._compute
        with autocast(self.device, compute):
            if self._prefix_ids and self._prefix is None:
                base: Any = self.model.base_model
                self._prefix = shared_prefix(base, self._prefix_ids)
            return log_likelihoods(self.model, batch, self._prefix)

    def loss(self, batch: Batch) -> torch.Tensor:
        """What the objective minimises, in nats: per token of the right endings, or per choice."""
        scores: torch.Tensor = self(batch)
        if self.objective == "lm":
            return -scores.sum() / batch["ending_tokens"].sum()
        return F.cross_entropy(scores, batch["labels"])

    def batch_weight(self, batch_idx: int) -> float:
        """With the objective ``lm`` a step's loss is the mean over all tokens that it holds."""
        if self.objective == "choice":
            return super().batch_weight(batch_idx)
        return weight_of_batch(self.trainer, batch_idx, self._right_lengths)

    # -- evaluation -------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep a batch's scores."""
        self._score(batch)

    def warm_up(self, batch: Batch) -> None:
        """Run the network on a batch as a test does, and keep nothing: a clock starts behind it."""
        self(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep a batch's scores."""
        self._score(batch)

    def _score(self, batch: Batch) -> None:
        columns = ("labels", "lengths", "n_bytes", "ending_tokens", "truncated")
        self._keep(batch["index"], self(batch), *(batch[name] for name in columns))

    def validated(self) -> tuple[str, ...]:
        """See the base class."""
        return ("acc", "acc_norm", "acc_bytes", "choice_loss", "ending_loss")

    def on_validation_epoch_end(self) -> None:
        """Score the whole validation split."""
        choices, labels, truncated = self._gathered_choices()
        metrics = {**multiple_choice_metrics(choices, labels), "n_truncated": truncated}
        for name, value in metrics.items():
            self.log(f"val/{name}", value, prog_bar=name in {"acc", "acc_norm"})

    def on_test_epoch_end(self) -> None:
        """Score the whole test split and keep the predictions for their file."""
        choices, labels, truncated = self._gathered_choices()
        metrics = {**multiple_choice_metrics(choices, labels), "n_truncated": truncated}
        self.log_dict({f"test/{name}": value for name, value in metrics.items()})
        if tied := ties(choices.log_likelihoods):
            warn(
                "%d of %d questions have their highest log-likelihood for more than one ending, of "
                "which the first counts as chosen.",
                tied,
                len(labels),
            )
        chosen = choices.predictions()
        columns = {
            "index": np.arange(len(labels)),
            "label": labels,
            "prediction": chosen["acc"],
            "prediction_norm": chosen["acc_norm"],
            "prediction_bytes": chosen["acc_bytes"],
        }
        for name, values in (
            ("log_likelihood", choices.log_likelihoods),
            ("length", choices.lengths),
            ("n_bytes", choices.n_bytes),
            ("n_tokens", choices.tokens),
        ):
            columns |= {f"{name}_{number}": column for number, column in enumerate(values.T)}
        self._test_predictions = columns

    def _gathered_choices(self) -> tuple[Choices, np.ndarray, float]:
        """All rows of the split, their labels, and how many contexts were truncated."""
        _, scores, labels, lengths, n_bytes, tokens, truncated = (
            column.numpy() for column in self._gather()
        )
        return Choices(scores, lengths, n_bytes, tokens), labels, float(truncated.sum())

    def predictions(self) -> dict[str, np.ndarray] | None:
        """Columns of ``predictions.parquet`` after a test, in the order of the test split."""
        return self._test_predictions

    def export(
        self, folder: Path, *, adapter: bool = False, trial: Trial | None = None
    ) -> Exported:
        """Write a causal language model of transformers, or adapters of peft; see the base class.

        Raises:
            SmolbenchError: If nothing was trained, or it cannot be exported honestly.
        """
        from smolbench.models.export.language_model import (  # lazy: for an export only
            TrainedWriter,
            write_language_model,
            write_language_model_adapter,
        )
        from smolbench.tasks.export import built_in_trial, expected_of_choices

        if self.method == "none":
            return super().export(folder, adapter=adapter)
        trial = trial or built_in_trial(self.kind)
        trained = TrainedWriter(
            model=self.model,
            backbone=self.backbone,
            lora=self.lora if self.method in ADAPTERS else None,
            in_four_bits=self._in_four_bits,
            expect=lambda: expected_of_choices(self, trial),
            reads=[
                f"A context and an ending, worded as the convention `{self._wording}` has it; "
                "the score of an ending is the sum of its tokens' log-probabilities.",
                f"At most {self.max_length:,} tokens are read; long contexts lose their beginning.",
            ],
        )
        write = write_language_model_adapter if adapter else write_language_model
        exported = write(trained, folder)
        self.model = None  # it was taken apart
        return exported

    # -- what results and checkpoints say ---------------------------------------------------------

    def signature(self) -> dict[str, Any]:
        """Backbone and method; see the base class.

        Not the convention nor the objective: a trained state may be scored by any.
        """
        return {
            "method": self.method,
            "backbone": self.backbone.given,
            "revision": self.backbone.revision,
            **lora_signature(self.method, self.lora, self.quantize),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See the base class; without a trainer nobody else builds the network."""
        self.configure_model()
        super().on_load_checkpoint(checkpoint)

    def facts(self) -> dict[str, Any]:
        """Model, objective and few-shot setting; see the base class."""
        return {
            **super().facts(),
            "objective": self.objective if self.method != "none" else None,
            "num_fewshot": self.num_fewshot,
            "model/id": self.backbone.given,
            "model/base": self.backbone.name if self.backbone.adapter else None,
            "model/revision": self.backbone.revision,
            "model/trust_remote_code": self.backbone.trust_remote_code,
            "model/total_params": parameter_count(self),
            "model/dtype": str(self._compute).removeprefix("torch."),
        }
