"""Fine-tuning: a pretrained network learns to classify, with all or a few of its weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback

from smolbench.callbacks.threads import TrainingThreads
from smolbench.data.batching import ArrayRows, Rows, TokenRows, pad_rows
from smolbench.data.token_cache import TokenTable
from smolbench.errors import SmolbenchError
from smolbench.models.encoding.template import TemplateEncoder
from smolbench.models.export.check import Expected, Trial
from smolbench.models.export.exported import Exported
from smolbench.models.frozen.features import FrozenFeatures
from smolbench.models.kernels.paths import Ways
from smolbench.models.pretrained.adaptation import (
    Adaptation,
    Quantize,
    adapt,
    describe,
    hold_frozen_in,
    parameter_count,
)
from smolbench.models.pretrained.backbone import Backbone, DType
from smolbench.models.pretrained.causality import Padding, effect_of_padding
from smolbench.models.pretrained.classifier import classify, load_classifier, skeleton
from smolbench.models.pretrained.heads import build_head
from smolbench.models.pretrained.quantization import in_four_bits, keep_gradients
from smolbench.models.pretrained.reach import reach
from smolbench.protocols import ReadAhead
from smolbench.tasks.base import Schedule, Warmup
from smolbench.tasks.classification import Batch, ClassificationTask
from smolbench.tasks.pretrained import (
    ADAPTERS,
    autocast,
    checkpoint_gradients,
    compute_dtype,
    lora_options,
    lora_signature,
    refuse_in_four_bits,
    refuse_unused,
)
from smolbench.utils.digest import digest
from smolbench.utils.ranks import TrainerRanks

# No `if TYPE_CHECKING:` here, see data/datamodule.py: hence `Any` for transformers' models.

log = logging.getLogger("smolbench")

Method = Adaptation | Literal["head"]


class FineTuneTask(ClassificationTask):
    """Train a pretrained network to classify, wholly or in part.

    Any decoder or encoder with a sequence-classification head in transformers serves. A decoder's
    head reads the last token of a text. What trains is in float32 and computed in ``dtype``; frozen
    matrices are held in ``dtype``, which costs no accuracy that matters where they came in it
    (SmolLM2) and rounds the others' once (GPT-2). The head is drawn anew from the run's seed, also
    where the model id has a trained one.

    Args:
        method: What trains, beside the head. ``full``: everything. ``head``: nothing; the features
            of the frozen network are computed once and kept on disk, as :class:`ProbeTask` does
            with ``head: linear`` and ``pooling: last``. ``lora``: low-rank adapters. ``qlora``: the
            same on weights held in 4 bits. ``bitfit``: all biases. ``bitfit_added``: all biases,
            after every linear layer without one got one of zeros.
        backbone: A model id on the Hub, a folder with a model or with a peft adapter, or ``tiny``
            for the built-in model.
        revision: Branch, tag or commit of the backbone.
        trust_remote_code: Whether Python code among the backbone's files may run, with all that
            you may do on this machine: read it first. A model that needs it is refused without.
        template: What the network reads: a text with the slot ``{text}``. What stands around it is
            tokenised by itself, as a tokenizer that is saved with the model can do it (with the
            method ``head`` all as one text).
        max_length: Longest row in tokens, template included.
        truncation_side: Which end of a long text is cut off.
        dtype: What the network computes in; ``auto`` is bfloat16 where it is native. With
            ``trainer.precision`` bf16-mixed or 16-mixed that decides.
        r: Rank of the adapters (``lora``, ``qlora``); 8 if not given.
        lora_alpha: Scale of the adapters' output, divided by ``r``; 2 ``r`` if not given.
        lora_dropout: Dropout in front of the adapters; 0.05 if not given.
        target_modules: Ends of the names of the linear layers that get an adapter; peft's choice
            for the architecture if not given: query and value projections.
        quantize: Which linear layers ``qlora`` holds in 4 bits: ``all`` (if not given) or only the
            ``adapted`` ones.
        gradient_checkpointing: Compute the layers' activations again in the backward pass instead
            of keeping them: less memory, more time, the same result.
        pass_tokens: Most tokens, padding included, that the frozen network reads at once
            (``head``); 1,024 on a CPU and 4,096 elsewhere if not given.
        num_classes: Number of classes, for data that does not name its labels.
        lr: Peak learning rate of AdamW.
        weight_decay: Decoupled weight decay, on matrices only.
        warmup_steps: Optimiser steps over which the learning rate rises from 0, or (0.1) their
            share of all planned steps.
        schedule: What the learning rate does after the warm-up.

    Raises:
        SmolbenchError: If the settings contradict each other.
    """

    def __init__(
        self,
        *,
        method: Method = "full",
        backbone: str = "HuggingFaceTB/SmolLM2-135M",
        revision: str | None = None,
        trust_remote_code: bool = False,
        template: str = "{text}",
        max_length: int = 512,
        truncation_side: Literal["left", "right"] = "right",
        dtype: DType = "auto",
        r: int | None = None,
        lora_alpha: int | None = None,
        lora_dropout: float | None = None,
        target_modules: list[str] | None = None,
        quantize: Quantize | None = None,
        gradient_checkpointing: bool = False,
        pass_tokens: int | None = None,
        num_classes: int | None = None,
        lr: float = 2e-5,
        weight_decay: float = 0.01,
        warmup_steps: Warmup = 0,
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            lr=lr,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            schedule=schedule,
        )
        self.save_hyperparameters()
        refuse_unused(
            method,
            {
                "r": (r, ADAPTERS),
                "lora_alpha": (lora_alpha, ADAPTERS),
                "lora_dropout": (lora_dropout, ADAPTERS),
                "target_modules": (target_modules, ADAPTERS),
                "quantize": (quantize, ("qlora",)),
                "pass_tokens": (pass_tokens, ("head",)),
            },
        )
        if method == "head" and gradient_checkpointing:
            raise SmolbenchError(
                "model.gradient_checkpointing is for networks that train; with the method 'head' "
                "none does: leave it out."
            )
        if pass_tokens is not None and pass_tokens < 1:
            raise SmolbenchError(f"model.pass_tokens must be positive, but is {pass_tokens}.")
        self.lora = lora_options(r, lora_alpha, lora_dropout, target_modules)
        self.method: Method = method
        self.quantize: Quantize = quantize or "all"
        self.gradient_checkpointing = gradient_checkpointing
        self.pass_tokens = pass_tokens
        self._max_length = max_length
        self._template = template
        self._truncation_side: Literal["left", "right"] = truncation_side
        self.backbone = Backbone(backbone, revision, dtype, trust_remote_code=trust_remote_code)
        refuse_in_four_bits(method, self.backbone)
        self.model: Any = None
        self.head: torch.nn.Module | None = None
        self._compute = torch.float32
        self._effect_of_padding: Padding = "masked"
        self._in_four_bits: dict[str, Any] = {}

    # -- text to batches --------------------------------------------------------------------------

    @cached_property
    def encoder(self) -> TemplateEncoder:
        """The template with the backbone's tokenizer; part by part, as an export's can do it.

        Raises:
            SmolbenchError: If rows could be longer than the backbone reads, or the template does
                not fit.
        """
        return self.backbone.template_encoder(
            self._template,
            self._max_length,
            self._truncation_side,
            joined=self.method == "head",  # whose export has a script of its own
        )

    def encode(self, examples: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        """Token ids of texts; whole rows, but for ``head`` without the beginning all rows share."""
        encoded = self.encoder.encode(examples["text"])
        if self.method == "head":
            return encoded
        shared = self.encoder.shared_ids
        return {"input_ids": [[*shared, *row] for row in encoded["input_ids"]]}  # type: ignore[misc] # rows

    def encoder_key(self) -> dict[str, Any]:
        """See the base class."""
        key = dict(self.encoder.key())
        return key if self.method == "head" else {**key, "rows": "whole"}

    def check_tokens(self, table: TokenTable) -> None:
        """Also those of the template, and the one that fills short rows; see the base class."""
        self.backbone.require_embeddings(
            [*self.encoder.shared_ids, table.ragged["input_ids"].largest, self._padding]
        )

    @cached_property
    def frozen(self) -> FrozenFeatures:
        """What computes and keeps the features for ``head``."""
        return FrozenFeatures(
            self.backbone, self.encoder, pooling="last", pass_tokens=self.pass_tokens
        )

    def rows(self, split: str, table: TokenTable, labels: np.ndarray | None) -> Rows:
        """Token ids of a split; for ``head`` its features, from the cache or computed now.

        Args:
            split: Name of the split, for the progress bar and the results.
            table: The split's token ids.
            labels: Classes, shape ``(N,)``; ``None`` for texts to predict.
        """
        if self.method != "head":
            return self._token_rows(table, labels)
        features = self.frozen.of_split(
            split,
            table,
            device=self.device,
            cache_dir=self.cache_dir,
            ranks=TrainerRanks(self.trainer),
            rehearsal=self.rehearsal,
        )
        arrays = {"features": features}
        if labels is not None:
            arrays["labels"] = labels
        return ArrayRows(arrays)

    def _token_rows(self, table: TokenTable, labels: np.ndarray | None) -> TokenRows:
        return TokenRows(table, labels, self._padding)

    def reading_ways(self, device: torch.device) -> Ways:
        """For ``head`` those of the frozen network; see the base class."""
        return self.frozen.ways(device) if self.method == "head" else super().reading_ways(device)

    def reader(self, table: TokenTable) -> Callable[[np.ndarray], Batch]:
        """For ``head`` features instead of token ids; see the base class."""
        if self.method == "head":
            return self.frozen.reader(table, self.device)
        return self._on_device(self._token_rows(table, None))

    @property
    def _padding(self) -> int:
        """The id that fills short rows; some encoders count positions by this very id."""
        return getattr(self.backbone.config.get_text_config(), "pad_token_id", None) or 0

    def read_ahead(self, split: str) -> ReadAhead | None:
        """What the frozen network took for a split's texts; see the protocol of this name."""
        return self.frozen.read_ahead(split) if self.method == "head" else None

    def start_reading(self) -> Callable[[Sequence[str]], Batch]:
        """Turn texts into token ids, or with ``head`` into features; see the base class."""
        if self.method == "head":
            features = self.frozen.start_reading(self.device)
            return lambda texts: {"features": features(self.encode({"text": texts}))}
        padding = self._padding

        def read(texts: Sequence[str]) -> Batch:
            batch = pad_rows(self.encode({"text": texts})["input_ids"], padding)
            return {name: value.to(self.device) for name, value in batch.items()}

        return read

    @property
    def steps_on_cached_features(self) -> bool:
        """Whether throughput of a step says nothing about the backbone's."""
        return self.method == "head"

    def configure_callbacks(self) -> list[Callback]:
        """Train a small head with one CPU thread; its frozen network is run with all."""
        return [TrainingThreads(1)] if self.method == "head" else []

    # -- the network ------------------------------------------------------------------------------

    def build_model(self) -> None:
        """Load the network, put a head on it, and let the method's parameters train."""
        device = self.run_device
        _ = self.encoder  # what does not fit is an error before anything is loaded
        classes = len(self.label_names)
        if self.method == "head":
            width = self.frozen.facts(device).width
            self.frozen.ways(device)
            self.head = build_head("linear", width, classes, 0, 0.0, self.seed)
            return
        self._compute = compute_dtype(self.backbone, self._trainer, device)
        if self.method == "qlora":
            bare = skeleton(self.backbone, classes)
            self._in_four_bits = in_four_bits(
                bare, self.quantize, self.lora.targets, self._compute, device
            )
        with torch.device("cpu"):  # whatever device Lightning has made the default
            model = load_classifier(self.backbone, classes, self.seed, **self._in_four_bits)
            keep_gradients(model)
            self._effect_of_padding = self._decided(effect_of_padding(model))
            self.reach = reach(model, lambda ids, mask: self._classify(model, ids, mask))
            adapt(model, self.method, self.lora, self.seed, self.reach.unused)
        hold_frozen_in(model, self._compute)
        if self.gradient_checkpointing:
            checkpoint_gradients(model, self.backbone.given)
        self.model = model.train()

    def _decided(self, effect: Padding) -> Padding:
        """What padding does, so that rows get a mask if the run has begun with one."""
        unmasked = self.backbone.paths.decide("unmasked", lambda: effect == "unseen")
        return "masked" if effect == "unseen" and not unmasked else effect

    def on_fit_start(self) -> None:
        """Say in one line what trains."""
        if self.trainer.is_global_zero:
            log.info("%s", describe(self, self.method, self._total_params(), self.unused))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits ``(B, C)``, float32, of right-padded rows ``input_ids`` ``(B, T)``.

        With ``head``: of ``features`` ``(B, D)``.
        """
        if self.head is not None:
            scored: torch.Tensor = self.head(batch["features"])
            return scored
        assert self.model is not None, "configure_model runs first"
        with autocast(self.device, self._compute):
            return self._classify(self.model, batch["input_ids"], batch["attention_mask"])

    def _classify(
        self,
        model: Any,  # noqa: ANN401 - see above
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        return classify(model, input_ids, attention_mask, padding=self._effect_of_padding)

    def export(
        self, folder: Path, *, adapter: bool = False, trial: Trial | None = None
    ) -> Exported:
        """Write a classifier of transformers, or adapters of peft; see the base class.

        With ``head``: a head and a script that runs it, as its bias has no place in transformers'.
        """
        from smolbench.models.export.adapter import require_adapters  # lazy: for an export only
        from smolbench.models.export.classifier import (
            Trained,
            write_classifier,
            write_classifier_adapter,
        )
        from smolbench.models.export.network import class_probabilities
        from smolbench.models.export.probe import write_probe
        from smolbench.models.export.tokenizer import plain_texts
        from smolbench.tasks.export import (
            built_in_trial,
            expected_of_probe,
            expected_probabilities,
        )

        trial = trial or built_in_trial(self.kind)
        if self.head is not None:
            if adapter:
                require_adapters(None)
            said = expected_of_probe(self, trial)
            return write_probe(self.frozen, self.head, "linear", self.label_names, said, folder)
        texts = plain_texts(trial.examples["text"], self.encoder)
        trained = Trained(
            model=self.model,
            backbone=self.backbone,
            encoder=self.encoder,
            labels=self.label_names,
            lora=self.lora if self.method in ADAPTERS else None,
            in_four_bits=self._in_four_bits,
            alone=self._effect_of_padding == "seen",
        )

        def expect() -> Expected:
            return expected_probabilities(
                self,
                trial,
                texts,
                lambda loaded: class_probabilities(loaded, texts, alone=trained.alone),
            )

        write = write_classifier_adapter if adapter else write_classifier
        exported = write(trained, texts, expect, folder)
        self.model = None  # it was taken apart
        return exported

    # -- what results and checkpoints say ---------------------------------------------------------

    def signature(self) -> dict[str, Any]:
        """Backbone, rows and method; see the base class."""
        return {
            **super().signature(),
            "method": self.method,
            "backbone": self.backbone.given,
            "revision": self.backbone.revision,
            "encoder": digest(self.encoder_key()),
            "template": self._template,
            "max_length": self._max_length,
            "truncation_side": self._truncation_side,
            **lora_signature(self.method, self.lora, self.quantize),
        }

    def facts(self) -> dict[str, Any]:
        """Model, and with ``head`` the cost of the frozen passes."""
        facts = super().facts()
        compute, costs = self._compute, {}
        if self.method == "head":
            compute = self.backbone.dtype(self.device)
            costs = self.frozen.costs()
        return {
            **facts,
            "model/id": self.backbone.given,
            "model/base": self.backbone.name if self.backbone.adapter else None,
            "model/revision": self.backbone.revision,
            "model/trust_remote_code": self.backbone.trust_remote_code,
            "model/total_params": self._total_params(),
            "model/dtype": str(compute).removeprefix("torch."),
            **costs,
        }

    def _total_params(self) -> int:
        """Parameters that are run, also those of a network whose features are cached."""
        frozen = self.frozen.facts(self.device).parameters if self.method == "head" else 0
        return parameter_count(self) + frozen
