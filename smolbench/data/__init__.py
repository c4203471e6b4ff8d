"""What is learned from: one LightningDataModule per dataset."""

from smolbench.data.ag_news import AGNewsDataModule
from smolbench.data.classification import TextDataModule
from smolbench.data.datamodule import BaseDataModule
from smolbench.data.hellaswag import HellaSwagDataModule
from smolbench.data.imdb import IMDbDataModule
from smolbench.data.sentiment140 import Sentiment140DataModule
from smolbench.data.text_files import TextFilesDataModule

__all__ = [
    "AGNewsDataModule",
    "BaseDataModule",
    "HellaSwagDataModule",
    "IMDbDataModule",
    "Sentiment140DataModule",
    "TextDataModule",
    "TextFilesDataModule",
]
