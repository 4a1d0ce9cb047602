"""The counters of one target over its scrapes: increases of thousands of them in one step."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Increases(NamedTuple):
    """How much counters grew, by their place, over a span of time."""

    values: Sequence[float]
    seconds: float


class CounterHistory:
    """Increases of the counters of one target, kept by place.

    The same rules as :class:`CounterWindow`, for thousands of targets: rows of numbers instead of
    dictionaries. A counter that falls has restarted and grew by its new value; one that a scrape lacks
    keeps its last value. A counter that was not there before counts from zero where ``from_zero`` says
    that it began then, else from its first value.

    Args:
        keep_seconds: how far back increases can be asked for.
    """

    def __init__(self, *, keep_seconds: float) -> None:
        if keep_seconds <= 0:
            raise ValueError(f"keep_seconds must be positive, got {keep_seconds}")
        self._keep_seconds = keep_seconds
        self._last = np.empty(0)
        self._times: deque[float] = deque()
        self._totals: deque[NDArray[np.float64]] = deque()

    def resize(self, origins: Sequence[int | None], from_zero: Sequence[bool]) -> None:
        """Give places anew.

        Args:
            origins: for each new place the old place of the same counter, None for a new one.
            from_zero: for each new place whether a new counter began at zero.
        """
        old = np.array([-1 if origin is None else origin for origin in origins], dtype=np.intp)
        kept = old >= 0
        last = np.where(np.array(from_zero, dtype=bool), 0.0, np.nan)
        last[kept] = self._last[old[kept]]
        self._last = last
        for index, totals in enumerate(self._totals):
            moved = np.zeros(len(old))
            moved[kept] = totals[old[kept]]
            self._totals[index] = moved

    def add(self, time_seconds: float, values: Sequence[float]) -> bool:
        """Take one scrape; a value is NaN where it is absent.

        Returns:
            False when time did not go forward: what was known is forgotten, and rates start anew.
        """
        raw = np.array(values, dtype=np.float64)
        forward = not self._times or time_seconds > self._times[-1]
        if not forward:
            self._times.clear()
            self._totals.clear()
        if not self._times:
            self._last = raw
            totals = np.zeros(len(raw))
        else:
            grown = np.where(raw < self._last, raw, raw - self._last)
            totals = self._totals[-1] + np.nan_to_num(grown, nan=0.0, posinf=0.0, neginf=0.0)
            self._last = np.where(np.isnan(raw), self._last, raw)
        self._times.append(time_seconds)
        self._totals.append(totals)
        # One scrape older than the window stays: it is the left edge of the increase.
        while len(self._times) > 2 and self._times[1] <= time_seconds - self._keep_seconds:
            self._times.popleft()
            self._totals.popleft()
        return forward

    def step(self) -> Increases | None:
        """Return the increases since the scrape before, or None while there is none."""
        return self._since(-2) if len(self._times) > 1 else None

    def window(self) -> Increases | None:
        """Return the increases over ``keep_seconds``, or since the first scrape while that is later."""
        return self._since(0) if len(self._times) > 1 else None

    def _since(self, edge: int) -> Increases:
        return Increases(
            (self._totals[-1] - self._totals[edge]).tolist(), self._times[-1] - self._times[edge]
        )
