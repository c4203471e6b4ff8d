"""One DataModule per published dataset."""
