"""Probing: a small head trained on the features of a frozen backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback

from smolbench.callbacks.threads import TrainingThreads
from smolbench.data.batching import ArrayRows
from smolbench.data.token_cache import TokenTable
from smolbench.errors import SmolbenchError
from smolbench.models.encoding.template import TemplateEncoder
from smolbench.models.export.check import Trial
from smolbench.models.export.exported import Exported
from smolbench.models.frozen.features import FrozenFeatures, Layers, Pooling
from smolbench.models.kernels.paths import Ways
from smolbench.models.pretrained.backbone import Backbone, DType, Facts
from smolbench.models.pretrained.heads import HeadName, build_head
from smolbench.protocols import ReadAhead
from smolbench.tasks.base import ALONE, Schedule, Warmup
from smolbench.tasks.classification import Batch, ClassificationTask
from smolbench.utils.digest import digest
from smolbench.utils.ranks import TrainerRanks


class ProbeTask(ClassificationTask):
    """Train a head on one vector per text, taken from a frozen pretrained network.

    The network runs over every text once; its features are kept on disk and reused over epochs,
    runs, heads and seeds. Any ``AutoModel`` serves: a decoder, an encoder, or the encoder of an
    encoder-decoder model.

    Args:
        backbone: A model id on the Hub, a folder with a model or with a peft adapter, or ``tiny``
            for the built-in model.
        revision: Branch, tag or commit of the backbone.
        trust_remote_code: Whether Python code among the backbone's files may run, with all that
            you may do on this machine: read it first. A model that needs it is refused without.
        template: What the network reads: a text with the slot ``{text}``, tokenised with it as one
            text.
        pooling: Where the vector is taken: at the last token of ``anchor``, at the row's
            ``first`` or ``last`` token, or as the ``mean`` or ``max`` over the text's own tokens
            (not the template's).
        anchor: A word of the template behind the slot, for ``pooling: anchor``.
        layer: ``-1`` the last layer after the network's final norm, ``0`` the embeddings, ``k``
            the output of the ``k``-th block as transformers gives it: of the last block, with most
            architectures, after the final norm, too, so that it is the same as ``-1``.
        layers: ``all`` keeps the features of every layer and pooling in the pass that computes the
            ones asked for, so that later runs with others need no pass; ``anchor`` may then be
            given with any pooling and is kept too. ``cost/cache_s`` of every run is what the pass
            that filled its features took, not a share of it.
        max_length: Longest row in tokens, template included.
        truncation_side: Which end of a long text is cut off.
        dtype: Number format of the frozen network; ``auto`` is bfloat16 where it is native.
        head: ``mlp`` (BatchNorm, Linear, GELU, Dropout, Linear) or ``linear``.
        hidden_size: Width of the hidden layer of ``mlp``.
        dropout: Dropout before the last layer of ``mlp``.
        pass_tokens: Most tokens, padding included, that the frozen network reads at once; if
            not given, 1,024 on a CPU and 4,096 elsewhere.
        num_classes: Number of classes, for data that does not name its labels.
        lr: Peak learning rate of AdamW.
        weight_decay: Decoupled weight decay, on matrices only.
        warmup_steps: Optimiser steps over which the learning rate rises from 0, or (0.1) their
            share of all planned steps.
        schedule: What the learning rate does after the warm-up.

    Raises:
        SmolbenchError: If the settings contradict each other.
    """

    method = "probe"
    steps_on_cached_features = True
    """Throughput of a step says nothing about the backbone's; results name it differently."""

    def __init__(
        self,
        *,
        backbone: str = "HuggingFaceTB/SmolLM2-135M",
        revision: str | None = None,
        trust_remote_code: bool = False,
        template: str = "{text}",
        pooling: Pooling = "mean",
        anchor: str | None = None,
        layer: int = -1,
        layers: Layers = "one",
        max_length: int = 512,
        truncation_side: Literal["left", "right"] = "right",
        dtype: DType = "auto",
        head: HeadName = "mlp",
        hidden_size: int = 384,
        dropout: float = 0.1,
        pass_tokens: int | None = None,
        num_classes: int | None = None,
        lr: float = 1e-4,
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
        needless = anchor is not None and pooling != "anchor" and layers == "one"
        if needless or (pooling == "anchor" and anchor is None):
            raise SmolbenchError(
                f"model.pooling is {pooling!r} and model.anchor is {anchor!r}: pooling 'anchor' "
                "needs an anchor word, and only it does (unless model.layers is 'all')."
            )
        if not 0 <= dropout < 1 or hidden_size < 1 or (pass_tokens is not None and pass_tokens < 1):
            raise SmolbenchError(
                "model.dropout must be in [0, 1), hidden_size and pass_tokens positive; given are "
                f"{dropout}, {hidden_size} and {pass_tokens}."
            )
        self.save_hyperparameters()
        self.pooling: Pooling = pooling
        self.anchor = anchor
        self.layers: Layers = layers
        self.head_name: HeadName = head
        self.hidden_size = hidden_size
        self.dropout = dropout
        self.pass_tokens = pass_tokens
        self._max_length = max_length
        self._template = template
        self._truncation_side: Literal["left", "right"] = truncation_side
        self.backbone = Backbone(
            backbone, revision, dtype, layer, trust_remote_code=trust_remote_code
        )
        self.head: torch.nn.Module | None = None

    # -- text to token ids ------------------------------------------------------------------------

    @cached_property
    def encoder(self) -> TemplateEncoder:
        """The template with the backbone's tokenizer.

        Raises:
            SmolbenchError: If rows could be longer than the backbone reads, or the template does
                not fit.
        """
        encoder = self.backbone.template_encoder(
            self._template, self._max_length, self._truncation_side
        )
        if self.anchor is not None:
            encoder.anchor_offset(self.anchor)  # a wrong word is an error now, not after encoding
        return encoder

    def encode(self, examples: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        """Token ids of texts, without the beginning that all rows share."""
        return self.encoder.encode(examples["text"])

    def encoder_key(self) -> dict[str, Any]:
        """See the base class."""
        return dict(self.encoder.key())

    def check_tokens(self, table: TokenTable) -> None:
        """Also those of the beginning that all rows share; see the base class."""
        self.backbone.require_embeddings(
            [*self.encoder.shared_ids, table.ragged["input_ids"].largest]
        )

    # -- token ids to features --------------------------------------------------------------------

    @cached_property
    def frozen(self) -> FrozenFeatures:
        """What computes and keeps the features."""
        return FrozenFeatures(
            self.backbone,
            self.encoder,
            pooling=self.pooling,
            anchor=self.anchor,
            pass_tokens=self.pass_tokens,
            layers=self.layers,
        )

    @property
    def backbone_facts(self) -> Facts:
        """Width, direction and size of the backbone."""
        return self.frozen.facts(self.run_device)

    def rows(self, split: str, table: TokenTable, labels: np.ndarray | None) -> ArrayRows:
        """Features of a split, from the cache or computed now.

        Args:
            split: Name of the split, for the progress bar and the results.
            table: The split's token ids.
            labels: Classes, shape ``(N,)``; ``None`` for texts to predict.
        """
        features = self.frozen.of_split(
            split,
            table,
            device=self.device,
            cache_dir=self.cache_dir,
            ranks=TrainerRanks(self.trainer),
            once=split == "predict",
            rehearsal=self.rehearsal,
        )
        arrays = {"features": features}
        if labels is not None:
            arrays["labels"] = labels
        return ArrayRows(arrays)

    def read_ahead(self, split: str) -> ReadAhead | None:
        """What the frozen network took for a split's texts; see the protocol of this name."""
        return self.frozen.read_ahead(split)

    def start_reading(self) -> Callable[[Sequence[str]], Batch]:
        """Load the backbone and read texts with it; see the base class."""
        features = self.frozen.start_reading(self.device)
        return lambda texts: {"features": features(self.encode({"text": texts}))}

    def reading_ways(self, device: torch.device) -> Ways:
        """See the base class."""
        return self.frozen.ways(device)

    def reader(self, table: TokenTable) -> Callable[[np.ndarray], Batch]:
        """Features instead of token ids; see the base class."""
        return self.frozen.reader(table, self.device)

    # -- features to logits -----------------------------------------------------------------------

    def check_inputs(self) -> None:
        """Refuse batches of one for a head that normalises over them; see the base class."""
        if self.head_name == "mlp" and getattr(self.data_to_come, "batch_size", None) == 1:
            raise SmolbenchError(ALONE)

    def build_model(self) -> None:
        """Build the head, as wide as the backbone's features."""
        self.frozen.ways(self.run_device)
        self.head = build_head(
            self.head_name,
            self.backbone_facts.width,
            len(self.label_names),
            self.hidden_size,
            self.dropout,
            self.seed,
        )

    def configure_callbacks(self) -> list[Callback]:
        """Train the small head with one CPU thread; the frozen network is run with all."""
        return [TrainingThreads(1)]

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits ``(B, C)`` of features ``(B, D)``."""
        assert self.head is not None, "configure_model runs first"
        logits: torch.Tensor = self.head(batch["features"])
        return logits

    def export(
        self, folder: Path, *, adapter: bool = False, trial: Trial | None = None
    ) -> Exported:
        """Write the head and a script that runs it; see the base class."""
        from smolbench.models.export.adapter import require_adapters  # lazy: for an export only
        from smolbench.models.export.probe import write_probe
        from smolbench.tasks.export import built_in_trial, expected_of_probe

        if adapter:
            require_adapters(None)
        assert self.head is not None, "configure_model runs first"
        expect = expected_of_probe(self, trial or built_in_trial(self.kind))
        return write_probe(self.frozen, self.head, self.head_name, self.label_names, expect, folder)

    # -- what results and checkpoints say ---------------------------------------------------------

    def signature(self) -> dict[str, Any]:
        """Backbone, features and head; see the base class."""
        return {
            **super().signature(),
            "backbone": self.backbone.given,
            "revision": self.backbone.revision,
            "encoder": digest(self.encoder_key()),
            "template": self._template,
            "max_length": self._max_length,
            "truncation_side": self._truncation_side,
            "layer": self.backbone.layer,
            "pooling": self.pooling,
            "anchor": self.anchor if self.pooling == "anchor" else None,
            "head": self.head_name,
            "hidden_size": self.hidden_size if self.head_name == "mlp" else None,
        }

    def facts(self) -> dict[str, Any]:
        """Model and the cost of the frozen passes."""
        facts = super().facts()
        own = sum(p.numel() for p in self.parameters())
        facts |= {
            "model/id": self.backbone.given,
            "model/base": self.backbone.name if self.backbone.adapter else None,
            "model/revision": self.backbone.revision,
            "model/trust_remote_code": self.backbone.trust_remote_code,
            "model/total_params": self.backbone_facts.parameters + own,
            "model/dtype": str(self.backbone.dtype(self.device)).removeprefix("torch."),
        }
        return facts | self.frozen.costs()
