"""Fits the seasons of stored history beside the watch loop, so that no tick waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import structlog

from analysis.detection.seasonal_fit import SeasonalShape
from collectors.contract import SeriesKey

log = structlog.get_logger(__name__)

Shapes = Mapping[SeriesKey, SeasonalShape]

FIRST_FIT_SECONDS = 60.0
FIT_EVERY_SECONDS = 6 * 3600.0


class SeasonFitter:
    """Fits in a thread of its own, first soon after the start and then every six hours.

    Args:
        fit: reads history up to a time and returns the shapes that it shows.
    """

    def __init__(self, fit: Callable[[float], Shapes]) -> None:
        self._fit = fit
        self._next_seconds: float | None = None
        self._thread: threading.Thread | None = None
        self._shapes: Shapes = {}
        self._lock = threading.Lock()

    def take(self, now_seconds: float) -> Shapes:
        """Return shapes that were ready by this call, and then start a fit that is due."""
        with self._lock:
            ready, self._shapes = self._shapes, {}
        if self._next_seconds is None:
            self._next_seconds = now_seconds + FIRST_FIT_SECONDS
        idle = self._thread is None or not self._thread.is_alive()
        if idle and now_seconds >= self._next_seconds:
            self._next_seconds = now_seconds + FIT_EVERY_SECONDS
            # A daemon: a fit is only read from the store, so the end of the process may cut it off.
            self._thread = threading.Thread(
                target=self._run, args=(now_seconds,), name="seasons", daemon=True
            )
            self._thread.start()
        return ready

    def wait(self, timeout_seconds: float) -> None:
        """Wait for the fit that is under way, if any."""
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def _run(self, now_seconds: float) -> None:
        try:
            shapes = self._fit(now_seconds)
        # Detection goes on without seasons, whatever was wrong with the fit; the log says it.
        except Exception:
            log.exception("season_fit_failed")
            return
        log.info("seasons_fitted", series=len(shapes))
        with self._lock:
            self._shapes = shapes
