"""Options that hold text take what was typed: ``Review: {text}`` is no mapping, ``no`` no boolean.

The option parser reads the options of a model or of data as YAML before it knows their types. Here
what is typed for such an option, or stands behind its name in a configuration, is marked as text.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule

from smolbench.tasks.base import BaseTask

_SECTIONS = ("model", "data")
_PLAIN, _MAYBE, _MAPPING = "str", "str | None", "dict[str, str] | None"
_TEXTS = {_PLAIN: _PLAIN, _MAYBE: _MAYBE, "dict[str, str]": _MAPPING, _MAPPING: _MAPPING}
_MARK = "\ue000"
"""In front of a typed text while options are parsed: of Unicode's private use, and in no text."""
_TYPED = re.compile(rf"--(?:{'|'.join(_SECTIONS)})\.(?:init_args\.)?(\w+)")
_CLASS_PATH = re.compile(r"\bclass_path[\"']?\s*:\s*[\"']?([\w.]+)")
_NOTHING = {"null", "~", ""}
_STR = "tag:yaml.org,2002:str"


def text_options() -> dict[str, str]:
    """Options of tasks and DataModules that hold text in all classes that have them, and how."""
    found: dict[str, str | None] = {}
    for base in (BaseTask, LightningDataModule):
        for cls in _subclasses(base):
            for name, parameter in inspect.signature(cls.__init__).parameters.items():
                kind = _TEXTS.get(_written(parameter.annotation))
                if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                    continue
                before = found.get(name, kind)
                if {kind, before} == {_PLAIN, _MAYBE}:
                    kind = _MAYBE
                elif before != kind:
                    kind = None
                found[name] = kind
    return {name: kind for name, kind in found.items() if kind is not None}


def marked(arguments: Sequence[str]) -> list[str]:
    """Arguments of the command line, with a mark on texts that YAML would take for something else.

    To put them between quotation marks would not do: the option parser keeps these.

    Args:
        arguments: Options with their values behind them or behind ``=``.
    """
    _import_named(arguments)
    options, done, behind = text_options(), list(arguments), None
    for number, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if behind is not None and not argument.startswith("--"):
            done[number] = _as_text(argument, behind)
        match = _TYPED.fullmatch(name)
        behind = options.get(match[1]) if match else None
        if behind is not None and equals:
            done[number], behind = f"{name}={_as_text(value, behind)}", None
    return done


def read_yaml(stream: str) -> Any:  # noqa: ANN401 - whatever is written there
    """Read a configuration, or a value of an option, as the option parser does.

    What has a mark, or stands behind the name of an option that holds text in ``model`` or
    ``data``, is text.
    """
    if stream.startswith(_MARK):
        return stream
    node = yaml.compose(stream, Loader=_Loader)
    for options in _option_nodes(node):
        _mark(options)
    if node is None:
        return None
    value = _construct(node)
    if isinstance(value, dict) and value and all(one is None for one in value.values()):
        # `{text}` is a text with a slot, and `Review:` one that ends in a colon
        bare = stream.strip()
        if bare == f"{next(iter(value))}:" or {*bare.strip("{} ").split(", ")} == {*value}:
            return stream
    return value


def as_given(config: Any) -> Any:  # noqa: ANN401 - whatever a configuration holds
    """A configuration without the marks of :func:`marked`, enumerations as their values."""
    if isinstance(config, Namespace):
        for key, value in vars(config).items():
            config[key] = as_given(value)
        return config
    if isinstance(config, dict):
        return {key: as_given(value) for key, value in config.items()}
    if isinstance(config, list):
        return [as_given(value) for value in config]
    if isinstance(config, Enum):  # a default of Lightning's, which could not be written
        return config.value
    return config.removeprefix(_MARK) if isinstance(config, str) else config


def _import_named(arguments: Sequence[str]) -> None:
    """Import the modules of classes that the command line or its configurations name.

    The option parser does so when it comes to them, which is too late to know their options. What
    cannot be imported is told by it.
    """
    paths: list[str] = []
    for number, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        value = value if equals else "".join(arguments[number + 1 : number + 2])
        if name in {f"--{section}" for section in _SECTIONS}:
            paths.append(value)
        elif name == "--config" and Path(value).is_file():
            with suppress(OSError, UnicodeDecodeError):
                paths += _CLASS_PATH.findall(Path(value).read_text(encoding="utf-8"))
    for path in paths:
        if module := path.rpartition(".")[0]:
            with suppress(Exception):
                importlib.import_module(module)


def _as_text(value: str, kind: str) -> str:
    if kind == _MAPPING:
        if value.strip() in _NOTHING:
            return value
        try:
            read = yaml.load(value, Loader=yaml.BaseLoader)
        except yaml.YAMLError:
            return value
        return json.dumps(read) if isinstance(read, dict) else value
    if kind == _MAYBE and value in _NOTHING:
        return value
    try:
        plain = yaml.load(value, Loader=_Loader) == value
    except yaml.YAMLError:
        plain = False
    return value if plain else f"{_MARK}{value}"


def _option_nodes(node: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    """The mappings of a configuration that hold options of a model or of data."""
    if not isinstance(node, yaml.MappingNode):
        return
    at = {key.value: value for key, value in node.value}
    for name in (*_SECTIONS, "init_args"):
        inner = at.get(name)
        if isinstance(inner, yaml.MappingNode):
            yield inner
            yield from _option_nodes(inner)
    if "class_path" not in at:
        for name in ("fit", "validate", "test", "predict"):
            yield from _option_nodes(at.get(name))


def _mark(options: yaml.MappingNode) -> None:
    known = text_options()
    for key, value in options.value:
        kind = known.get(key.value)
        if kind == _MAPPING and isinstance(value, yaml.MappingNode):
            for part in (part for pair in value.value for part in pair):
                if isinstance(part, yaml.ScalarNode):
                    part.tag = _STR
        elif kind is not None and isinstance(value, yaml.ScalarNode):
            nothing = value.style is None and value.value in _NOTHING
            value.tag = value.tag if nothing and kind != _PLAIN else _STR


def _construct(node: yaml.Node) -> Any:  # noqa: ANN401
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """YAML with ``1e-4`` a number and dates as they are written, as in YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    letter: [pair for pair in pairs if not pair[0].endswith((":timestamp", ":float"))]
    for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:(?:\d[\d_]*\.[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|"
        r"\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def _written(annotation: Any) -> str:  # noqa: ANN401
    if isinstance(annotation, str):
        return annotation
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _subclasses(base: type[Any]) -> Iterator[type[Any]]:
    yield base
    for one in base.__subclasses__():
        yield from _subclasses(one)
