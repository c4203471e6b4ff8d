"""What to install where transformers cannot load a model because a package is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

_TIKTOKEN_FILE = "tiktoken.model"
_SENTENCEPIECE_FILES = ("*.model", "*.spm")
_MODULES = {"protobuf": "google.protobuf"}
"""Modules that have another name than their package."""
_NAMED = (
    re.compile(r"not found in your environment: ([\w-]+(?:\.\w+)*(?:, [\w-]+(?:\.\w+)*)*)"),
    re.compile(r"pip install (?:-\S+ )*['\"`]?([A-Za-z][\w-]*(?:\.\w+)*)"),
    re.compile(r"requires the (\S+) library but it was not found"),
)
"""How transformers names packages."""
_REQUIRED = re.compile(r"requires the (SentencePiece|protobuf) library but it was not found")


def advice_on_packages(error: BaseException, model: str) -> str | None:
    """What to install; ``None`` if an error is not about a missing package.

    Args:
        error: What transformers has raised.
        model: The model's id or folder.
    """
    chain = list(_with_causes(error))
    said = " ".join(" ".join(str(one).split()) for one in chain)
    if "tiktoken" in said or "sentencepiece" in said.lower():
        # a file that sentencepiece would read is tried with tiktoken where it is missing; and where
        # there is no file at all, transformers names both
        if _has_file(model, _TIKTOKEN_FILE):
            return _to_install("Its tokenizer", _missing("tiktoken"), "tiktoken")
        if not _REQUIRED.search(said) and not _has_file(model, *_SENTENCEPIECE_FILES):
            return None
        missing = _missing("sentencepiece", "protobuf")
        advice = _to_install("Its tokenizer", missing, "sentencepiece protobuf")
        return advice and f"{advice.removesuffix('.')} (the extra `sentencepiece`)."
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


def _has_file(model: str, *patterns: str) -> bool:
    """Whether a model has a file of one of some names, in its folder or in the cache of the Hub."""
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache  # lazy: import cost
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(model, "config.json")
        except HFValidationError:  # no id
            return False
        if not isinstance(found, str):
            return False
        folder = Path(found).parent
    return any(any(folder.glob(pattern)) for pattern in patterns)


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
