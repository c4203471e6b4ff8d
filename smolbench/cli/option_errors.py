"""What the option parser refuses, in one sentence each: it says so in many lines of types."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches

from smolbench.errors import SmolbenchError

_LONGEST = 80
"""Characters of a value that are shown."""
_KEY = re.compile(r'^Parser key "([^"]+)":\s*', re.DOTALL)
_UNION = re.compile(
    r"Subtypes: \[(?P<types>.*?)\]\n\s*Errors:\n(?P<errors>.*)\n\s*Given value type: .*?\n"
    r"\s*Given value:(?P<value>.*)",
    re.DOTALL,
)
_ONE_TYPE = re.compile(r"^Expected an? (?P<types>.*)\. Got value:(?P<value>.*)", re.DOTALL)
_NO_CLASS = re.compile(r"Expected a dot import path string: (.+)")
_OTHER_CLASS = re.compile(r"Import path does not correspond to a subclass of (\w+)")
_PROBLEM = re.compile(r"Problem with given class_path '([^']+)':\s*(.*)", re.DOTALL)
_UNKNOWN = re.compile(
    r"^(?:Option|Subcommand '\w+' does not accept option) '(?P<name>[^']+)'(?: is not accepted)?"
)
_MISSING = re.compile(r"^the following arguments are required: (.+)")
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "list": "a list",
    "Iterable": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "NoneType": "null",
}


class RefusedOption(SmolbenchError):
    """What is wrong with an option; a parser within another knows only the end of its name.

    Args:
        sentence: Makes a sentence of what stands in front of the name.
    """

    def __init__(self, sentence: Callable[[str], str]) -> None:
        self.sentence = sentence
        super().__init__(sentence(""))

    def within(self, section: str) -> RefusedOption:
        """The same, of an option whose name begins with a section's."""
        return RefusedOption(lambda at: self.sentence(f"{at}{section}."))


def refused(
    message: str,
    names: Collection[str],
    inner: Sequence[RefusedOption],
    classes: Callable[[str], Collection[str]],
) -> RefusedOption:
    """What a message of the option parser is about.

    Args:
        message: In its words.
        names: Options of the parser, such as ``trainer.max_epochs``.
        inner: What parsers of classes have refused before.
        classes: Gives the names of the classes that an option may have.
    """
    found = _KEY.match(message)
    if found is None:
        return RefusedOption(_without_key(message, names))
    key, body = found[1], message[found.end() :].strip()
    # a value is tried as all that it may be: the first attempt is the one that was meant
    for one in sorted((one for one in inner if str(one) in body), key=lambda x: body.find(str(x))):
        return one.within(key)
    union = _UNION.search(body)
    types = union or _ONE_TYPE.search(body)
    if (unread := re.match(r"Unable to load config '(.*?)'", body)) is not None:
        return RefusedOption(
            lambda at: (
                f"{at}{key} is {_shown(unread[1])}, but holds options: give them one by one, "
                "as in --trainer.max_epochs 3, or a YAML file of them."
            )
        )
    if types is None:
        return RefusedOption(lambda at: f"{at}{key}: {_line(body).rstrip('.')}.")
    if (part := re.match(r"\s*NestedArg\(key='([^']+)'", types["value"])) is not None:
        return RefusedOption(
            lambda at: (
                f"There is no option {at}{key}.{part[1]} before {at}{key} is a class: name "
                "that first."
            )
        )
    value = _shown(types["value"])
    errors = union["errors"] if union is not None else ""
    if (problem := _PROBLEM.search(errors)) is not None:
        why = problem[2].strip().splitlines()[0]
        if (why_one := _ONE_TYPE.search(why) or _UNKNOWN.search(why)) is not None:
            why = why_one[0]
        return RefusedOption(lambda at: f"{at}{key} is {problem[1]}: {why.rstrip('.')}.")
    if (other := _OTHER_CLASS.search(errors)) is not None:
        return RefusedOption(lambda at: f"{at}{key} is {value}, which is no {other[1]}.")
    if (missing := _NO_CLASS.search(errors)) is not None:
        return RefusedOption(_no_class(key, missing[1].strip(), classes(key)))
    free = [
        line
        for line in re.findall(r"^ *- (.+)$", errors, re.MULTILINE)
        if not line.startswith(("Expected a", "Not a valid subclass", "a class path", "a dict "))
    ]
    if free:
        return RefusedOption(lambda at: f"{at}{key} is {value}: {free[0].rstrip('.')}.")
    allowed = _joined(_words(types["types"]))
    return RefusedOption(lambda at: f"{at}{key} must be {allowed}, but is {value}.")


