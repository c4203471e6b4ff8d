"""Prompting: a language model classifies by what it would write next; nothing is trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from smolbench.data.batching import TokenRows, pad_rows
from smolbench.data.token_cache import TokenTable
from smolbench.errors import SmolbenchError
from smolbench.metrics.classification import classification_metrics
from smolbench.metrics.uncertainty import mean_over_seeds, mean_stderr
from smolbench.models.encoding.template import SLOT, TemplateEncoder
from smolbench.models.pretrained.backbone import DType
from smolbench.models.pretrained.language_model import LanguageModel, load_language_model
from smolbench.models.prompting.calibration import (
    CALIBRATIONS,
    CONTENT_FREE,
    Calibration,
    Calibrator,
)
from smolbench.models.prompting.label_words import LabelWords
from smolbench.models.prompting.next_token import Prompted, first_answer
from smolbench.models.prompting.shots import ShotFormat, choose_shots
from smolbench.tasks.classification import Batch, ClassificationTask
from smolbench.tasks.pretrained import compute_dtype
from smolbench.utils.digest import digest
from smolbench.utils.notices import warn

log = logging.getLogger("smolbench")

Rule = Literal["verbalizer", "top_k"]


class PromptTask(ClassificationTask):
    """Zero- and few-shot classification with a causal language model.

    The text is put into a template, and a class is read off what the model would write behind it.
    All weights come pretrained: `smolbench test` needs no checkpoint, and there is nothing to fit.

    Args:
        backbone: A model id on the Hub, a folder with a model or with a peft adapter, or ``tiny``
            for the built-in model.
        revision: Branch, tag or commit of the backbone.
        trust_remote_code: Whether Python code among the backbone's files may run, with all that
            you may do on this machine: read it first. A model that needs it is refused without.
        template: What the model reads: a text with the slot ``{text}``, behind which the answer is
            to follow; all of it is tokenised as one text. Examples written by hand stand in front
            of it.
        label_words: What the model answers for each class, by the class's name; the names
            themselves if not given.
        separator: What stands between the template and the answer.
        rule: ``verbalizer``: the label word with the highest log-probability, as a whole if any has
            more than one token. ``top_k``: the first token among the ``top_k`` likeliest that
            stands for a label word; a text where none does is ``unknown``.
        top_k: How many of the likeliest tokens are looked through.
        unknown_as: The class that an ``unknown`` text is counted as; the first if not given.
            Results also say the accuracy if it is counted as wrong.
        calibration: What is taken off a label word's log-probability (``verbalizer``):
            ``contextual`` its log-probability behind the template with texts without content (Zhao
            et al., 2021), ``pmi`` the one behind the template's end alone (Holtzman et al., 2021).
            Results name the accuracy with all three.
        num_shots: Examples from the training split that stand in front of the template, of each
            class as many as of any other, or one more.
        shot_seeds: Seeds of their choice. With several, metrics are means over the seeds, with
            ``<metric>_stderr`` of that mean over the texts, ``<metric>_std`` for the spread over
            the seeds; so are tables class by class. What `predict` answers is the first seed's.
        shot_separator: What stands behind each of these examples; an empty line if not given.
        shot_max_length: Longest text of these examples, in tokens; 64 if not given.
        max_length: Longest row in tokens, template, examples and answer included.
        truncation_side: Which end of a long text is cut off; the template never is.
        dtype: Number format of the model; ``auto`` is bfloat16 where it is native. With
            ``trainer.precision`` bf16-mixed or 16-mixed that decides.

    Raises:
        SmolbenchError: If the settings contradict each other.
    """

    method = "prompt"
    drawn = "examples in its prompt"
    drawn_for = ("fit", "validate", "test")

    def __init__(
        self,
        *,
        backbone: str = "HuggingFaceTB/SmolLM2-135M",
        revision: str | None = None,
        trust_remote_code: bool = False,
        template: str = "{text}\nLabel:",
        label_words: dict[str, str] | None = None,
        separator: str = " ",
        rule: Rule = "verbalizer",
        top_k: int | None = None,
        unknown_as: str | None = None,
        calibration: Calibration = "none",
        num_shots: int = 0,
        shot_seeds: list[int] | None = None,
        shot_separator: str | None = None,
        shot_max_length: int | None = None,
        max_length: int = 512,
        truncation_side: Literal["left", "right"] = "right",
        dtype: DType = "auto",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if rule != "top_k" and (top_k is not None or unknown_as is not None):
            raise SmolbenchError(
                "model.top_k and unknown_as are for the rule 'top_k', and model.rule is "
                f"{rule!r}: leave them out."
            )
        if rule == "top_k" and calibration != "none":
            raise SmolbenchError(
                "model.calibration is for the rule 'verbalizer', and model.rule is 'top_k': leave "
                "it out."
            )
        for name, value in (
            ("shot_seeds", shot_seeds),
            ("shot_separator", shot_separator),
            ("shot_max_length", shot_max_length),
        ):
            if value == [] or (value is not None and not num_shots):
                raise SmolbenchError(
                    f"model.{name} is for the examples of num_shots; given are {value!r} and "
                    f"{num_shots}: give both, or neither."
                )
        longest = 64 if shot_max_length is None else shot_max_length
        if (
            num_shots < 0
            or min(shot_seeds or [0]) < 0
            or longest < 1
            or (top_k is not None and top_k < 1)
        ):
            raise SmolbenchError(
                "model.num_shots and shot_seeds must not be negative, shot_max_length and top_k "
                f"positive; given are {num_shots}, {shot_seeds}, {longest} and {top_k}."
            )
        if len(set(shot_seeds or [])) != len(shot_seeds or []):
            raise SmolbenchError(f"model.shot_seeds repeat themselves: {shot_seeds}.")
        if template.endswith((" ", "\t", "\n")):
            raise SmolbenchError(
                "model.template ends in white space; what stands between it and the answer is "
                f"model.separator ({separator!r})."
            )
        self.rule: Rule = rule
        self.probabilistic = rule == "verbalizer"
        self.top_k = 50 if top_k is None else top_k
        self.unknown_as = unknown_as
        self.calibration: Calibration = calibration
        self.num_shots = num_shots
        self.shot_seeds = shot_seeds or [0]
        self._label_words = label_words
        self._separator = separator
        between = "\n\n" if shot_separator is None else shot_separator
        self._shot_format = ShotFormat(template, separator, between, longest)
        self._template = template
        self._max_length = max_length
        self._truncation_side: Literal["left", "right"] = truncation_side
        self.backbone = LanguageModel(
            backbone, revision, dtype, trust_remote_code=trust_remote_code
        )
        self._prompted: list[Prompted] = []
        self._size = 0
        self._compute = torch.float32
        self._token_classes = torch.empty(0)
        self._calibrator: Calibrator | None = None
        self._example: str | None = None

    @property
    def scored_untrained(self) -> bool:
        """All weights come pretrained."""
        return True

    # -- texts to rows ----------------------------------------------------------------------------

    @property
    def convention(self) -> str:  # type: ignore[override] # follows from the options
        """The rule, and what it depends on."""
        return f"top_{self.top_k}" if self.rule == "top_k" else f"verbalizer, {self.calibration}"

    @cached_property
    def words(self) -> LabelWords:
        """The label words, in the order of the classes.

        Raises:
            SmolbenchError: If they are not those of the data's classes, or no tokens.
        """
        names = self.label_names
        words = self._label_words or {name: name for name in names}
        if set(words) != set(names):
            raise SmolbenchError(
                f"model.label_words are for {', '.join(words)}, but the classes of the data are "
                f"{', '.join(names)}: give a word for each."
            )
        if self.unknown_as not in (None, *names):
            raise SmolbenchError(
                f"model.unknown_as is {self.unknown_as!r}, which is none of the classes "
                f"{', '.join(names)}."
            )
        behind = self._template.rpartition(SLOT)[2] or ":"
        found = LabelWords(
            self.backbone.tokenizer, [words[name] for name in names], self._separator, behind
        )
        if self.rule == "verbalizer" and self.calibration == "none":
            for word, longer in found.covered:
                warn(
                    "The label word %r begins with %r, so that it is never the more likely one: "
                    "choose other words in model.label_words, or a model.calibration.",
                    longer,
                    word,
                )
        return found

    @cached_property
    def encoders(self) -> list[TemplateEncoder]:
        """The template behind the examples of each seed.

        All leave a text the same room, so that rows without their beginning serve them all.

        Raises:
            SmolbenchError: If rows could be longer than the backbone reads, the template does not
                fit, or there are too few examples.
        """
        own, asked = self._examples
        found = [
            self.backbone.template_encoder(
                f"{own}{self._shots(seed)}{asked}",
                self._max_length,
                self._truncation_side,
                goes_on=True,
            )
            for seed in self.shot_seeds
        ]
        # the last token of an answer is never read, only predicted
        answer = max(map(len, self.words.ids)) - 1
        room = min(encoder.room for encoder in found) - answer
        for encoder in found:
            encoder.room = room
        if min(encoder.text_budget for encoder in found) < 1:
            raise SmolbenchError(
                f"model.max_length is {self._max_length}, which leaves no room for a text beside "
                "the template, its examples and an answer: raise max_length, or lower num_shots or "
                "shot_max_length."
            )
        if len({encoder.open_front for encoder in found}) > 1:
            raise SmolbenchError(
                "The examples of the different model.shot_seeds end in signs that this tokenizer "
                "joins with what follows, so that their prompts have no end in common: let "
                "model.template begin with a word, or give one seed."
            )
        return found

    @cached_property
    def _examples(self) -> tuple[str, str]:
        """Solved examples that the template begins with, and what asks for the text behind them.

        Examples that are drawn stand between the two, and look like the latter alone.

        Raises:
            SmolbenchError: If it is not clear where the template's own examples end.
        """
        front, _, behind = self._template.partition(SLOT)
        if not self.num_shots or not behind.strip() or behind not in front:
            return "", self._template
        start = front.rindex(behind) + len(behind)
        for word in sorted(self.words.words, key=len, reverse=True):
            if front.startswith(answer := f"{self._separator}{word}", start):
                begin = start + len(answer)
                begin += len(front[begin:]) - len(front[begin:].lstrip())
                return self._template[:begin], self._template[begin:]
        raise SmolbenchError(
            f"model.template has {behind.strip()!r} in front of its slot, too, but no label word "
            "behind it, so that it is not clear where its own examples end: leave them out, or "
            "model.num_shots."
        )

    def _shots(self, seed: int) -> str:
        """Examples as they stand in front of the template, as many of each class."""
        if not self.num_shots:
            return ""
        split = self.data.split("train")
        assert split.labels is not None, "a training split has them"
        self._draw()
        texts = split.examples.select_columns("text")

        def text_of(row: int) -> str:
            return str(texts[row]["text"])

        rows = choose_shots(split.labels, self.label_names, self.num_shots, seed, text_of)
        tokenizer, answers = self.backbone.tokenizer, self.words.words
        shot = replace(self._shot_format, template=self._examples[1])
        return "".join(
            shot.write(text_of(row), answers[int(split.labels[row])], tokenizer) for row in rows
        )

    def encode(self, examples: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        """Token ids of texts and of what stands behind them; see the base class."""
        return {"input_ids": self.encoders[0].encode(examples["text"])["input_ids"]}

    def encoder_key(self) -> dict[str, Any]:
        """See the base class; rows depend on the examples only in how much room they leave."""
        first = self.encoders[0]
        return {
            **first.key(),
            "template": self._template,
            "front": first.open_front,
            "room": first.room,
        }

    def check_tokens(self, table: TokenTable) -> None:
        """Also those of the examples and of the answers; see the base class."""
        rows = [*(encoder.shared_ids for encoder in self.encoders), *self.words.ids]
        if self.rule == "verbalizer":
            rows += self.encoders[0].encode(CONTENT_FREE)["input_ids"]  # type: ignore[arg-type] # rows
        self.backbone.require_embeddings(
            [table.ragged["input_ids"].largest, *(token for row in rows for token in row)]
        )

    def rows(self, split: str, table: TokenTable, labels: np.ndarray | None) -> TokenRows:
        """Token ids of a split, without what all prompts share.

        Args:
            split: Name of the split.
            table: The split's token ids.
            labels: Classes, shape ``(N,)``; ``None`` for texts to predict.
        """
        if self._example is None and len(table):
            row = table.ragged["input_ids"].padded(np.array([0]), fill=0)[0].tolist()
            self._example = str(
                self.backbone.tokenizer.decode([*self.encoders[0].shared_ids, *row])
            )
        return TokenRows(table, labels, 0)

    def start_reading(self) -> Callable[[Sequence[str]], Batch]:
        """Turn texts into token ids; see the base class."""

        def read(texts: Sequence[str]) -> Batch:
            batch = pad_rows(self.encode({"text": texts})["input_ids"], 0)
            return {name: value.to(self.device) for name, value in batch.items()}

        return read

    # -- rows to scores ---------------------------------------------------------------------------

    def check_inputs(self) -> None:
        """See the base class."""
        raise SmolbenchError(
            "PromptTask has nothing to train: score it with `smolbench test`, or fit a "
            "FineTuneTask or a ProbeTask."
        )

    def build_model(self) -> None:
        """Load the model and run what all prompts share, once for each seed.

        Raises:
            SmolbenchError: If the backbone is no causal language model.
        """
        device = self.run_device
        encoders = self.encoders  # what does not fit is an error before anything is loaded
        self._compute = compute_dtype(self.backbone, self._trainer, device)
        model = load_language_model(self.backbone, self._compute, device)
        frozen: torch.nn.Module = model  # transformers' own methods are untyped
        frozen.to(device).requires_grad_(False)
        self._size = sum(p.numel() for p in model.parameters())
        self._prompted = [Prompted(model, encoder.shared_ids) for encoder in encoders]
        if self.rule == "top_k":
            classes = self.words.token_classes(model.config.vocab_size)
            self._token_classes = classes.to(device)
        else:
            self._calibrator = Calibrator(self._prompted, encoders[0], self.words.ids)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Scores of the classes ``(B, C)``, float32, behind the first seed's examples."""
        scores, _ = self._read(batch, 0)
        return self._calibrated(scores, 0, self.calibration)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        """See the base class; says how many texts have no answer."""
        scores, unknown = self._read(batch, 0)
        if unknown.any():
            log.warning(
                "%d texts have no answer among the %d likeliest tokens; they count as %r.",
                int(unknown.sum()),
                self.top_k,
                self.unknown_as or self.label_names[0],
            )
        calibrated = self._calibrated(scores, 0, self.calibration)
        return {"index": batch["index"].cpu(), "scores": calibrated.softmax(dim=1)}

    def _read(self, batch: Batch, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What the model answers behind one seed's examples.

        Returns:
            Scores of the classes without calibration ``(B, C)``, float32, and which texts are
            ``unknown`` ``(B,)``, both on the CPU.
        """
        ids, lengths = batch["input_ids"], batch["attention_mask"].sum(dim=1)
        if self.rule == "verbalizer":
            scores = self._prompted[seed].continuations(ids, lengths, self.words.ids)
            return scores.cpu(), torch.zeros(len(ids), dtype=torch.bool)
        default = 0 if self.unknown_as is None else self.label_names.index(self.unknown_as)
        log_probs = self._prompted[seed].next_token(ids, lengths)
        scores, unknown = first_answer(log_probs, self._token_classes, self.top_k, default)
        return scores.cpu(), unknown.cpu()

    def _calibrated(self, scores: torch.Tensor, seed: int, kind: Calibration) -> torch.Tensor:
        # the rule top_k has none
        return scores if self._calibrator is None else self._calibrator(scores, seed, kind)

    # -- scores to metrics ------------------------------------------------------------------------

    def _collect(self, batch: Batch) -> None:
        read = [self._read(batch, seed) for seed in range(len(self.shot_seeds))]
        scores = torch.stack([scores for scores, _ in read], dim=1)
        unknown = torch.stack([unknown for _, unknown in read], dim=1)
        self._keep(batch["index"], scores, unknown, batch["labels"])

    def on_validation_epoch_end(self) -> None:
        """Score the whole validation split."""
        _, scores, unknown, labels = self._gather()
        metrics = self._over_seeds(scores, unknown, labels)
        self.log_dict({f"val/{name}": value for name, value in metrics.items()})

    def on_test_epoch_end(self) -> None:
        """Score the whole test split and keep the predictions for their file."""
        index, scores, unknown, labels = self._gather()
        metrics = self._over_seeds(scores, unknown, labels)
        self.log_dict({f"test/{name}": value for name, value in metrics.items()})
        first, *others = draws = [
            self._calibrated(scores[:, n], n, self.calibration) for n in range(len(self.shot_seeds))
        ]
        more = {
            f"prediction_of_shots_{seed}": logits.argmax(dim=1).numpy()
            for seed, logits in zip(self.shot_seeds[1:], others, strict=True)
        }
        if self.rule == "top_k":
            more["unknown"] = unknown[:, 0].numpy()
        called = torch.stack([logits.argmax(dim=1) for logits in draws])
        self._record_test(index, first, labels, more, called)

    def _over_seeds(
        self, scores: torch.Tensor, unknown: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, float]:
        """Metrics as means over the seeds of the examples, with their spread.

        Args:
            scores: Of the classes, without calibration, shape ``(N, S, C)``.
            unknown: Texts without an answer, shape ``(N, S)``.
            labels: True classes, shape ``(N,)``.
        """
        seeds = range(len(self.shot_seeds))
        used = [self._calibrated(scores[:, n], n, self.calibration) for n in seeds]
        metrics = self._meaningful(classification_metrics(used, labels, self.positive_class))
        right: dict[str, list[torch.Tensor]] = {}
        if self.rule == "top_k":
            # most texts have a score for one class only
            metrics = {k: v for k, v in metrics.items() if not k.startswith("auroc")}
            right["accuracy_unknown_wrong"] = [
                (used[n].argmax(dim=1) == labels) & ~unknown[:, n] for n in seeds
            ]
            counts = unknown.sum(dim=0).tolist()
            metrics |= mean_over_seeds([{"n_unknown": float(count)} for count in counts])
        else:
            for kind in ("none", *CALIBRATIONS):
                right[f"accuracy_{'uncalibrated' if kind == 'none' else kind}"] = [
                    self._calibrated(scores[:, n], n, kind).argmax(dim=1) == labels for n in seeds
                ]
        for name, draws in right.items():
            of_rows = torch.stack(draws).double()
            metrics |= mean_over_seeds([{name: share} for share in of_rows.mean(dim=1).tolist()])
            metrics[f"{name}_stderr"] = mean_stderr(of_rows.mean(dim=0).numpy())
        if len(seeds) > 1:
            metrics["n_draws"] = float(len(seeds))
        return metrics

    # -- what results say -------------------------------------------------------------------------

    def signature(self) -> dict[str, Any]:
        """Nothing is trained; see the base class."""
        return {
            **super().signature(),
            "backbone": self.backbone.given,
            "revision": self.backbone.revision,
            "encoder": digest(self.encoder_key()),
            "convention": self.convention,
        }

    def facts(self) -> dict[str, Any]:
        """Model, prompt and answers; see the base class."""
        return {
            **super().facts(),
            "model/id": self.backbone.given,
            "model/base": self.backbone.name if self.backbone.adapter else None,
            "model/revision": self.backbone.revision,
            "model/trust_remote_code": self.backbone.trust_remote_code,
            "model/total_params": self._size,
            "model/dtype": str(self._compute).removeprefix("torch."),
            "prompt/example": self._example,
            "prompt/label_words": ", ".join(self.words.words),
            "prompt/num_shots": self.num_shots,
            "prompt/shot_seeds": ", ".join(map(str, self.shot_seeds)) if self.num_shots else None,
        }
