"""Measures of one series' alerts against labelled events: found, how late, how often in vain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.labelled.measures import segments

GRACE_ROWS = 7
"""An event shorter than this may still be told after it, as in the AIOps 2018 challenge."""
_DAY_SECONDS = 86_400.0


@dataclass(frozen=True)
class EventQuality:
    """What the alerts of one series were worth."""

    events: int
    found: int
    delays_seconds: tuple[float, ...]
    false_alarms: int
    days: float

    @property
    def false_per_day(self) -> float:
        return self.false_alarms / self.days

    @property
    def recall(self) -> float:
        return self.found / self.events if self.events else float("nan")


def judge_events(
    times: NDArray[np.float64], labels: NDArray[np.bool_], alerts: NDArray[np.bool_]
) -> EventQuality:
    """Judge alerts row by row.

    An event is found by an alert from its first row to its last, or to ``GRACE_ROWS`` after its first;
    every alert at another row is a false alarm. An alert before an event does not find it.
    """
    rows = np.flatnonzero(alerts)
    right = np.zeros(len(rows), dtype=bool)
    delays = []
    events = segments(labels)
    for start, end in events:
        within = (rows >= start) & (rows < max(end, start + GRACE_ROWS + 1))
        if within.any():
            delays.append(float(times[rows[within][0]] - times[start]))
        right |= within
    days = float(times[-1] - times[0]) / _DAY_SECONDS
    return EventQuality(len(events), len(delays), tuple(delays), int((~right).sum()), days)
