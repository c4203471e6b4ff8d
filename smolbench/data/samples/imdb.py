"""The built-in sample: generated English movie reviews in IMDb's schema, with no network.

The texts are drawn from a small grammar, so nothing of anyone's is redistributed. A linear model
separates the two classes well but not perfectly: some reviews are of two minds, sentences negate
words of the other class, and a few reviews mean the opposite of what they say.
"""

from __future__ import annotations

import copy
import functools
import random
import re
from typing import Any, Literal

from smolbench.data.samples.grammar import phrases

SIZES = {"train": 600, "test": 200}
"""Rows per split; half of each is positive."""
MIN_WORDS, MAX_WORDS = 20, 250

_SARCASTIC = 0.03
"""Share of the reviews whose words say the opposite of their label."""
_TORN = 0.25
"""Share of the reviews that praise and blame in nearly equal measure."""
_AGREEING = {False: 0.93, True: 0.67}
"""Share of the opinions that agree with the whole review, in clear and in torn ones."""
_PLOT = 0.45
"""Share of the sentences between opening and verdict that tell the plot."""
_SUBJECT = ("title", "genre", "length", "maker", "hero", "villain")
"""Phrases that stay the same throughout a review."""

# {name} stands for any phrase of that name, {+name} for one of the sentence's own polarity and
# {-name} for one of the other.
_SENTENCES = phrases(
    opening="""
        I watched {title} {when}, and {company} {reacted}. |
        {title} is a {genre} by {maker}, set in {place}. |
        I saw {title} {when}, the {genre} that everybody at {work} talks about. |
        I went into {title}, by {maker}, knowing nothing about it. |
        My {relative} chose {title}, a {genre} of {length}, and {company} {reacted}. |
        {title} had been on my list for {span}. |
        There is a lot to say about {title}, a {genre} of {length}. |
        How does one review {title}? It is a {genre}, and it takes place in {place}.
    """,
    plot="""
        The story follows {hero}, who {quest} in {place}. |
        We meet {hero}, who {quest}, while {villain} {plan}. |
        In the second act {hero} meets {villain}, and they {together}. |
        It begins in {place}, where {hero} {quest}. |
        Half of it takes place in {place}, the other half in {place}. |
        The script is by {maker} and based on {origin}. |
        The running time is {length}, and most of it was shot in {place}. |
        Without giving too much away, {villain} {plan}. |
        The part of {hero} is played by {actor}, and {actor} can be seen as {extra}. |
        The music, by {actor}, is for {instrument} and {instrument}.
    """,
    opinion="""
        The {aspect} was {+quality}. |
        The {aspect} is {+quality} and the {aspect} {+quality}. |
        {actor} gives a {+quality} performance as {hero}. |
        I {+felt} the {aspect}, and my {relative} {+felt} it too. |
        What I {+felt} most was the {aspect}. |
        Its {aspect} is {+quality}, and {+effect}. |
        By the end {+effect}. |
        Every scene with {actor} is {+quality}. |
        The {aspect} was not {-quality} at all. |
        I did not find the {aspect} {-quality}; if anything it was {+quality}. |
        The {aspect} may be {-quality}, but the {aspect} is {+quality} and {+effect}. |
        I expected a {-quality} {genre} and got a {+quality} one. |
        Compared with the last {genre} I saw, the {aspect} is {+quality}.
    """,
    verdict="""
        All in all, {+verdict}. | In the end {+verdict}. | To sum up: {+verdict}. |
        Make of it what you will, but {+verdict}. | So {+verdict}, whatever the critics wrote. |
        Ask my {relative}: {+verdict}.
    """,
)
_NEUTRAL = phrases(
    title="""
        The {noun} of {place} | My {noun} in {place} | Three Days in {place} | The Last {noun} |
        {name}'s {noun} | Beyond the {noun} | No {noun} for {name} | Return to {place} |
        The {noun} and the {noun}
    """,
    noun="""
        Lantern | River | Train | Letter | Orchard | Witness | Harbour | Mirror | Winter | Garden |
        Compass | Bridge | Violin | Shadow | Island | Clock | Stranger | Road
    """,
    name="""
        Anna | Marek | Olivia | Tomas | Ines | Henry | Yusuf | Clara | Daniel | Priya | Victor |
        Lena | Samuel | Rosa | Kenji | Maud
    """,
    surname="""
        Hartley | Novak | Okafor | Lindgren | Moreau | Castellano | Brandt | Whitfield | Tanaka |
        Sokolov | Marchetti | Dunne | Keller | Aldous | Ferreira | Quist
    """,
    actor="{name} {surname}",
    maker="{name} {surname} | a first-time director | a famous novelist",
    genre="""
        thriller | comedy | western | family drama | love story | horror film | musical |
        detective story | war film | road movie | science fiction film | costume drama
    """,
    place="""
        Lisbon | Ohio | Marseille | Iceland | Kyoto | Nevada | Warsaw | Havana | Dublin | Bombay |
        Alaska | Naples | Montana | Cairo | Vienna | Glasgow
    """,
    when="""
        last night | on a long flight | at a small festival | on a rainy Sunday | on cable |
        at the cinema | on an old tape | during the holidays
    """,
    company="my {relative} | the whole room | the audience | the row behind me",
    reacted="""
        wanted to talk about it afterwards | stayed until the credits | said very little |
        knew the book | asked for the name of the composer
    """,
    work="work | school | the office | my club",
    relative="brother | sister | wife | husband | father | neighbour | daughter | aunt",
    span="years | months | a decade | some weeks",
    length="ninety minutes | two hours | almost three hours | barely eighty minutes",
    hero="""
        a retired pilot | a young teacher | a night watchman | a widowed farmer | a pianist |
        a shy translator | a former boxer | an orphan | a country doctor | a taxi driver
    """,
    quest="""
        looks for a lost brother | inherits an empty house | must testify in court |
        drives across the country | finds a suitcase of money | returns after the war |
        learns an old secret | takes a job at a hotel | has to cross the mountains
    """,
    villain="""
        a corrupt mayor | the landlord | an old rival | a man with a scar | the insurance firm |
        a smiling thief | the colonel | a secret society
    """,
    plan="""
        plans to close the mine | hides the evidence | buys up the valley | wants the letters |
        waits for the train | follows at a distance | keeps the key
    """,
    together="""
        spend a night in {place} | agree on a bargain | play a game of chess | miss the boat |
        share a long meal | search the house
    """,
    origin="""
        a novel | a short story | a stage play | a newspaper article | a true case |
        an older film from {place}
    """,
    extra="the waiter | the judge | the nurse | the sheriff | the piano teacher",
    instrument="strings | an organ | a single guitar | drums | a choir | two accordions",
    aspect="""
        plot | acting | dialogue | ending | camera work | score | pacing | editing | cast | humour |
        first half | final scene | script | costume design | atmosphere
    """,
)
_POLAR = {
    1: phrases(
        quality="""
            wonderful | superb | moving | brilliant | charming | gripping | beautiful | funny |
            clever | touching | delightful | fresh | convincing | good | great | memorable | warm |
            thoughtful | stunning | subtle
        """,
        felt="loved | enjoyed | admired | liked | appreciated",
        effect="""
            I was smiling | I had tears in my eyes | the time flew by | I wanted to see it again |
            everything falls into place | the whole row applauded | I could not look away |
            I did not want it to stop
        """,
        verdict="""
            it is well worth your time | I recommend it | this is a gem | I would see it again |
            go and see it | it deserves an award | it is one of the best films of the year |
            it won me over | do not miss it | it is better than I had hoped
        """,
    ),
    0: phrases(
        quality="""
            dull | terrible | clumsy | boring | lazy | predictable | wooden | lifeless | silly |
            tedious | confusing | cheap | weak | bad | poor | forgettable | shallow | ridiculous |
            flat | tiresome
        """,
        felt="hated | disliked | regretted | endured | resented",
        effect="""
            I was asleep | I was looking at my watch | nothing makes sense | I no longer cared |
            half of the audience had left | I wanted my money back | it falls apart |
            I could not wait for the credits
        """,
        verdict="""
            it is a waste of time | I cannot recommend it | this is a mess | once was too much |
            stay away from it | it deserves to be forgotten |
            it is one of the worst films of the year | it lost me | skip it |
            it is worse than I had feared
        """,
    ),
}
_SLOT = re.compile(r"\{([+-]?)(\w+)\}")


