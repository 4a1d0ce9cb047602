"""Admission: a bounded queue, a rate limit, and an honest answer to who cannot be served in time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from inference.errors import OverloadedError
from inference.requests import Ticket

RETRY_AFTER_LIMIT_SECONDS = 30.0
# Weight of the newest service time; about the last twenty requests count.
_SMOOTHING = 0.1
_CANARY_LANE = 4


class DrainRate:
    """How many requests per second the engine finishes when it has enough to do.

    Slots over the smoothed time that a request holds one (Little's law), so that it is right under
    low load too, where counting completions would only measure the traffic.
    """

    def __init__(self) -> None:
        self._service_seconds: float | None = None

    def observe(self, service_seconds: float) -> None:
        """Take the time that a finished request held its slot."""
        if self._service_seconds is None:
            self._service_seconds = service_seconds
        else:
            self._service_seconds += _SMOOTHING * (service_seconds - self._service_seconds)

    def wait_seconds(self, ahead: int, slots: int) -> float | None:
        """Return how long a request with this many ahead of it waits; None while unknown."""
        if self._service_seconds is None:
            return None
        return ahead * self._service_seconds / slots


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


class AdmissionQueue:
    """Waiting requests of one model: users in order, canaries ahead of them in a lane of their own.

    The lane keeps a full queue from failing health checks, and its bound keeps canaries from
    becoming a way around admission.
    """

    def __init__(self, max_queue: int, clock: Callable[[], float]) -> None:
        self.max_queue = max_queue
        self._clock = clock
        self._users: deque[Ticket] = deque()
        self._canaries: deque[Ticket] = deque()
        self.drain_rate = DrainRate()

    @property
    def depth(self) -> int:
        """User requests that wait."""
        return len(self._users)

    def admit(self, ticket: Ticket, running: int, slots: int) -> None:
        """Put a ticket into the queue.

        Raises:
            OverloadedError: the queue is full, or the deadline would pass while waiting; with the
                time after which there should be room.
        """
        if ticket.request.canary:
            if len(self._canaries) >= _CANARY_LANE:
                raise OverloadedError("too many canary requests wait", retry_after_seconds=1.0)
            self._canaries.append(ticket)
            return
        ahead = self.depth + max(0, running - slots + 1)
        wait = self.drain_rate.wait_seconds(ahead, slots)
        if self.depth >= self.max_queue:
            raise OverloadedError(
                f"the queue is full ({self.max_queue} requests wait)",
                retry_after_seconds=retry_after(wait),
            )
        remaining = ticket.request.deadline - self._clock()
        if wait is not None and self.depth > 0 and wait > remaining:
            raise OverloadedError(
                f"the wait of about {wait:.2f} s is longer than the deadline allows",
                reason="deadline_unreachable",
                retry_after_seconds=retry_after(wait),
            )
        self._users.append(ticket)

    def requeue(self, ticket: Ticket) -> None:
        """Put back a ticket that was already admitted, ahead of the others."""
        lane = self._canaries if ticket.request.canary else self._users
        lane.appendleft(ticket)

    def pop(self) -> Ticket | None:
        """Take the next ticket."""
        if self._canaries:
            return self._canaries.popleft()
        return self._users.popleft() if self._users else None

    def remove(self, ticket: Ticket) -> bool:
        """Take out a ticket that expired or was cancelled; say whether it was waiting."""
        lane = self._canaries if ticket.request.canary else self._users
        try:
            lane.remove(ticket)
        except ValueError:
            return False
        return True


def retry_after(wait_seconds: float | None) -> float:
    """Return whole seconds for ``Retry-After``, at least 1."""
    if wait_seconds is None:
        return 1.0
    return float(min(RETRY_AFTER_LIMIT_SECONDS, max(1, math.ceil(wait_seconds))))
