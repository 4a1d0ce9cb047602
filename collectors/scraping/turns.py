"""When a target has its turn: on a grid of its own, which no delay shifts and no clock change moves."""

from __future__ import annotations

import math


class Turns:
    """The turns of one target. Times are those of a clock that never goes back.

    Turns that have passed while a scrape was running, or while the process was stopped, are left out:
    a target is never asked twice in a row to make up for lost time.

    Args:
        interval_seconds: time between two turns.
        phase: where in the interval the turn is, between 0 and 1.
    """

    def __init__(self, interval_seconds: float, phase: float) -> None:
        if interval_seconds <= 0:
            raise ValueError(f"interval_seconds must be positive, got {interval_seconds}")
        self._interval_seconds = interval_seconds
        self._phase = phase % 1.0
        self._last: int | None = None
        self.missed = 0
        """Turns that were left out since the start."""

    def next_due(self, now_seconds: float) -> float:
        """Return the time of the first turn after now, and count those that were missed."""
        number = math.floor(now_seconds / self._interval_seconds - self._phase) + 1
        if self._last is not None:
            # Rounding, or a clock that stood still, must not give the same turn again.
            number = max(number, self._last + 1)
            self.missed += number - self._last - 1
        self._last = number
        return (number + self._phase) * self._interval_seconds
