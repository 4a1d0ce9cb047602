"""What a batch costs, as measured, and how long it pays to wait for company.

A call of an engine costs a fixed part and a part for each row. Computing ``n`` rows now instead of
``m`` rows a little later spends the fixed part more often: that is what a wait may cost at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Weight of the newest batch of a size; about the last ten count.
_SMOOTHING = 0.2
# Below this, waiting costs more than it can bring: the event loop's timers count milliseconds.
_LEAST_FIXED_SECONDS = 0.001
_TIMER_SECONDS = 0.001


class BatchCost:
    """Seconds of a batch as a function of its rows, from the batches that were computed.

    Batches are smoothed by size, in powers of two; the line through the smallest and the largest
    size gives the fixed part and the part per row. One size alone gives no fixed part, which is then
    taken to be 0: nothing is held back without evidence.
    """

    def __init__(self) -> None:
        self._sizes: dict[int, tuple[float, float]] = {}
        self.fixed_seconds = 0.0
        self.row_seconds = 0.0

    @property
    def known(self) -> bool:
        """Whether a batch was measured."""
        return bool(self._sizes)

    def observe(self, rows: int, seconds: float) -> None:
        """Take a computed batch."""
        size = rows.bit_length()
        before = self._sizes.get(size)
        if before is None:
            self._sizes[size] = (float(rows), seconds)
        else:
            mean_rows, mean_seconds = before
            self._sizes[size] = (
                mean_rows + _SMOOTHING * (rows - mean_rows),
                mean_seconds + _SMOOTHING * (seconds - mean_seconds),
            )
        self._fit()

    def seconds(self, rows: int) -> float:
        """Return what a batch is expected to take; 0 while nothing is known."""
        return self.fixed_seconds + self.row_seconds * rows

    def _fit(self) -> None:
        few_rows, few_seconds = self._sizes[min(self._sizes)]
        many_rows, many_seconds = self._sizes[max(self._sizes)]
        if many_rows > few_rows and many_seconds > few_seconds:
            self.row_seconds = (many_seconds - few_seconds) / (many_rows - few_rows)
        else:
            self.row_seconds = many_seconds / many_rows
        self.fixed_seconds = max(0.0, few_seconds - self.row_seconds * few_rows)


@dataclass(frozen=True, slots=True)
class WaitingRows:
    """What waits for a batch; times are CLOCK_MONOTONIC seconds."""

    rows: int
    newest_at: float
    oldest_at: float
    deadline: float
    """The earliest."""


class HoldPolicy:
    """Decides how long an idle engine waits for a fuller batch.

    Clients that were just answered are likely to ask again: as many rows as the last batch had,
    and as waited when it ended, are expected. While fewer are there, waiting is worth at most the
    fixed cost that the missing rows would spend again, counted from the newest arrival, as with
    any rent-or-buy choice. Sparse traffic, whose last batch was one row, never waits; nor does a
    model whose fixed cost is below the resolution of timers.

    Args:
        cost: The engine's measured cost.
        max_wait_seconds: Longest wait of the oldest row, whatever the cost says.
    """

    def __init__(self, cost: BatchCost, max_wait_seconds: float) -> None:
        self._cost = cost
        self._max_wait_seconds = max_wait_seconds
        self._expected_rows = 0
        self._expected_until = -math.inf

    def ended(self, rows: int, waiting: int, now: float) -> None:
        """Take note of a batch that ended, and of the rows that waited then."""
        self._expected_rows = rows + waiting
        self._expected_until = now + self._max_wait_seconds

    def hold_until(self, waiting: WaitingRows, limit: int, now: float) -> float:
        """Return until when to wait for a batch of ``limit`` rows; ``now`` means not at all."""
        rows = waiting.rows
        fixed = self._cost.fixed_seconds
        expected = min(limit, self._expected_rows) if now < self._expected_until else 0
        if rows >= expected or fixed < _LEAST_FIXED_SECONDS:
            return now
        worth = max(_TIMER_SECONDS, fixed * (expected - rows) / rows)
        # Leave twice the expected time: the estimate is a mean.
        latest = waiting.deadline - 2.0 * self._cost.seconds(expected)
        return min(waiting.newest_at + worth, waiting.oldest_at + self._max_wait_seconds, latest)
