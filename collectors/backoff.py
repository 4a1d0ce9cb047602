"""When to ask a failing server again: pauses that double, with jitter, and what the server asks for."""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime

_LONGEST_RETRY_AFTER_SECONDS = 3600.0


class Backoff:
    """The pauses between attempts at one server.

    Args:
        shortest_seconds: the pause after the first failure; each more doubles it.
        longest_seconds: the longest pause, unless the server asks for a longer one.
        monotonic: the clock of the pauses.
        rng: jitter, from half of a pause to the whole, so that clients do not come back together.
    """

    def __init__(
        self,
        shortest_seconds: float,
        longest_seconds: float,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._shortest_seconds = shortest_seconds
        self._longest_seconds = longest_seconds
        self._monotonic = monotonic
        self._rng = rng or random.Random()  # noqa: S311 - jitter, no secret
        self._not_before = -float("inf")
        self.failures = 0

    def wait_seconds(self) -> float:
        """Return how long the pause still lasts; 0 when the server may be asked."""
        return max(0.0, self._not_before - self._monotonic())

    def failed(self, retry_after_seconds: float | None = None) -> float:
        """Begin a pause after a failure and return its length."""
        pause = min(self._longest_seconds, self._shortest_seconds * 2.0 ** min(self.failures, 30))
        pause = max(pause * self._rng.uniform(0.5, 1.0), retry_after_seconds or 0.0)
        self.failures += 1
        self._not_before = self._monotonic() + pause
        return pause

    def succeeded(self) -> None:
        """Forget the failures."""
        self.failures = 0
        self._not_before = -float("inf")


def retry_after_seconds(text: str, now_seconds: float) -> float | None:
    """Read a ``Retry-After`` header, seconds or an HTTP date; None where there is neither.

    An hour is the most that is believed.
    """
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(text)
        except ValueError:
            return None
        # A date whose zone is "-0000" comes without one and means UTC.
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        seconds = (aware - datetime.fromtimestamp(now_seconds, UTC)).total_seconds()
    if not seconds >= 0:
        return None
    return min(seconds, _LONGEST_RETRY_AFTER_SECONDS)
