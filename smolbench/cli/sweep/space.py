"""What a sweep varies: ``--grid KEY=VALUE,VALUE`` and ``--range KEY=LOW:HIGH[:log]``."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from smolbench.errors import SmolbenchError

Value = str | int | float | bool | None
Point = Mapping[str, str]
"""Values as the command line of a trial takes them, by key."""

SEED = "seed_everything"
_LONGEST_NAME = 80


@dataclass(frozen=True)
class Choices:
    """Values of a key, as they were typed."""

    texts: tuple[str, ...]

    @property
    def values(self) -> tuple[Value, ...]:
        """The same as numbers, where they are numbers."""
        return tuple(map(parsed, self.texts))


@dataclass(frozen=True)
class Range:
    """All numbers between two, both included; whole ones if both bounds are whole."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True)
class Space:
    """All keys of a sweep, in the order they were given."""

    keys: Mapping[str, Choices | Range]

    @property
    def size(self) -> int | None:
        """Number of points; ``None`` if there is no end of them."""
        found = 1
        for key in self.keys.values():
            if isinstance(key, Range):
                return None
            found *= len(key.texts)
        return found

    @property
    def distinct(self) -> int | None:
        """Number of different points, ranges of whole numbers included; ``None`` if no end."""
        found = 1
        for key in self.keys.values():
            if isinstance(key, Choices):
                found *= len(key.texts)
            elif key.whole:
                found *= int(key.high) - int(key.low) + 1
            else:
                return None
        return found

    def point(self, index: int) -> Point:
        """A point of a finite space; the last key changes fastest."""
        found: dict[str, str] = {}
        for name in reversed(list(self.keys)):
            key = self.keys[name]
            assert isinstance(key, Choices), "only a finite space is numbered"
            index, place = divmod(index, len(key.texts))
            found[name] = key.texts[place]
        return {name: found[name] for name in self.keys}

    def index(self, params: Mapping[str, Value]) -> int:
        """The number of a point of a finite space."""
        index = 0
        for name, key in self.keys.items():
            assert isinstance(key, Choices), "only a finite space is numbered"
            index = index * len(key.texts) + key.values.index(params[name])
        return index

    def params(self, point: Point) -> dict[str, Value]:
        """A point's values as Optuna takes them."""
        return {name: parsed(text) for name, text in point.items()}

    def texts(self, params: Mapping[str, Value]) -> Point:
        """A point's values as a command line takes them."""
        found = {}
        for name, key in self.keys.items():
            if isinstance(key, Choices):
                found[name] = key.texts[key.values.index(params[name])]
            else:
                found[name] = repr(params[name])
        return found

    def grid(self) -> list[Point]:
        """All points of a finite space."""
        assert self.size is not None, "only a finite space can be listed"
        return [self.point(index) for index in range(self.size)]

    def drawn(self, number: int, seed: int) -> list[tuple[int, Point]]:
        """Random points and their numbers; the first ones of a larger number are the same.

        They are drawn without repetition, so there may be fewer where there is an end of them.
        """
        generator = random.Random(seed)
        if self.size is not None:
            indices = list(range(self.size))
            generator.shuffle(indices)
            return [(index, self.point(index)) for index in indices[:number]]
        wanted = number if self.distinct is None else min(number, self.distinct)
        found: dict[tuple[str, ...], Point] = {}
        while len(found) < wanted:
            point = self._drawn_once(generator)
            found.setdefault(tuple(point.values()), point)
        return list(enumerate(found.values()))

    def _drawn_once(self, generator: random.Random) -> Point:
        found = {}
        for name, key in self.keys.items():
            if isinstance(key, Choices):
                found[name] = generator.choice(key.texts)
            elif key.log:
                # of whole numbers the ends, too, have all that is rounded to them, as in Optuna
                half = 0.5 if key.whole else 0.0
                low, high = math.log(key.low - half), math.log(key.high + half)
                value = math.exp(generator.uniform(low, high))
                value = round(value) if key.whole else value
                found[name] = repr(min(max(value, key.low), key.high))  # exp, log are not exact
            elif key.whole:
                found[name] = repr(generator.randint(int(key.low), int(key.high)))
            else:
                found[name] = repr(generator.uniform(key.low, key.high))
        return found

    def probes(self) -> list[tuple[str, Point]]:
        """Points that have every value of every key once, and the option that each stands for.

        Other keys have their first value.
        """
        first: dict[str, str] = {}
        for name, key in self.keys.items():
            first[name] = key.texts[0] if isinstance(key, Choices) else repr(key.low)
        found: list[tuple[str, Point]] = []
        for name, key in self.keys.items():
            given = key.texts if isinstance(key, Choices) else (repr(key.low), repr(key.high))
            found += [(f"{name}={text}", {**first, name: text}) for text in given]
        return found


