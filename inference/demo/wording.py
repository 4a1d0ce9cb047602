"""Wording that reviews and questions share."""

from __future__ import annotations

import random

from inference.demo.phrases import ASPECTS, PLAIN_NOUNS, PRODUCTS, SYLLABLES


def dress(rng: random.Random, text: str, endings: str) -> str:
    """Vary letter case and the end of a sentence the way people type."""
    case = rng.random()
    if case < 0.7:
        text = text[0].upper() + text[1:]
    elif case < 0.9:
        text = text.lower()
    if text[-1] not in ".!?" and rng.random() < 0.8:
        text += rng.choice(endings)
    return text


def subject(rng: random.Random) -> str:
    """Draw what a clause is about, mostly with an article."""
    kind = rng.random()
    if kind < 0.10:
        return rng.choice(("it", "this", "everything", "that"))
    if kind < 0.20:
        # Unknown nouns teach that the verdict decides and not the thing it is about.
        return f"{rng.choice(('the', 'this', 'my'))} {unknown_word(rng)}"
    article = rng.choice(("the", "the", "the", "this", "my", "our", "their"))
    return f"{article} {rng.choice(rng.choice((PRODUCTS, ASPECTS)))}"


def unknown_word(rng: random.Random) -> str:
    """Draw a noun without a meaning for either task, half of the time a made-up one."""
    if rng.random() < 0.5:
        return rng.choice(PLAIN_NOUNS)
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 4)))
