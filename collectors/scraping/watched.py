"""One target under watch: waits for its turn, asks, reads, and keeps its record."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import structlog

from collectors.access import AccessError
from collectors.contract import Collection, CollectorError, Sample
from collectors.links import Link, Relation
from collectors.scraping.buffer import Batch, SampleBuffer
from collectors.scraping.client import MemoryBudget, Page, ScrapeError, TargetClient
from collectors.scraping.health import TargetHealth
from collectors.scraping.jobs import ScrapeJob
from collectors.scraping.owners import SeriesOwners
from collectors.scraping.targets import ScrapeTarget
from collectors.scraping.turns import Turns

log = structlog.get_logger(__name__)

LARGE_BYTES = 512 * 1024
"""Answers from this size on are read in a thread of their own: ten times a usual exporter's."""
_LATE_SHARE = 0.1
_SILENT_INTERVALS = 3
_KEEP_INTERVALS = 4


@dataclass(frozen=True, slots=True)
class Shared:
    """What all targets of a pool share."""

    buffer: SampleBuffer
    budget: MemoryBudget
    owners: SeriesOwners
    large: Executor
    verify: ssl.SSLContext
    wall: Callable[[], float]
    monotonic: Callable[[], float]


class WatchedTarget:
    """One target of a pool; :meth:`run` goes on until it is cancelled."""

    def __init__(self, target: ScrapeTarget, job: ScrapeJob, shared: Shared) -> None:
        self._target = target
        self._job = job
        self._shared = shared
        self._reader = job.make_reader(target)
        self._client: TargetClient | None = None
        self._silent = True
        self.turns = Turns(job.interval_seconds, target.phase())
        self.health = TargetHealth(target, shared.monotonic())
        self.late = 0
        """Scrapes that began later than a tenth of the interval after their turn."""

    async def run(self) -> None:
        """Scrape at every turn; whatever goes wrong with one scrape, the next has its turn."""
        job, monotonic = self._job, self._shared.monotonic
        try:
            while True:
                due = self.turns.next_due(monotonic())
                await asyncio.sleep(due - monotonic())
                if monotonic() - due > _LATE_SHARE * job.interval_seconds:
                    self.late += 1
                await self._scrape()
        finally:
            if self._client is not None:
                await self._client.close()

    def _connected(self) -> TargetClient:
        """Return the client; made at the first scrape, since certificates may come later than we do."""
        job = self._job
        if self._client is None:
            self._client = TargetClient(
                self._target,
                verify=job.verify() if job.verify is not None else self._shared.verify,
                budget=self._shared.budget,
                headers=job.headers,
                max_bytes=job.max_bytes,
                keep_seconds=_KEEP_INTERVALS * job.interval_seconds,
            )
        return self._client

    async def _scrape(self) -> None:
        now, started = self._shared.wall(), self._shared.monotonic()
        found, error = Collection(()), ""
        try:
            page = await self._connected().get(self._job.deadline_seconds)
            found = await self._read(page, now, started)
        except (ScrapeError, CollectorError, AccessError) as reason:
            error = str(reason)
        # One target's surprise must not end its watch; it is in the log with all that is known of it.
        except Exception as reason:
            log.exception("scrape_broke", target=self._target.name)
            error = f"{type(reason).__name__}: {reason}"
        ended = self._shared.monotonic()
        self.health.record(ended, error)
        samples = self._owned(found.samples)
        health = self.health.samples(
            now, ended, took_seconds=ended - started, count=len(found.samples)
        )
        links = [*found.links, *self._reads(samples)]
        self._shared.buffer.put(
            Batch([*samples, *health], links, found.unrecognised, self._target.name)
        )

    async def _read(self, page: Page, now: float, started: float) -> Collection:
        if len(page.body) < LARGE_BYTES:
            return self._take(page, now, started)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._shared.large, self._take, page, now, started)

    def _take(self, page: Page, now: float, started: float) -> Collection:
        text = page.body.decode("utf-8", errors="replace")
        return self._reader.take(text, now, started, open_metrics=page.open_metrics)

    def _owned(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        owners, name = self._shared.owners, self._target.name
        if samples:
            self._silent = False
            return owners.admit(name, samples)
        age = self.health.age_seconds(self._shared.monotonic())
        if not self._silent and age > _SILENT_INTERVALS * self._job.interval_seconds:
            self._silent = True
            owners.release(name)
        return samples

    def _reads(self, samples: Sequence[Sample]) -> Iterator[Link]:
        for name in dict.fromkeys(sample.entity for sample in samples):
            yield Link(self._target.entity, Relation.READS, name)
