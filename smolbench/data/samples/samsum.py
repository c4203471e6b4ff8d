"""The built-in sample of dialogues: generated rows in SAMSum's schema, with no network.

Every dialogue is about one plan of two people; its summary says who will do what and when, in words
that stand in the dialogue, so that a model that copies well scores well. One training row has no
dialogue, as in copies of the original.
"""

from __future__ import annotations

import copy
import functools
from typing import Literal

from smolbench.data.samples.grammar import Grammar, phrases

SIZES = {"train": 400, "validation": 60, "test": 60}

_WORDS = phrases(
    name="Amanda | Jerry | Olivia | Oliver | Tim | Kim | Edward | Bella | Eric | Rob | Lenny | Bob "
    "| Emma | Will | Hannah | Ollie | Rita | Tina | Beatrice | Leo",
    greeting="Hey | Hi there | Hello :) | Hiya | Are you there? | Good morning",
    asks="what are you up to {when}? | any plans {when}? | are you free {when}?",
    when="tonight | tomorrow | on Friday | on Sunday | next week | after work",
    unsure="Not sure yet. | Nothing much. | Still thinking... | Why do you ask? | Nope, all free.",
    agrees="Sure! | Sounds great. | OK, count me in | I'd love to :) | Why not!",
    refuses="Sorry, I can't. | I'm afraid I'm busy. | Not this time, sorry | I have to work :(",
    thanks="Thanks! | Cool | Perfect. | You're the best | No problem | Too bad | See you then",
    chat="How is your mum? | It rained all day here. | <file_photo> | Did you see the game? "
    "| My phone is almost dead. | The bus was late again.",
    reply="Fine, thanks. | lol | Haha | Same here. | Really? | I know, right",
    place="the cinema | the market | the new cafe | the library | the lake | the gym | the museum",
    thing="a cake | the tickets | a present for mum | the old bike | some flowers | two pizzas",
    task="paint the kitchen | move the sofa | fix the car | study for the exam | walk the dog",
)
_PLANS = (
    (
        "Let's go to {place} {when}.",
        "{a} and {b} will go to {place} {when}.",
        "{a} will go to {place} {when}. {b} can't come along.",
    ),
    (
        "I'm going to buy {thing} {when}, want to come?",
        "{a} and {b} will buy {thing} {when}.",
        "{a} will buy {thing} {when}. {b} can't come along.",
    ),
    (
        "Can you help me {task} {when}?",
        "{b} will help {a} {task} {when}.",
        "{a} needs help to {task} {when}. {b} doesn't have time.",
    ),
    (
        "Will you meet me at {place} {when}?",
        "{b} will meet {a} at {place} {when}.",
        "{a} wants to meet {b} at {place} {when}. {b} doesn't have time.",
    ),
)
"""What is said, its summary if it is agreed to, and if it is not."""


def samsum_sample(
    split: Literal["train", "validation", "test"], seed: int = 0
) -> dict[str, list[str]]:
    """Generated rows in the schema of ``knkarthick/samsum``.

    Without duplicates within or across splits. The same on every machine and in every Python
    version.

    Args:
        split: ``train`` (400 rows, one of them without a dialogue), ``validation`` or ``test`` (60
            rows each).
        seed: Another seed gives other rows.

    Returns:
        ``id``, ``dialogue`` and ``summary``.
    """
    if split not in SIZES:
        raise ValueError(f"There is no split {split!r}; there are {', '.join(SIZES)}.")
    return copy.deepcopy(_splits(seed)[split])


@functools.cache
def _splits(seed: int) -> dict[str, dict[str, list[str]]]:
    """All splits: they must not overlap, and a command asks for each of them several times."""
    grammar = Grammar("samsum", seed)
    seen: set[str] = set()
    number = 0
    made = {}
    for name, size in SIZES.items():
        rows: list[tuple[str, str, str]] = []
        while len(rows) < size:
            dialogue, summary = _row(grammar)
            if dialogue in seen:
                continue
            seen.add(dialogue)
            number += 1
            if name == "train" and len(rows) == size // 2:
                dialogue = ""
            rows.append((f"sample-{number:04d}", dialogue, summary))
        ids, dialogues, summaries = zip(*rows, strict=True)
        made[name] = {"id": list(ids), "dialogue": list(dialogues), "summary": list(summaries)}
    return made


def _row(grammar: Grammar) -> tuple[str, str]:
    """A dialogue and its summary."""
    a = grammar.pick(_WORDS["name"])
    b = grammar.pick([name for name in _WORDS["name"] if name != a])
    chosen = {name: grammar.expand(f"{{{name}}}", _WORDS) for name in ("place", "thing", "task")}
    when = grammar.expand("{when}", _WORDS)
    plan, accepted, refused = _PLANS[int(grammar.random() * len(_PLANS))]
    agreed = grammar.random() < 0.7
    turns = [(a, "{greeting}, {b}!"), (b, "{greeting}")]
    while grammar.random() < 0.5:  # dialogues of different lengths
        turns += [(a, "{chat}"), (b, "{reply}")]
    if grammar.random() < 0.5:
        turns += [(a, f"So, {_asked(grammar, when)}"), (b, "{unsure}")]
    turns += [(a, plan), (b, "{agrees}" if agreed else "{refuses}"), (a, "{thanks}")]
    filled = {"a": a, "b": b, "when": when, **chosen}
    lines = [f"{who}: {_said(grammar, text, filled)}" for who, text in turns]
    return "\r\n".join(lines), _said(grammar, accepted if agreed else refused, filled)


def _asked(grammar: Grammar, when: str) -> str:
    return grammar.pick(_WORDS["asks"]).replace("{when}", when)


def _said(grammar: Grammar, text: str, filled: dict[str, str]) -> str:
    """A line with what was chosen for the whole dialogue, the rest drawn."""
    for name, value in filled.items():
        text = text.replace(f"{{{name}}}", value)
    return grammar.expand(text, _WORDS)
