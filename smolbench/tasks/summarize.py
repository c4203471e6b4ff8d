"""Summarization: an encoder-decoder or causal model writes a summary, as it is or trained to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import FSDPStrategy

from smolbench.data.batching import IGNORE_LABEL, Rows, TokenRows, pad_rows
from smolbench.data.columns import column_values
from smolbench.data.token_cache import TokenTable
from smolbench.errors import SmolbenchError
from smolbench.metrics.rouge import (
    ROUGE,
    SPLITTER,
    length_metrics,
    rouge_metrics,
    rouge_scorer,
)
from smolbench.models.adaptation import Quantize, adapt, describe, hold_frozen_in, parameter_count
from smolbench.models.backbone import DType
from smolbench.models.causal_lm import LanguageModel
from smolbench.models.quantization import in_four_bits
from smolbench.models.summarizer import (
    NO_TOKEN,
    Decoding,
    encoder_output,
    generate_ids,
    load_summarizer,
    summarizer_skeleton,
    target_losses,
)
from smolbench.models.summary_rows import CausalRows, SummaryEncoder, usual_template
from smolbench.progress import progress_bar
from smolbench.tasks.adapting import (
    ADAPTERS,
    autocast,
    checkpoint_gradients,
    compute_dtype,
    lora_options,
    lora_signature,
    refuse_unused,
)
from smolbench.tasks.pending import PendingRows
from smolbench.tasks.task import CHECKPOINT_KEY, BaseTask, Schedule

# No `if TYPE_CHECKING:` here, see data/datamodule.py: hence `Any` for transformers' models.

log = logging.getLogger("smolbench")

Batch = dict[str, torch.Tensor]
Method = Literal["none", "full", "lora", "qlora"]
Preset = Literal["card", "full"]
_TRAINING = ("full", *ADAPTERS)
PRESETS: dict[Preset, Decoding] = {"card": Decoding(20, 1), "full": Decoding(128, 4)}
"""How a test's summaries are written."""
_USUAL_LENGTH = 512
"""Tokens of a document that are read if nothing else is said; what T5 was trained on."""
_OVERFLOWS = ("t5", "mt5", "umt5", "longt5")
"""Architectures whose activations exceed what float16 holds."""
_OF_SUMMARIES = (*ROUGE, "gen_tokens", "truncated_share", "rouge_n")
"""What a validation says of the summaries that it has written."""
_CHOICE_SEED = 0
"""Of the draw of validation rows that are summarized, and of the sample shown."""


