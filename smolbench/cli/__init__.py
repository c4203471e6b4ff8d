"""What a person types: the commands and their options."""

from smolbench.cli.routes import main

__all__ = ["main"]
