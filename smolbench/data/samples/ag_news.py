"""The built-in sample of news: generated teasers in AG News' schema, with no network.

A linear model separates the four topics well but not perfectly: all topics share openings, sources
and quantities, some teasers touch a second topic, and a few are filed under a wrong one.
"""

from __future__ import annotations

import copy
import functools
from typing import Any, Literal

from smolbench.data.samples.grammar import Grammar, phrases

LABELS = ("World", "Sports", "Business", "Sci/Tech")
SIZES = {"train": 600, "test": 200}
"""Rows per split; a quarter of each is of each topic."""

_MISFILED = 0.04
"""Share of the teasers whose words are of another topic than their label."""
_MIXED = 0.3
"""Share of the teasers that end in a sentence of another topic."""

_SHARED = phrases(
    agency="Reuters | AP | AFP | Dispatch | Wire Service",
    day="Monday | Tuesday | Wednesday | Thursday | Friday | Saturday | Sunday",
    place="""
        London | Tokyo | Berlin | Nairobi | Chicago | Sydney | Madrid | Jakarta | Toronto | Lagos |
        Athens | Lima | Seoul | Houston | Oslo | Delhi
    """,
    number="two | three | five | a dozen | twenty | forty | more than a hundred",
    name="""
        Aldous | Brandt | Castellano | Dunne | Ferreira | Hartley | Keller | Lindgren | Marchetti |
        Moreau | Novak | Okafor | Quist | Sokolov | Tanaka | Whitfield
    """,
    common="""
        Officials gave no further details. | A statement is expected on {day}. |
        It was the second time in {number} months. | Observers in {place} were surprised. |
        Much depends on what happens next in {place}. | {name} declined to comment.
    """,
)
_TOPICS = (
    phrases(
        headline="""
            {leader} {meets} in {place} | Troops {move} near {place} | {number} Held After {event} |
            Voters in {place} Await {event} | Envoy {name} Leaves {place}
        """,
        body="""
            The {leader} {meets} on {day} as {event} went into its second week. |
            At least {number} people were hurt in {event} near {place}, the {force} said. |
            The {force} and the {force} agreed on a truce after {event}. |
            {name}, the {leader}, called for talks about {event}.
        """,
        leader="president | prime minister | foreign minister | rebel leader | ambassador",
        meets="meets rivals | signs a treaty | visits refugees | rejects a peace plan",
        move="withdraw | gather | open fire | stand guard",
        event="an election | a bombing | an uprising | a hostage crisis | a border dispute",
        force="army | police | government | parliament | militia | United Nations",
    ),
    phrases(
        headline="""
            {player} {wins} {contest} | {team} Beat {place} in {contest} | {name} Out |
            {team} Sign {player} | {number} Goals Sink {place}
        """,
        body="""
            {name} {scored} as the {team} {wins} {contest} on {day}. |
            The {team} lost {player} to an injury before {contest}. |
            {player} {name} {scored} in front of a full stadium in {place}. |
            The coach of the {team} praised {player} {name} after {contest}.
        """,
        player="striker | quarterback | pitcher | champion | goalkeeper | rookie | captain",
        wins="takes the lead in | wins | loses | draws level in",
        contest="the final | the playoffs | the league | the cup | the Grand Slam | the season",
        team="Hawks | Rovers | Tigers | United | Giants | Wolves",
        scored="scored twice | hit a home run | set a record | won a medal | missed a penalty",
    ),
    phrases(
        headline="""
            {firm} {reports} | Stocks {went} on {cause} | {firm} to Buy {firm} |
            Oil Prices {went} in {place} | {name} to Head {firm}
        """,
        body="""
            Shares of {firm} {went} on {day} after the company {reports}. |
            The dollar {went} against the euro on {cause}. |
            {firm} said it would cut {number} jobs because of {cause}. |
            Investors sold bonds as {cause} weighed on the market in {place}.
        """,
        firm="{name} Bank | {name} Airlines | {name} Motors | {name} Insurance | {name} Stores",
        reports="posts a loss | raises its forecast | files for bankruptcy | doubles its profit",
        went="fell | rose | slipped | rallied | closed flat",
        cause="interest rates | weak earnings | inflation | a merger | retail sales",
    ),
    phrases(
        headline="""
            {thing} Gets {feature} | Scientists Find {find} | {maker} Unveils {thing} |
            New {flaw} Hits {thing} | {place} Lab Studies {find}
        """,
        body="""
            {maker} released a new {thing} with {feature} on {day}. |
            A {flaw} in a popular {thing} lets hackers in, researchers warned. |
            Astronomers and biologists in {place} reported {find}. |
            The {thing} will be able to use {feature}, said {maker}.
        """,
        thing="browser | search engine | operating system | laptop | cell phone | chip",
        feature="wireless internet | encryption | open source software | video | a spam filter",
        flaw="virus | worm | security hole | software bug",
        find="a new planet | water on Mars | a fossil | a gene | a distant galaxy | a comet",
        maker="{name} Software | {name} Online | the space agency | a university lab",
    ),
)


def news_sample(split: Literal["train", "test"], seed: int = 0) -> dict[str, list[Any]]:
    """Generated teasers in the schema of ``fancyzhx/ag_news``.

    Balanced, in mixed order as on the Hub, without duplicates within or across splits. The same on
    every machine and in every Python version.

    Args:
        split: ``train`` (600 rows) or ``test`` (200 rows).
        seed: Another seed gives other teasers.

    Returns:
        ``text``, a list of teasers, and ``label``, the topics' numbers.
    """
    if split not in SIZES:
        raise ValueError(f"There is no split {split!r}; there are {', '.join(SIZES)}.")
    return copy.deepcopy(_splits(seed)[split])


@functools.cache
def _splits(seed: int) -> dict[str, dict[str, list[Any]]]:
    """All splits: they must not overlap, and a command asks for each of them several times."""
    grammar = Grammar("news", seed)
    seen: set[str] = set()
    made: dict[str, dict[str, list[Any]]] = {}
    for name, size in SIZES.items():
        labels = [row % len(LABELS) for row in range(size)]
        texts = []
        for label in labels:
            while (text := _teaser(grammar, label)) in seen:
                pass
            seen.add(text)
            texts.append(text)
        made[name] = {"text": texts, "label": labels}
    return made


def _teaser(grammar: Grammar, label: int) -> str:
    def other() -> int:
        return (label + 1 + int(grammar.random() * (len(LABELS) - 1))) % len(LABELS)

    topic = other() if grammar.random() < _MISFILED else label
    lists = {**_SHARED, **_TOPICS[topic]}
    last = {**_SHARED, **_TOPICS[other() if grammar.random() < _MIXED else topic]}
    sentences = [
        grammar.expand("{headline} ({agency}) {agency} -", lists),
        grammar.expand("{body}", lists),
        grammar.expand("{common}", lists),
        grammar.expand("{body}", last),
    ]
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)
