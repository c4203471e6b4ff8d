"""What tasks share that write summaries: losses and texts over whole splits, scores, samples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from smolbench.data.batching import IGNORE_LABEL, BatchPlan, pad_rows
from smolbench.errors import SmolbenchError
from smolbench.metrics.rouge import ROUGE, Summaries, rouge_scores
from smolbench.metrics.rouge_tokens import SPLITTERS, RougeTokenizer, shares_read
from smolbench.models.summaries.rows import SummaryEncoder
from smolbench.models.summaries.summarizer import (
    NO_TOKEN,
    Decoding,
    encoder_output,
    ended_by_itself,
    generate_ids,
    own_settings,
    target_losses,
)
from smolbench.tasks.accumulation import weight_of_batch
from smolbench.tasks.base import CHECKPOINT_KEY, BaseTask
from smolbench.utils.notices import warn
from smolbench.utils.progress import progress_bar

# No `if TYPE_CHECKING:` here, see data/datamodule.py: hence `Any` for transformers' models.


Batch = dict[str, torch.Tensor]
Preset = Literal["card", "full"]
PRESETS: dict[Preset, Decoding] = {"card": Decoding(20, 1), "full": Decoding(128, 4)}
"""How a test's summaries are written."""
_OF_SUMMARIES = (*ROUGE, "gen_tokens", "truncated_share", "n_without_tokens", "rouge_n")
"""What a validation says of the summaries that it has written."""
_CHOICE_SEED = 0
"""Of the draw of validation rows that are summarized, and of the sample shown."""


