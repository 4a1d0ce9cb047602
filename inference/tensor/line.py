"""The rows that wait for a batch of one tensor model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from inference.errors import OverloadedError
from inference.queueing import PriorityQueue
from inference.rates import retry_after
from inference.tensor.costs import BatchCost
from inference.tensor.requests import TensorTicket

_CANARY_LANE = 4
# Requests of other shapes that may be passed over to fill a batch.
_MOST_PASSED_OVER = 256


class TensorLine:
    """Bounded by requests and by time: what would wait too long is refused at once.

    Canaries are ahead of users in a lane of their own, so that a full line fails no health check,
    and the lane's bound keeps them from becoming a way around admission.

    Args:
        max_queue: Requests that may wait; the hard bound.
        max_wait_seconds: Longest expected wait. A line that is longer than this only makes
            everybody late: the engine is no faster for it.
        ageing_seconds: See `PriorityQueue`.
        cost: The engine's measured cost.
        chance: See `retry_after`.
    """

    def __init__(
        self,
        max_queue: int,
        max_wait_seconds: float,
        ageing_seconds: float,
        cost: BatchCost,
        chance: Callable[[], float],
    ) -> None:
        self.max_queue = max_queue
        self._max_wait_seconds = max_wait_seconds
        self._cost = cost
        self._chance = chance
        self._users: PriorityQueue[TensorTicket] = PriorityQueue(ageing_seconds)
        self._canaries: deque[TensorTicket] = deque()
        self.depth = 0
        """User requests that wait."""
        self.rows = 0
        """Rows that wait, canaries included."""

    def __iter__(self) -> Iterator[TensorTicket]:
        yield from self._canaries
        yield from self._users

    def __len__(self) -> int:
        return self.depth + len(self._canaries)

    def admit(self, ticket: TensorTicket, running_rows: int, limit: int, now: float) -> None:
        """Put a ticket into the line.

        Raises:
            OverloadedError: there is no room, or not enough time; with the time after which there
                should be.
        """
        if ticket.canary:
            if len(self._canaries) >= _CANARY_LANE:
                raise OverloadedError("too many canary requests wait", retry_after_seconds=1.0)
            self._canaries.append(ticket)
        else:
            if self.depth:
                self._check_room(ticket, running_rows, limit, now)
            self._users.push(ticket)
            self.depth += 1
        self.rows += ticket.rows

    def requeue(self, ticket: TensorTicket) -> None:
        """Put back a ticket that was already admitted, ahead of its equals."""
        self.rows += ticket.rows
        if ticket.canary:
            self._canaries.appendleft(ticket)
        else:
            self._users.push_front(ticket)
            self.depth += 1

    def pop(self) -> TensorTicket | None:
        """Take the next ticket."""
        if not self._canaries:
            return self._pop_user()
        ticket = self._canaries.popleft()
        self.rows -= ticket.rows
        return ticket

    def _pop_user(self) -> TensorTicket | None:
        ticket = self._users.pop()
        if ticket is not None:
            self.depth -= 1
            self.rows -= ticket.rows
        return ticket

    def remove(self, ticket: TensorTicket) -> bool:
        """Take out a ticket that expired or was cancelled; say whether it was waiting."""
        if ticket.canary:
            try:
                self._canaries.remove(ticket)
            except ValueError:
                return False
        elif self._users.remove(ticket):
            self.depth -= 1
        else:
            return False
        self.rows -= ticket.rows
        return True

    def take(self, limit: int) -> list[TensorTicket]:
        """Take the tickets of the next batch: in turn, of the shapes of the first, up to a limit."""
        first = self.pop()
        if first is None:
            return []
        batch, rows = [first], first.rows
        passed: list[TensorTicket] = []
        while rows < limit and len(passed) < _MOST_PASSED_OVER:
            ticket = self.pop()
            if ticket is None:
                break
            if rows + ticket.rows > limit:
                passed.append(ticket)
                break  # it is its turn: nobody smaller may keep it waiting for ever
            if ticket.shapes != first.shapes:
                passed.append(ticket)
                continue
            batch.append(ticket)
            rows += ticket.rows
        for ticket in reversed(passed):
            self.requeue(ticket)
        return batch

    def _check_room(self, ticket: TensorTicket, running_rows: int, limit: int, now: float) -> None:
        wait = (self.rows + running_rows) / limit * self._cost.seconds(limit)
        if self.depth >= self.max_queue:
            message, reason = f"the queue is full ({self.max_queue} requests wait)", "queue_full"
        elif wait > self._max_wait_seconds:
            message = f"the wait of about {wait:.2f} s is longer than {self._max_wait_seconds:g} s"
            reason = "queue_full"
        elif now + wait > ticket.deadline:
            message = f"the wait of about {wait:.2f} s is longer than the deadline allows"
            reason = "deadline_unreachable"
        else:
            return
        raise OverloadedError(
            message, reason=reason, retry_after_seconds=retry_after(wait, self._chance)
        )
