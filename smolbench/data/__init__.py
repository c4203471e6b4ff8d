"""What is learned from: one LightningDataModule per dataset."""

from smolbench.data.datamodule import TextDataModule
from smolbench.data.imdb import IMDbDataModule
from smolbench.data.text_files import TextFilesDataModule

__all__ = ["IMDbDataModule", "TextDataModule", "TextFilesDataModule"]
