"""Local wall-clock time of a zone, so that a day's shape follows people through daylight saving.

Nine in the morning stays nine in the morning when the clocks change: phases of a day or a week are
taken by local time. Periods that are no multiple of a day belong to machines, and stay in UTC.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache, lru_cache
from zoneinfo import ZoneInfo

import numpy as np

from analysis.detection.contract import FloatArray
from analysis.detection.zones import UTC, known_zone

_QUARTER_SECONDS = 900
"""Offsets change at whole quarters of an hour in every zone of the present rules."""
_KEPT_QUARTERS = 8192
"""Quarters whose offsets are remembered, for each zone: twelve weeks of history."""


class WallClock:
    """Turns seconds since the epoch into seconds that a clock on the wall shows."""

    def __init__(self, name: str = UTC) -> None:
        self._zone = ZoneInfo(known_zone(name))
        self._of_quarter = lru_cache(maxsize=_KEPT_QUARTERS)(self._look_up)

    def offset(self, time_seconds: float) -> float:
        """Return how far the wall is ahead of UTC at a time, in seconds."""
        return self._of_quarter(int(time_seconds // _QUARTER_SECONDS))

    def local(self, times: FloatArray) -> FloatArray:
        """Return wall-clock seconds ``[n]``; an hour that clocks repeat is there twice."""
        if not len(times):
            return times
        quarters, place = np.unique(times // _QUARTER_SECONDS, return_inverse=True)
        offsets = np.array([self._of_quarter(int(quarter)) for quarter in quarters])
        return np.asarray(times + offsets[place])

    def _look_up(self, quarter: int) -> float:
        moment = datetime.fromtimestamp(quarter * _QUARTER_SECONDS, self._zone)
        ahead = moment.utcoffset()
        return 0.0 if ahead is None else ahead.total_seconds()


@cache
def wall_clock(name: str) -> WallClock:
    """Return the one clock of a zone."""
    return WallClock(name)
