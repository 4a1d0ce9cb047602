"""Maintenance windows: times in which series may do what they like, without alarm and without learning.

A window comes from a cron expression and a duration, from one start and end, or from the events of an
iCalendar file. It covers the series whose entity and signal match its patterns.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol
from zoneinfo import ZoneInfo

import icalendar
import numpy as np
import recurring_ical_events
import structlog
from apscheduler.triggers.cron import CronTrigger
from numpy.typing import NDArray

from analysis.detection.settings import MaintenanceWindow
from collectors.contract import SeriesKey

_log = structlog.get_logger(__name__)

_FILE_LOOK_SECONDS = 30.0
"""Time between two looks at a calendar file."""
_MAX_CALENDAR_BYTES = 8 * 1024 * 1024
_UNREAD = (-1, -1)
"""Time and size that no file has."""


class _Times(Protocol):
    """When a window is open."""

    def is_open(self, now_seconds: float) -> bool:
        """Say whether the window is open at a wall-clock time."""


class _Once:
    """From a start to an end."""

    def __init__(self, start: datetime, end: datetime, zone: ZoneInfo) -> None:
        self._start = _aware(start, zone).timestamp()
        self._end = _aware(end, zone).timestamp()

    def is_open(self, now_seconds: float) -> bool:
        return self._start <= now_seconds < self._end


class _Cron:
    """For a duration after each time that a cron expression fires."""

    def __init__(self, expression: str, duration_seconds: float, zone: ZoneInfo) -> None:
        self._trigger = CronTrigger.from_crontab(expression, timezone=zone)
        self._duration = timedelta(seconds=duration_seconds)
        self._from = self._until = -np.inf
        self._answer = False

    def is_open(self, now_seconds: float) -> bool:
        if not self._from <= now_seconds < self._until:
            self._look(now_seconds)
        return self._answer

    def _look(self, now_seconds: float) -> None:
        """Find out whether it is open, and how long that holds."""
        now = datetime.fromtimestamp(now_seconds, UTC)
        # The first one that still matters: strictly within one duration before now, or to come.
        first = self._trigger.get_next_fire_time(
            None, now - self._duration + timedelta(milliseconds=1)
        )
        self._from = now_seconds
        self._answer = first is not None and first <= now
        if first is None:
            self._until = np.inf
        else:
            change = first + self._duration if self._answer else first
            self._until = max(change.timestamp(), now_seconds + 1.0)


class _Calendar:
    """During the events of an iCalendar file, which is read again when it changes.

    While the file cannot be read, the last good one holds; without one the window stays shut, since a
    watch that does not start is worse than an alarm too many.
    """

    def __init__(self, path: Path, zone: ZoneInfo) -> None:
        self._path = path
        self._zone = zone
        self._stamp: tuple[int, int] | None = _UNREAD
        self._query: recurring_ical_events.CalendarQuery | None = None
        self._looked_at = -np.inf
        self._minute = -1
        self._open: list[tuple[float, float]] = []

    def is_open(self, now_seconds: float) -> bool:
        if not 0.0 <= now_seconds - self._looked_at < _FILE_LOOK_SECONDS:
            self._looked_at = now_seconds
            self._read()
        minute = int(now_seconds // 60)
        if minute != self._minute:
            self._minute, self._open = minute, self._events(minute)
        return any(start <= now_seconds < end for start, end in self._open)

    def _events(self, minute: int) -> list[tuple[float, float]]:
        """Return the times of the events that touch a minute."""
        if self._query is None:
            return []
        start = datetime.fromtimestamp(60 * minute, self._zone)
        found = self._query.between(start, start + timedelta(minutes=1))
        return [
            (_moment(event.start, self._zone), _moment(event.end, self._zone)) for event in found
        ]

    def _read(self) -> None:
        """Read the file if it has changed."""
        try:
            status = self._path.stat()
            stamp: tuple[int, int] | None = (status.st_mtime_ns, status.st_size)
        except OSError:
            stamp = None
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            with self._path.open("rb") as file:
                text = file.read(_MAX_CALENDAR_BYTES)
            self._query = recurring_ical_events.of(icalendar.Calendar.from_ical(text))
            self._minute = -1
        except (OSError, ValueError, KeyError, IndexError) as error:
            _log.error(
                "maintenance_calendar_unreadable",
                path=str(self._path),
                error=str(error),
                holds="the last good one" if self._query is not None else "none",
            )


class Maintenance:
    """Says which series are under maintenance; belongs to the loop that ticks.

    Args:
        windows: of the settings, which are valid.
    """

    def __init__(self, windows: Sequence[MaintenanceWindow]) -> None:
        self._windows = tuple(windows)
        self._times = [_times_of(window) for window in self._windows]
        self._masks: list[NDArray[np.bool_]] = [np.empty(0, dtype=bool) for _ in self._windows]
        self._were_open: tuple[str, ...] = ()

    def grow(self, keys: Sequence[SeriesKey]) -> None:
        """Find out which windows cover series that are new."""
        for number, window in enumerate(self._windows):
            covered = np.array([window.covers(*key) for key in keys], dtype=bool)
            self._masks[number] = np.append(self._masks[number], covered)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the series where ``kept`` is false."""
        self._masks = [mask[kept] for mask in self._masks]

    def covered(self, now_seconds: float, count: int) -> NDArray[np.bool_]:
        """Return which of ``count`` series are under maintenance at a time."""
        mask = np.zeros(count, dtype=bool)
        opened = []
        for window, times, own in zip(self._windows, self._times, self._masks, strict=True):
            if times.is_open(now_seconds):
                opened.append(window.name)
                mask |= own[:count]
        self._tell(tuple(opened))
        return mask

    @property
    def open_windows(self) -> tuple[str, ...]:
        """Names of the windows that were open at the last tick."""
        return self._were_open

    def _tell(self, opened: tuple[str, ...]) -> None:
        if opened == self._were_open:
            return
        for name in opened:
            if name not in self._were_open:
                _log.info("maintenance_begins", window=name)
        for name in self._were_open:
            if name not in opened:
                _log.info("maintenance_ends", window=name)
        self._were_open = opened


def _times_of(window: MaintenanceWindow) -> _Times:
    zone = ZoneInfo(window.timezone)
    if window.cron is not None and window.duration_seconds is not None:
        return _Cron(window.cron, window.duration_seconds, zone)
    if window.start is not None and window.end is not None:
        return _Once(window.start, window.end, zone)
    if window.calendar is not None:
        return _Calendar(window.calendar, zone)
    raise ValueError(f"the maintenance window {window.name!r} says no time")


def _aware(moment: datetime, zone: ZoneInfo) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)


def _moment(value: object, zone: ZoneInfo) -> float:
    """Return the time of an event's edge; a day without a time begins at midnight."""
    if isinstance(value, datetime):
        return _aware(value, zone).timestamp()
    return datetime(value.year, value.month, value.day, tzinfo=zone).timestamp()  # type: ignore[attr-defined]
