"""Classical baselines: scikit-learn pipelines under the same commands, folders and measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from smolbench.data.batching import ArrayRows, Indices, Rows
from smolbench.data.columns import column_values
from smolbench.data.token_cache import TokenTable
from smolbench.errors import SmolbenchError
from smolbench.models.baselines.pipelines import (
    PROBABILISTIC,
    ClassicalOptions,
    Classifier,
    build_pipeline,
    class_scores,
    fit_pipeline,
    learned_numbers,
    pipeline_of_version,
    pipeline_to_bytes,
    scores_on_trial,
    sklearn_version,
    without_words,
)
from smolbench.models.baselines.words import Tokens, split_of, tell_unread
from smolbench.models.export.check import Expected, Trial
from smolbench.models.export.exported import Exported
from smolbench.tasks.base import CHECKPOINT_KEY
from smolbench.tasks.classification import Batch, ClassificationTask

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION, _SCORES = "scikit_learn", "scores_on_trial"
"""Names in what a checkpoint says of its origin."""
_SAVED = "pipeline_bytes"
"""Name in the state dict of the fitted pipeline, uint8."""


class ClassicalTask(ClassificationTask):
    """TF-IDF and a classical classifier, fitted on the whole training split in one step.

    Args:
        classifier: ``naive_bayes`` (multinomial), ``logistic_regression``, ``random_forest`` or
            ``linear_svm``.
        max_ngram: Longest sequence of words that is a feature; of characters twice as long ones.
        min_df: Fewest training texts that a feature must stand in.
        tokens: What a word is. ``words``: a run of two or more letters and digits with their
            marks; ``characters``: of Chinese, Japanese, Thai, Lao, Khmer and Burmese, which put no
            spaces between words, each character; ``auto``: characters where a tenth of the training
            texts' letters are of these scripts.
        max_features: Most features, the most frequent ones; all if not given.
        sublinear_tf: Whether a feature's frequency in a text counts by ``1 + log``.
        stop_words: ``english`` leaves out scikit-learn's list of frequent English words.
        alpha: Additive smoothing (``naive_bayes``); 1 if not given.
        inverse_penalty: Inverse strength of the L2 penalty, scikit-learn's ``C``
            (``logistic_regression``, ``linear_svm``); 1 if not given.
        n_estimators: Number of trees (``random_forest``); 100 if not given.
        max_depth: Deepest tree (``random_forest``); as deep as it gets if not given.
        num_classes: Number of classes, for data that does not name its labels.

    Raises:
        SmolbenchError: If the settings contradict each other.
    """

    score_decimals = 5  # many texts of a forest have equal probabilities, in float64

    def __init__(
        self,
        *,
        classifier: Classifier = "logistic_regression",
        max_ngram: int = 2,
        min_df: int = 2,
        tokens: Tokens = "auto",
        max_features: int | None = None,
        sublinear_tf: bool = True,
        stop_words: Literal["english"] | None = None,
        alpha: float | None = None,
        inverse_penalty: float | None = None,
        n_estimators: int | None = None,
        max_depth: int | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(num_classes=num_classes)
        self.save_hyperparameters()
        for name, value, users in (
            ("alpha", alpha, ("naive_bayes",)),
            ("inverse_penalty", inverse_penalty, ("logistic_regression", "linear_svm")),
            ("n_estimators", n_estimators, ("random_forest",)),
            ("max_depth", max_depth, ("random_forest",)),
        ):
            if value is not None and classifier not in users:
                raise SmolbenchError(
                    f"model.{name} is for {' and '.join(users)}, and model.classifier is "
                    f"{classifier!r}: leave it out."
                )
            if value is not None and value <= 0:
                raise SmolbenchError(f"model.{name} must be positive, but is {value}.")
        if max_ngram < 1 or min_df < 1 or (max_features is not None and max_features < 1):
            raise SmolbenchError(
                "model.max_ngram, min_df and max_features must be positive; given are "
                f"{max_ngram}, {min_df} and {max_features}."
            )
        self.method = classifier
        self.probabilistic = classifier in PROBABILISTIC
        self.score_name = "score" if self.probabilistic else "margin"
        self.options = ClassicalOptions(
            classifier=classifier,
            max_ngram=max_ngram,
            min_df=min_df,
            tokens=tokens,
            max_features=max_features,
            sublinear_tf=sublinear_tf,
            stop_words=stop_words,
            alpha=1.0 if alpha is None else alpha,
            inverse_penalty=1.0 if inverse_penalty is None else inverse_penalty,
            n_estimators=n_estimators or 100,
            max_depth=max_depth,
        )
        self.automatic_optimization = False  # scikit-learn fits, not an optimiser
        self.pipeline: Any = None
        self._tokens: str | None = None
        # Lightning counts steps by an optimiser's; this is what it "trains"
        self.fitted = torch.nn.Parameter(torch.zeros(1))
        self.pipeline_bytes: torch.Tensor
        self.register_buffer(_SAVED, torch.empty(0, dtype=torch.uint8))

    # -- texts ------------------------------------------------------------------------------------

    def encode(self, examples: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        """Lengths only: the texts are read as they are, see :meth:`rows`."""
        return {"n_characters": [len(text) for text in examples["text"]]}

    def encoder_key(self) -> dict[str, Any]:
        """See the base class."""
        return {"encoder": "characters-1"}

    def rows(self, split: str, table: TokenTable, labels: np.ndarray | None) -> Rows:
        """Row numbers and labels of a split; for training all of them as one batch.

        Args:
            split: Name of the split.
            table: The texts' lengths.
            labels: Classes, shape ``(N,)``; ``None`` for texts to predict.
        """
        arrays = {"n_characters": table.scalars["n_characters"]}
        if labels is not None:
            arrays["labels"] = labels
        rows = ArrayRows(arrays)
        if split != "train" and self.pipeline is not None:
            self._tell_unread(split)
        return _OneBatch(rows) if split == "train" else rows

    # -- fitting ----------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """None; but any other training than the one step is refused here, before data is read."""
        trainer = self.trainer
        if trainer.state.fn != "fit":
            return []
        if trainer.world_size > 1:
            raise SmolbenchError(
                f"A classical classifier is fitted by one process, and this job has "
                f"{trainer.world_size}: give --trainer.devices 1."
            )
        if trainer.max_epochs != 1:
            raise SmolbenchError(
                "A classical classifier is fitted in one step: give --trainer.max_epochs 1."
            )
        return []

    def remarks_on_estimate(self) -> list[str]:
        """None can be given; see the base class."""
        raise SmolbenchError(
            "--estimate times a few steps and a classical classifier is fitted in one, so there is "
            "nothing to extrapolate: fit it on a part, with --data.limit_train, and see."
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Nothing is optimised by gradients; see :meth:`training_step`.

        Raises:
            SmolbenchError: If a run is to be resumed.
        """
        if self.trainer.ckpt_path is not None:
            raise SmolbenchError(
                "A classical classifier is fitted in one step, so there is nothing to go on with: "
                "start a new run without --ckpt_path."
            )
        return torch.optim.SGD([self.fitted], lr=1.0)

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """Fit the pipeline on the whole training split."""
        texts = list(column_values(self._examples(), "text"))
        split = split_of(self.options.tokens, texts)
        self._tokens = split.partition("-")[0]
        self.pipeline = build_pipeline(self.options, self.seed, split)
        fit_pipeline(self.pipeline, texts, batch["labels"].cpu().numpy())
        self._tell_unread("train")
        saved = np.frombuffer(pipeline_to_bytes(self.pipeline), dtype=np.uint8)
        self.pipeline_bytes = torch.from_numpy(saved.copy())
        with torch.no_grad():
            self.fitted.fill_(1.0)
        self.optimizers().step()  # type: ignore[union-attr] # counts the step

    def largest_batch(self, rows: Rows, effective: int) -> int:
        """All rows are one batch, whatever its size; see the base class."""
        return effective

    def _tell_unread(self, split: Any) -> None:  # noqa: ANN401 - one of a DataModule's
        """Say in how many texts none of its words stands; see ``tell_unread``."""
        examples = self.data.split(split).examples
        if self.trainer.is_global_zero and split != "val":
            n = without_words(self.pipeline, column_values(examples, "text"))
            tell_unread(split, n, len(examples))

    def _examples(self) -> Dataset:
        """The split that is being read, with its texts only."""
        stage = self.trainer.state.stage
        split = self.data.split(stage.dataloader_prefix)  # type: ignore[arg-type,union-attr]
        examples: Dataset = split.examples.select_columns("text")
        return examples

    def forward(self, batch: Batch) -> torch.Tensor:
        """Scores ``(B, C)``, float32, of the rows with the numbers ``index`` ``(B,)``."""
        classes = len(self.label_names)
        if self.pipeline is None:  # untrained: no opinion
            return torch.zeros(len(batch["index"]), classes)
        texts = self._examples()[batch["index"].tolist()]["text"]
        return torch.from_numpy(class_scores(self.pipeline, texts, classes))

    def shown_scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Probabilities, or margins as the pipeline's ``decision_function`` gives them."""
        if self.probabilistic:
            return super().shown_scores(logits)
        two = self.pipeline is not None and len(self.pipeline.classes_) == 2
        return logits * 2 if two else logits  # whose softmax is that of the one margin

    def start_answering(self) -> Callable[[Sequence[str]], torch.Tensor]:
        """Scores of texts that come one by one; see the base class."""
        if self.pipeline is None:
            raise NotImplementedError("There is nothing to wait for before it is fitted.")
        classes = len(self.label_names)
        return lambda texts: torch.from_numpy(class_scores(self.pipeline, texts, classes))

    def export(
        self, folder: Path, *, adapter: bool = False, trial: Trial | None = None
    ) -> Exported:
        """Write the fitted pipeline; see the base class."""
        from smolbench.models.export.adapter import require_adapters  # lazy: for an export only
        from smolbench.models.export.pipeline import pipeline_probabilities, write_pipeline
        from smolbench.tasks.export import built_in_trial

        if adapter:
            require_adapters(None)
        trial = trial or built_in_trial(self.kind)
        texts, classes = list(trial.examples["text"]), len(self.label_names)

        def ask(pipeline: Any) -> torch.Tensor:  # noqa: ANN401 - importing its class is slow
            if self.probabilistic:
                return pipeline_probabilities(pipeline, texts, classes)
            return torch.from_numpy(class_scores(pipeline, texts, classes)).softmax(dim=1)

        said = self.start_answering()(texts).softmax(dim=1)
        return write_pipeline(
            self.pipeline,
            self.label_names,
            probabilistic=self.probabilistic,
            expected=Expected(said, "float32", f"texts, {trial.source}", ask),
            folder=folder,
        )

    # -- what results and checkpoints say ---------------------------------------------------------

    def signature(self) -> dict[str, Any]:
        """The pipeline's settings; see the base class."""
        options = asdict(self.options)
        if self.options.tokens == "auto":
            del options["tokens"]  # the pipeline says what was found; earlier ones had no choice
        return {**super().signature(), **options}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep also by what scikit-learn it was fitted, and what it says; see the base class."""
        super().on_save_checkpoint(checkpoint)
        if self.pipeline is not None:
            scores = scores_on_trial(self.pipeline, len(self.label_names))
            kept = {_VERSION: sklearn_version(), _SCORES: torch.from_numpy(scores)}
            checkpoint[CHECKPOINT_KEY].update(kept)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read the fitted pipeline; see the base class.

        Raises:
            SmolbenchError: If it is damaged or holds what no pipeline does, or the scikit-learn
                installed scores in another way than the one that fitted it.
        """
        super().on_load_checkpoint(checkpoint)
        saved, origin = checkpoint["state_dict"][_SAVED], checkpoint[CHECKPOINT_KEY]
        self.pipeline_bytes = torch.empty_like(saved)  # as large as what is loaded into it
        scores = origin.get(_SCORES)
        self.pipeline = pipeline_of_version(
            saved.cpu().numpy().tobytes(),
            origin.get(_VERSION),
            None if scores is None else scores.cpu().numpy(),
            len(self.label_names),
        )

    def facts(self) -> dict[str, Any]:
        """What was fitted; the numbers it has learned count as parameters."""
        numbers = learned_numbers(self.pipeline) if self.pipeline is not None else None
        return {
            **super().facts(),
            "resumable": False,  # what is stopped has to begin anew
            "model/id": f"tfidf-{self.options.classifier}",
            "model/revision": None,
            "model/total_params": numbers,
            "model/trainable_params": numbers,
            **({} if self._tokens is None else {"model/tokens": self._tokens}),
        }


class _OneBatch:
    """All rows as a single one, so that an epoch is one step."""

    lengths: Indices | None = None

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return 1

    def batch(self, rows: Indices) -> dict[str, torch.Tensor]:
        return self._rows.batch(np.arange(len(self._rows)))
