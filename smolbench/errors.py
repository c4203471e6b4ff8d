"""The one error type that a user sees as a sentence instead of a traceback."""

from __future__ import annotations


class SmolbenchError(Exception):
    """A mistake in what was asked for, or a machine that cannot do it.

    The message is a complete sentence: what was given, what is allowed, what to do next. The
    command line prints it without a traceback and exits with status 2.
    """
