"""The time of day for dating samples: never back, and not fooled by a clock that jumps for a moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

_JUMP_SECONDS = 0.5
"""A difference that no slewing makes between two ticks: adjtime(3) moves a clock by 0.5 ms a second."""
_SLEW = 0.5


class SteadyClock:
    """Seconds since the epoch that only go forward, about as fast as time passes.

    A jump of the wall clock is believed when it has stood for ``confirm_seconds``; a shorter one leaves
    no trace. Forward the dates then follow at once. Backward they go on at half speed until the wall
    clock has caught up, so that no interval is ever negative and no sample is dated before an older one.

    Args:
        wall: the clock of the day.
        monotonic: a clock that never goes back.
        confirm_seconds: how long a jump must stand.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        confirm_seconds: float = 60.0,
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._confirm_seconds = confirm_seconds
        self._lock = threading.Lock()
        self._at = monotonic()
        self._offset = wall() - self._at
        self._jumped_at: float | None = None
        self._following = False

    def __call__(self) -> float:
        """Return the time of now."""
        with self._lock:
            at = self._monotonic()
            passed, self._at = max(0.0, at - self._at), max(at, self._at)
            self._move(self._wall() - self._at, passed)
            return self._at + self._offset

    def _move(self, wanted: float, passed: float) -> None:
        ahead = wanted - self._offset
        if abs(ahead) < _JUMP_SECONDS:
            self._jumped_at, self._following = None, False
        elif not self._following and not self._is_confirmed(ahead):
            return
        self._offset = max(wanted, self._offset - _SLEW * passed)

    def _is_confirmed(self, ahead: float) -> bool:
        if self._jumped_at is None:
            self._jumped_at = self._at
            log.warning("clock_jumped", seconds=round(ahead, 3))
        if self._at - self._jumped_at < self._confirm_seconds:
            return False
        self._following = True
        log.warning(
            "clock_followed",
            seconds=round(ahead, 3),
            how="at once" if ahead > 0 else "at half speed; a restart takes the new date at once",
        )
        return True
