"""What all classification tasks share: labels, loss, and metrics over whole splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F

from smolbench.data.batching import Rows, TokenRows
from smolbench.data.token_cache import TokenTable
from smolbench.errors import SmolbenchError
from smolbench.metrics.classification import (
    classification_metrics,
    classification_tables,
    validation_metrics,
)
from smolbench.metrics.table import METRICS
from smolbench.metrics.uncertainty import ties
from smolbench.models.kernels.paths import Ways
from smolbench.protocols import ComparesBy, NamesLabels, offered
from smolbench.tasks.base import BaseTask, saved_signature
from smolbench.utils.notices import warn

Batch = dict[str, torch.Tensor]
_OF_PROBABILITIES = {name for name, metric in METRICS.items() if metric.of_probabilities}


def _ranked_by(data: object) -> str:
    ranks = offered(data, ComparesBy)
    return "accuracy" if ranks is None else ranks.ranked_by


class ClassificationTask(BaseTask):
    """A task that gives every example one of a fixed set of labels.

    Predictions of an evaluation epoch are gathered over all batches and ranks, put into the order
    of the split, and scored once.

    Args:
        num_classes: Number of classes, for data that does not name its labels; a smolbench
            DataModule names them.
        **options: See :class:`~smolbench.tasks.base.BaseTask`.
    """

    kind: ClassVar[str] = "classification"
    probabilistic: bool = True
    score_name: Literal["score", "margin"] = "score"
    """Whether scores are log-probabilities, up to what all classes of a row have in common."""
    score_decimals: int | None = None
    """Decimals of log-odds that tell rows apart; ``None`` for all."""

    def __init__(self, *, num_classes: int | None = None, **options: Any) -> None:  # noqa: ANN401
        super().__init__(**options)
        self.num_classes = num_classes
        self._label_names: list[str] | None = None
        self._test_predictions: dict[str, np.ndarray] | None = None
        self._test_tables: dict[str, Any] = {}
        self._compared: dict[str, Any] = {}

    @property
    def label_names(self) -> list[str]:
        """Names of the classes, in the order of the logits.

        Raises:
            SmolbenchError: If neither the data nor ``num_classes`` says what they are.
        """
        if self._label_names is None:
            named = offered(self.any_data, NamesLabels)
            names = named.label_names if named is not None else None
            if not names and self.num_classes:
                names = [str(number) for number in range(self.num_classes)]
            if names and self.num_classes not in (None, len(names)):
                raise SmolbenchError(
                    f"model.num_classes is {self.num_classes}, but the data has {len(names)} "
                    f"classes ({', '.join(names)}): leave it out."
                )
            if not names:
                raise SmolbenchError(
                    "The number of classes is not known: the data names no labels; give "
                    "model.num_classes."
                )
            self._label_names = list(names)
        return self._label_names

    @label_names.setter
    def label_names(self, names: list[str]) -> None:
        self._label_names = list(names)

    @property
    def monitor(self) -> tuple[str, Literal["min", "max"]]:  # type: ignore[override]
        """What the data's classifiers are compared by; see the base class."""
        return self.monitor_on(self.any_data)

    def monitor_on(self, data: object) -> tuple[str, Literal["min", "max"]]:
        """See the base class."""
        return f"val/{_ranked_by(data)}", "max"

    @property
    def positive_class(self) -> int | None:
        """Number of the class that precision, recall and F1 are of; ``None`` if of none."""
        names, ranks = self.label_names, offered(self.any_data, ComparesBy)
        if ranks is None:
            return 1 if len(names) == 2 else None
        label = ranks.positive_label
        return names.index(label) if label in names else None

    def signature(self) -> dict[str, Any]:
        """The labels, in order; see the base class."""
        return {"labels": self.label_names}

    def setup(self, stage: str) -> None:
        """Refuse the data of other classes than those that the head is for.

        Raises:
            SmolbenchError: Naming both.
        """
        if stage == "predict":
            return  # the texts come without labels, and the data need not be there any more
        named = offered(self.any_data, NamesLabels)
        names = named.label_names if named is not None else None
        if names and self._label_names is not None and list(names) != self._label_names:
            raise SmolbenchError(
                f"This {type(self).__name__} is for the classes {', '.join(self._label_names)}, "
                f"and the data has {', '.join(names)}: make a new one for other data."
            )
        super().setup(stage)

    @property
    def can_build(self) -> bool:
        """See the base class; the labels say how wide the head is."""
        return not self.labels_to_come

    @property
    def labels_to_come(self) -> bool:
        """Whether this is ``load_from_checkpoint``, where only the checkpoint names the labels."""
        return self._trainer is None and self._label_names is None and self.num_classes is None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the labels from the checkpoint where nothing else names them; see the base class."""
        if self.labels_to_come:
            self._label_names = saved_signature(checkpoint, type(self).__name__).get("labels")
            self.configure_model()
        super().on_load_checkpoint(checkpoint)

    def on_train_start(self) -> None:
        """Forget a test: it was of another state; see the base class."""
        super().on_train_start()
        self._test_tables = {}
        self._note_comparison()

    def reader(self, table: TokenTable) -> Callable[[np.ndarray], Batch]:
        """What makes batches outside of a training, keeping nothing: a teacher's.

        Args:
            table: Texts as :meth:`encode` gave them.

        Returns:
            Row numbers ``(b,)`` to a batch that :meth:`forward` takes, on this module's device.
        """
        return self._on_device(TokenRows(table, None, self.pad_token_id))

    def reading_ways(self, device: torch.device) -> Ways:
        """By which paths a frozen network's cached outputs are computed, to name what they lead to.

        Args:
            device: Where it would run.
        """
        return Ways()

    def _on_device(self, rows: Rows) -> Callable[[np.ndarray], Batch]:
        return lambda chosen: {
            name: column.to(self.device) for name, column in rows.batch(chosen).items()
        }

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean cross-entropy of a batch, in nats."""
        return F.cross_entropy(self(batch), batch["labels"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect a batch's logits."""
        self._collect(batch)

    def warm_up(self, batch: Batch) -> None:
        """Run the network on a batch as a test does, and keep nothing: a clock starts behind it."""
        self(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect a batch's logits."""
        self._collect(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        """Class probabilities, shape ``(B, C)``, and row numbers, shape ``(B,)``."""
        return {
            "index": batch["index"].cpu(),
            "scores": self.shown_scores(self(batch).float()).cpu(),
        }

    def shown_scores(self, logits: torch.Tensor) -> torch.Tensor:
        """What columns named by :attr:`score_name` say of scores ``(B, C)``: probabilities."""
        return logits.softmax(dim=1)

    def start_reading(self) -> Callable[[Sequence[str]], Batch]:
        """Load what turns texts into what :meth:`forward` takes, without any cache.

        Returns:
            Texts, ``B`` of them, to a batch on this module's device.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it reads a text.")

    def start_answering(self) -> Callable[[Sequence[str]], torch.Tensor]:
        """Load what is needed to label texts that come one by one, or a few at a time.

        Returns:
            Texts, ``B`` of them, to class probabilities on the host, float32, shape ``(B, C)``: the
            whole way, from tokenisation to the head.
        """
        read = self.start_reading()

        def answer(texts: Sequence[str]) -> torch.Tensor:
            scores: torch.Tensor = self(read(texts)).float().softmax(dim=1)
            return scores.cpu()

        return answer

    def validated(self) -> tuple[str, ...]:
        """See the base class."""
        names = ["accuracy", "f1_macro", "loss"]
        if getattr(self.any_data or self.data_to_come, "chosen_label", None) is not None:
            names.append("f1")
        return tuple(self._meaningful(dict.fromkeys(names, 0.0)))

    def on_validation_epoch_end(self) -> None:
        """Score the whole validation split."""
        _, logits, labels = self._gather()
        ranked_by = _ranked_by(self.any_data)
        positive = self.positive_class if ranked_by == "f1" else None
        metrics = self._meaningful(validation_metrics(logits, labels, positive))
        shown = {ranked_by, "loss"}
        for name, value in metrics.items():
            self.log(f"val/{name}", value, prog_bar=name in shown)

    def on_test_epoch_end(self) -> None:
        """Score the whole test split and keep the predictions for their file."""
        index, logits, labels = self._gather()
        found = classification_metrics(
            logits,
            labels,
            self.positive_class,
            probabilistic=self.probabilistic,
            decimals=self.score_decimals,
        )
        metrics = self._meaningful(found)
        self.log_dict({f"test/{name}": value for name, value in metrics.items()})
        self._record_test(index, logits, labels)

    def _record_test(
        self,
        index: torch.Tensor,
        logits: torch.Tensor,
        labels: torch.Tensor,
        more: Mapping[str, np.ndarray] | None = None,
        draws: torch.Tensor | None = None,
    ) -> None:
        """Keep the tables and predictions of a test.

        Args:
            index: Row numbers, shape ``(N,)``.
            logits: Scores of the classes, shape ``(N, C)``.
            labels: True classes, shape ``(N,)``.
            more: Further columns of the predictions, each of shape ``(N,)``.
            draws: Predictions under several prompts, shape ``(S, N)``, where tables are of all.
        """
        self._note_comparison()
        predictions, scores = logits.argmax(dim=1), self.shown_scores(logits)
        if len(self.label_names) > 1 and (tied := ties(logits.numpy())):
            warn(
                "%d of %d texts have their highest score for more than one class, and count as the "
                "one of these that stands first.",
                tied,
                len(logits),
            )
        called = predictions if draws is None else draws
        tables = classification_tables(called, labels, self.label_names)
        self._test_tables = {f"test/{name}": table for name, table in tables.items()}
        self._test_predictions = {
            "index": index.numpy(),
            "label": labels.numpy(),
            "prediction": predictions.numpy(),
            **{
                f"{self.score_name}_{name}": scores[:, n].numpy()
                for n, name in enumerate(self.label_names)
            },
            **(more or {}),
        }

    def _note_comparison(self) -> None:
        """Keep for results what classifiers of the data are compared by."""
        positive = self.positive_class
        self._compared = {
            "headline": _ranked_by(self.any_data),
            "positive_label": None if positive is None else self.label_names[positive],
        }

    def _meaningful(self, metrics: dict[str, float]) -> dict[str, float]:
        """Without what needs probabilities, where the scores are none."""
        if self.probabilistic:
            return metrics
        return {k: v for k, v in metrics.items() if k.split("_")[0] not in _OF_PROBABILITIES}

    def facts(self) -> dict[str, Any]:
        """Also what is compared, and the tables of a test, class by class; see the base class."""
        return {**super().facts(), **self._compared, **self._test_tables}

    def predictions(self) -> dict[str, np.ndarray] | None:
        """Columns of ``predictions.parquet`` after a test, in the order of the test split."""
        return self._test_predictions

    def _collect(self, batch: Batch) -> None:
        self._keep(batch["index"], self(batch).float(), batch["labels"])
