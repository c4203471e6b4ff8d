"""The built-in sample of tweets: generated, in Sentiment140's raw schema, with no network.

As in the real data there are mentions, links, hashtags, entities, missing spaces, and a few tweets
of which nothing is left once those are removed; the labels are 0 and 4, in the test rows also 2.
"""

from __future__ import annotations

from typing import Any, Literal

from smolbench.data.samples.grammar import Grammar, Phrases, phrases

SIZES = {"train": 600, "test": 90}
"""Rows per split, of each label as many."""

_WRONG = 0.06
"""Share of the tweets whose words say the opposite of their label."""
_BARE = 0.01
"""Share of the tweets that hold nothing but mentions and links."""

_SHARED = phrases(
    tweet="""
        {start} {said}{end} {extra} | {said}{end} {mention} | {start} {topic}... {said}{end} |
        {start} {said}, {topic}{end} {extra} | {said}...{topic}{end} {extra}
    """,
    bare="{mention} {link} | {mention} | {tag} {link} | {mention} :/ {tag}",
    start="{mention} | {mention} {mention} | Awww... | Well, | So |",
    end="! | !!! | . | ... | ?! |",
    extra="{tag} | {tag} {tag} | {link} | &lt;3 | &amp; co |",
    mention="@{user} | @{user}{digit}",
    user="anna_k | MarekOnline | the_real_ines | yusuf | ClaraB | tomas_ | mrs_dunne",
    digit="1 | 22 | 09 | 77",
    link="http://bit.ly/{user}{digit} | https://example.com/?p={digit} | www.example.org/{user}",
    tag="#{thing} | #monday | #fail | #nowplaying",
    thing="homework | coffee | music | weather | work | holiday | birthday | football",
    topic="""
        the {thing} | my {thing} today | back to {thing} | it's all about {thing} | {thing} again |
        off to {thing} | another day of {thing}
    """,
)
_SAID = (
    phrases(
        said="""
            I {feel} {topic} | {topic} is so {like} | can't sleep, feeling {like} |
            I'm {like} and I {feel} this | why is everything {like}
        """,
        feel="hate | really can't stand | am sick of | don't want",
        like="sad | awful | boring | lonely | terrible | tired | broken | annoying",
    ),
    phrases(
        said="""
            I {feel} {topic} | {topic} is so {like} | just woke up, feeling {like} |
            I'm {like} and I {feel} this | what a {like} morning
        """,
        feel="love | really enjoy | am thankful for | can't wait for",
        like="happy | awesome | great | lovely | excited | sweet | fun | wonderful",
    ),
    phrases(said="reading about {topic} | is at {thing} | {topic}, says the paper"),
)


def tweet_sample(split: Literal["train", "test"], seed: int = 0) -> dict[str, list[Any]]:
    """Generated tweets in the schema of ``stanfordnlp/sentiment140``.

    Sorted by label, as the training rows on the Hub are. The same on every machine and in every
    Python version.

    Args:
        split: ``train`` (600 rows, labels 0 and 4) or ``test`` (90 rows, labels 0, 2 and 4).
        seed: Another seed gives other tweets.

    Returns:
        ``text``, a list of tweets, and ``sentiment``: 0 negative, 2 neutral, 4 positive.
    """
    if split not in SIZES:
        raise ValueError(f"There is no split {split!r}; there are {', '.join(SIZES)}.")
    grammar = Grammar(f"tweets {split}", seed)
    sentiments = (0, 4) if split == "train" else (0, 2, 4)
    labels = [label for label in sentiments for _ in range(SIZES[split] // len(sentiments))]
    return {"text": [_tweet(grammar, label) for label in labels], "sentiment": labels}


def _tweet(grammar: Grammar, sentiment: int) -> str:
    words = {0: 0, 4: 1, 2: 2}[sentiment]
    if sentiment != 2 and grammar.random() < _WRONG:
        words = 1 - words
    lists: Phrases = {**_SHARED, **_SAID[words]}
    text = grammar.expand("{bare}" if grammar.random() < _BARE else "{tweet}", lists)
    return " ".join(text.split())  # a slot may be filled with nothing
