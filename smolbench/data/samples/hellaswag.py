"""The built-in sample of multiple choice: generated rows in HellaSwag's schema, with no network.

A scene is told in a sentence or two; the right ending goes on with it, the wrong ones are the ends
of other scenes with the same person. Some rows come as the how-to articles do: with marks in square
brackets, which the scoring conventions treat differently, and without a second part of the context.
"""

from __future__ import annotations

import copy
import functools
from typing import Any, Literal

from smolbench.data.samples.grammar import Grammar, Phrases, phrases

SIZES = {"train": 600, "validation": 200}
"""Rows per split."""
ROWS_PER_SOURCE = 2
"""Rows that come from one video or article."""
CHOICES = 4

_ARTICLES = 0.5
"""Share of the sources that are how-to articles."""

_PEOPLE = phrases(
    person="""
        a man in a red shirt | a young woman | an old man | a girl with braids | a boy in a cap |
        a woman in white uniform | a student | a lady in boots
    """,
    place="""
        in a garage | on a lawn | by a lake | in a large kitchen | in a gym | on a stage |
        in front of a house | in a workshop
    """,
    adverb="slowly | carefully | again and again | with both hands | for a long time",
)
_SCENES: tuple[tuple[str, Phrases], ...] = tuple(
    (activity, phrases(start=start, end=end, object=things))
    for activity, start, end, things in (
        (
            "Washing a car",
            "sprays {object} with water | rubs {object} with a wet sponge | rinses {object}",
            "dries {object} with a towel. | polishes {object} until it shines.",
            "the hood | the windows | the tires | the doors",
        ),
        (
            "Baking cookies",
            "mixes {object} in a bowl | pours {object} onto a tray | weighs {object}",
            "puts the tray into the oven. | stirs {object} into the dough.",
            "flour and sugar | the butter | chocolate chips | baking powder",
        ),
        (
            "Playing violin",
            "tunes {object} | lifts {object} to the chin | rosins {object}",
            "plays a melody to the end. | lowers {object} and bows to the audience.",
            "the violin | the bow | the instrument",
        ),
        (
            "Mowing the lawn",
            "pulls the cord of {object} | fills {object} with petrol | pushes {object}",
            "empties the cut grass into a bag. | leaves {object} at the end of the row.",
            "the mower | the old machine | the small mower",
        ),
        (
            "Rock climbing",
            "fastens {object} around the waist | chalks both hands | looks up along {object}",
            "reaches the ledge and waves down. | climbs down along {object}.",
            "the rope | the harness | the steep wall",
        ),
        (
            "Putting on makeup",
            "opens {object} | holds {object} up to the mirror | dips a brush into {object}",
            "blends {object} on the cheeks. | smiles at the finished face.",
            "the powder | the lipstick | the eye shadow",
        ),
        (
            "Fishing",
            "ties a hook to {object} | casts {object} into the water | baits {object}",
            "reels in a small fish. | pulls {object} out of the lake.",
            "the line | the rod | the net",
        ),
        (
            "Assembling a bicycle",
            "tightens {object} with a wrench | oils {object} | unpacks {object}",
            "rides the bicycle around the yard. | spins the wheel to test {object}.",
            "the pedals | the chain | the handlebar",
        ),
    )
)


def hellaswag_sample(split: Literal["train", "validation"], seed: int = 0) -> dict[str, list[Any]]:
    """Generated rows in the schema of ``Rowan/hellaswag``.

    Without duplicates within or across splits; no source is in both. The same on every machine and
    in every Python version.

    Args:
        split: ``train`` (600 rows) or ``validation`` (200 rows).
        seed: Another seed gives other rows.

    Returns:
        ``ind``, ``activity_label``, ``ctx_a``, ``ctx_b``, ``ctx``, ``endings``, ``source_id``,
        ``split``, ``split_type`` and ``label`` (as text, like the original).
    """
    if split not in SIZES:
        raise ValueError(f"There is no split {split!r}; there are {', '.join(SIZES)}.")
    return copy.deepcopy(_splits(seed)[split])


@functools.cache
def _splits(seed: int) -> dict[str, dict[str, list[Any]]]:
    """All splits: they must not overlap, and a command asks for each of them several times."""
    grammar = Grammar("hellaswag", seed)
    seen: set[str] = set()
    source = 0
    made = {}
    for name, size in SIZES.items():
        rows: list[dict[str, Any]] = []
        while len(rows) < size:
            article = grammar.random() < _ARTICLES
            scene = int(grammar.random() * len(_SCENES))
            source_id = f"{'wikihow' if article else 'activitynet'}~v_{source:05d}"
            source += 1
            for _ in range(ROWS_PER_SOURCE):
                while (row := _row(grammar, scene, article=article))["ctx"] in seen:
                    pass
                seen.add(row["ctx"])
                origin = {"source_id": source_id, "split": "val" if name == "validation" else name}
                label = row.pop("label")
                rows.append(
                    {"ind": len(rows), **row, **origin, "split_type": "indomain", "label": label}
                )
        made[name] = {column: [row[column] for row in rows] for column in rows[0]}
    return made


def _row(grammar: Grammar, scene: int, *, article: bool) -> dict[str, Any]:
    """A row without its origin; an article's has marks and no second part of the context."""
    activity, lists = _SCENES[scene]
    person = grammar.expand("{person}", _PEOPLE)
    told = grammar.expand("{start}", lists)
    first = f"{person} {told} {grammar.expand('{place}', _PEOPLE)}."
    first = first[0].upper() + first[1:]
    others = list(range(len(_SCENES)))
    others.remove(scene)
    endings = []
    for _ in range(CHOICES - 1):
        other = others.pop(int(grammar.random() * len(others)))
        endings.append(grammar.expand("{end}", _SCENES[other][1]))
    label = int(grammar.random() * CHOICES)
    endings.insert(label, grammar.expand("{end}", lists))
    if article:
        ctx_a = f"[header] How to go about {activity.lower()} [title] {first} [step] "
        ctx_a += f"Then go on {grammar.expand('{adverb}', _PEOPLE)}."
        ctx_b = ""
        endings = [f"[substeps] {ending[0].upper()}{ending[1:]}" for ending in endings]
    else:
        ctx_a = f"{first} {person[0].upper()}{person[1:]} goes on"
        ctx_a += f" {grammar.expand('{adverb}', _PEOPLE)}."
        ctx_b = person if grammar.random() < 0.5 else "then"
        endings = [f", {ending}" if ctx_b == "then" else ending for ending in endings]
    return {
        "activity_label": activity,
        "ctx_a": ctx_a,
        "ctx_b": ctx_b,
        "ctx": f"{ctx_a} {ctx_b}".strip(),
        "endings": endings,
        "label": str(label),
    }