class WritingTask(BaseTask):
    """A task whose model writes a summary of every document.

    The teacher-forced loss is taken of whole splits, and in training of all summaries of an
    optimiser step: its mean is over their tokens, however they are put into batches. Summaries are
    written greedily of a part of the validation rows, and in the way of ``decoding`` of all test
    rows; tokens are gathered over all batches and ranks, put into the order of the split, and
    scored once.

    Args:
        generation: Preset of a test's summaries.
        max_new_tokens: Most tokens of a summary, instead of the preset's.
        num_beams: Beams of a test, instead of the preset's.
        rouge_every: Epochs between two validations that write summaries.
        rouge_examples: Validation rows that are summarized then; 0 for none.
        rouge_tokenizer: What finds the words that ROUGE counts.
        samples: Test documents that are summarized before and after training.
        label_smoothing: Share of each target that is spread evenly over the vocabulary.
        **options: See :class:`~smolbench.tasks.base.BaseTask`.

    Raises:
        SmolbenchError: If an option is out of range.
    """

    kind: ClassVar[str] = "summarization"
    monitor: tuple[str, Literal["min", "max"]] = ("val/loss", "min")

    def __init__(
        self,
        *,
        generation: Preset,
        max_new_tokens: int | None,
        num_beams: int | None,
        rouge_every: int,
        rouge_examples: int,
        rouge_tokenizer: RougeTokenizer,
        samples: int,
        label_smoothing: float,
        **options: Any,  # noqa: ANN401 - those of the base class
    ) -> None:
        super().__init__(**options)
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
        ):
            if value < least:
                raise SmolbenchError(f"model.{name} must be at least {least}, but is {value}.")
        if not 0 <= label_smoothing < 1:
            raise SmolbenchError(
                f"model.label_smoothing must be in [0, 1), but is {label_smoothing}."
            )
        self.convention: str = _convention(self.decoding)
        if rouge_tokenizer != "rouge_score":
            self.convention += f", {rouge_tokenizer} tokenizer"
        self.rouge_tokenizer: RougeTokenizer = rouge_tokenizer
        self.rouge_every = rouge_every
        self.rouge_examples = rouge_examples
        self.num_samples = samples
        self.label_smoothing = label_smoothing
        self.model: Any = None
        self._summary_lengths: np.ndarray = np.zeros(0, dtype=np.int64)  # of the training split
        self._written: list[tuple[torch.Tensor, ...]] = []
        self._samples: list[dict[str, str | None]] = []
        self._has_learned = False
        self._test_predictions: dict[str, Any] | None = None

    # -- what a task says -------------------------------------------------------------------------

    @property
    @abstractmethod
    def encoder(self) -> SummaryEncoder:
        """What turns documents and summaries into token ids."""

    @property
    @abstractmethod
    def padding(self) -> int:
        """The id that fills short rows."""

    @abstractmethod
    def precision(self) -> AbstractContextManager[Any]:
        """What the network is run in."""

    # -- losses -----------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> torch.Tensor:
        """Cross-entropies of the references' tokens, nats, float32; see :func:`target_losses`."""
        return self._losses(batch, 0.0)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean cross-entropy of the references' tokens, in nats, with label smoothing."""
        known = (batch["labels"] != IGNORE_LABEL).sum()
        return self._losses(batch, self.label_smoothing).sum() / known

    def _losses(self, batch: Batch, smoothing: float, encoded: Any = None) -> torch.Tensor:  # noqa: ANN401
        assert self.model is not None, "configure_model runs first"
        with self.precision():
            return target_losses(self.model, batch, smoothing, encoded)

    def batch_weight(self, batch_idx: int) -> float:
        """A step's loss is the mean over the tokens of all its summaries; see the base class."""
        return weight_of_batch(self.trainer, batch_idx, self._summary_lengths)

    # -- evaluation -------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """See the base class."""
        super().on_validation_epoch_start()
        self._written = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep a batch's losses."""
        self._keep_losses(batch, self(batch))

    def validated(self) -> tuple[str, ...]:
        """See the base class; what is said of summaries, where any are written."""
        return ("loss", *(_OF_SUMMARIES[:-1] if self.rouge_examples else ()))

    def epochs_between(self, metric: str) -> int:
        """See the base class; summaries are not written in every epoch."""
        return self.rouge_every if metric.removeprefix("val/") in _OF_SUMMARIES else 1

    def on_validation_epoch_end(self) -> None:
        """Score the whole validation split, and write and score summaries of a part of it."""
        rows, losses = self._gathered_losses()
        for name, value in losses.items():
            self.log(f"val/{name}", value, prog_bar=name == "loss")
        written = self._summarized(rows) if self._rows_are_due else None
        if written is None:
            # Lightning keeps what an earlier epoch has logged, as if it were this one's
            for name in _OF_SUMMARIES:
                self.trainer.callback_metrics.pop(f"val/{name}", None)
            return
        metrics = {**written.metrics(), "rouge_n": float(len(written.rows))}
        for name in _OF_SUMMARIES:
            self.log(f"val/{name}", metrics[name], prog_bar=name == "rouge1")

    def on_test_epoch_start(self) -> None:
        """Forget what an interrupted evaluation has left."""
        super().on_test_epoch_start()
        self._written = []

    def warm_up(self, batch: Batch) -> None:
        """Run the network as a test does, and keep nothing: losses, and the first words of two."""
        self(batch)
        few = {name: column[:2] for name, column in batch.items()}
        short = replace(self.decoding, max_new_tokens=min(8, self.decoding.max_new_tokens))
        with self.precision():
            generate_ids(self.model, few, short, self._ends)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep a batch's losses and summaries; its documents are read once for both."""
        with self.precision():
            encoded = encoder_output(self.model, batch)
        self._keep_losses(batch, self._losses(batch, 0.0, encoded))
        self._write(batch, self.decoding, encoded)

    def on_test_epoch_end(self) -> None:
        """Score the whole test split and keep the summaries for their file."""
        _, losses = self._gathered_losses()
        written = self._gathered_summaries("test")
        assert written is not None, "there is no test without a row"
        metrics = {**written.metrics(), **losses}
        self.log_dict({f"test/{name}": value for name, value in metrics.items()})
        self._test_predictions = written.columns()
        if self.trainer.is_global_zero:
            chosen = self._sample()
            if _documents(chosen) != _documents(self._samples):  # a checkpoint of other test data
                self._samples = chosen
            self._add_to_samples("after" if self._has_learned else "before")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Summaries, ``B`` texts, and row numbers, shape ``(B,)``."""
        ids = self._generated(batch)
        return {"index": batch["index"].cpu(), "summaries": self._texts(ids)}

    def remarks_on_estimate(self) -> list[str]:
        """Which validations write summaries; see the base class."""
        if self.rouge_every == 1 or not self.rouge_examples:
            return []
        return [
            "Every validation is counted with its summaries, although only every "
            f"{self.rouge_every}th epoch's writes them (model.rouge_every)."
        ]

    @property
    def _greedy(self) -> Decoding:
        return Decoding(self.decoding.max_new_tokens, 1)

    @property
    def _rows_are_due(self) -> bool:
        """Whether this validation writes summaries."""
        due = (self.trainer.current_epoch + 1) % self.rouge_every == 0
        due = due or self.trainer.state.fn == "validate" or self.rehearsal is not None
        return due and bool(self.rouge_examples) and not self.trainer.sanity_checking

    def _summarized(self, validated: torch.Tensor) -> Summaries | None:
        """Summaries of a part of the validation rows, always the same, scored.

        They have batches of their own, which the ranks share out: what stands beside a row, and so
        how it is rounded in bfloat16, does not depend on the number of ranks.

        Args:
            validated: Numbers of the rows that this validation has gone through.
        """
        order = np.random.default_rng(_CHOICE_SEED).permutation(len(self.data.split("val")))
        chosen = np.intersect1d(order[: self.rouge_examples], validated.numpy())
        if not len(chosen):
            return None
        loader: Any = self.trainer.val_dataloaders
        plan = BatchPlan(loader.rows.lengths[chosen], loader.plan.batch_size, shuffle=False, seed=0)
        batches = plan.batches()[self.trainer.global_rank :: self.trainer.world_size]
        mine = sum(map(len, batches))
        with progress_bar("Summarizing", mine, unit="summaries") as advance:
            for numbers in batches:
                batch = loader.rows.batch(chosen[numbers])
                there = {name: column.to(self.device) for name, column in batch.items()}
                self._write(there, self._greedy)
                advance(len(numbers))
        return self._gathered_summaries("val")

    def _keep_losses(self, batch: Batch, losses: torch.Tensor) -> None:
        tokens = (batch["labels"] != IGNORE_LABEL).sum(dim=1)
        sums = losses.cpu().double().sum(dim=1)
        self._keep(batch["index"], sums, tokens, batch["cut"], batch["summary_cut"])

    def _gathered_losses(self) -> tuple[torch.Tensor, dict[str, float]]:
        """Numbers of the rows, their mean cross-entropy per token, and what else is known."""
        rows, losses, tokens, cut, references_cut = self._gather()
        return rows, {
            "loss": float(losses.sum() / tokens.sum()),
            "n": float(len(rows)),
            "n_truncated": float(cut.sum()),
            "n_references_cut": float(references_cut.sum()),
        }

    def _write(self, batch: Batch, decoding: Decoding, encoded: Any = None) -> None:  # noqa: ANN401
        with self.precision():
            ids = generate_ids(self.model, batch, decoding, self._ends, encoded)
            ended = ended_by_itself(self.model, batch, ids, self._ends)
        self._written.append((batch["index"].cpu(), ids.cpu(), ended.cpu()))

    def _generated(self, batch: Batch) -> torch.Tensor:
        """Tokens of summaries as in a test, on the host, shape ``(B, max_new_tokens)``."""
        with self.precision():
            return generate_ids(self.model, batch, self.decoding, self._ends).cpu()

    @cached_property
    def _ends(self) -> frozenset[int]:
        """Tokens that end a summary: the one that is learned, and those the model came with."""
        own = self.model.generation_config.eos_token_id
        known = [] if own is None else own if isinstance(own, list) else [own]
        return frozenset({self.encoder.end, *map(int, known)})

    def _gathered_summaries(self, split: Literal["val", "test"]) -> Summaries | None:
        """All ranks' summaries of a split, scored; ``None`` if none was written."""
        collected, self._written = self._written, []
        if not (merged := self._merged(collected)):
            return None
        rows, ids, ended = merged
        tokens = (ids != NO_TOKEN).sum(dim=1)
        examples = self.data.split(split).examples.select(rows.tolist())
        references = [self.encoder.broken(text) for text in examples["summary"]]
        texts = self._texts(ids)
        with progress_bar("Scoring", len(texts), unit="summaries") as advance:
            scores = rouge_scores(references, texts, advance, self.rouge_tokenizer)
        wordless = shares_read(references, self.rouge_tokenizer) == 0
        return Summaries(
            rows.numpy(), texts, references, scores, tokens.numpy(), ended.numpy(), wordless
        )

    def _remark_on_references(self, split: Literal["val", "test"]) -> None:
        """Say it if ROUGE sees too little of the references, before anything is scored by it."""
        shares = shares_read(self.data.split(split).examples["summary"], self.rouge_tokenizer)
        found = (
            (shares == 0, "have no token, so that their ROUGE is 0 whatever is written"),
            ((shares > 0) & (shares < 0.5), "lose over half of their letters and digits"),
        )
        said = [
            f"{which.sum():,} ({which.mean():.1%}) {what}" for which, what in found if any(which)
        ]
        if said:
            warn(
                "Of %s references (%s) %s: %s.",
                f"{len(shares):,}",
                split,
                ", and ".join(said),
                "model.rouge_tokenizer rouge_score knows a-z and 0-9 only; --model.rouge_tokenizer "
                "unicode knows all scripts"
                if self.rouge_tokenizer == "rouge_score"
                else "they hold no letter or digit of any script",
            )

    def _texts(self, ids: torch.Tensor) -> list[str]:
        """Generated tokens ``(B, T)`` as texts."""
        known = [[token for token in row if token != NO_TOKEN] for row in ids.tolist()]
        return [self.encoder.texts(row) for row in known]

    # -- single texts -----------------------------------------------------------------------------

    def _sample(self) -> list[dict[str, str | None]]:
        """Documents of the test split that are shown, with nothing written of them yet."""
        if not self.num_samples:
            return []
        test = self.data.split("test").examples
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
            batch = pad_rows(self.encode({"document": texts})["input_ids"], self.padding)
            there = {name: value.to(self.device) for name, value in batch.items()}
            return self._generated(there)

        return answer

    def samples(self) -> list[dict[str, str | None]]:
        """The sample's ``document``, ``reference``, and summaries ``before`` and ``after``."""
        return self._samples

    def predictions(self) -> dict[str, Any] | None:
        """Columns of ``predictions.parquet`` after a test, in the order of the test split."""
        return self._test_predictions

    # -- what results and checkpoints say ---------------------------------------------------------

    def on_fit_start(self) -> None:
        """Summarize the sample before anything is learned."""
        self._has_learned = True
        if self.trainer.is_global_zero and self.trainer.ckpt_path is None:
            self._samples = self._sample()
            self._add_to_samples("before")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also what was written before the training; see the base class."""
        super().on_save_checkpoint(checkpoint)
        written_as = _convention(self.decoding)
        checkpoint[CHECKPOINT_KEY] |= {"samples": self._samples, "convention": written_as}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See the base class."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint[CHECKPOINT_KEY]
        self._samples = [{**sample, "after": None} for sample in saved.get("samples", [])]
        written_as = _convention(self.decoding)
        if (before := saved.get("convention", written_as)) != written_as:
            # the untrained weights are gone, so what they wrote in another way says so
            self._samples = [{**sample, "before_convention": before} for sample in self._samples]
        self._has_learned = True

    def facts(self) -> dict[str, Any]:
        """How summaries are written and scored; see the base class."""
        own = own_settings(self.model, self.decoding, self._ends) if self.model is not None else {}
        return {
            **super().facts(),
            **{f"generation/{name}": value for name, value in own.items()},
            "generation/max_new_tokens": self.decoding.max_new_tokens,
            "generation/num_beams": self.decoding.num_beams,
            "rouge/tokenizer": self.rouge_tokenizer,
            "rouge/splitter": SPLITTERS[self.rouge_tokenizer],
        }


def _documents(samples: Sequence[Mapping[str, str | None]]) -> list[str | None]:
    return [sample["document"] for sample in samples]


def _convention(decoding: Decoding) -> str:
    """Name of a way to write summaries: a preset's, else what it is."""
    for name, preset in PRESETS.items():
        if decoding == preset:
            return name
    return f"{decoding.max_new_tokens} tokens, {decoding.num_beams} beams"