class SummarizationTask(BaseTask):
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
        samples: Test documents that are summarized before and after training, to be shown.
        backbone: A model id on the Hub, a folder with a model or, for a causal model, with a peft
            adapter; or ``tiny-t5`` or ``tiny`` for the built-in models.
        revision: Branch, tag or commit of the backbone.
        template: What the model reads, a text with the slot ``{text}``; ``summarize: {text}`` for
            T5, the bare document for other encoder-decoder models and ``Summarize: {text}
            Summary:`` for causal models if not given.
        max_length: Most tokens of a document with its template; longer documents lose their end,
            never the template, and are counted. 512 if not given, or what a causal model's window
            leaves.
        max_summary_length: Most tokens of a reference that is learned from.
        dtype: What the network computes in; ``auto`` is bfloat16 where it is native. With
            ``trainer.precision`` bf16-mixed or 16-mixed that decides in training.
        r: Rank of the adapters (``lora``, ``qlora``); 8 if not given.
        lora_alpha: Scale of the adapters' output, divided by ``r``; 2 ``r`` if not given.
        lora_dropout: Dropout in front of the adapters; 0.05 if not given.
        target_modules: Ends of the names of the linear layers that get an adapter; peft's choice
            for the architecture if not given: query and value projections.
        quantize: Which linear layers ``qlora`` holds in 4 bits: ``all`` (if not given) or only the
            ``adapted`` ones.
        label_smoothing: Share of each target that is spread evenly over the vocabulary, in
            training; the validation loss is without it.
        gradient_checkpointing: Compute the layers' activations again in the backward pass instead
            of keeping them: less memory, more time, the same result.
        lr: Peak learning rate of AdamW.
        weight_decay: Decoupled weight decay, on matrices only.
        warmup_steps: Optimiser steps over which the learning rate rises from 0.
        schedule: What the learning rate does after the warm-up.

    Raises:
        SmolbenchError: If the settings contradict each other.
    """

    kind: ClassVar[str] = "summarization"
    monitor: ClassVar[tuple[str, Literal["min", "max"]]] = ("val/loss", "min")

    def __init__(
        self,
        *,
        method: Method = "full",
        generation: Preset = "full",
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
        rouge_every: int = 1,
        rouge_examples: int = 200,
        samples: int = 3,
        backbone: str = "google/flan-t5-base",
        revision: str | None = None,
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
        warmup_steps: int = 0,
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__(
            lr=lr, weight_decay=weight_decay, warmup_steps=warmup_steps, schedule=schedule
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
        preset = PRESETS[generation]
        self.decoding = Decoding(
            preset.max_new_tokens if max_new_tokens is None else max_new_tokens,
            preset.num_beams if num_beams is None else num_beams,
        )
        for name, value, least in (
            ("max_new_tokens", self.decoding.max_new_tokens, 1),
            ("num_beams", self.decoding.num_beams, 1),
            ("rouge_every", rouge_every, 1),
            ("rouge_examples", rouge_examples, 0),
            ("samples", samples, 0),
            ("max_summary_length", max_summary_length, 2),
        ):
            if value < least:
                raise SmolbenchError(f"model.{name} must be at least {least}, but is {value}.")
        if not 0 <= label_smoothing < 1:
            raise SmolbenchError(
                f"model.label_smoothing must be in [0, 1), but is {label_smoothing}."
            )
        self.lora = lora_options(r, lora_alpha, lora_dropout, target_modules)
        self.method: Method = method
        self.convention: str = _convention(self.decoding)
        self.rouge_every = rouge_every
        self.rouge_examples = rouge_examples
        self.num_samples = samples
        self.max_summary_length = max_summary_length
        self.quantize: Quantize = quantize or "all"
        self.label_smoothing = label_smoothing
        self.gradient_checkpointing = gradient_checkpointing
        self._max_length = max_length
        self._template = template
        self.backbone = LanguageModel(backbone, revision, dtype)
        if method == "qlora" and self.backbone.adapter is not None:
            raise SmolbenchError(
                f"{backbone} is an adapter, which weights in 4 bits (method qlora) cannot take in: "
                "use the method lora or full."
            )
        self.model: Any = None
        self._compute = torch.float32
        self._pending = PendingRows()
        self._written: list[tuple[torch.Tensor, ...]] = []
        self._chosen: torch.Tensor | None = None
        self._samples: list[dict[str, str | None]] = []
        self._test_predictions: dict[str, Any] | None = None

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
        if limit is None:
            return self._max_length or _USUAL_LENGTH
        room = limit - longest if self.causal else limit
        if room < 1 or longest > limit:
            raise SmolbenchError(
                f"{self.backbone.given} has positions for {limit} tokens, which leaves no room for "
                f"a summary of {longest}: lower model.max_new_tokens and max_summary_length."
            )
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
        """Tokens of the longest summary that is written or learned from."""
        learned = 0 if self.method == "none" else self.max_summary_length
        return max(self.decoding.max_new_tokens, learned)

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
        )

    def encode(self, examples: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        """Token ids of documents and summaries; see :class:`SummaryEncoder`."""
        return self.encoder.encode(examples)

    def encoder_key(self) -> dict[str, Any]:
        """See the base class."""
        return self.encoder.key()

    def rows(self, split: str, table: TokenTable, labels: np.ndarray | None) -> Rows:
        """Documents and summaries of a split as rows.

        Args:
            split: Name of the split.
            table: The split's token ids.
            labels: Not used: what is learned from stands in the table.
        """
        if cut := int(table.scalars["cut"].sum()):
            log.warning(
                "%d of %d documents (%s) are longer than the %d tokens that are read, template "
                "included; they lose their end.",
                cut,
                len(table),
                split,
                self.max_length,
            )
        if self.causal:
            return CausalRows(table, self._padding)
        return TokenRows(table, None, self._padding)

    @property
    def _padding(self) -> int:
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
        device = self._trainer.strategy.root_device if self._trainer else self.device
        _ = self.encoder  # what does not fit is an error before anything is loaded
        self._refuse_float16()
        with torch.device("cpu"):  # whatever device Lightning has made the default
            if self.method == "none":
                self._compute = self.backbone.dtype(device)
                model = load_summarizer(self.backbone, self._compute)
                model.requires_grad_(False)
                self.model = model
                return
            self._compute = compute_dtype(self.backbone, self._trainer, device)
            options: dict[str, Any] = {}
            if self.method == "qlora":
                bare = summarizer_skeleton(self.backbone)
                targets = self.lora.targets
                options = in_four_bits(bare, self.quantize, targets, self._compute, device)
            model = load_summarizer(self.backbone, torch.float32, **options)
            adapt(model, self.method, self.lora, self.seed)
        hold_frozen_in(model, self._compute)
        if self.gradient_checkpointing:
            checkpoint_gradients(model, self.backbone.given)
        self.model = model.train()

    def _refuse_float16(self) -> None:
        kind = self.backbone.config.model_type
        if self._trainer and str(self._trainer.precision) == "16-mixed" and kind in _OVERFLOWS:
            raise SmolbenchError(
                f"trainer.precision is '16-mixed', but the activations of {self.backbone.given} "
                f"({kind}) exceed what float16 holds: take bf16-mixed where the device computes it "
                "natively, else 32-true."
            )

    def on_fit_start(self) -> None:
        """Say in one line what trains, and summarize the sample before anything is learned."""
        if not self.trainer.is_global_zero:
            return
        log.info("%s", describe(self, self.method, parameter_count(self)))
        if self.trainer.ckpt_path is None:
            self._samples = self._sample()
            self._add_to_samples("before")

    def forward(self, batch: Batch) -> torch.Tensor:
        """Cross-entropies of the references' tokens, nats, float32; see :func:`target_losses`."""
        return self._losses(batch, 0.0)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean cross-entropy of the references' tokens, in nats, with label smoothing."""
        known = (batch["labels"] != IGNORE_LABEL).sum()
        return self._losses(batch, self.label_smoothing).sum() / known

    def _losses(self, batch: Batch, smoothing: float, encoded: Any = None) -> torch.Tensor:  # noqa: ANN401
        assert self.model is not None, "configure_model runs first"
        with self._precision():
            return target_losses(self.model, batch, smoothing, encoded)

    def _precision(self) -> Any:  # noqa: ANN401 - a context manager
        return autocast(self.device, torch.float32 if self.method == "none" else self._compute)

    # -- evaluation -------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Choose the rows that are summarized; see the base class."""
        super().on_validation_epoch_start()
        self._pending.clear()
        self._written = []
        self._chosen = self._rows_to_summarize()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep a batch's losses; what is to be summarized waits until it fills a batch."""
        self._keep_losses(batch, self(batch))
        if self._chosen is not None:
            self._pending.add(batch, torch.isin(batch["index"], self._chosen.to(self.device)))
            while (full := self._pending.take(len(batch["index"]))) is not None:
                self._write(full, self._greedy)

    def on_validation_epoch_end(self) -> None:
        """Score the whole validation split, and the summaries of a part of it."""
        while (rest := self._pending.take(1)) is not None:
            self._write(rest, self._greedy)
        for name, value in self._gathered_losses().items():
            self.log(f"val/{name}", value, prog_bar=name == "loss")
        if self._chosen is None:
            # Lightning keeps what an earlier epoch has logged, as if it were this one's
            for name in _OF_SUMMARIES:
                self.trainer.callback_metrics.pop(f"val/{name}", None)
            return
        rows, summaries, tokens, ended = self._gathered_summaries()
        references = self._data().split("val").examples.select(rows)["summary"]
        metrics, _ = self._scored(references, summaries, tokens, ended)
        metrics["rouge_n"] = float(len(rows))
        for name in _OF_SUMMARIES:
            self.log(f"val/{name}", metrics[name], prog_bar=name == "rouge1")

    def on_test_epoch_start(self) -> None:
        """Forget what an interrupted evaluation has left."""
        super().on_test_epoch_start()
        self._written = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep a batch's losses and summaries; its documents are read once for both."""
        with self._precision():
            encoded = encoder_output(self.model, batch)
        self._keep_losses(batch, self._losses(batch, 0.0, encoded))
        self._write(batch, self.decoding, encoded)

    def on_test_epoch_end(self) -> None:
        """Score the whole test split and keep the summaries for their file."""
        losses = self._gathered_losses()
        rows, summaries, tokens, ended = self._gathered_summaries()
        references = list(column_values(self._data().split("test").examples, "summary"))
        metrics, scores = self._scored(references, summaries, tokens, ended)
        self.log_dict({f"test/{name}": value for name, value in {**metrics, **losses}.items()})
        self._test_predictions = {
            "index": rows,
            "summary": summaries,
            "reference": references,
            **{name: scores[:, column] for column, name in enumerate(ROUGE)},
            "n_tokens": tokens,
            "ended": ended,
        }
        if self.trainer.is_global_zero:
            trained = self.trainer.ckpt_path is not None
            self._samples = self._samples or self._sample()
            self._add_to_samples("after" if trained else "before")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Summaries, ``B`` texts, and row numbers, shape ``(B,)``."""
        ids = self._generated(batch, self.decoding)
        return {"index": batch["index"].cpu(), "summaries": self._texts(ids)}

    @property
    def _greedy(self) -> Decoding:
        return Decoding(self.decoding.max_new_tokens, 1)

    def _rows_to_summarize(self) -> torch.Tensor | None:
        """Numbers of the validation rows that are summarized now, ``None`` for none."""
        due = (self.trainer.current_epoch + 1) % self.rouge_every == 0
        due = due or self.trainer.state.fn == "validate"
        if self.trainer.sanity_checking or not self.rouge_examples or not due:
            return None
        n = len(self._data().split("val"))
        order = np.random.default_rng(_CHOICE_SEED).permutation(n)
        return torch.from_numpy(np.sort(order[: self.rouge_examples]))

    def _keep_losses(self, batch: Batch, losses: torch.Tensor) -> None:
        tokens = (batch["labels"] != IGNORE_LABEL).sum(dim=1)
        self._keep(batch["index"], losses.double().sum(dim=1), tokens, batch["cut"])

    def _gathered_losses(self) -> dict[str, float]:
        """Mean cross-entropy per token of the split, and what else is known of its rows."""
        rows, losses, tokens, cut = self._gather()
        return {
            "loss": float(losses.sum() / tokens.sum()),
            "n": float(len(rows)),
            "n_truncated": float(cut.sum()),
        }

    def _write(self, batch: Batch, decoding: Decoding, encoded: Any = None) -> None:  # noqa: ANN401
        ids = self._generated(batch, decoding, encoded)
        self._written.append((batch["index"].cpu(), ids))

    def _generated(self, batch: Batch, decoding: Decoding, encoded: Any = None) -> torch.Tensor:  # noqa: ANN401
        """Tokens of the summaries on the host, shape ``(B, max_new_tokens)``."""
        with self._precision():
            return generate_ids(self.model, batch, decoding, self._ends, encoded).cpu()

    @cached_property
    def _ends(self) -> frozenset[int]:
        """Tokens that end a summary: the one that is learned, and those the model came with."""
        own = self.model.generation_config.eos_token_id
        known = [] if own is None else own if isinstance(own, list) else [own]
        return frozenset({self.encoder.end, *map(int, known)})

    def _gathered_summaries(self) -> tuple[np.ndarray, list[str], np.ndarray, np.ndarray]:
        """All ranks' row numbers, summaries, their tokens, and whether they came to an end."""
        collected, self._written = self._written, []
        rows, ids = self._merged(collected)
        tokens = (ids != NO_TOKEN).sum(dim=1)
        ended = torch.isin(ids, torch.tensor(sorted(self._ends))).any(dim=1)
        if getattr(self.model.generation_config, "forced_eos_token_id", None) is not None:
            ended &= tokens < self.decoding.max_new_tokens  # the last one is always an end
        return rows.numpy(), self._texts(ids), tokens.numpy(), ended.numpy()

    def _texts(self, ids: torch.Tensor) -> list[str]:
        """Generated tokens ``(B, T)`` as texts."""
        tokenizer = self.encoder.tokenizer
        known = [[token for token in row if token != NO_TOKEN] for row in ids.tolist()]
        return [str(tokenizer.decode(row, skip_special_tokens=True)).strip() for row in known]

    def _scored(
        self,
        references: Sequence[str],
        summaries: Sequence[str],
        tokens: np.ndarray,
        ended: np.ndarray,
    ) -> tuple[dict[str, float], np.ndarray]:
        """Metrics of summaries, and their ROUGE scores one by one, shape ``(N, 4)``."""
        score = rouge_scorer()
        scores = []
        with progress_bar("Scoring", len(summaries), unit="summaries") as advance:
            for reference, summary in zip(references, summaries, strict=True):
                scores.append(score(reference, summary))
                advance(1)
        table = np.array(scores)
        return {**rouge_metrics(table), **length_metrics(tokens, ended)}, table

    def _data(self) -> Any:  # noqa: ANN401 - a DataModule of smolbench
        data: Any = getattr(self._trainer, "datamodule", None)
        if not callable(getattr(data, "split", None)):
            raise SmolbenchError(
                "SummarizationTask needs a DataModule of smolbench, whose texts the summaries are "
                "compared with."
            )
        return data

    # -- single texts -----------------------------------------------------------------------------

    def _sample(self) -> list[dict[str, str | None]]:
        """Documents of the test split that are shown, with nothing written of them yet."""
        if not self.num_samples:
            return []
        test = self._data().split("test").examples
        order = np.random.default_rng(_CHOICE_SEED).permutation(len(test))
        return [
            {
                "document": row["document"],
                "reference": row["summary"],
                "before": None,
                "after": None,
            }
            for row in (test[int(number)] for number in order[: self.num_samples])
        ]

    def _add_to_samples(self, moment: Literal["before", "after"]) -> None:
        """Write the sample's summaries with the weights as they are now."""
        if not self._samples:
            return
        documents = [str(sample["document"]) for sample in self._samples]
        with (
            self._evaluating(),
            progress_bar(f"Sample {moment} training", len(documents), unit="summaries") as advance,
        ):
            answer = self.start_answering()
            for sample, document in zip(self._samples, documents, strict=True):
                sample[moment] = self._texts(answer([document]))[0]
                advance(1)

    @contextmanager
    def _evaluating(self) -> Generator[None, None, None]:
        """Without dropout and gradients."""
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            yield
        self.model.train(training)

    def start_answering(self) -> Callable[[Sequence[str]], torch.Tensor]:
        """What summarizes documents that come one by one, or a few at a time.

        Returns:
            Documents, ``B`` of them, to the tokens of their summaries on the host, int64, shape
            ``(B, max_new_tokens)``: the whole way, from tokenisation on.
        """

        def answer(texts: Sequence[str]) -> torch.Tensor:
            batch = pad_rows(self.encode({"document": texts})["input_ids"], self._padding)
            there = {name: value.to(self.device) for name, value in batch.items()}
            return self._generated(there, self.decoding)

        return answer

    def samples(self) -> list[dict[str, str | None]]:
        """The sample's ``document``, ``reference``, and summaries ``before`` and ``after``."""
        return self._samples

    def predictions(self) -> dict[str, Any] | None:
        """Columns of ``predictions.parquet`` after a test, in the order of the test split."""
        return self._test_predictions

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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also what was written before the training; see the base class."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY]["samples"] = self._samples

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See the base class; without a trainer nobody else builds the network."""
        self.configure_model()
        super().on_load_checkpoint(checkpoint)
        known = checkpoint[CHECKPOINT_KEY].get("samples", [])
        self._samples = [{**sample, "after": None} for sample in known]

    def facts(self) -> dict[str, Any]:
        """Model, and how summaries are written and scored; see the base class."""
        return {
            **super().facts(),
            "generation/max_new_tokens": self.decoding.max_new_tokens,
            "generation/num_beams": self.decoding.num_beams,
            "rouge/splitter": SPLITTER,
            "model/id": self.backbone.given,
            "model/base": self.backbone.name if self.backbone.adapter else None,
            "model/revision": self.backbone.revision,
            "model/total_params": parameter_count(self),
            "model/dtype": str(self._compute).removeprefix("torch."),
        }


def _convention(decoding: Decoding) -> str:
    """Name of a way to write summaries: a preset's, else what it is."""
    for name, preset in PRESETS.items():
        if decoding == preset:
            return name
    return f"{decoding.max_new_tokens} tokens, {decoding.num_beams} beams"
