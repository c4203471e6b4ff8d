"""A user's own files: options, tables, readers."""
