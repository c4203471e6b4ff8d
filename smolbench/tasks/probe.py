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
from smolbench.data.token_cache import Ragged, TokenTable
from smolbench.digest import digest
from smolbench.errors import SmolbenchError
from smolbench.files import cache_root
from smolbench.models.backbone import Backbone, DType, Facts, hidden_states, shared_prefix
from smolbench.models.frozen_cache import CachedOutputs, cached_outputs, plan_blocks
from smolbench.models.heads import HeadName, build_head
from smolbench.models.template import TemplateEncoder
from smolbench.tasks.classification import Batch, ClassificationTask
from smolbench.tasks.ranks import TrainerRanks
from smolbench.tasks.task import Schedule

Pooling = Literal["anchor", "first", "last", "mean", "max"]


class ProbeTask(ClassificationTask):
    """Train a head on one vector per text, taken from a frozen pretrained network.

    The network runs over every text once; its features are kept on disk and reused over epochs,
    runs, heads and seeds. Any ``AutoModel`` serves: a decoder, an encoder, or the encoder of an
    encoder-decoder model.

    Args:
        backbone: A model id on the Hub, a folder, or ``tiny`` for the built-in model.
        revision: Branch, tag or commit of the backbone.
        template: What the network reads: a text with the slot ``{text}``.
        pooling: Where the vector is taken: at the last token of ``anchor``, at the row's
            ``first`` or ``last`` token, or as the ``mean`` or ``max`` over the text's own tokens
            (not the template's).
        anchor: A word of the template behind the slot, for ``pooling: anchor``.
        layer: ``-1`` the last layer after its norm, ``0`` the embeddings, ``k`` the ``k``-th block.
        max_length: Longest row in tokens, template included.
        truncation_side: Which end of a long text is cut off.
        dtype: Number format of the frozen network; ``auto`` is bfloat16 where it is native.
        head: ``mlp`` (BatchNorm, Linear, GELU, Dropout, Linear) or ``linear``.
        hidden_size: Width of the hidden layer of ``mlp``.
        dropout: Dropout before the last layer of ``mlp``.
        pass_tokens: Most tokens, padding included, that the frozen network reads at once.
        num_classes: Number of classes, for data that does not name its labels.
        lr: Peak learning rate of AdamW.
        weight_decay: Decoupled weight decay, on matrices only.
        warmup_steps: Optimiser steps over which the learning rate rises from 0.
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
        template: str = "{text}",
        pooling: Pooling = "mean",
        anchor: str | None = None,
        layer: int = -1,
        max_length: int = 512,
        truncation_side: Literal["left", "right"] = "right",
        dtype: DType = "auto",
        head: HeadName = "mlp",
        hidden_size: int = 384,
        dropout: float = 0.1,
        pass_tokens: int = 4096,
        num_classes: int | None = None,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            lr=lr,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            schedule=schedule,
        )
        if (pooling == "anchor") != (anchor is not None):
            raise SmolbenchError(
                f"model.pooling is {pooling!r} and model.anchor is {anchor!r}: pooling 'anchor' "
                "needs an anchor word, and only it does."
            )
        if not 0 <= dropout < 1 or hidden_size < 1 or pass_tokens < 1:
            raise SmolbenchError(
                "model.dropout must be in [0, 1), hidden_size and pass_tokens positive; given are "
                f"{dropout}, {hidden_size} and {pass_tokens}."
            )
        self.save_hyperparameters()
        self.pooling: Pooling = pooling
        self.anchor = anchor
        self.head_name: HeadName = head
        self.hidden_size = hidden_size
        self.dropout = dropout
        self.pass_tokens = pass_tokens
        self._max_length = max_length
        self._template = template
        self._truncation_side: Literal["left", "right"] = truncation_side
        self.backbone = Backbone(backbone, revision, dtype, layer)
        self.head: torch.nn.Module | None = None
        self._caches: dict[str, tuple[CachedOutputs, int]] = {}

    # -- text to token ids ------------------------------------------------------------------------

    @cached_property
    def encoder(self) -> TemplateEncoder:
        """The template with the backbone's tokenizer.

        Raises:
            SmolbenchError: If rows could be longer than the backbone reads, or the template does
                not fit.
        """
        limit = self.backbone.max_positions
        if limit is not None and self._max_length > limit:
            raise SmolbenchError(
                f"model.max_length is {self._max_length}, but {self.backbone.name} has positions "
                f"for {limit} tokens only."
            )
        encoder = TemplateEncoder(
            self.backbone.tokenizer, self._template, self._max_length, self._truncation_side
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

    # -- token ids to features --------------------------------------------------------------------

    @cached_property
    def backbone_facts(self) -> Facts:
        """Width, direction and size of the backbone."""
        facts = self.backbone.facts(self.device)
        if self.pooling == "first" and facts.causal and self.encoder.shared_ids:
            raise SmolbenchError(
                "model.pooling 'first' takes the first token of the row, and a causal backbone has "
                "seen nothing but the template's beginning there: every text would get the same "
                "features. Use another pooling, or a template that starts with {text}."
            )
        return facts

    def rows(self, split: str, table: TokenTable, labels: np.ndarray | None) -> ArrayRows:
        """Features of a split, from the cache or computed now.

        Args:
            split: Name of the split, for the progress bar and the results.
            table: The split's token ids.
            labels: Classes, shape ``(N,)``; ``None`` for texts to predict.
        """
        cached = self._features(split, table)
        self._caches[split] = (cached, int(table.ragged["input_ids"].lengths.sum()))
        arrays = {"features": cached.outputs}
        if labels is not None:
            arrays["labels"] = labels
        return ArrayRows(arrays)

    def _features(self, split: str, table: TokenTable) -> CachedOutputs:
        facts = self.backbone_facts
        tokens = table.ragged["input_ids"]
        own_prefix = [] if facts.causal else self.encoder.shared_ids
        key = digest(
            {
                "features": 1,
                "tokens": table.key,
                "model": self.backbone.name,
                "revision": self.backbone.revision,
                "dtype": str(self.backbone.dtype(self.device)),
                "layer": self.backbone.layer,
                "pooling": self.pooling,
                "anchor": self.anchor,
                "pass_tokens": self.pass_tokens,
            }
        )
        return cached_outputs(
            self._cache_dir() / "features",
            key,
            width=facts.width,
            blocks=plan_blocks(tokens.lengths + len(own_prefix), self.pass_tokens),
            start_compute=lambda: self._start_pass(tokens, table.scalars["text_length"]),
            description=f"{self.backbone.name} reads {split}",
            ranks=TrainerRanks(self.trainer),
        )

    def _cache_dir(self) -> Path:
        return cache_root(getattr(getattr(self.trainer, "datamodule", None), "cache_dir", None))

    def _start_pass(
        self, tokens: Ragged, text_lengths: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Load the backbone; returns what computes the features of a block of rows."""
        device = self.device
        model = self.backbone.load(device)
        shared_ids = self.encoder.shared_ids
        causal = self.backbone_facts.causal
        prefix = shared_prefix(model, shared_ids) if causal and shared_ids else None
        # a network that cannot share the beginning must read it in every row
        in_front = torch.tensor(shared_ids if prefix is None else [], dtype=torch.long)
        offset = self.encoder.anchor_offset(self.anchor) if self.anchor is not None else 0

        def compute(rows: np.ndarray) -> np.ndarray:
            ids = torch.from_numpy(tokens.padded(rows, fill=0))
            lengths = torch.from_numpy(tokens.lengths[rows])
            ids = torch.cat([in_front.expand(len(rows), -1), ids], dim=1)
            first = len(in_front)
            mask = torch.arange(ids.shape[1]) < (lengths + first)[:, None]
            with torch.inference_mode():
                states = hidden_states(
                    model,
                    self.backbone.layer,
                    ids.to(device),
                    # causal rows never look at their padding, which stands on the right
                    None if causal else mask.long().to(device),
                    prefix,
                )
                texts = torch.from_numpy(text_lengths[rows])
                features = pool(states, self.pooling, lengths + first, first, texts, offset)
            return features.cpu().numpy()

        return compute

    # -- features to logits -----------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the head, as wide as the backbone's features."""
        if self.head is None and not self.labels_to_come:
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

    # -- what results and checkpoints say ---------------------------------------------------------

    def signature(self) -> dict[str, Any]:
        """Backbone, features and head; see the base class."""
        return {
            **super().signature(),
            "backbone": self.backbone.name,
            "revision": self.backbone.revision,
            "encoder": digest(self.encoder_key()),
            "template": self._template,
            "max_length": self._max_length,
            "layer": self.backbone.layer,
            "pooling": self.pooling,
            "anchor": self.anchor,
            "head": self.head_name,
            "hidden_size": self.hidden_size if self.head_name == "mlp" else None,
        }

    def facts(self) -> dict[str, Any]:
        """Model and the cost of the frozen passes."""
        facts = super().facts()
        own = sum(p.numel() for p in self.parameters())
        facts |= {
            "model/id": self.backbone.name,
            "model/revision": self.backbone.revision,
            "model/total_params": self.backbone_facts.parameters + own,
            "model/dtype": str(self.backbone.dtype(self.device)).removeprefix("torch."),
        }
        if "train" in self._caches:  # `validate` alone must not pass its cost off as the training's
            fitted = [self._caches[name] for name in ("train", "val") if name in self._caches]
            seconds = sum(cache.seconds for cache, _ in fitted)
            facts["cost/cache_s"] = seconds
            facts["cost/cache_reused"] = all(cache.reused for cache, _ in fitted)
            facts["cost/cache_samples_per_s"] = sum(len(c.outputs) for c, _ in fitted) / seconds
            facts["cost/cache_tokens_per_s"] = sum(tokens for _, tokens in fitted) / seconds
        if "test" in self._caches:
            cache, tokens = self._caches["test"]
            facts["cost/test_cache_s"] = cache.seconds
            # testing costs the backbone's pass; the head's share is a key of its own
            facts["cost/test_samples_per_s"] = len(cache.outputs) / cache.seconds
            facts["cost/test_tokens_per_s"] = tokens / cache.seconds
        return facts


