"""Tables of phrases that the corpus is drawn from; they are read from ``phrases.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Topic:
    """A GPU operations subject; the four phrases are combined into the four kinds of reply."""

    name: str
    synonyms: Sequence[str]
    meaning: str
    cause: str
    check: str
    fix: str


@dataclass(frozen=True, slots=True)
class Intent:
    """A support-desk question in several wordings and its reply; both may name slots."""

    questions: Sequence[str]
    reply: str


def _read() -> dict[str, Any]:
    text = (resources.files("inference.demo") / "phrases.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


_TABLES: Final = _read()

PRODUCTS: Final[Sequence[str]] = _TABLES["products"]
ASPECTS: Final[Sequence[str]] = _TABLES["aspects"]
GOOD: Final[Sequence[str]] = _TABLES["good"]
BAD: Final[Sequence[str]] = _TABLES["bad"]
PLAIN: Final[Sequence[str]] = _TABLES["plain"]
DEGREES: Final[Sequence[str]] = _TABLES["degrees"]
LINKS: Final[Sequence[str]] = _TABLES["links"]
NOT_LINKS: Final[Sequence[str]] = _TABLES["not_links"]
LIKES: Final[Sequence[str]] = _TABLES["likes"]
DISLIKES: Final[Sequence[str]] = _TABLES["dislikes"]
DENIED_LIKES: Final[Sequence[str]] = _TABLES["denied_likes"]
DENIED_DISLIKES: Final[Sequence[str]] = _TABLES["denied_dislikes"]
WELL: Final[Sequence[str]] = _TABLES["well"]
BADLY: Final[Sequence[str]] = _TABLES["badly"]
FAILS: Final[Sequence[str]] = _TABLES["fails"]
NEVER_FAILS: Final[Sequence[str]] = _TABLES["never_fails"]
GOOD_REMARKS: Final[Sequence[str]] = _TABLES["good_remarks"]
BAD_REMARKS: Final[Sequence[str]] = _TABLES["bad_remarks"]
FACTS: Final[Sequence[str]] = _TABLES["facts"]
COLOURS: Final[Sequence[str]] = _TABLES["colours"]
DAYS: Final[Sequence[str]] = _TABLES["days"]
PLAIN_NOUNS: Final[Sequence[str]] = _TABLES["plain_nouns"]
SYLLABLES: Final[Sequence[str]] = _TABLES["syllables"]
OPENERS: Final[Sequence[str]] = _TABLES["openers"]
SERVICES: Final[Sequence[str]] = _TABLES["services"]
FOREIGN_QUESTIONS: Final[Sequence[str]] = _TABLES["foreign_questions"]
FOREIGN_WORDS: Final[Sequence[str]] = _TABLES["foreign_words"]
CHAT_OPENERS: Final[Sequence[str]] = _TABLES["chat_openers"]
CHAT_CLOSERS: Final[Sequence[str]] = _TABLES["chat_closers"]
FALLBACK_REPLY: Final[str] = _TABLES["fallback_reply"]
TOPIC_QUESTIONS: Final[dict[str, Sequence[str]]] = _TABLES["topic_questions"]
TOPIC_REPLIES: Final[dict[str, str]] = _TABLES["topic_replies"]
TOPICS: Final = tuple(Topic(**row) for row in _TABLES["topics"])
SUPPORT: Final = tuple(Intent(**row) for row in _TABLES["support"])
SMALL_TALK: Final = tuple(Intent(**row) for row in _TABLES["small_talk"])
# Copying a number digit by digit is the hardest thing to learn here, so it is shown more often.
SUPPORT_DRAWS: Final = (
    *SUPPORT,
    *(intent for intent in SUPPORT if "{o}" in intent.reply),
    *(intent for intent in SUPPORT if "{o}" in intent.reply),
)
