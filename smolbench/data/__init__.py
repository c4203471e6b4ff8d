"""What is learned from: one LightningDataModule per dataset."""

from smolbench.data.datamodule import TextDataModule
from smolbench.data.imdb import IMDbDataModule

__all__ = ["IMDbDataModule", "TextDataModule"]
