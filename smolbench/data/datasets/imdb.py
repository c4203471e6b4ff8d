"""IMDb: movie reviews, positive or negative."""

from __future__ import annotations

from smolbench.data.classification import TextDataModule
from smolbench.data.hub import Source, load_hub
from smolbench.data.samples.imdb import imdb_sample

LABELS = ["neg", "pos"]


class IMDbDataModule(TextDataModule):
    """Large Movie Review Dataset (Maas et al., ACL 2011), ``stanfordnlp/imdb`` on the Hub.

    25,000 training and 25,000 test reviews, half of each positive, ordered by label on the Hub. A
    stratified tenth of the training rows is held out for validation (22,500 / 2,500 / 25,000).
    Known artefacts: HTML line breaks (``<br />``) are kept, as the papers kept them; some reviews
    occur twice, and a few of train also in test: both are counted in the results. No licence is
    given for the reviews.

    The options are those of :class:`~smolbench.data.datamodule.BaseDataModule`.
    """

    def load_hub(self) -> Source:
        """See the base class."""
        return load_hub("stanfordnlp/imdb", revision=self.revision, splits=("train", "test"))

    def load_sample(self) -> Source:
        """Generated reviews in the same form."""
        from datasets import ClassLabel, Dataset, Features, Value  # lazy: import cost

        features = Features({"text": Value("string"), "label": ClassLabel(names=LABELS)})
        splits = {
            name: Dataset.from_dict(imdb_sample(name), features=features)
            for name in ("train", "test")
        }
        return Source(splits, id="sample/imdb", revision=None)