def pool(
    states: torch.Tensor,
    pooling: Pooling,
    lengths: torch.Tensor,
    first: int,
    text_lengths: torch.Tensor,
    anchor_offset: int,
) -> torch.Tensor:
    """One vector per row.

    Args:
        states: Hidden states of right-padded rows, shape ``(B, T, D)``.
        pooling: Where the vector is taken.
        lengths: Real tokens per row, shape ``(B,)``.
        first: Where the text starts in every row.
        text_lengths: Tokens of the text itself, shape ``(B,)``; a text without tokens is pooled
            over what follows it.
        anchor_offset: Place of the anchor behind the text, in tokens.

    Returns:
        Features, float32, shape ``(B, D)``.
    """
    device = states.device
    lengths, text_lengths = lengths.to(device), text_lengths.to(device)
    rows = torch.arange(len(states), device=device)
    if pooling == "first":
        return states[:, 0].float()
    if pooling == "last":
        return states[rows, lengths - 1].float()
    if pooling == "anchor":
        return states[rows, first + text_lengths + anchor_offset].float()
    stop = torch.where(text_lengths > 0, first + text_lengths, lengths)[:, None]
    places = torch.arange(states.shape[1], device=device)
    inside = ((places >= first) & (places < stop))[:, :, None]
    if pooling == "mean":
        total = states.float().masked_fill(~inside, 0).sum(dim=1)
        return total / inside.sum(dim=1)
    return states.float().masked_fill(~inside, float("-inf")).amax(dim=1)
