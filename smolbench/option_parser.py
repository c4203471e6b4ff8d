"""The option parser, which says in one sentence that a class of the user's lacks methods."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from smolbench.errors import SmolbenchError
from smolbench.tasks.task import BaseTask

_CLASS = re.compile(r"(?:Given value: |class_path(?:': '|', val='|='))([A-Za-z_][\w.]*)")


class OptionParser(LightningArgumentParser):
    """LightningCLI's parser, for classes that may be incomplete.

    It refuses one as abstract, in many lines and without the methods that are missing.
    """

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """See the base class.

        Raises:
            SmolbenchError: If a class among what was given lacks methods.
        """
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
