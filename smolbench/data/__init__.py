"""What is learned from: one LightningDataModule per dataset."""

from smolbench.data.ag_news import AGNewsDataModule
from smolbench.data.classification import TextDataModule
from smolbench.data.datamodule import BaseDataModule
from smolbench.data.hellaswag import HellaSwagDataModule
from smolbench.data.imdb import IMDbDataModule
from smolbench.data.samsum import SAMSumDataModule
from smolbench.data.sentiment140 import Sentiment140DataModule
from smolbench.data.summarization import SummarizationDataModule
from smolbench.data.text_files import TextFilesDataModule
from smolbench.data.text_pairs import TextPairsDataModule

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
