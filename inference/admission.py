"""Admission: a bounded queue, a rate limit, and an honest answer to who cannot be served in time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from inference.errors import OverloadedError
from inference.estimates import DrainRate
from inference.rates import retry_after
from inference.requests import Ticket

_CANARY_LANE = 4


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
        self.drain_rate = DrainRate(clock)

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