def _without_key(message: str, names: Collection[str]) -> Callable[[str], str]:
    """A sentence about a message that names no value's option."""
    if (unknown := _UNKNOWN.match(message)) is not None:
        name = unknown["name"]
        near = get_close_matches(name, names, n=1, cutoff=0.75)
        near = near or [one for one in sorted(names) if one.startswith(name)][:3]
        return lambda at: f"There is no option {at}{name}{_meant([at + one for one in near])}."
    if (missing := _MISSING.match(message)) is not None:
        needed = _joined(missing[1].split(", "), "and")
        return lambda at: f"{at}{needed} must be given."
    if (silent := re.match(r"argument (--\S+): expected one argument", message)) is not None:
        parts = " (or an option of it)" if silent[1] in {"--model", "--data"} else ""
        return lambda at: f"{silent[1]}{parts} needs a value."
    if (
        flag := re.match(r"argument (--\S+): ignored explicit argument '(.*)'", message)
    ) is not None:
        return lambda at: f"{flag[1]} takes no value, but was given {_shown(flag[2])}."
    if (stray := re.match(r"[Uu]nrecognized arguments: ([^-].*)", message)) is not None:
        return lambda at: (
            f"{_shown(stray[1])} stands by itself: a value stands behind its option, as in "
            "--trainer.max_epochs 3."
        )
    return lambda at: f"{at}{_line(message).rstrip('.')}."


def _no_class(key: str, given: str, classes: Collection[str]) -> Callable[[str], str]:
    name = given.rpartition(".")[2]
    lower = {one.lower(): one for one in classes}
    near = [lower[one] for one in get_close_matches(name.lower(), lower, n=2, cutoff=0.6)]
    return lambda at: (
        f"There is no class {_shown(given)} for {at}{key}{_meant(near)}: one of your own is named "
        "with its module, as in my_module.MyClass."
    )


def _meant(near: Sequence[str]) -> str:
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _words(types: str) -> list[str]:
    """What values of types are called, in their order."""
    words: list[str] = []
    for one in re.findall(r"(?:[^\[\],]|\[(?:[^\[\]]|\[[^\[\]]*\])*\])+", types):
        if (choice := re.match(r"\s*typing\.Literal\[(.*)\]", one)) is not None:
            words += [value.strip(" '\"") for value in choice[1].split(",")]
        else:
            name = re.split(r"[.' ]", one.partition("[")[0].strip(" <>'"))[-1]
            words += ["true", "false"] if name == "bool" else [_WORDS.get(name, f"a {name} class")]
    if {"a whole number", "a number"} <= set(words):
        words.remove("a whole number")
    words.sort(key="null".__eq__)
    return list(dict.fromkeys(words))


def _joined(words: Sequence[str], last: str = "or") -> str:
    *front, end = words
    return f"{', '.join(front)} {last} {end}" if front else end


def _shown(value: str) -> str:
    line = _line(value)
    if len(line) > _LONGEST:
        line = f"{line[:_LONGEST]}..."
    return {"": "empty", "None": "null", "True": "true", "False": "false"}.get(line, line)


def _line(text: str) -> str:
    return " ".join(text.split())
