"""Rates: token buckets, many of them in bounded memory, and when to come back."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Hashable

RETRY_AFTER_LIMIT_SECONDS = 30.0
_RETRY_AFTER_SPREAD = 0.5


class TokenBucket:
    """A rate limit with a burst of one second's worth, at least one request."""

    def __init__(self, rate: float | None, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.set_rate(rate)

    def set_rate(self, rate: float | None) -> None:
        """Change the limit; None lifts it."""
        self.rate = rate
        self._tokens = max(1.0, rate or 0.0)
        self._updated_at = self._clock()

    def take(self) -> float:
        """Take a token and return 0, or return how many seconds there will be none."""
        if self.rate is None:
            return 0.0
        now = self._clock()
        burst = max(1.0, self.rate)
        self._tokens = min(burst, self._tokens + (now - self._updated_at) * self.rate)
        self._updated_at = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self.rate


class KeyedBuckets:
    """A bucket of the same rate for each client, for the clients that were seen last.

    A client that is forgotten begins with a full bucket: memory is bounded before fairness.
    """

    def __init__(self, rate: float, most: int, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._most = most
        self._clock = clock
        self._buckets: OrderedDict[Hashable, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, client: Hashable) -> float:
        """Take a token of a client and return 0, or return how many seconds it will have none."""
        bucket = self._buckets.get(client)
        if bucket is None:
            if len(self._buckets) >= self._most:
                self._buckets.popitem(last=False)
            bucket = self._buckets[client] = TokenBucket(self._rate, self._clock)
        else:
            self._buckets.move_to_end(client)
        return bucket.take()


def retry_after(wait_seconds: float | None, chance: Callable[[], float] = random.random) -> float:
    """Return the seconds to name in ``Retry-After``: at least 1, at most 30, then up to half more.

    The part that is left to chance keeps those who were refused together from coming back together.
    """
    seconds = min(RETRY_AFTER_LIMIT_SECONDS, max(1.0, wait_seconds or 0.0))
    return seconds * (1.0 + _RETRY_AFTER_SPREAD * chance())
