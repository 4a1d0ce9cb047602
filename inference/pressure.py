"""Degradation by the service's own signals, with hysteresis in value and in time.

Pressure raises the level by one each time it has lasted ``raise_seconds``; calm lowers it by one each
time it has lasted ``lower_seconds``; between the two thresholds nothing moves. A level that has to be
raised again soon after it was lowered is kept twice as long the next time, up to eight times:
an overload that only the degraded service can bear must not make it swing.

The thresholds are judgement, not measurement: half of the time that requests have is spent waiting;
one request in twenty is refused; memory is nearly used up.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from inference.degradation import Level

_WAIT_HIGH, _WAIT_LOW = 0.5, 0.2
_REFUSED_HIGH, _REFUSED_LOW = 0.05, 0.005
_MEMORY_HIGH, _MEMORY_LOW, _MEMORY_CRITICAL = 0.93, 0.88, 0.98
_LONGEST_FACTOR = 8
# Fewer arrivals in an interval say nothing about shares.
_LEAST_ARRIVALS = 5

CAPACITY_REASONS = frozenset({"queue_full", "concurrency", "deadline_unreachable", "displaced"})
"""Refusals that mean too little capacity; the others are rules, or degradation itself."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What one interval showed."""

    wait_share: float = 0.0
    """Mean share of their time that requests spent waiting for a slot."""
    refused_share: float = 0.0
    """Of those that arrived: refused for lack of capacity, or expired while they waited."""
    engine_down: str = ""
    """Why the default model's engine cannot be asked, if a fallback could be."""
    memory_share: float = 0.0
    """Used memory of the machine, or of a worker against its limit, whichever is nearer to full."""

    @property
    def pressure(self) -> str:
        """What calls for a higher level, or nothing."""
        if self.engine_down:
            return f"the engine is down: {self.engine_down}"
        if self.memory_share >= _MEMORY_HIGH:
            return f"{self.memory_share:.0%} of the memory is used"
        if self.refused_share >= _REFUSED_HIGH:
            return f"{self.refused_share:.0%} of the requests find no room or no time"
        if self.wait_share >= _WAIT_HIGH:
            return f"requests wait for {self.wait_share:.0%} of their time"
        return ""

    @property
    def calm(self) -> bool:
        """Whether nothing is near its threshold."""
        return (
            not self.engine_down
            and self.wait_share < _WAIT_LOW
            and self.refused_share < _REFUSED_LOW
            and self.memory_share < _MEMORY_LOW
        )


class PressureMeter:
    """Counts over one interval; belongs to the event loop."""

    def __init__(self) -> None:
        self._arrived = 0
        self._counts: Counter[str] = Counter()
        self._wait_shares = 0.0

    def arrived(self) -> None:
        """Count a user's request."""
        self._arrived += 1

    def refused(self, reason: str) -> None:
        """Count a refusal."""
        if reason in CAPACITY_REASONS:
            self._counts["refused"] += 1

    def expired(self) -> None:
        """Count a request whose time passed while it waited."""
        self._counts["refused"] += 1
        self.waited(1.0)

    def waited(self, share: float) -> None:
        """Take the share of its time that a request waited."""
        self._counts["waited"] += 1
        self._wait_shares += share

    def read(self, *, engine_down: str, memory_share: float) -> Signals:
        """Return what the interval showed, and begin the next."""
        counts, self._counts = self._counts, Counter()
        arrived, self._arrived = self._arrived, 0
        shares, self._wait_shares = self._wait_shares, 0.0
        enough = max(arrived, counts["refused"])
        return Signals(
            wait_share=shares / counts["waited"] if counts["waited"] >= _LEAST_ARRIVALS else 0.0,
            refused_share=counts["refused"] / enough if enough >= _LEAST_ARRIVALS else 0.0,
            engine_down=engine_down,
            memory_share=memory_share,
        )


class AutomaticLevel:
    """The level that the service chooses for itself.

    Args:
        raise_seconds: Pressure of this length raises the level by one.
        lower_seconds: Calm of this length lowers the level by one.
    """

    def __init__(self, raise_seconds: float, lower_seconds: float) -> None:
        self._raise_seconds = raise_seconds
        self._lower_seconds = lower_seconds
        self.highest = Level.SMALL_MODEL
        """Highest level that an overload may reach: the small model only helps where there is one.
        Memory that is all but gone leads to `Level.REFUSE` in any case."""
        self._pressed_since: float | None = None
        self._calm_since: float | None = None
        self._lowered_at: float | None = None
        self._factor = 1
        self.level = Level.FULL
        self.reason = ""

    def update(self, now: float, signals: Signals) -> bool:
        """Take an interval's signals; say whether the level changed."""
        cause = signals.pressure
        if cause:
            self._calm_since = None
            return self._press(now, signals, cause)
        self._pressed_since = None
        if not signals.calm:
            self._calm_since = None
            return False
        return self._relax(now)

    def _press(self, now: float, signals: Signals, cause: str) -> bool:
        if self._pressed_since is None:
            self._pressed_since = now
        if now - self._pressed_since < self._raise_seconds:
            return False
        target = self._target(signals)
        if target <= self.level:
            return False
        if self._lowered_at is not None:
            soon = now - self._lowered_at <= self._lower_seconds * self._factor
            self._factor = min(self._factor * 2, _LONGEST_FACTOR) if soon else 1
            self._lowered_at = None
        self.level, self.reason = target, cause
        self._pressed_since = now
        return True

    def _target(self, signals: Signals) -> Level:
        """Return the level that the pressure calls for now."""
        if signals.memory_share >= _MEMORY_CRITICAL:
            return Level.REFUSE
        if signals.engine_down:
            return Level.SMALL_MODEL
        return min(Level(min(self.level + 1, Level.REFUSE)), self.highest)

    def _relax(self, now: float) -> bool:
        if self._calm_since is None:
            self._calm_since = now
        if self.level is Level.FULL or now - self._calm_since < self._lower_seconds * self._factor:
            return False
        self.level = Level(self.level - 1)
        self.reason = self.reason if self.level else ""
        self._calm_since = self._lowered_at = now
        return True
