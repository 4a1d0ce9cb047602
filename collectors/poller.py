"""Runs every collector at its own pace, and tells how each one fares.

Each collector has a thread of its own, so that one that hangs holds up nobody: the tick goes on without
it, it is reported as failing, and it is not called again until its call has returned.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog

from collectors.cardinality import SeriesLimit
from collectors.claims import GpuClaims
from collectors.contract import (
    Collection,
    Collector,
    CollectorError,
    CollectorHealth,
    LimitsSeries,
    Paced,
    Sample,
)
from collectors.entities import entity
from collectors.links import Link
from collectors.signals import catalogue
from collectors.usable import usable, usable_samples

log = structlog.get_logger(__name__)

DEFAULT_BUDGET_SECONDS = 0.8
_RECENT_CALLS = 20
# A tick a second never starts exactly a second after the last one; without this slack a collector that
# is due every two seconds would now and then wait for three.
_PACE_SLACK_SECONDS = 0.25
_CLOSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Tick:
    """What one round of collecting gave."""

    time_seconds: float
    samples: Sequence[Sample]
    health: Sequence[CollectorHealth]
    links: Sequence[Link] = ()


@dataclass(frozen=True, slots=True)
class _Result:
    collection: Collection | None
    error: str
    seconds: float
    known: Sequence[Sample] = ()
    """Samples of a call that failed."""
    unusable: int = 0
    """Samples that were left out because they are none."""


class Poller:
    """Collects from all collectors once a tick.

    A call is given up when it exceeds its collector's ``deadline_seconds``. A tick waits for its calls
    no longer than ``budget_seconds``; a call that is still within its deadline then goes on, and its
    samples come with a later tick. The result of a call that was given up is thrown away. A GPU that
    several collectors speak of is one GPU: :mod:`collectors.claims` says who is believed.

    On ``collector/<name>`` every tick gives how the last call went: ``scrape_success``,
    ``scrape_duration_seconds``, ``scrape_samples``, ``scrape_success_ratio`` (over the last 20 calls),
    ``metric_out_of_range_ratio`` (samples outside the catalogue's physical limits, or not finite) and
    ``scrape_age_seconds`` since the last success, or since the start while there was none.

    Args:
        collectors: their names must differ.
        clock: a clock that never goes back.
        budget_seconds: the longest that one tick may take.
        limit: how many series each collector may have; ``scrape_series_refused`` counts the others.

    Raises:
        ValueError: when two collectors share a name.
    """

    def __init__(
        self,
        collectors: Sequence[Collector],
        clock: Callable[[], float] = time.monotonic,
        *,
        budget_seconds: float = DEFAULT_BUDGET_SECONDS,
        limit: SeriesLimit | None = None,
    ) -> None:
        names = [collector.name for collector in collectors]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"collectors must have different names, these do not: {sorted(twice)}")
        self._clock = clock
        self._budget_seconds = budget_seconds
        self._progress = threading.Condition()
        self._claims = GpuClaims()
        self._runners = [
            _Runner(collector, clock, self._progress, limit) for collector in collectors
        ]

    def tick(self, now_seconds: float) -> Tick:
        """Call every collector that is due and gather what has come in."""
        started = self._clock()
        for runner in self._runners:
            runner.start_if_due(now_seconds, started)
        with self._progress:
            # The condition is woken by results; a deadline that passes wakes nobody, so the wait ends
            # at the next one.
            while (wait := self._wait_seconds(started)) > 0:
                self._progress.wait(timeout=wait)
        samples: list[Sample] = []
        health: list[CollectorHealth] = []
        for runner in self._runners:
            samples.extend(runner.harvest(now_seconds))
            samples.extend(runner.own_samples(now_seconds))
            health.append(runner.health())
        samples = self._claims.settle(samples)
        links = dict.fromkeys(link for runner in self._runners for link in runner.links)
        return Tick(now_seconds, samples, health, list(links))

    def close(self, deadline_seconds: float = _CLOSE_SECONDS) -> None:
        """Close every collector and stop its thread, all at once; one that hangs is left behind.

        Args:
            deadline_seconds: the longest that all of it may take.
        """
        for runner in self._runners:
            runner.start_closing()
        end = self._clock() + deadline_seconds
        for runner in self._runners:
            runner.finish_closing(max(0.0, end - self._clock()))

    def _wait_seconds(self, started: float) -> float:
        now = self._clock()
        pending = [end for runner in self._runners if (end := runner.pending_until()) > now]
        if not pending:
            return 0.0
        return min(*pending, started + self._budget_seconds) - now


class _Runner:
    """One collector, its thread and its record."""

    def __init__(
        self,
        collector: Collector,
        clock: Callable[[], float],
        progress: threading.Condition,
        limit: SeriesLimit | None,
    ) -> None:
        self._collector = collector
        self._clock = clock
        self._progress = progress
        # A collector of many sources applies the limit to each of them.
        self._limit = None if isinstance(collector, LimitsSeries) else limit
        self._entity = entity("collector", collector.name)
        self._every_seconds = collector.every_seconds if isinstance(collector, Paced) else 0.0
        self._calls: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self._called_at = -math.inf
        self._busy = False
        self._given_up = False
        self._result: _Result | None = None
        self._born = clock()
        self._succeeded_at: float | None = None
        self._succeeded_time: float | None = None
        self._recent: deque[bool] = deque(maxlen=_RECENT_CALLS)
        self._last = _Result(None, "not called yet", 0.0)
        self._out_of_range = 0
        self.links: Sequence[Link] = ()
        """Those of the last call that succeeded."""
        self._closing: threading.Thread | None = None
        # Daemon: a call that never returns must not keep the process from ending.
        self._thread = threading.Thread(
            target=self._serve, name=f"collector-{collector.name}", daemon=True
        )
        self._thread.start()

    def start_if_due(self, now_seconds: float, now: float) -> None:
        if self._busy or now - self._called_at < self._every_seconds - _PACE_SLACK_SECONDS:
            return
        self._busy, self._given_up, self._called_at = True, False, now
        self._calls.put(now_seconds)

    def pending_until(self) -> float:
        """When the running call will be given up; the past when there is nothing to wait for."""
        if not self._busy or self._given_up or self._result is not None:
            return -math.inf
        return self._called_at + self._collector.deadline_seconds

    def harvest(self, now_seconds: float) -> list[Sample]:
        """Take the result of a call that has ended, or give up one that is too long."""
        with self._progress:
            result, self._result = self._result, None
            if result is not None:
                self._busy = False
        if result is None:
            self._give_up_if_late()
            return []
        if self._given_up:
            log.info("collector_returned", collector=self._collector.name, seconds=result.seconds)
            return []
        self._record(result)
        if result.collection is None:
            return self._admitted(result.known)
        self._succeeded_at, self._succeeded_time = self._clock(), now_seconds
        self.links = result.collection.links
        samples = list(result.collection.samples)
        self._out_of_range = result.unusable + sum(map(_is_out_of_range, samples))
        return self._admitted(samples)

    def _admitted(self, samples: Sequence[Sample]) -> list[Sample]:
        if self._limit is None:
            return list(samples)
        return self._limit.admit(self._collector.name, samples)

    def own_samples(self, now_seconds: float) -> Iterator[Sample]:
        if not self._recent:  # nothing has been called to its end: nothing is known
            return
        count = len(self._last.collection.samples) if self._last.collection else 0
        given = count + self._last.unusable
        since = self._born if self._succeeded_at is None else self._succeeded_at
        values = {
            "scrape_success": float(self._recent[-1]),
            "scrape_success_ratio": sum(self._recent) / len(self._recent),
            "scrape_duration_seconds": self._last.seconds,
            "scrape_samples": float(count),
            "scrape_age_seconds": max(0.0, self._clock() - since),
        }
        if given:
            values["metric_out_of_range_ratio"] = self._out_of_range / given
        for signal, value in values.items():
            yield Sample(now_seconds, self._entity, signal, value)
        if self._limit is not None:
            yield self._limit.sample(now_seconds, self._collector.name)

    def health(self) -> CollectorHealth:
        collection = self._last.collection
        return CollectorHealth(
            name=self._collector.name,
            ok=bool(self._recent) and self._recent[-1],
            seconds=self._last.seconds,
            samples=len(collection.samples) if collection else 0,
            error=self._last.error,
            last_success_seconds=self._succeeded_time,
            unrecognised=tuple(collection.unrecognised) if collection else (),
        )

    def start_closing(self) -> None:
        if self._busy:
            # Its own thread is inside a call and may stay there; closing often ends that call.
            self._closing = threading.Thread(target=self._close_collector, daemon=True)
            self._closing.start()
        self._calls.put(None)

    def finish_closing(self, seconds: float) -> None:
        """Wait for what was started; a thread that hangs is a daemon and ends with the process."""
        thread = self._closing or self._thread
        thread.join(timeout=seconds)
        if thread.is_alive():
            log.warning("collector_does_not_close", collector=self._collector.name)

    def _close_collector(self) -> None:
        try:
            self._collector.close()
        except Exception:  # closing the others must go on, whatever this one does
            log.exception("collector_close_failed", collector=self._collector.name)

    def _give_up_if_late(self) -> None:
        waited = self._clock() - self._called_at
        if not self._busy or waited < self._collector.deadline_seconds:
            return
        if not self._given_up:
            log.warning("collector_hangs", collector=self._collector.name, seconds=waited)
        self._given_up = True
        self._record(
            _Result(None, f"no answer for {waited:.1f} s; still waiting", waited), quiet=True
        )

    def _record(self, result: _Result, *, quiet: bool = False) -> None:
        failed = result.collection is None
        if failed and not quiet and (not self._recent or self._recent[-1]):
            # Once per outage: a source that is away for an hour is one line, not 3600.
            log.warning("collector_failed", collector=self._collector.name, error=result.error)
        elif not failed and self._recent and not self._recent[-1]:
            log.info("collector_recovered", collector=self._collector.name)
        self._last = result
        self._recent.append(not failed)

    def _serve(self) -> None:
        while (now_seconds := self._calls.get()) is not None:
            result = self._call(now_seconds)
            with self._progress:
                self._result = result
                self._progress.notify_all()
        if self._closing is None:
            self._close_collector()

    def _call(self, now_seconds: float) -> _Result:
        started = self._clock()
        known: Sequence[Sample] = ()
        collection: Collection | None = None
        unusable = 0
        try:
            collection, unusable = usable(self._collector.collect(now_seconds))
            error = ""
        except CollectorError as reason:
            error = f"{reason}; {reason.fix}" if reason.fix else str(reason)
            known, _ = usable_samples(reason.samples)
        # A fault of one collector must not end its thread, whatever it raises: also what a library
        # raises to end the process.
        except BaseException as reason:
            log.exception("collector_broke", collector=self._collector.name)
            error = f"{type(reason).__name__}: {reason}"
        if unusable:
            self._say_unusable(unusable)
        return _Result(collection, error, self._clock() - started, known, unusable)

    def _say_unusable(self, count: int) -> None:
        if not self._last.unusable:
            log.warning("samples_unusable", collector=self._collector.name, samples=count)


def _is_out_of_range(sample: Sample) -> bool:
    signal = catalogue().get(sample.signal)
    if signal is None:
        return False
    return (signal.low is not None and sample.value < signal.low) or (
        signal.high is not None and sample.value > signal.high
    )
