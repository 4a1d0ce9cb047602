"""Adaptive concurrency: how many requests may be in the building, found from what they experience.

Netflix's Gradient2 (concurrency-limits, ``Gradient2Limit``)::

    gradient  = clamp(tolerance * long_rtt / rtt, 0.5, 1.0)
    new_limit = limit * gradient + queue
    limit     = (1 - smoothing) * limit + smoothing * new_limit

and no change while fewer than half of the limit are in the building, where latency says nothing
about the limit. Two things are measured otherwise than there, because we stand inside the server and
see waiting and service apart:

- ``long_rtt`` is the slow average of the *service* time. An average of the whole time learns a
  standing queue as normal, so that under a lasting overload the limit creeps up to its ceiling.
- ``rtt`` is the service time plus the *standing* queue's wait: the fewest requests that waited at
  any moment of a window, divided by the completions per second. A burst that empties again within the
  window costs nothing, which is what keeps the limit from refusing below capacity (the argument
  of CoDel, Nichols and Jacobson 2012). After such a window ``queue`` is the limit itself, so that it
  is back at its ceiling soon after an overload.

Under a lasting overload of an engine with ``slots`` places the limit settles near
``tolerance * slots + queue``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

# Netflix's values: the smallest factor of one window, the smoothing, and the decay of the long
# average while it is more than twice the newest measurement (after a slow phase).
_SMALLEST_GRADIENT = 0.5
_SMOOTHING = 0.2
_LONG_DECAY = 0.95
# Share of the newest window in the long average; about the last twenty windows count.
_LONG_WEIGHT = 0.05


@dataclass(frozen=True, slots=True)
class GradientOptions:
    """What may be chosen."""

    tolerance: float = 2.0
    """How many service times a request may take before the limit shrinks."""
    queue: float = 4.0
    """Requests that may wait at any rate; also what a calm window adds, smoothed."""
    patience_seconds: float = 0.0
    """A standing queue's wait that is no reason to shrink, CoDel's target: who has the time to wait
    for that long would rather wait than be refused."""
    window_seconds: float = 0.5
    """Shortest window; it is never shorter than eight service times."""
    window_samples: int = 10
    """Fewest completions that make a window."""


class GradientLimit:
    """The limit of one model.

    Args:
        floor: Smallest limit; give twice the engine's places, or it could starve the engine.
        ceiling: Largest limit and the first one: it shrinks on evidence only.
        clock: Seconds, monotonic.
        options: See there.
    """

    def __init__(
        self,
        floor: int,
        ceiling: int,
        clock: Callable[[], float],
        options: GradientOptions = GradientOptions(),
    ) -> None:
        self._clock = clock
        self._options = options
        self._estimate = float(ceiling)
        self.set_bounds(floor, ceiling)
        self.long_service_seconds: float | None = None
        self.gradient = 1.0
        """Of the last window."""
        self._begun_at = clock()
        self._samples = 0
        self._service_sum = 0.0
        self._fewest_waiting: float = math.inf
        self._most_inside = 0

    @property
    def limit(self) -> int:
        """How many may be in the building now, waiting and running."""
        return int(self._estimate)

    def set_bounds(self, floor: int, ceiling: int) -> None:
        """Change the bounds; a limit that stood at its ceiling stays there."""
        at_ceiling = self._estimate >= getattr(self, "_ceiling", ceiling)
        self._floor, self._ceiling = min(floor, ceiling), ceiling
        wanted = ceiling if at_ceiling else self._estimate
        self._estimate = float(min(max(wanted, self._floor), ceiling))

    def observe(self, service_seconds: float, waiting: int, running: int) -> None:
        """Take a completion: its time of service, and who waits and runs after it."""
        self._samples += 1
        self._service_sum += service_seconds
        self._fewest_waiting = min(self._fewest_waiting, waiting)
        self._most_inside = max(self._most_inside, waiting + running + 1)
        if self._samples < self._options.window_samples:
            return
        now = self._clock()
        seconds = now - self._begun_at
        service = self._service_sum / self._samples
        if seconds >= max(self._options.window_seconds, 8 * service) and seconds > 0.0:
            self._close(service, self._samples / seconds)
            self._begin(now)

    def _begin(self, now: float) -> None:
        self._begun_at = now
        self._samples = 0
        self._service_sum = 0.0
        self._fewest_waiting = math.inf
        self._most_inside = 0

    def _close(self, service: float, completions_per_second: float) -> None:
        """Move the limit by one window."""
        if self.long_service_seconds is None:
            self.long_service_seconds = service
        else:
            self.long_service_seconds += _LONG_WEIGHT * (service - self.long_service_seconds)
        standing = self._fewest_waiting / completions_per_second
        if standing <= self._options.patience_seconds:
            standing = 0.0
        rtt = service + standing
        if self.long_service_seconds > 2 * rtt:
            self.long_service_seconds *= _LONG_DECAY
        if self._most_inside < self._estimate / 2:
            return
        slope = self._options.tolerance * self.long_service_seconds / rtt if rtt > 0.0 else 1.0
        self.gradient = max(_SMALLEST_GRADIENT, min(1.0, slope))
        # A limit that was felt although the line was empty for a moment is too small: grow by a share.
        calm = self._fewest_waiting == 0
        queue = max(self._options.queue, self._estimate) if calm else self._options.queue
        wanted = self._estimate * self.gradient + queue
        moved = self._estimate + _SMOOTHING * (wanted - self._estimate)
        self._estimate = min(max(moved, float(self._floor)), float(self._ceiling))
