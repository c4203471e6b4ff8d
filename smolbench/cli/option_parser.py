"""The option parser, which says in one sentence what is wrong with an option."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from types import UnionType
from typing import Any, ClassVar, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from smolbench.cli.option_errors import RefusedOption, refused
from smolbench.errors import SmolbenchError
from smolbench.tasks.base import BaseTask

_UNKNOWN = re.compile(r"^[Uu]nrecognized arguments: (-[^\s=]+)")
_OPTION = re.compile(r"--[A-Za-z][\w.]*")
_CLASS = re.compile(r"(?:Given value: |class_path(?:': '|', val='|='))([A-Za-z_][\w.]*)")
_BASES: dict[str, type[Any]] = {"model": BaseTask, "data": LightningDataModule}
_BASES_OF_TRAINER = {"trainer.callbacks": Callback, "trainer.logger": Logger}


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
    """LightningCLI's parser, which refuses in a sentence.

    It would do so in many lines of types behind its usage. It takes options by their whole names.
    """

    _parsers: ClassVar[list[OptionParser]] = []
    """That of the program and those of its subcommands."""
    _refused: ClassVar[list[RefusedOption]] = []
    """What parsers of classes within options have refused."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - as its base class
        # an abbreviation would be taken here, and not where a run's folder and checkpoint are found
        super().__init__(*args, allow_abbrev=False, **options)
        if self.exit_on_error:
            self._parsers.append(self)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """See the base class.

        Raises:
            SmolbenchError: Saying what is wrong with the option, and what it may be.
        """
        if (unknown := _UNKNOWN.search(message)) is not None:
            given = unknown[1].partition("=")[0]
            names = {name for one in self._parsers for name in one.names()}
            bare = given.lstrip("-")
            near = [name for name in sorted(names) if name.startswith(given)]
            near = near or [name for name in sorted(names) if name.endswith(f".{bare}")]
            near = near or _options_of_classes(bare)
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
        own = [name.removeprefix("--") for name in self.names()]
        raised = refused(message, own, self._refused, _classes_for)
        if (
            not self.exit_on_error
        ):  # that of a class within another one, which tries what else it is
            self._refused.append(raised)
            super().error(str(raised), ex)
        raise raised from ex

    def names(self) -> list[str]:
        """Its options as they are typed."""
        return _OPTION.findall(self.format_help())


def _options_of_classes(name: str) -> list[str]:
    """Options of this name that models, data or callbacks may have."""
    return [
        f"--{section}.{name}"
        for section, base in _BASES.items()
        if any(name in inspect.signature(one.__init__).parameters for one in _subclasses(base))
    ]


def _classes_for(key: str) -> list[str]:
    """Names of the classes that are known to an option that takes one."""
    base = _BASES.get(key) or _BASES_OF_TRAINER.get(key)
    known = [] if base is None else _subclasses(base)
    return [one.__name__ for one in known if not inspect.isabstract(one)]


def refuse_null(config: Any, name: str) -> None:  # noqa: ANN401 - whatever a configuration holds
    """Refuse `null` where a class takes none: the parser asks no option of a class about it.

    Args:
        config: Settings, with what is below them.
        name: Of these settings.

    Raises:
        SmolbenchError: Naming the option, and its default.
    """
    if isinstance(config, list):
        for one in config:
            refuse_null(one, name)
    if not isinstance(config, Namespace):
        return
    path, options = config.get("class_path"), config.get("init_args")
    if not isinstance(path, str) or not isinstance(options, Namespace):
        for key, value in vars(config).items():
            refuse_null(value, f"{name}.{key}" if name else key)
        return
    for key, value in vars(options).items():
        refuse_null(value, f"{name}.{key}")
        if value is None and (default := _default_not_null(_named(path), key)) is not None:
            raise SmolbenchError(
                f"{name}.{key} is null, which it cannot be: leave it out for its default, "
                f"{default!r}."
            )


def _default_not_null(cls: Any, name: str) -> Any:  # noqa: ANN401 - of any class, of any type
    """The default of a class's option that cannot be null; ``None`` if it may be, or has none."""
    for one in inspect.getmro(cls) if inspect.isclass(cls) else ():
        made: Any = vars(one).get("__init__", object.__init__)
        parameter = inspect.signature(made).parameters.get(name)
        if parameter is None:
            continue
        with suppress(Exception):  # another's annotations may be of what is not there
            hint = get_type_hints(made).get(name, Any)
            known = hint in (int, float, bool, str) or get_origin(hint) in (
                Literal,
                Union,
                UnionType,
            )
            if known and type(None) not in get_args(hint):
                return None if parameter.default is parameter.empty else parameter.default
        return None
    return None


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
