"""What is known about time: how long requests hold the engine, and how long one more will.

Estimates are used to refuse what cannot finish, so a wrong one must not be able to keep itself
alive by refusing everything that would correct it: one that has not been confirmed for
``STALE_SECONDS`` counts as unknown. Canaries confirm them also when every user is refused.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

STALE_SECONDS = 5.0
_REMEMBERED = 32
# Tasks whose length is remembered; the names come from model.toml, so there are a few.
_MOST_TASKS = 64


class Typical:
    """The mean of the lower three quarters of what was seen lately.

    One stall of the machine is seen by everything that runs at that moment; a plain or smoothed mean
    would then refuse requests that have time enough. What was seen before `STALE_SECONDS` is
    forgotten as soon as there is something newer, so a slow phase is forgotten after a few canaries.
    """

    __slots__ = ("_known", "_seen")

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)
        self._known: float | None = None

    def observe(self, value: float, now: float) -> None:
        """Take a value."""
        self._seen.append((now, value))
        self._known = None
        while self._seen[0][0] < now - STALE_SECONDS:
            self._seen.popleft()

    @property
    def value(self) -> float | None:
        """The typical value; None before the first one."""
        if self._known is None and self._seen:
            values = sorted(value for _, value in self._seen)
            lower = values[: max(1, math.ceil(0.75 * len(values)))]
            self._known = sum(lower) / len(lower)
        return self._known


class DrainRate:
    """How many requests per second the engine finishes when it has enough to do.

    Slots over the typical time that a request holds one (Little's law), so that it is right under
    low load too, where counting completions would only measure the traffic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._service = Typical()
        self._observed_at = clock()

    def observe(self, service_seconds: float) -> None:
        """Take the time that a finished request held its slot."""
        self._observed_at = self._clock()
        self._service.observe(service_seconds, self._observed_at)

    @property
    def service_seconds(self) -> float | None:
        """The typical time in a slot, however old; None before the first request."""
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
        self._first_token = Typical()
        self._per_token = Typical()
        self._tokens: dict[str, Typical] = {}

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
        self._tokens.setdefault(task, Typical()).observe(tokens, now)

    @property
    def soonest_seconds(self) -> float | None:
        """How long any answer takes once it has a slot: to its first token; None while unknown."""
        return self._first_token.value

    def seconds(self, task: str, max_tokens: int) -> float | None:
        """Return the expected time in a slot; None while unknown."""
        first = self._first_token.value
        usual = self._tokens.get(task)
        if first is None or usual is None or usual.value is None:
            return None
        tokens = min(float(max_tokens), usual.value)
        return first + max(0.0, tokens - 1.0) * (self._per_token.value or 0.0)
