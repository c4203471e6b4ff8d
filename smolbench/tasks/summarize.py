"""Summarization: an encoder-decoder or causal model writes a summary, as it is or trained to."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import FSDPStrategy

from smolbench.data.batching import Rows
from smolbench.data.token_cache import TokenTable
from smolbench.errors import SmolbenchError
from smolbench.metrics.rouge_tokens import RougeTokenizer
from smolbench.models.export.check import Trial
from smolbench.models.export.exported import Exported
from smolbench.models.pretrained.adaptation import (
    Quantize,
    describe,
    hold_frozen_in,
    parameter_count,
)
from smolbench.models.pretrained.backbone import DType
from smolbench.models.pretrained.language_model import LanguageModel
from smolbench.models.summaries.rows import CausalRows, PairRows, SummaryEncoder, usual_template
from smolbench.models.summaries.summarizer import (
    load_summarizer,
    summarizer_skeleton,
    whole_generation_config,
)
from smolbench.tasks.base import Schedule, Warmup
from smolbench.tasks.generation import Preset, WritingTask
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

# No `if TYPE_CHECKING:` here, see data/datamodule.py: hence `Any` for transformers' models.

log = logging.getLogger("smolbench")

Batch = dict[str, torch.Tensor]
Method = Literal["none", "full", "lora", "qlora"]
_TRAINING = ("full", *ADAPTERS)
_USUAL_LENGTH = 512
"""Tokens of a document that are read if nothing else is said; what T5 was trained on."""
_OVERFLOWS = ("t5", "mt5", "umt5", "longt5")
"""Architectures whose activations exceed what float16 holds."""


class SummarizationTask(WritingTask):
    """Write summaries with an encoder-decoder model (T5, BART) or a causal language model.

    Training minimises the cross-entropy of the reference's tokens (teacher forcing). That loss is
    taken of all validation rows every epoch and decides about the best epoch; on a fixed part of
    them summaries are also written, greedily, and scored by ROUGE. In a test all are written, by
    beam search with the preset ``full``. ROUGE is the mean F measure over the examples, a share of
    1, by ``rouge_score`` with its stemmer; see :mod:`smolbench.metrics.rouge`.

    A few documents of the test split are summarized before training and again in the test; both
    texts stand beside the reference in ``samples.json``.

    Args:
        method: What trains. ``none``: nothing, the model is scored as it comes. ``full``:
            everything. ``lora``: low-rank adapters. ``qlora``: the same on weights held in 4 bits.
        generation: How a test's summaries are written. ``full``: at most 128 tokens, 4 beams.
            ``card``: at most 20 tokens, greedily, as behind the scores of well-known model cards;
            it cuts many summaries off. Scores of different settings are not comparable.
        max_new_tokens: Most tokens of a summary, instead of the preset's.
        num_beams: Beams of a test, instead of the preset's.
        rouge_every: Epochs between two validations that write summaries.
        rouge_examples: Validation rows that are summarized then, always the same; 0 for none.
        rouge_tokenizer: What finds the words that ROUGE counts. ``rouge_score``: that of published
            scores, which knows ``[a-z0-9]`` and no other letter. ``unicode``: words of any script,
            the same ones in English; see :mod:`smolbench.metrics.rouge_tokens`. Scores by different
            ones are not comparable.
        samples: Test documents that are summarized before and after training, to be shown.
        backbone: A model id on the Hub, a folder with a model or with a peft adapter; or
            ``tiny-t5`` or ``tiny`` for the built-in models.
        revision: Branch, tag or commit of the backbone.
        trust_remote_code: Whether Python code among the backbone's files may run, with all that
            you may do on this machine: read it first. A model that needs it is refused without.
        template: What the model reads, a text with the slot ``{text}``; ``summarize: {text}`` for
            T5, the bare document for other encoder-decoder models and ``Summarize: {text}
            Summary:`` for causal models if not given. With the method ``none`` all is tokenised as
            one text, else what stands around the document by itself, as a tokenizer that is saved
            with the model can do it.
        max_length: Most tokens of a document with its template; longer documents lose their end,
            never the template, and are counted. 512 if not given, or what a causal model's window
            leaves.
        max_summary_length: Most tokens of a reference that is learned from.
        dtype: What the network computes in; ``auto`` is bfloat16 where it is native. With
            ``trainer.precision`` bf16-mixed or 16-mixed that decides.
        r: Rank of the adapters (``lora``, ``qlora``); 8 if not given.
        lora_alpha: Scale of the adapters' output, divided by ``r``; 2 ``r`` if not given.
        lora_dropout: Dropout in front of the adapters; 0.05 if not given.
        target_modules: Ends of the names of the linear layers that get an adapter; peft's choice
            for the architecture if not given: query and value projections.
        quantize: Which linear layers ``qlora`` holds in 4 bits: ``all`` (if not given) or only the
            ``adapted`` ones. Never the head, nor T5's ``wo`` (a third to a half of its feed-forward
            blocks), which transformers leaves out.
        label_smoothing: Share of each target that is spread evenly over the vocabulary, in
            training; the validation loss is without it.
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

    def __init__(
        self,
        *,
        method: Method = "full",
        generation: Preset = "full",
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
        rouge_every: int = 1,
        rouge_examples: int = 200,
        rouge_tokenizer: RougeTokenizer = "rouge_score",
        samples: int = 3,
        backbone: str = "google/flan-t5-base",
        revision: str | None = None,
        trust_remote_code: bool = False,
        template: str | None = None,
        max_length: int | None = None,
        max_summary_length: int = 128,
        dtype: DType = "auto",
        r: int | None = None,
        lora_alpha: int | None = None,
        lora_dropout: float | None = None,
        target_modules: list[str] | None = None,
        quantize: Quantize | None = None,
        label_smoothing: float = 0.0,
        gradient_checkpointing: bool = False,
        lr: float = 2e-5,
        weight_decay: float = 0.01,
        warmup_steps: Warmup = 0,
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__(
            generation=generation,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            rouge_every=rouge_every,
            rouge_examples=rouge_examples,
            rouge_tokenizer=rouge_tokenizer,
            samples=samples,
            label_smoothing=label_smoothing,
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
                "label_smoothing": (label_smoothing or None, _TRAINING),
                "gradient_checkpointing": (gradient_checkpointing or None, _TRAINING),
            },
        )
        if max_length is not None and max_length < 1:
            raise SmolbenchError(f"model.max_length must be positive, but is {max_length}.")
        if max_summary_length < 2:
            raise SmolbenchError(
                f"model.max_summary_length must be at least 2, but is {max_summary_length}."
            )
        self.lora = lora_options(r, lora_alpha, lora_dropout, target_modules)
        self.method: Method = method
        self.max_summary_length = max_summary_length
        self._references_cut: int | None = None
        self.quantize: Quantize = quantize or "all"
        self.gradient_checkpointing = gradient_checkpointing
        self._max_length = max_length
        self._template = template
        self.backbone = LanguageModel(
            backbone, revision, dtype, trust_remote_code=trust_remote_code
        )
        refuse_in_four_bits(method, self.backbone)
        self._compute = torch.float32
        self._in_four_bits: dict[str, Any] = {}

    @property
    def scored_untrained(self) -> bool:
        """Whether the model is scored as it comes."""
        return self.method == "none"

    # -- text to batches --------------------------------------------------------------------------

    @property
    def causal(self) -> bool:
        """Whether the summary goes on behind the document in one row."""
        return not self.backbone.config.is_encoder_decoder

    @property
    def max_length(self) -> int:
        """Most tokens of a document with its template.

        Raises:
            SmolbenchError: If the model reads fewer, or has no room for a summary.
        """
        limit, longest = self.backbone.max_positions, self._longest_summary
        written = self.backbone.positions.written
        if written is not None and longest > (written - 1 if self.causal else written):
            raise SmolbenchError(
                f"{self.backbone.given} has positions for {written} tokens, which leaves no room "
                f"for a summary of {longest}: lower model.max_new_tokens and max_summary_length."
            )
        if limit is None:
            return self._max_length or _USUAL_LENGTH
        room = limit - longest if self.causal else limit
        if self._max_length is not None and self._max_length > room:
            behind = (
                f", of which a summary of up to {longest} behind the document takes its part: at "
                f"most {room} are left"
                if self.causal
                else ""
            )
            raise SmolbenchError(
                f"model.max_length is {self._max_length}, but {self.backbone.given} has positions "
                f"for {limit} tokens only{behind}."
            )
        return self._max_length or min(_USUAL_LENGTH, room)

    @property
    def _longest_summary(self) -> int:
        """Tokens of the longest summary that is written or that a loss is taken of."""
        return max(self.decoding.max_new_tokens, self.max_summary_length)

    @cached_property
    def encoder(self) -> SummaryEncoder:
        """The template with the backbone's tokenizer.

        Raises:
            SmolbenchError: If rows could be longer than the backbone reads, or the template does
                not fit.
        """
        template = self._template
        if template is None:
            template = usual_template(self.backbone.config.model_type, causal=self.causal)
        return SummaryEncoder(
            self.backbone.tokenizer,
            template,
            self.max_length,
            self.max_summary_length,
            causal=self.causal,
            joined=self.method == "none",  # an export's tokenizer can only do the parts
        )

    def encode(self, examples: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        """Token ids of documents and summaries; see :class:`SummaryEncoder`."""
        return self.encoder.encode(examples)

    def encoder_key(self) -> dict[str, Any]:
        """See the base class."""
        return self.encoder.key()

    def check_tokens(self, table: TokenTable) -> None:
        """Also those of the summaries, and the one that fills short rows; see the base class."""
        ids = [
            table.ragged[name].largest for name in ("input_ids", "labels") if name in table.ragged
        ]
        self.backbone.require_embeddings([*ids, self.encoder.end, self.padding])

    def rows(self, split: str, table: TokenTable, labels: np.ndarray | None) -> Rows:
        """Documents and summaries of a split as rows.

        Args:
            split: Name of the split.
            table: The split's token ids.
            labels: Not used: what is learned from stands in the table.
        """
        if cut := int(table.scalars["cut"].sum()):
            warn(
                "%d of %d documents (%s) are longer than the %d tokens that are read, template "
                "included; they lose their end.",
                cut,
                len(table),
                split,
                self.max_length,
            )
        if "summary_cut" in table.scalars:
            self._count_cut_references(split, int(table.scalars["summary_cut"].sum()), len(table))
        for scored in ("val", "test"):
            if split == scored:
                self._remark_on_references(scored)
        if split == "train":
            self._summary_lengths = table.ragged["labels"].lengths
        return (CausalRows if self.causal else PairRows)(table, self.padding)

    def _count_cut_references(self, split: str, cut: int, n: int) -> None:
        """Say how many summaries are longer than what is learned of them."""
        if split == "train":
            self._references_cut = cut
        if cut:
            warn(
                "%d of %d references (%s) are longer than the %d tokens of "
                "model.max_summary_length: they lose their end%s.",
                cut,
                n,
                split,
                self.max_summary_length,
                ", and the model learns to stop there"
                if split == "train"
                else " in the loss; ROUGE reads them whole",
            )

    @property
    def padding(self) -> int:
        """The id that fills short rows."""
        return getattr(self.backbone.config, "pad_token_id", None) or 0

    # -- the network ------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """None; but what cannot be done is refused here, before any data is read."""
        if isinstance(self.trainer.strategy, FSDPStrategy):
            raise SmolbenchError(
                "SummarizationTask writes texts, for which every process needs the whole model: "
                "use the strategy ddp instead of fsdp."
            )
        if self.trainer.state.fn == "fit" and self.method == "none":
            raise SmolbenchError(
                "model.method 'none' scores the model as it comes, so there is nothing to train: "
                f"use `smolbench test`, or one of the methods {', '.join(_TRAINING)}."
            )
        return []

    def build_model(self) -> None:
        """Load the network and let the method's parameters train."""
        _ = self.encoder  # what does not fit is an error before anything is loaded
        self._refuse_float16()
        adapted = load_adapted(
            self.backbone,
            self.method,
            lora=self.lora,
            quantize=self.quantize,
            gradient_checkpointing=self.gradient_checkpointing,
            seed=self.seed,
            load=load_summarizer,
            skeleton=summarizer_skeleton,
            trainer=self._trainer,
            device=self.run_device,
        )
        self.model = adapted.model
        self._compute, self._in_four_bits = adapted.compute, adapted.in_four_bits
        self.reach = adapted.reach

    def freeze(self) -> Self:
        """Let nothing train any more, and hold it in what is computed in: it is only run."""
        super().freeze()
        hold_frozen_in(self.model, self._compute)
        return self

    def _refuse_float16(self) -> None:
        kind = self.backbone.config.model_type
        precision = str(self._trainer.precision) if self._trainer else ""
        if precision.startswith("16-") and kind in _OVERFLOWS:
            raise SmolbenchError(
                f"trainer.precision is {precision!r}, but the activations of {self.backbone.given} "
                f"({kind}) exceed what float16 holds: take bf16-mixed where the device computes it "
                "natively, else 32-true."
            )

    def on_fit_start(self) -> None:
        """Say in one line what trains; see the base class."""
        if self.trainer.is_global_zero:
            log.info("%s", describe(self, self.method, parameter_count(self), self.unused))
        super().on_fit_start()

    def precision(self) -> AbstractContextManager[Any]:
        """Mixed precision, unless the weights are held in what is computed in."""
        return autocast(self.device, torch.float32 if self.method == "none" else self._compute)

    def export(
        self, folder: Path, *, adapter: bool = False, trial: Trial | None = None
    ) -> Exported:
        """Write a model of transformers, or adapters of peft; see the base class.

        Raises:
            SmolbenchError: If nothing was trained, or it cannot be exported honestly.
        """
        from smolbench.models.export.language_model import (  # lazy: for an export only
            TrainedWriter,
            write_language_model,
            write_language_model_adapter,
        )
        from smolbench.models.export.tokenizer import plain_texts
        from smolbench.tasks.export import built_in_trial, expected_summaries

        if self.method == "none":
            return super().export(folder, adapter=adapter)
        trial = trial or built_in_trial(self.kind)
        documents = plain_texts(trial.examples["document"], self.encoder.documents)
        trained = TrainedWriter(
            model=self.model,
            backbone=self.backbone,
            lora=self.lora if self.method in ADAPTERS else None,
            in_four_bits=self._in_four_bits,
            expect=lambda: expected_summaries(self, trial, documents),
            encoder=self.encoder.documents,
            documents=documents,
            decoding=self.decoding,
            generation=whole_generation_config(self.model, self.decoding, self._ends),
        )
        write = write_language_model_adapter if adapter else write_language_model
        exported = write(trained, folder)
        self.model = None  # it was taken apart
        return exported

    # -- what results and checkpoints say ---------------------------------------------------------

    def signature(self) -> dict[str, Any]:
        """Backbone, template and method; see the base class.

        Not how summaries are written: a trained state may be scored in any way.
        """
        return {
            "method": self.method,
            "backbone": self.backbone.given,
            "revision": self.backbone.revision,
            "template": self.encoder.documents.template,
            **lora_signature(self.method, self.lora, self.quantize),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See the base class; without a trainer nobody else builds the network."""
        self.configure_model()
        super().on_load_checkpoint(checkpoint)

    def facts(self) -> dict[str, Any]:
        """The model, and what it could not learn of the summaries; see the base class."""
        cut = self._references_cut
        return {
            **super().facts(),
            **({} if cut is None else {"data/n_train_references_cut": cut}),
            "model/id": self.backbone.given,
            "model/base": self.backbone.name if self.backbone.adapter else None,
            "model/revision": self.backbone.revision,
            "model/trust_remote_code": self.backbone.trust_remote_code,
            "model/total_params": parameter_count(self),
            "model/dtype": str(self._compute).removeprefix("torch."),
        }
