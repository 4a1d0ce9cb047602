"""How one target fares, as samples on the target's own entity."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import structlog

from collectors.contract import Sample
from collectors.scraping.targets import ScrapeTarget

log = structlog.get_logger(__name__)

_RECENT_SCRAPES = 20


class TargetHealth:
    """The record of one target.

    Args:
        target: whose.
        born_seconds: when watching began, on the clock that never goes back.
    """

    def __init__(self, target: ScrapeTarget, born_seconds: float) -> None:
        self._target = target
        self._entity = target.entity
        self._since_seconds = born_seconds
        self._recent: deque[bool] = deque(maxlen=_RECENT_SCRAPES)
        self.error = ""
        """Why the last scrape failed; empty when it did not."""

    @property
    def ok(self) -> bool:
        """Say whether the last scrape succeeded; False before the first."""
        return bool(self._recent) and self._recent[-1]

    def record(self, at_seconds: float, error: str = "") -> None:
        """Note how a scrape ended, and log when that changes: one line an outage.

        Args:
            at_seconds: when it ended, on the clock that never goes back.
            error: why it failed; empty when it did not.
        """
        was_ok = self.ok or not self._recent
        if error and was_ok:
            log.warning("target_failed", target=self._target.name, error=error)
        elif not error and not was_ok:
            log.info("target_recovered", target=self._target.name)
        self.error = error
        self._recent.append(not error)
        if not error:
            self._since_seconds = at_seconds

    def age_seconds(self, at_seconds: float) -> float:
        """Return the time since the last success, or since the start while there was none."""
        return max(0.0, at_seconds - self._since_seconds)

    def samples(
        self, now_seconds: float, at_seconds: float, *, took_seconds: float, count: int
    ) -> Iterator[Sample]:
        """Yield the health after a scrape.

        Args:
            now_seconds: the time that the samples carry.
            at_seconds: now on the clock that never goes back.
            took_seconds: how long the scrape took.
            count: how many samples it gave.
        """
        if not self._recent:
            return
        values = {
            "scrape_success": float(self._recent[-1]),
            "scrape_success_ratio": sum(self._recent) / len(self._recent),
            "scrape_duration_seconds": took_seconds,
            "scrape_samples": float(count),
            "scrape_age_seconds": self.age_seconds(at_seconds),
        }
        for signal, value in values.items():
            yield Sample(now_seconds, self._entity, signal, value)
