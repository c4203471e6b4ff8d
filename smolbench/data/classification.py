"""Classification data: texts with a label each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from smolbench.data.columns import column_numbers, column_values, first_bad_row
from smolbench.data.datamodule import BaseDataModule, Numbers, SplitName
from smolbench.data.hub import Source, Split, stratified_split
from smolbench.data.tables import listed
from smolbench.errors import SmolbenchError
from smolbench.utils.notices import warn


class TextDataModule(BaseDataModule):
    """Classification data: texts with a label each, in the columns ``text`` and ``label``.

    Validation rows and limited splits keep the shares of the classes. The options are those of
    :class:`~smolbench.data.datamodule.BaseDataModule`.
    """

    kind: ClassVar[str] = "classification"
    content: ClassVar[tuple[str, ...]] = ("text",)
    chosen_label: str | None = None
    """The class that the user looks for, if that was said."""

    @property
    def label_names(self) -> list[str]:
        """Names of the classes, in the order of their numbers."""
        names: list[str] = self._loaded().splits["train"].features["label"].names
        return names

    @property
    def positive_label(self) -> str | None:
        """The class that precision, recall and F1 are of: of two the second; else ``None``."""
        names = self.label_names
        return names[1] if len(names) == 2 else None

    @property
    def ranked_by(self) -> str:
        """The metric by which classifiers of these texts are compared."""
        return "accuracy"

    def check(self, source: Source) -> None:
        """Refuse rows that cannot be learned from.

        Raises:
            SmolbenchError: If a column is missing, there are no names for at least two classes, a
                text is missing, or a label has no name.
        """
        for name, split in source.splits.items():
            where = f"The {name} split of {source.id}"
            missing = [column for column in ("text", "label") if column not in split.column_names]
            if missing:
                raise SmolbenchError(
                    f"{where} has no column {' and no column '.join(map(repr, missing))}; it has "
                    f"{', '.join(map(repr, split.column_names)) or 'none'}."
                )
            names = getattr(split.features["label"], "names", None) or []
            if len(names) < 2:
                raise SmolbenchError(
                    f"{where} must name at least two classes in its column 'label' (a ClassLabel "
                    f"of datasets); it names {', '.join(map(repr, names)) or 'none'}."
                )
            bad = first_bad_row(split, len(names))
            if bad is None:
                continue
            row, text, label = bad
            if not isinstance(text, str):
                raise SmolbenchError(f"{where} has no text in row {row}: {text!r}.")
            raise SmolbenchError(
                f"{where} has the label {label!r} in row {row}; labels go from 0 to "
                f"{len(names) - 1} ({', '.join(names)})."
            )

    def check_training_rows(self, source_id: str, labels: Numbers | None) -> None:
        """Refuse rows of but one class, and name classes without rows; see the base class."""
        if labels is None:
            return
        if len(np.unique(labels)) == 1:
            raise SmolbenchError(
                f"All {len(labels)} training examples of {source_id} are of the class "
                f"{self.label_names[labels[0]]!r}: raise data.limit_train, or use limit_mode "
                "stratified."
            )
        counts = np.bincount(labels, minlength=len(self.label_names))
        if absent := [
            name for name, count in zip(self.label_names, counts, strict=True) if not count
        ]:
            limited = self.limits["train"] is not None
            warn(
                "None of the %d training rows is of %s, which %s not learned%s.",
                len(labels),
                listed(absent, limit=4),
                "is" if len(absent) == 1 else "are",
                "; raise data.limit_train" if limited else "",
            )

    def strata(self, source: Source, split: str) -> Numbers | None:
        """The classes."""
        return column_numbers(source.splits[split], "label")

    def hold_out(self, source: Source) -> tuple[Numbers, Numbers]:
        """``val_fraction`` of the rows of every class; see the base class."""
        labels = column_numbers(source.splits["train"], "label")
        return stratified_split(labels, self.val_fraction, self.split_seed)

    def texts(self, name: SplitName) -> list[str]:
        """Texts of a split, after the limit."""
        return list(column_values(self.split(name).examples, "text"))

    def predict_on(self, texts: Sequence[str]) -> None:
        """Give the texts that ``Trainer.predict`` is to label.

        Raises:
            SmolbenchError: If there is none.
        """
        from datasets import Dataset  # lazy: import cost

        if not texts:
            raise SmolbenchError("There is no text to predict.")
        self._splits["predict"] = Split(Dataset.from_dict({"text": list(texts)}), None)

    def _nothing_to_predict(self) -> str:
        return (
            "There is no text to predict: give the texts to predict_on(texts) of "
            f"{type(self).__name__} first."
        )
