"""A circuit breaker: stop asking an engine that fails most of the time, and find out when it is back.

::

    closed --(enough requests in the window, too many failed)--> open
    open --(its time has passed)--> half open
    half open --(the one probe is answered)--> closed
    half open --(the one probe fails)--> open, for twice the time

Failures are counted as a share over a sliding window with a least volume: two failures in a row say
nothing at a thousand requests a second, and everything at one a minute. Canaries pass in every
state, and one that is asked while the breaker is half open is the probe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

_BUCKETS = 10
_LONGEST_OPEN_FACTOR = 8


class BreakerState(StrEnum):
    """The label ``state`` of ``circuit_breaker_state``."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Permit(StrEnum):
    """What the breaker says to a request."""

    PASS = "pass"  # noqa: S105 - not a password
    PROBE = "probe"
    """It is the one request that finds out; its outcome must be recorded, whatever it is."""
    REFUSED = "refused"


class Outcome(StrEnum):
    """How a request that was let through ended."""

    SUCCESS = "success"
    FAILURE = "failure"
    """Of the engine; not the client's mistake, and not a lack of room or time."""
    UNKNOWN = "unknown"
    """It never tried the engine, or its client left."""


@dataclass(frozen=True, slots=True)
class BreakerOptions:
    """What may be chosen."""

    window_seconds: float = 10.0
    least_requests: int = 10
    """In the window; fewer are no evidence."""
    failure_share: float = 0.5
    """From this share of failures on the breaker opens."""
    open_seconds: float = 2.0
    """Doubled by each probe that fails, up to eight times."""


@dataclass(slots=True)
class _Bucket:
    begun_at: float
    successes: int = 0
    failures: int = 0


class CircuitBreaker:
    """The breaker of one model; belongs to one thread.

    Args:
        options: See there.
        clock: Seconds, monotonic.
        on_change: Told the old state, the new one, and why.
    """

    def __init__(
        self,
        options: BreakerOptions,
        clock: Callable[[], float],
        on_change: Callable[[BreakerState, BreakerState, str], None] = lambda *_: None,
    ) -> None:
        self._options = options
        self._clock = clock
        self._on_change = on_change
        self._state = BreakerState.CLOSED
        self._buckets: deque[_Bucket] = deque()
        self._probing = False
        self._open_until = 0.0
        self._failed_probes = 0
        self.opened = 0
        """How often it has opened so far."""

    @property
    def state(self) -> BreakerState:
        """The state now; an open breaker becomes half open by the passing of time."""
        if self._state is BreakerState.OPEN and self._clock() >= self._open_until:
            self._move(BreakerState.HALF_OPEN, "its time has passed")
        return self._state

    @property
    def closed(self) -> bool:
        """Whether everybody passes."""
        return self._state is BreakerState.CLOSED

    @property
    def retry_after_seconds(self) -> float:
        """How long it will certainly refuse."""
        if self._state is BreakerState.CLOSED:
            return 0.0
        return max(0.0, self._open_until - self._clock())

    @property
    def refusing(self) -> bool:
        """Whether `ask` would refuse; asking this takes no probe."""
        if self._state is BreakerState.CLOSED:
            return False
        return self.state is BreakerState.OPEN or self._probing

    def ask(self) -> Permit:
        """Let a request pass, make it the probe, or refuse it."""
        if self._state is BreakerState.CLOSED:
            return Permit.PASS
        if self.state is BreakerState.OPEN or self._probing:
            return Permit.REFUSED
        self._probing = True
        return Permit.PROBE

    def record(self, permit: Permit, outcome: Outcome) -> None:
        """Take the outcome of a request that was let through.

        Outcomes of requests from before the breaker opened come late and change nothing.
        """
        if permit is Permit.PROBE and self._probing:
            self._probing = False
            if outcome is Outcome.SUCCESS:
                self._failed_probes = 0
                self._buckets.clear()
                self._move(BreakerState.CLOSED, "the probe was answered")
            elif outcome is Outcome.FAILURE:
                self._failed_probes += 1
                self._open("the probe failed")
        elif self._state is BreakerState.CLOSED and outcome is not Outcome.UNKNOWN:
            self._count(outcome)

    def counts(self) -> tuple[int, int]:
        """Return successes and failures inside the window."""
        horizon = self._clock() - self._options.window_seconds
        while self._buckets and self._buckets[0].begun_at <= horizon:
            self._buckets.popleft()
        successes = sum(bucket.successes for bucket in self._buckets)
        return successes, sum(bucket.failures for bucket in self._buckets)

    def _count(self, outcome: Outcome) -> None:
        now = self._clock()
        width = self._options.window_seconds / _BUCKETS
        if not self._buckets or now - self._buckets[-1].begun_at >= width:
            self._buckets.append(_Bucket(now))
        if outcome is Outcome.SUCCESS:
            self._buckets[-1].successes += 1
            return
        self._buckets[-1].failures += 1
        successes, failures = self.counts()
        total = successes + failures
        options = self._options
        if total >= options.least_requests and failures >= options.failure_share * total:
            self._open(f"{failures} of {total} requests failed in {options.window_seconds:g} s")

    def _open(self, reason: str) -> None:
        factor = min(2**self._failed_probes, _LONGEST_OPEN_FACTOR)
        self._open_until = self._clock() + self._options.open_seconds * factor
        self._buckets.clear()
        self.opened += 1
        self._move(BreakerState.OPEN, reason)

    def _move(self, state: BreakerState, reason: str) -> None:
        before, self._state = self._state, state
        if before is not state:
            self._on_change(before, state, reason)
