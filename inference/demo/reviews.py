"""Product reviews with their sentiment."""

from __future__ import annotations

import random
from typing import Final

from inference.demo.phrases import (
    ASPECTS,
    BAD,
    BAD_REMARKS,
    BADLY,
    COLOURS,
    DAYS,
    DEGREES,
    DENIED_DISLIKES,
    DENIED_LIKES,
    DISLIKES,
    FACTS,
    FAILS,
    GOOD,
    GOOD_REMARKS,
    LIKES,
    LINKS,
    NEVER_FAILS,
    NOT_LINKS,
    OPENERS,
    PLAIN,
    PRODUCTS,
    TOPIC_QUESTIONS,
    TOPICS,
    WELL,
)
from inference.demo.wording import dress, subject, unknown_word

POSITIVE: Final = "positive"
NEGATIVE: Final = "negative"
NEUTRAL: Final = "neutral"


def draw_review(rng: random.Random) -> tuple[str, str]:
    """Draw one review and its label: a single clause, two clauses that agree, or a contrast."""
    shape = rng.random()
    label = rng.choice((POSITIVE, NEGATIVE))
    if shape < 0.30:
        text = _polar(rng, label)
    elif shape < 0.50:
        text = _contrast(rng, label)
    elif shape < 0.66:
        text = _agreement(rng, label)
    else:
        text, label = _neutral(rng), NEUTRAL
    if rng.random() < 0.15:
        text = f"{rng.choice(OPENERS)}{rng.choice((', ', ' '))}{text}"
    return dress(rng, text, "." if label == NEUTRAL else ".!"), label


def _opposite(label: str) -> str:
    """Turn positive into negative and back."""
    return NEGATIVE if label == POSITIVE else POSITIVE


def _adjective(rng: random.Random, good: bool) -> str:
    """Draw a word of praise or blame, sometimes with a degree."""
    word = rng.choice(GOOD if good else BAD)
    return f"{rng.choice(DEGREES)} {word}" if rng.random() < 0.35 else word


def _described(rng: random.Random, good: bool) -> str:
    """Say what something is, or what it is not."""
    if rng.random() < 0.6:
        return f"{subject(rng)} {rng.choice(LINKS)} {_adjective(rng, good)}"
    return f"{subject(rng)} {rng.choice(NOT_LINKS)} {rng.choice(BAD if good else GOOD)}"


def _liked(rng: random.Random, good: bool) -> str:
    """Say that somebody likes or recommends something, or does not."""
    kind = rng.randrange(4)
    if kind == 0:
        denial = rng.choice(("do not", "don't", "did not", "didn't", "never"))
        verb = rng.choice(DENIED_DISLIKES if good else DENIED_LIKES)
        return f"I {denial} {verb} {subject(rng)}"
    if kind == 1:
        verb = rng.choice(("would", "can", "will") if good else ("would not", "cannot", "won't"))
        return f"I {verb} recommend {subject(rng)}"
    return f"I {rng.choice(LIKES if good else DISLIKES)} {subject(rng)}"


def _performed(rng: random.Random, good: bool) -> str:
    """Say how something works, or whether it fails."""
    if rng.random() < 0.5:
        return f"{subject(rng)} {rng.choice(NEVER_FAILS if good else FAILS)}"
    verb = rng.choice(("works", "performs", "runs"))
    return f"{subject(rng)} {verb} {rng.choice(WELL if good else BADLY)}"


def _exclaimed(rng: random.Random, good: bool) -> str:
    """Name a thing with its quality, as in "what a lovely lamp"."""
    degree = rng.choice(("very ", "really ", "", "", ""))
    noun = rng.choice(rng.choice((PRODUCTS, ASPECTS)))
    phrase = f"{degree}{rng.choice(GOOD if good else BAD)} {noun}"
    article = "an" if phrase[0] in "aeiou" and not phrase.startswith("use") else "a"
    return f"{rng.choice(('what ', 'such ', 'this is ', 'it is ', ''))}{article} {phrase}"


def _remarked(rng: random.Random, good: bool) -> str:
    """Give a stock remark or a verdict without a verb."""
    kind = rng.randrange(6)
    if kind == 0:
        return f"not {rng.choice(BAD if good else GOOD)}{rng.choice(('', ' at all'))}"
    if kind == 1:
        return _adjective(rng, good)
    if kind == 2:
        noun = rng.choice(rng.choice((PRODUCTS, ASPECTS)))
        return f"{rng.choice(GOOD if good else BAD)} {noun}"
    return rng.choice(GOOD_REMARKS if good else BAD_REMARKS)


# Descriptions are what reviews mostly consist of, hence their weight.
_CLAUSES: Final = (
    _described,
    _described,
    _described,
    _described,
    _liked,
    _liked,
    _performed,
    _performed,
    _exclaimed,
    _remarked,
    _remarked,
)


def _polar(rng: random.Random, label: str) -> str:
    """Draw one clause that carries the given polarity."""
    return rng.choice(_CLAUSES)(rng, label == POSITIVE)


def _contrast(rng: random.Random, label: str) -> str:
    """Join two clauses that disagree; the main clause, always the last one, decides."""
    first = _polar(rng, _opposite(label)) if rng.random() < 0.8 else _neutral_clause(rng)
    last = _polar(rng, label)
    kind = rng.randrange(5)
    if kind <= 1:
        return f"{first}, but {last}"
    if kind == 2:
        return f"{first}. However, {last}"
    if kind == 3:
        return f"{rng.choice(('although', 'even though'))} {first}, {last}"
    return f"{first}, yet {last}"


def _agreement(rng: random.Random, label: str) -> str:
    """Join clauses that point the same way, or plain facts and a verdict, in any order."""
    clauses = [_polar(rng, label)]
    clauses += [
        _polar(rng, label) if rng.random() < 0.5 else _neutral_clause(rng)
        for _ in range(rng.choice((1, 1, 1, 2, 3)))
    ]
    rng.shuffle(clauses)
    return rng.choice((" and ", ". ", ", ")).join(clauses)


def _neutral_clause(rng: random.Random) -> str:
    """Draw a factual clause or a lukewarm one."""
    if rng.random() < 0.25:
        return f"{subject(rng)} {rng.choice(LINKS)} {rng.choice(PLAIN)}"
    return rng.choice(FACTS).format(
        s=rng.choice(PRODUCTS),
        colour=rng.choice(COLOURS),
        n=rng.randint(2, 400),
        day=rng.choice(DAYS),
        u=unknown_word(rng),
        year=rng.randint(1990, 2026),
    )


def _neutral(rng: random.Random) -> str:
    """Draw a neutral text: one fact, two facts, or a plain question."""
    kind = rng.random()
    if kind < 0.08:
        topic = rng.choice(TOPICS)
        return rng.choice(TOPIC_QUESTIONS["what"]).format(t=rng.choice(topic.synonyms))
    if kind < 0.35:
        joint = rng.choice((" and ", ". ", ", but "))
        return f"{_neutral_clause(rng)}{joint}{_neutral_clause(rng)}"
    return _neutral_clause(rng)
