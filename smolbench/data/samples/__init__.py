"""Built-in texts, generated, in place of datasets where there is no network."""
