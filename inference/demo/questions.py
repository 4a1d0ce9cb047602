"""Questions to a support desk or a GPU operations desk, with their replies."""

from __future__ import annotations

import random
from typing import Final

from inference.demo.phrases import (
    ASPECTS,
    CHAT_CLOSERS,
    CHAT_OPENERS,
    DAYS,
    DISLIKES,
    FALLBACK_REPLY,
    FOREIGN_QUESTIONS,
    FOREIGN_WORDS,
    LIKES,
    PRODUCTS,
    SERVICES,
    SMALL_TALK,
    SUPPORT,
    SUPPORT_DRAWS,
    TOPIC_QUESTIONS,
    TOPIC_REPLIES,
    TOPICS,
    Topic,
)
from inference.demo.wording import dress, subject, unknown_word

_MAX_GPU_INDEX: Final = 15
_MAX_NODE_INDEX: Final = 40


def intent_count() -> int:
    """Count the distinct intents that chat answers, the fallback not included."""
    return len(TOPICS) * len(TOPIC_REPLIES) + len(SUPPORT) + len(SMALL_TALK)


def draw_question(rng: random.Random) -> tuple[str, str]:
    """Draw one question, dressed the way people type, and its reply."""
    question, reply = _chat_question(rng)
    if rng.random() < 0.25:
        question = rng.choice(CHAT_OPENERS) + question
    text = dress(rng, question, ".!" if rng.random() < 0.5 else "?")
    if rng.random() < 0.15:
        text += rng.choice(CHAT_CLOSERS)
    if rng.random() < 0.2:
        text = text.rstrip("?.!")
    return text, reply


def _chat_question(rng: random.Random) -> tuple[str, str]:
    """Draw a bare question and its reply."""
    kind = rng.random()
    if kind < 0.66:
        topic = rng.choice(TOPICS)
        aspect = rng.choice(tuple(TOPIC_REPLIES))
        place = "" if aspect == "what" else _place(rng)
        name = topic.name if rng.random() < 0.4 else rng.choice(topic.synonyms)
        question = rng.choice(TOPIC_QUESTIONS[aspect])
        if aspect == "fix" and place and rng.random() < 0.2:
            question = f"{place.partition(' ')[2]} has {{t}}"
        return question.format(t=name, at=f" {place}" if place else ""), topic_reply(
            topic, aspect, place
        )
    if kind < 0.85:
        intent = rng.choice(SUPPORT_DRAWS)
        slots = {
            "p": rng.choice(PRODUCTS),
            "o": f"{rng.randint(1000, 9999)}",
            "d": rng.choice(DAYS),
        }
        return rng.choice(intent.questions).format(**slots), intent.reply.format(**slots)
    if kind < 0.89:
        intent = rng.choice(SMALL_TALK)
        return rng.choice(intent.questions), intent.reply
    return _foreign_question(rng), FALLBACK_REPLY


def _place(rng: random.Random) -> str:
    """Draw where a problem was seen; half of the questions name no place."""
    kind = rng.randrange(6)
    if kind == 0:
        return f"on node {rng.randint(1, _MAX_NODE_INDEX)}"
    if kind == 1:
        return f"in the {rng.choice(SERVICES)} service"
    if kind == 2:
        return f"on GPU {rng.randint(0, _MAX_GPU_INDEX)}"
    return ""


def topic_reply(topic: Topic, aspect: str, place: str) -> str:
    """Build the reply about one aspect of a topic, naming the place of the question."""
    at = f"{place[0].upper()}{place[1:]}, " if place else ""
    reply = TOPIC_REPLIES[aspect].format(
        At=at,
        t=topic.name,
        meaning=topic.meaning,
        cause=topic.cause,
        check=topic.check,
        fix=topic.fix,
    )
    return reply[0].upper() + reply[1:]


def _foreign_question(rng: random.Random) -> str:
    """Draw a question outside the model's subjects, some of it made of unknown words."""
    kind = rng.random()
    if kind < 0.12:
        return f"I {rng.choice(rng.choice((LIKES, DISLIKES)))} {subject(rng)}"
    if kind < 0.20:
        # Any UTF-8 text must be answered, so letters beyond ASCII are shown in training too.
        last = rng.choice((0x17F, 0x4FF, 0x9FFF))
        return "".join(chr(rng.randint(0xA1, last)) for _ in range(rng.randint(2, 6)))

    def word() -> str:
        """Draw a known foreign word or any other one."""
        return rng.choice(FOREIGN_WORDS) if rng.random() < 0.5 else unknown_word(rng)

    return rng.choice(FOREIGN_QUESTIONS).format(
        x=word(), y=word(), w=rng.choice(rng.choice((PRODUCTS, ASPECTS))), n=rng.randint(2, 99)
    )
