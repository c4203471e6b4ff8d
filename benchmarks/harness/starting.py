"""A benchmark's command line: its options, what must be there, and what it says on the way."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import NoReturn

HUB_TIMEOUT_S = 10.0
_HUB = "https://huggingface.co"


class BenchmarkError(Exception):
    """Why there is nothing to measure, as a sentence."""


def option_parser(
    about: str, *, rounds: int = 3, model: str | None = None, downloads: bool = True
) -> argparse.ArgumentParser:
    """A parser of the options that benchmarks share.

    Args:
        about: The script's docstring, whose first line is shown.
        rounds: How often each side is run if nothing else is said.
        model: The model, of those that run any; ``None`` for no such option.
        downloads: Whether it takes a model from the Hub, whose weights the result then names.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--rounds", type=positive, default=rounds)
    if model is not None:
        parser.add_argument("--model", default=model)
    if downloads:
        parser.add_argument(
            "--weights",
            default=_whose_weights(),
            help="whose weights they are, for the result: where a hub has stand-ins, say so",
        )
    return parser


def _whose_weights() -> str:
    endpoint = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
    if endpoint == _HUB:
        return f"as published on {_HUB}"
    return f"from a hub at {endpoint}, which may hold others than {_HUB} under the same name"


def positive(text: str) -> int:
    """An option's value that counts something.

    Raises:
        argparse.ArgumentTypeError: If it is no whole number above 0.
    """
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def require_hub() -> None:
    """Stop with a sentence where the Hub cannot be reached.

    Raises:
        BenchmarkError: If it does not answer.
    """
    endpoint = os.environ.get("HF_ENDPOINT", _HUB)
    try:
        urllib.request.urlopen(f"{endpoint}/api/models?limit=1", timeout=HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # it answers
    except (OSError, ValueError) as error:
        raise BenchmarkError(
            f"The Hugging Face Hub ({endpoint}) cannot be reached, and this benchmark takes its"
            f" model and data from there: run it where there is a network ({error})."
        ) from error


def require_packages(*names: str) -> None:
    """Stop with a sentence where a peer is not installed.

    Raises:
        BenchmarkError: With what to install.
    """
    missing = []
    for name in names:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise BenchmarkError(
            f"{' and '.join(missing)} must be installed for this benchmark: run"
            ' `pip install -e ".[bench]"`.'
        )


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """Say why a benchmark could not be run, without a traceback; exit status 2."""
    try:
        yield
    except BenchmarkError as error:
        _stop(f"benchmark: error: {error}", 2)
    except KeyboardInterrupt:
        _stop("benchmark: stopped by Ctrl-C.", 130)


def _stop(sentence: str, status: int) -> NoReturn:
    sys.stderr.write(sentence + "\n")
    raise SystemExit(status)


def say(line: str) -> None:
    """Tell the user how far it is; results go to files."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
