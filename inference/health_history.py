"""How health changed: transitions as counters, as log lines, and the last ones to look at."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_log = structlog.get_logger(__name__)

KEPT = 100
"""Transitions that are kept to look at."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One change. ``at_seconds`` is since the epoch."""

    model: str
    layer: str
    before: str
    after: str
    reason: str
    lasted_seconds: float
    """How long it was as before."""
    at_seconds: float


@dataclass(frozen=True, slots=True)
class Observation:
    """What one layer is now: ``ok``, ``failing``, ``unknown``, or a state's name."""

    state: str
    reason: str = ""


Read = Callable[[], Mapping[tuple[str, str], Observation]]
"""Returns what each (model, layer) is now; reads memory only."""


class HealthHistory:
    """Watches observations and keeps what changed."""

    def __init__(
        self, read: Read, clock: Callable[[], float], wall_clock: Callable[[], float]
    ) -> None:
        self._read = read
        self._clock = clock
        self._wall_clock = wall_clock
        self._now: dict[tuple[str, str], tuple[str, float]] = {}
        self._recent: deque[Transition] = deque(maxlen=KEPT)
        self.counts: Counter[tuple[str, str, str]] = Counter()
        """Transitions by model, layer and the state that was entered."""

    async def run(self, interval_seconds: float) -> None:
        """Watch until cancelled."""
        while True:
            self.observe()
            await asyncio.sleep(interval_seconds)

    def observe(self) -> None:
        """Look once."""
        now = self._clock()
        for key, observation in self._read().items():
            before = self._now.get(key)
            if before is None:
                self._now[key] = (observation.state, now)
            elif before[0] != observation.state:
                self._change(key, before, observation, now)

    def recent(self) -> list[dict[str, Any]]:
        """Return the last transitions, the newest first."""
        return [asdict(item) for item in reversed(self._recent)]

    def seconds_in_state(self) -> dict[tuple[str, str, str], float]:
        """Return for how long each model's layers have been as they are."""
        now = self._clock()
        return {(*key, state): now - since for key, (state, since) in self._now.items()}

    def _change(
        self, key: tuple[str, str], before: tuple[str, float], new: Observation, now: float
    ) -> None:
        model, layer = key
        self._now[key] = (new.state, now)
        self.counts[model, layer, new.state] += 1
        item = Transition(
            model, layer, before[0], new.state, new.reason, now - before[1], self._wall_clock()
        )
        self._recent.append(item)
        _log.info("health_changed", **asdict(item))


class HistoryCollector(Collector):
    """Reads a history at the time of a scrape."""

    def __init__(self, history: HealthHistory) -> None:
        self._history = history

    def collect(self) -> Iterator[Metric]:
        """Yield both families."""
        labels = ["model", "layer"]
        changes = CounterMetricFamily(
            "health_transitions", "Changes of health, by what it became", labels=[*labels, "to"]
        )
        for key, count in self._history.counts.items():
            changes.add_metric(list(key), count)
        yield changes
        lasting = GaugeMetricFamily(
            "health_state_seconds", "Time since the last change", labels=[*labels, "state"]
        )
        for key, seconds in self._history.seconds_in_state().items():
            lasting.add_metric(list(key), seconds)
        yield lasting
