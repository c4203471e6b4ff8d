"""Probe and score small language models, and measure what it costs."""

from smolbench.moved import install as _install

__version__ = "0.1.0"

_install()
