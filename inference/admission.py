"""Admission to one model: a bounded line with priorities, and who is refused at once.

Independent of what is asked: language and tensor requests wait in the same kind of line. What must
be cheap is the refusal, because most of the work of an overloaded server is refusing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from inference.errors import DeadlineExceededError, OverloadedError
from inference.estimates import DrainRate
from inference.gradient import GradientLimit, GradientOptions
from inference.queueing import Priority, PriorityQueue
from inference.rates import retry_after

_CANARY_LANE = 4


class Admissible(Protocol):
    """What can ask for a place."""

    enqueued_at: float

    @property
    def priority(self) -> Priority:
        """Its lane."""

    @property
    def canary(self) -> bool:
        """Whether it is a probe, not user load."""

    @property
    def deadline(self) -> float:
        """When it must be answered, on the queue's clock."""


T = TypeVar("T", bound=Admissible)


class AdmissionQueue(Generic[T]):
    """Waiting requests of one model: users by priority, canaries ahead of them in their own lane.

    The lane keeps a full queue from failing health checks, and its bound keeps canaries from
    becoming a way around admission.

    Args:
        max_queue: Users that may wait; the hard bound.
        slots: Requests that the engine works on together.
        clock: Seconds, monotonic.
        ageing_seconds: How much longer each lower priority waits at most before it is equal.
        gradient: Of the adaptive limit; None is no adaptive limit.
    """

    def __init__(
        self,
        max_queue: int,
        slots: int,
        clock: Callable[[], float],
        *,
        ageing_seconds: float = 0.5,
        gradient: GradientOptions | None = None,
    ) -> None:
        self._clock = clock
        self._max_queue = max_queue
        self._slots = slots
        self._users: PriorityQueue[T] = PriorityQueue(ageing_seconds)
        self._canaries: deque[T] = deque()
        self.drain_rate = DrainRate(clock)
        self.gradient: GradientLimit | None = None
        """The adaptive limit, if there is one."""
        if gradient is not None:
            self.gradient = GradientLimit(2 * slots, max_queue + slots, clock, gradient)

    @property
    def depth(self) -> int:
        """User requests that wait."""
        return len(self._users)

    @property
    def max_queue(self) -> int:
        """How many users may wait; who waits already stays when it changes."""
        return self._max_queue

    @max_queue.setter
    def max_queue(self, max_queue: int) -> None:
        self._set_bounds(max_queue, self._slots)

    @property
    def slots(self) -> int:
        """How many requests the engine works on together."""
        return self._slots

    @slots.setter
    def slots(self, slots: int) -> None:
        self._set_bounds(self._max_queue, slots)

    @property
    def limit(self) -> int:
        """How many may be in the building now, waiting and running."""
        ceiling = self._max_queue + self._slots
        return ceiling if self.gradient is None else self.gradient.limit

    def _set_bounds(self, max_queue: int, slots: int) -> None:
        self._max_queue, self._slots = max_queue, slots
        if self.gradient is not None:
            self.gradient.set_bounds(2 * slots, max_queue + slots)

    def admit(
        self,
        ticket: T,
        running: int,
        service_seconds: float | None = None,
        soonest_seconds: float | None = None,
    ) -> T | None:
        """Put a ticket into the line; return the one that had to leave for it, if any.

        Args:
            ticket: Who asks.
            running: Requests that hold a slot.
            service_seconds: How long this one will probably hold a slot; None while unknown.
            soonest_seconds: How long it takes at least; None while unknown.

        Raises:
            OverloadedError: there is no room, or not enough time after the wait; with the time
                after which there should be.
            DeadlineExceededError: the deadline is too short for any answer.
        """
        if ticket.canary:
            if len(self._canaries) >= _CANARY_LANE:
                raise OverloadedError("too many canary requests wait", retry_after_seconds=1.0)
            self._canaries.append(ticket)
            return None
        ahead = self._users.ahead_of(ticket.priority) + max(0, running - self._slots + 1)
        wait = self.drain_rate.wait_seconds(ahead, self._slots)
        if wait is not None and self.drain_rate.fresh:
            self._check_time(ticket, wait, service_seconds or 0.0, soonest_seconds or 0.0)
        leaves = self._make_room(ticket, running, wait)
        self._users.push(ticket)
        return leaves

    def finished(self, service_seconds: float, running: int) -> None:
        """Take the time that a request held its slot, and how many still hold one."""
        self.drain_rate.observe(service_seconds)
        if self.gradient is not None:
            self.gradient.observe(service_seconds, self.depth, running)

    def requeue(self, ticket: T) -> None:
        """Put back a ticket that was already admitted, ahead of its equals."""
        if ticket.canary:
            self._canaries.appendleft(ticket)
        else:
            self._users.push_front(ticket)

    def pop(self) -> T | None:
        """Take the next ticket."""
        return self._canaries.popleft() if self._canaries else self._users.pop()

    def remove(self, ticket: T) -> bool:
        """Take out a ticket that expired or was cancelled; say whether it was waiting."""
        if not ticket.canary:
            return self._users.remove(ticket)
        try:
            self._canaries.remove(ticket)
        except ValueError:
            return False
        return True

    def _check_time(self, ticket: T, wait: float, service: float, soonest: float) -> None:
        """Refuse what cannot finish in time.

        Where nobody waits, one is let through unless any answer at all would be too late: real work
        corrects an estimate that has become wrong, and shows everybody how slow the engine is.
        """
        remaining = ticket.deadline - self._clock()
        if soonest > remaining:
            raise DeadlineExceededError(
                f"an answer takes {soonest:.2f} s at least; the deadline leaves {remaining:.2f} s",
                reason="deadline_unreachable",
            )
        if self.depth > 0 and wait + service > remaining:
            raise OverloadedError(
                f"the wait of about {wait:.2f} s is longer than the deadline allows",
                reason="deadline_unreachable",
                retry_after_seconds=retry_after(wait),
            )

    def _make_room(self, ticket: T, running: int, wait: float | None) -> T | None:
        """Return the ticket that leaves for this one, or None where there is room."""
        if self.depth >= self._max_queue:
            message, reason = f"the queue is full ({self._max_queue} requests wait)", "queue_full"
        elif self.depth > 0 and self.depth + running >= self.limit:
            message, reason = (
                f"{self.limit} requests are all that can be served soon",
                "concurrency",
            )
        else:
            return None
        leaves = self._users.displace(ticket)
        if leaves is None:
            raise OverloadedError(message, reason=reason, retry_after_seconds=retry_after(wait))
        return leaves


def displaced(wait: float | None) -> OverloadedError:
    """Return what a ticket is told that left for a higher priority."""
    return OverloadedError(
        "a request of higher priority took the place in the queue",
        reason="displaced",
        retry_after_seconds=retry_after(wait),
    )
