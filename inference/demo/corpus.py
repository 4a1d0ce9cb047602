"""Templated text for the demonstration language model.

Two tasks share one model and are told apart by the prompt: *sentiment* answers one word for a
product review, *chat* answers a support-desk or GPU operations question. Every example is drawn
from tables of phrases by a seeded generator, so the same call always gives the same text, and
every text belongs to exactly one split, decided by a hash of its words. The module needs nothing
outside the standard library: the traffic generator uses it as well as the training script.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from inference.demo.phrases import FALLBACK_REPLY, SUPPORT, TOPICS
from inference.demo.questions import draw_question, topic_reply
from inference.demo.reviews import NEGATIVE, NEUTRAL, POSITIVE, draw_review

Split = Literal["train", "heldout"]
Task = Literal["sentiment", "chat"]

CORPUS_VERSION: Final = 1
END_TOKEN: Final = "<|end|>"  # noqa: S105 - a vocabulary entry, not a secret
PAD_TOKEN: Final = "<|pad|>"  # noqa: S105 - a vocabulary entry, not a secret
ANSWER_TOKEN: Final = "<|answer|>"  # noqa: S105 - a vocabulary entry, not a secret
SENTIMENT_TEMPLATE: Final = "<|sentiment|>{text}<|answer|>"
CHAT_TEMPLATE: Final = "<|chat|>{text}<|answer|>"
SPECIAL_TOKENS: Final = (PAD_TOKEN, END_TOKEN, "<|sentiment|>", "<|chat|>", ANSWER_TOKEN)

# One text in ten is held out, chosen by its hash. Texts of fewer words than this are always
# training texts: "hello" has no unseen variant that would make holding it out meaningful.
_HELDOUT_BYTE_LIMIT: Final = 26
_MIN_HELDOUT_WORDS: Final = 4


@dataclass(frozen=True, slots=True)
class Example:
    """One text of a task and the answer the model is trained to give for it."""

    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class GoldenPrompt:
    """A fixed prompt whose exact greedy answer shows that a served model is intact."""

    task: Task
    text: str
    expected: str


def split_of(text: str) -> Split:
    """Tell the split a text belongs to, from a hash of its words.

    Letter case and punctuation do not count, so a held-out text never appears in training under
    another spelling.
    """
    words = re.findall(r"\w+", text.lower())
    if len(words) < _MIN_HELDOUT_WORDS:
        return "train"
    digest = hashlib.sha256(" ".join(words).encode()).digest()
    return "heldout" if digest[0] < _HELDOUT_BYTE_LIMIT else "train"


def _draw(
    make: Callable[[random.Random], tuple[str, str]], n: int, seed: int, split: Split, name: str
) -> list[Example]:
    """Draw ``n`` examples of one split by rejection; repeated texts are possible."""
    if n < 0:
        raise ValueError(f"the number of examples must not be negative, got {n}")
    if split not in ("train", "heldout"):
        raise ValueError(f"unknown split {split!r}, expected 'train' or 'heldout'")
    rng = random.Random(f"{name}/{CORPUS_VERSION}/{seed}/{split}")  # noqa: S311 - text, no secret
    examples: list[Example] = []
    while len(examples) < n:
        example = Example(*make(rng))
        if split_of(example.text) == split:
            examples.append(example)
    return examples


def sentiment_prompt(text: str) -> str:
    """Wrap a text in the prompt that asks for its sentiment."""
    return SENTIMENT_TEMPLATE.format(text=text)


def sentiment_examples(n: int, seed: int, split: Split) -> list[Example]:
    """Draw ``n`` reviews with their label; the same arguments always give the same list.

    Raises ValueError for a negative ``n`` or an unknown split.
    """
    return _draw(draw_review, n, seed, split, "sentiment")


def chat_prompt(text: str) -> str:
    """Wrap a user's text in the prompt that asks for a reply."""
    return CHAT_TEMPLATE.format(text=text)


def chat_examples(n: int, seed: int, split: Split) -> list[Example]:
    """Draw ``n`` questions with their reply; the same arguments always give the same list.

    Raises ValueError for a negative ``n`` or an unknown split.
    """
    return _draw(draw_question, n, seed, split, "chat")


def golden_prompts() -> tuple[GoldenPrompt, ...]:
    """Give the prompts whose exact answer health canaries compare."""
    topics = {topic.name: topic for topic in TOPICS}
    updates = next(intent for intent in SUPPORT if "how do I update my {p}?" in intent.questions)
    return (
        GoldenPrompt("sentiment", "The keyboard is excellent.", POSITIVE),
        GoldenPrompt("sentiment", "The delivery was not bad.", POSITIVE),
        GoldenPrompt(
            "sentiment", "The screen looks great, but the battery life is terrible.", NEGATIVE
        ),
        GoldenPrompt("sentiment", "The parcel with the laptop arrived on Tuesday.", NEUTRAL),
        GoldenPrompt(
            "chat",
            "What causes thermal throttling on GPU 3?",
            topic_reply(topics["thermal throttling"], "why", "on GPU 3"),
        ),
        GoldenPrompt(
            "chat",
            "How do I fix out of memory errors in the chatbot service?",
            topic_reply(topics["out of memory errors"], "fix", "in the chatbot service"),
        ),
        GoldenPrompt("chat", "How do I update my printer?", updates.reply.format(p="printer")),
        GoldenPrompt("chat", "What is the capital of France?", FALLBACK_REPLY),
    )


def corpus_sha256(seed: int) -> str:
    """Hash a sample of both tasks and splits, in hexadecimal: the identity of the corpus."""
    digest = hashlib.sha256()
    splits: tuple[Split, ...] = ("train", "heldout")
    for split in splits:
        for draw in (sentiment_examples, chat_examples):
            for example in draw(1000, seed, split):
                digest.update(f"{split}\t{example.text}\t{example.answer}\n".encode())
    return digest.hexdigest()
