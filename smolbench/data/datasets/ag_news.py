"""AG News: teasers of news in four topics."""

from __future__ import annotations

from typing import Any

from smolbench.data.classification import TextDataModule
from smolbench.data.hub import Source, load_hub
from smolbench.data.samples.ag_news import LABELS, news_sample


class AGNewsDataModule(TextDataModule):
    """AG's news topics (Zhang et al., NeurIPS 2015), ``fancyzhx/ag_news`` on the Hub.

    120,000 training and 7,600 test rows, a quarter of each World, Sports, Business and Sci/Tech;
    title and description in one text. There is no validation split: a stratified twentieth of the
    training rows is held out (114,000 / 6,000 / 7,600). Known artefacts: backslashes stand where
    the source had line breaks, and HTML entities have lost their ampersand (``#39;``); both are
    kept. The Hub names no licence; the corpus is for research and other non-commercial use.

    Args:
        val_fraction: Share of the training rows that is held out for validation.
        **options: See :class:`~smolbench.data.datamodule.BaseDataModule`.
    """

    def __init__(
        self,
        *,
        val_fraction: float = 0.05,
        **options: Any,  # noqa: ANN401 - those of the base class
    ) -> None:
        super().__init__(val_fraction=val_fraction, **options)

    def load_hub(self) -> Source:
        """See the base class."""
        return load_hub("fancyzhx/ag_news", revision=self.revision, splits=("train", "test"))

    def load_sample(self) -> Source:
        """Generated teasers in the same form."""
        from datasets import ClassLabel, Dataset, Features, Value  # lazy: import cost

        features = Features({"text": Value("string"), "label": ClassLabel(names=list(LABELS))})
        splits = {
            name: Dataset.from_dict(news_sample(name), features=features)
            for name in ("train", "test")
        }
        return Source(splits, id="sample/ag_news", revision=None)
