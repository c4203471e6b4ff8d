"""What is learned from: one LightningDataModule per dataset."""

from smolbench.data.classification import TextDataModule
from smolbench.data.datamodule import BaseDataModule
from smolbench.data.datasets.ag_news import AGNewsDataModule
from smolbench.data.datasets.hellaswag import HellaSwagDataModule
from smolbench.data.datasets.imdb import IMDbDataModule
from smolbench.data.datasets.samsum import SAMSumDataModule
from smolbench.data.datasets.sentiment140 import Sentiment140DataModule
from smolbench.data.files.pairs import TextPairsDataModule
from smolbench.data.files.texts import TextFilesDataModule
from smolbench.data.summarization import SummarizationDataModule

__all__ = [
    "AGNewsDataModule",
    "BaseDataModule",
    "HellaSwagDataModule",
    "IMDbDataModule",
    "SAMSumDataModule",
    "Sentiment140DataModule",
    "SummarizationDataModule",
    "TextDataModule",
    "TextFilesDataModule",
    "TextPairsDataModule",
]
