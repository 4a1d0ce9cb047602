"""What is known about time: how long requests hold the engine, and how long one more will.

Estimates are used to refuse what cannot finish, so a wrong one must not be able to keep itself
alive by refusing everything that would correct it: one that has not been confirmed for
``STALE_SECONDS`` counts as unknown. Canaries confirm them also when every user is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable

# Weight of the newest value while many come (about the last twenty count); one that comes after a
# pause weighs more, so that a few canaries are enough to forget a slow phase.
_SMOOTHING = 0.1
_MEMORY_SECONDS = 3.0
STALE_SECONDS = 5.0
# Tasks whose length is remembered; the names come from model.toml, so there are a few.
_MOST_TASKS = 64


class Smoothed:
    """An exponentially smoothed mean; None before the first value."""

    __slots__ = ("_observed_at", "value")

    def __init__(self) -> None:
        self.value: float | None = None
        self._observed_at = 0.0

    def observe(self, value: float, now: float) -> None:
        """Take a value."""
        if self.value is None:
            self.value = value
        else:
            pause = max(0.0, now - self._observed_at)
            weight = max(_SMOOTHING, 1.0 - math.exp(-pause / _MEMORY_SECONDS))
            self.value += weight * (value - self.value)
        self._observed_at = now


class DrainRate:
    """How many requests per second the engine finishes when it has enough to do.

    Slots over the smoothed time that a request holds one (Little's law), so that it is right under
    low load too, where counting completions would only measure the traffic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._service = Smoothed()
        self._observed_at = clock()

    def observe(self, service_seconds: float) -> None:
        """Take the time that a finished request held its slot."""
        self._observed_at = self._clock()
        self._service.observe(service_seconds, self._observed_at)

    @property
    def service_seconds(self) -> float | None:
        """The mean time in a slot, however old; None before the first request."""
        return self._service.value

    @property
    def fresh(self) -> bool:
        """Whether a request has finished recently."""
        return (
            self._service.value is not None and self._clock() - self._observed_at <= STALE_SECONDS
        )

    def wait_seconds(self, ahead: int, slots: int) -> float | None:
        """Return how long a request with this many ahead of it waits; None while unknown."""
        if self._service.value is None:
            return None
        return ahead * self._service.value / slots


class GenerationTime:
    """How long an answer of so many tokens takes once it has a slot.

    Time to the first token plus the time per token for the length that answers to this task
    usually have, at most the length that the client asks for.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first_token = Smoothed()
        self._per_token = Smoothed()
        self._tokens: dict[str, Smoothed] = {}

    def observe(
        self, task: str, first_token_seconds: float, rest_seconds: float, tokens: int
    ) -> None:
        """Take an answer: from its slot to the first token, from there to the last, its length."""
        now = self._clock()
        self._first_token.observe(first_token_seconds, now)
        if tokens > 1:
            self._per_token.observe(rest_seconds / (tokens - 1), now)
        if task not in self._tokens and len(self._tokens) >= _MOST_TASKS:
            return
        self._tokens.setdefault(task, Smoothed()).observe(tokens, now)

    def seconds(self, task: str, max_tokens: int) -> float | None:
        """Return the expected time in a slot; None while unknown."""
        first = self._first_token.value
        usual = self._tokens.get(task)
        if first is None or usual is None or usual.value is None:
            return None
        tokens = min(float(max_tokens), usual.value)
        return first + max(0.0, tokens - 1.0) * (self._per_token.value or 0.0)
