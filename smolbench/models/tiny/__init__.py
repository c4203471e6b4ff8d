"""The built-in tiny models, made on this machine."""
