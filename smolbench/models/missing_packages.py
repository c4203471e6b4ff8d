"""What to install where transformers cannot load a model because a package is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

_TIKTOKEN_FILE = "tiktoken.model"
_MODULES = {"protobuf": "google.protobuf"}
"""Modules that have another name than their package."""
_NAMED = (
    re.compile(r"not found in your environment: ([\w-]+(?:\.\w+)*(?:, [\w-]+(?:\.\w+)*)*)"),
    re.compile(r"pip install (?:-\S+ )*['\"`]?([A-Za-z][\w-]*(?:\.\w+)*)"),
    re.compile(r"requires the (\S+) library but it was not found"),
)
"""How transformers names packages."""


def advice_on_packages(error: BaseException, model: str) -> str | None:
    """What to install; ``None`` if an error is not about a missing package.

    Args:
        error: What transformers has raised.
        model: The model's id or folder.
    """
    chain = list(_with_causes(error))
    said = " ".join(" ".join(str(one).split()) for one in chain)
    if "tiktoken" in said or "sentencepiece" in said.lower():
        # a file that sentencepiece would read is tried with tiktoken where it is missing
        if _has_file(model, _TIKTOKEN_FILE):
            return _to_install("Its tokenizer", _missing("tiktoken"), "tiktoken")
        missing = _missing("sentencepiece", "protobuf")
        return _to_install("Its tokenizer", missing, "'smolbench[sentencepiece]'")
    if not any(isinstance(one, ImportError) for one in chain):
        return None
    named = next((found for pattern in _NAMED if (found := pattern.findall(said))), [])
    packages = [package for names in named for package in names.split(", ")]
    if not packages:
        modules = (one.name for one in chain if isinstance(one, ImportError))
        packages = [name.partition(".")[0] for name in modules if name]
    packages = list(dict.fromkeys(packages))
    return _to_install("It", packages, " ".join(packages))


def _to_install(what: str, packages: list[str], install: str) -> str | None:
    if not packages:
        return None
    these = "the package" if len(packages) == 1 else "the packages"
    verb = "is" if len(packages) == 1 else "are"
    return (
        f"{what} needs {these} {' and '.join(packages)}, which {verb} not installed: run `pip "
        f"install {install}`."
    )


def _missing(*packages: str) -> list[str]:
    return [package for package in packages if not _is_installed(_MODULES.get(package, package))]


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


def _has_file(model: str, name: str) -> bool:
    """Whether a file is among a model's, in its folder or in the cache of the Hub."""
    if Path(model).is_dir():
        return (Path(model) / name).is_file()
    from huggingface_hub import try_to_load_from_cache  # lazy: import cost
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(model, name), str)
    except HFValidationError:  # no id
        return False


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