def read_space(grids: Sequence[str], ranges: Sequence[str]) -> Space:
    """Understand the options ``--grid`` and ``--range``.

    Raises:
        SmolbenchError: If one is malformed, or a key or value is given twice.
    """
    keys: dict[str, Choices | Range] = {}
    for option, given in [("--grid", g) for g in grids] + [("--range", r) for r in ranges]:
        name, equals, value = given.partition("=")
        name = name.strip().removeprefix("--")
        if not equals or not name or not value.strip():
            form = "KEY=VALUE,VALUE" if option == "--grid" else "KEY=LOW:HIGH or KEY=LOW:HIGH:log"
            raise SmolbenchError(f"{option} {given} must have the form {form}.")
        if name in keys:
            raise SmolbenchError(f"{name} is swept twice: give all its values in one option.")
        keys[name] = _choices(name, value) if option == "--grid" else _range(name, value)
    if not keys:
        raise SmolbenchError(
            "There is nothing to sweep: give at least one --grid KEY=VALUE,VALUE, such as "
            "--grid model.lr=5e-5,1e-4."
        )
    return Space(keys)


def parsed(text: str) -> Value:
    """A number, truth value or null as what it is, anything else as text."""
    for parse in (int, float):
        try:
            number = parse(text)
        except ValueError:
            continue
        return number if math.isfinite(number) else text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if value is None or isinstance(value, bool) else text


def slug(point: Point) -> str:
    """A point as part of a folder's name: ``lr=5e-5,batch_size=8``."""
    parts = (f"{name.rpartition('.')[2]}={text}" for name, text in point.items())
    return re.sub(r"[^\w.,=+-]+", "-", ",".join(parts))[:_LONGEST_NAME]


def said(point: Point) -> str:
    """A point as a reader sees it."""
    return " ".join(f"{name}={text}" for name, text in point.items())


def _choices(name: str, given: str) -> Choices:
    texts = tuple(text.strip() for text in _split(given))
    if not all(texts):
        raise SmolbenchError(f"--grid {name}={given} has an empty value.")
    seen = set()
    for text in texts:
        if (value := parsed(text)) in seen:
            raise SmolbenchError(f"--grid {name}={given} has the value {text} twice.")
        seen.add(value)
    return Choices(texts)


def _split(given: str) -> list[str]:
    """At the commas that stand in no brackets."""
    parts, depth = [""], 0
    for character in given:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _range(name: str, given: str) -> Range:
    low, *rest = (parsed(part.strip()) for part in given.split(":"))
    high, log = (rest[0] if rest else None), rest[1:]
    numbers = all(isinstance(n, int | float) and not isinstance(n, bool) for n in (low, high))
    if not numbers or log not in ([], ["log"]):
        raise SmolbenchError(
            f"--range {name}={given} must be two numbers, LOW:HIGH, or LOW:HIGH:log."
        )
    found = Range(low, high, bool(log))  # type: ignore[arg-type] # they are numbers
    if found.low >= found.high or (found.log and found.low <= 0):
        raise SmolbenchError(
            f"--range {name}={given} must rise"
            + (" and lie above 0, for it is logarithmic." if found.log else ".")
        )
    return found
