"""The option parser, which says in one sentence that a class of the user's lacks methods."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, ClassVar, NoReturn, Union, get_args

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from smolbench.errors import SmolbenchError
from smolbench.tasks.task import BaseTask

_UNKNOWN = re.compile(r"^[Uu]nrecognized arguments: (--[^\s=]+)")
_OPTION = re.compile(r"--[A-Za-z][\w.]*")
_CLASS = re.compile(r"(?:Given value: |class_path(?:': '|', val='|='))([A-Za-z_][\w.]*)")


def tell_counts_from_shares() -> None:
    """Let 1 be read as one batch, and 1.0 as all of them, by the Trainer's options that know both.

    Python keeps types that were made before, and takes ``Optional[Union[int, float]]`` for the same
    as ``Optional[Union[float, int]]``. Which of the two Lightning's options have is chance, and
    whole numbers are shares in the second: ``val_check_interval: 1`` would mean an epoch.
    """
    annotations = Trainer.__init__.__annotations__
    for name, annotation in list(annotations.items()):
        parts = get_args(annotation)
        if {int, float} <= set(parts):
            order = (int, float, *(part for part in parts if part not in (int, float)))
            annotations[name] = Union[order]  # noqa: UP007 - equal to what it was


class OptionParser(LightningArgumentParser):
    """LightningCLI's parser, for classes that may be incomplete.

    It refuses one as abstract, in many lines and without the methods that are missing; and it takes
    options by their whole names only.
    """

    _parsers: ClassVar[list[OptionParser]] = []
    """That of the program and those of its subcommands."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - as its base class
        # an abbreviation would be taken here, and not where a run's folder and checkpoint are found
        super().__init__(*args, allow_abbrev=False, **options)
        self._parsers.append(self)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """See the base class.

        Raises:
            SmolbenchError: If a class that was given lacks methods, or an option does not exist.
        """
        if (unknown := _UNKNOWN.search(message)) is not None:
            given = unknown[1].partition("=")[0]
            names = {name for one in self._parsers for name in _OPTION.findall(one.format_help())}
            near = [name for name in sorted(names) if name.startswith(given)]
            near = near or get_close_matches(given, names, n=1, cutoff=0.75)
            hint = f" (did you mean {' or '.join(near[:3])}?)" if near else ""
            raise SmolbenchError(f"There is no option {given}{hint}.") from ex
        for path in _CLASS.findall(message):
            if inspect.isabstract(found := _named(path)):
                missing = ", ".join(sorted(found.__abstractmethods__))
                raise SmolbenchError(
                    f"{path} is incomplete, it does not define {missing}: define what is missing, "
                    "or name another class."
                ) from ex
        super().error(message, ex)


def _named(path: str) -> Any:  # noqa: ANN401 - whatever has the name, or nothing
    """What a class path means, which the parser has imported; a name alone may be a subclass's."""
    module, _, name = path.rpartition(".")
    if module:
        return getattr(sys.modules.get(module), name, None)
    for base in (BaseTask, LightningDataModule):
        for one in _subclasses(base):
            if one.__name__ == name:
                return one
    return None


def _subclasses(base: type[Any]) -> Iterator[type[Any]]:
    yield base
    for one in base.__subclasses__():
        yield from _subclasses(one)