def imdb_sample(split: Literal["train", "test"], seed: int = 0) -> dict[str, list[Any]]:
    """Generated movie reviews in the schema of ``stanfordnlp/imdb``.

    Balanced, without duplicates within or across splits, and sorted by label as on the Hub, so that
    a missing shuffle shows. The same on every machine and in every Python version.

    Args:
        split: ``train`` (600 rows) or ``test`` (200 rows).
        seed: Another seed gives other reviews.

    Returns:
        ``text``, a list of reviews of 20 to 250 words, and ``label``, 0 negative or 1 positive.
    """
    if split not in SIZES:
        raise ValueError(f"There is no split {split!r}; there are {', '.join(SIZES)}.")
    return copy.deepcopy(_splits(seed)[split])


@functools.cache
def _splits(seed: int) -> dict[str, dict[str, list[Any]]]:
    """All splits: they must not overlap, and a command asks for each of them several times."""
    writer = _Writer(seed)
    seen: set[str] = set()
    made: dict[str, dict[str, list[Any]]] = {}
    for name, size in SIZES.items():
        labels = [0] * (size // 2) + [1] * (size // 2)
        texts = [writer.new_review(label, seen) for label in labels]
        made[name] = {"text": texts, "label": labels}
    return made


class _Writer:
    """Draws reviews from the grammar."""

    def __init__(self, seed: int) -> None:
        # a text as seed is hashed in the same way everywhere, and of the methods only random()
        # promises the same numbers in later Python versions
        self._random = random.Random(f"smolbench movie reviews {seed}").random
        self._subject: dict[str, str] = {}
        self._unused: dict[str, list[str]] = {}

    def new_review(self, label: int, seen: set[str]) -> str:
        """A review that is not in ``seen``, which it is added to."""
        while (text := self._review(label)) in seen:
            pass
        seen.add(text)
        return text

    def _review(self, label: int) -> str:
        said = 1 - label if self._random() < _SARCASTIC else label
        agreeing = _AGREEING[self._random() < _TORN]
        # log-uniform: as with real reviews, most are short and some are very long
        wanted = MIN_WORDS * (0.9 * MAX_WORDS / MIN_WORDS) ** self._random()
        self._subject, self._unused = {}, {}
        self._subject = {name: self._expand(f"{{{name}}}", said) for name in _SUBJECT}
        sentences = [self._sentence("opening", said)]
        ending = self._sentence("verdict", said)
        while _words(" ".join([*sentences, ending])) < wanted:
            kind = "plot" if self._random() < _PLOT else "opinion"
            sentences.append(self._sentence(kind, self._polarity(said, agreeing)))
        return " ".join([*sentences, ending])

    def _polarity(self, said: int, agreeing: float) -> int:
        return said if self._random() < agreeing else 1 - said

    def _pick(self, phrases: tuple[str, ...]) -> str:
        return phrases[int(self._random() * len(phrases))]

    def _sentence(self, kind: str, polarity: int) -> str:
        unused = self._unused.get(kind) or list(_SENTENCES[kind])
        self._unused[kind] = unused
        text = self._expand(unused.pop(int(self._random() * len(unused))), polarity)
        return text[0].upper() + text[1:]

    def _expand(self, template: str, polarity: int) -> str:
        """Replace all slots of a template."""
        lists = {"": _NEUTRAL, "+": _POLAR[polarity], "-": _POLAR[1 - polarity]}

        def phrase(slot: re.Match[str]) -> str:
            sign, name = slot.groups()
            if name in self._subject:
                return self._subject[name]
            return _SLOT.sub(phrase, self._pick(lists[sign][name]))

        return _SLOT.sub(phrase, template)


def _words(text: str) -> int:
    return len(text.split())
