"""The scrape pool as a collector: each call gives what has been scraped since the last one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import structlog

from collectors.cardinality import SeriesLimit
from collectors.contract import Collection, CollectorError, Sample, Support
from collectors.entities import entity
from collectors.scraping.buffer import Batch, SampleBuffer
from collectors.scraping.pool import ScrapePool

log = structlog.get_logger(__name__)

NAME = "scrape"
ENTITY = entity("collector", NAME)
MAX_TAKEN = 100_000
"""Samples of one call; after a pause the rest comes with the next ones."""


class ScrapeCollector:
    """Gives the samples of a pool, each dated when its target was asked.

    On ``collector/scrape`` it adds how many targets there are and fail, and what was lost or late. The
    pool starts with the first call.

    Args:
        pool: closed together with the collector.
        buffer: the pool's.
        limit: how many series each target may have.
    """

    def __init__(
        self, pool: ScrapePool, buffer: SampleBuffer, limit: SeriesLimit | None = None
    ) -> None:
        self._limit = limit
        self._refusing: set[str] = set()
        self._pool = pool
        self._buffer = buffer
        self._started = False
        self._told: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """``scrape``."""
        return NAME

    @property
    def deadline_seconds(self) -> float:
        """A call waits for no target."""
        return 5.0

    @property
    def series_limit(self) -> SeriesLimit | None:
        """The limit of each target."""
        return self._limit

    def is_supported(self) -> Support:
        """Always; whether a target is there is for its own health to say."""
        return Support(supported=True)

    def collect(self, now_seconds: float) -> Collection:
        """Take what waits.

        Raises:
            CollectorError: when the pool has ended by itself; it is started again.
        """
        if not self._pool.running:
            broke, self._started = self._started, True
            self._pool.start()
            if broke:
                raise CollectorError("the scrape pool had ended; it is started again")
        batches = self._buffer.take(MAX_TAKEN)
        return Collection(
            samples=[
                *(sample for batch in batches for sample in self._admitted(batch)),
                *self._own_samples(now_seconds),
                *self._refusals(now_seconds),
            ],
            unrecognised=list(
                dict.fromkeys(name for batch in batches for name in batch.unrecognised)
            ),
            notes=[*self._pool.state().problems, *_failures(self._pool)],
            links=list(dict.fromkeys(link for batch in batches for link in batch.links)),
        )

    def close(self) -> None:
        """Stop the pool."""
        self._pool.close()

    def _admitted(self, batch: Batch) -> Sequence[Sample]:
        if self._limit is None:
            return batch.samples
        admitted = self._limit.admit(batch.target, batch.samples)
        if len(admitted) < len(batch.samples):
            self._refusing.add(batch.target)
        return admitted

    def _refusals(self, now_seconds: float) -> Iterator[Sample]:
        """Yield what targets were refused, and one zero when that is over."""
        if self._limit is None:
            return
        for name in sorted(self._refusing):
            sample = self._limit.sample(now_seconds, name)
            yield sample
            if not sample.value:
                self._refusing.discard(name)

    def _own_samples(self, now_seconds: float) -> Iterator[Sample]:
        state = self._pool.state()
        for signal, value in (
            ("scrape_targets", state.targets),
            ("scrape_targets_failing", state.failing),
            ("scrape_late_total", state.late),
            ("scrape_missed_total", state.missed),
            ("scrape_dropped_samples_total", state.dropped_samples),
            ("scrape_waiting_samples", self._buffer.waiting),
        ):
            yield Sample(now_seconds, ENTITY, signal, float(value))


def _failures(pool: ScrapePool) -> Iterator[str]:
    for name, error in pool.failures().items():
        yield f"{name}: {error}"
