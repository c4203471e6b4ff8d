"""The built-in tiny models, made on this machine."""

from smolbench.models.tiny.llama import tiny_model

__all__ = ["tiny_model"]
