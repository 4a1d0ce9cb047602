"""The scrape pool: many targets, each with its own turn, deadline and record, in one thread.

Waiting for a target costs nothing but a socket, so nothing queues behind a target that hangs. What does
cost, reading the text, is done one answer at a time; an answer that is large is read in a second thread,
so that the others' deadlines go on meanwhile.

asyncio and one HTTP client a target: threads would take a fifth less CPU a request, but as many of them
as there may be targets that hang. See docs/fleet.md for the measurement.
"""

from __future__ import annotations

import asyncio
import resource
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog
import uvloop

from collectors.scraping.buffer import SampleBuffer
from collectors.scraping.client import MemoryBudget
from collectors.scraping.jobs import ScrapeJob
from collectors.scraping.owners import SeriesOwners
from collectors.scraping.targets import ScrapeTarget
from collectors.scraping.watched import Shared, WatchedTarget

log = structlog.get_logger(__name__)

_SPARE_FILES = 256


@dataclass(frozen=True, slots=True)
class PoolState:
    """What the pool is like now."""

    targets: int
    failing: int
    late: int
    """Scrapes since the start that began later than a tenth of their interval after their turn."""
    missed: int
    """Turns since the start that were left out because the scrape before was still running."""
    dropped_samples: int
    problems: Sequence[str]


class ScrapePool:
    """Scrapes all targets of some jobs from :meth:`start` to :meth:`close`, into a buffer.

    Args:
        jobs: what to scrape.
        buffer: where each scrape's samples go.
        wall: the clock that dates samples. It may jump; nothing but the dates follows it.
        monotonic: the clock of turns and rates.
        refresh_seconds: how often lists of targets are looked at again.
        memory_bytes: bound on what all answers in flight hold together.
    """

    def __init__(
        self,
        jobs: Sequence[ScrapeJob],
        buffer: SampleBuffer,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        refresh_seconds: float = 5.0,
        memory_bytes: int = 256 * 1024 * 1024,
    ) -> None:
        self._jobs = list(jobs)
        self._refresh_seconds = refresh_seconds
        self._shared = Shared(
            buffer=buffer,
            budget=MemoryBudget(memory_bytes),
            owners=SeriesOwners(),
            large=ThreadPoolExecutor(1, "scrape-large"),
            verify=ssl.create_default_context(),
            wall=wall,
            monotonic=monotonic,
        )
        self._watched: dict[ScrapeTarget, WatchedTarget] = {}
        self._stop = threading.Event()
        self._wake: Callable[[], object] = lambda: None
        self._thread: threading.Thread | None = None
        self._listed: Sequence[str] = ()
        self._gone = Counter[str]()

    @property
    def running(self) -> bool:
        """Say whether the pool's thread lives."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin; targets have their first turn within one interval."""
        if self.running:
            return
        self._stop.clear()
        # Daemon: what is stuck in a name look-up must not keep the process from ending.
        self._thread = threading.Thread(target=self._main, name="scrape-pool", daemon=True)
        self._thread.start()

    def close(self, deadline_seconds: float = 2.0) -> None:
        """Stop; scrapes that run are given up."""
        self._stop.set()
        self._wake()
        if self._thread is not None:
            self._thread.join(timeout=deadline_seconds)
        self._shared.large.shutdown(wait=False, cancel_futures=True)

    def state(self) -> PoolState:
        """Return what the pool is like now; may be called from any thread."""
        watched = list(self._watched.values())
        return PoolState(
            targets=len(watched),
            failing=sum(1 for each in watched if each.health.error),
            late=self._gone["late"] + sum(each.late for each in watched),
            missed=self._gone["missed"] + sum(each.turns.missed for each in watched),
            dropped_samples=self._shared.buffer.dropped,
            problems=[*self._listed, *self._shared.owners.problems()],
        )

    def failures(self) -> Mapping[str, str]:
        """Return why the targets that fail now do, by their names."""
        return {
            target.name: each.health.error
            for target, each in list(self._watched.items())
            if each.health.error
        }

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._run())
        # The thread has nobody above it: what ended it is said here, and the collector starts it anew.
        except Exception:
            log.exception("scrape_pool_broke")

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        self._wake = lambda: loop.call_soon_threadsafe(stopped.set)
        if self._stop.is_set():
            return
        tasks: dict[ScrapeTarget, asyncio.Task[None]] = {}
        try:
            while not stopped.is_set():
                found = await asyncio.to_thread(self._discover)
                self._adopt(found, tasks)
                try:
                    await asyncio.wait_for(stopped.wait(), self._refresh_seconds)
                except TimeoutError:
                    continue
        finally:
            self._wake = lambda: None
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    def _discover(self) -> Mapping[ScrapeTarget, ScrapeJob]:
        """Ask every job for its targets; the first that names an address has it."""
        found: dict[tuple[str, str], tuple[ScrapeTarget, ScrapeJob]] = {}
        problems: list[str] = []
        for job in self._jobs:
            for discovery in job.discoveries:
                for target in discovery.targets():
                    found.setdefault((target.name, target.url), (target, job))
                problems += discovery.problems()
        names = Counter(name for name, _ in found)
        problems += [f"{count} addresses are called {name}; give them different instances"
                     for name, count in names.items() if count > 1]  # fmt: skip
        self._listed = problems
        return {target: job for target, job in found.values() if names[target.name] == 1}

    def _adopt(
        self,
        found: Mapping[ScrapeTarget, ScrapeJob],
        tasks: dict[ScrapeTarget, asyncio.Task[None]],
    ) -> None:
        gone, new = tasks.keys() - found.keys(), found.keys() - tasks.keys()
        for target in gone:
            tasks.pop(target).cancel()
            each = self._watched.pop(target)
            self._gone.update(late=each.late, missed=each.turns.missed)
            self._shared.owners.release(target.name)
        if new:
            _allow_files(len(found))
        for target in new:
            watched = WatchedTarget(target, found[target], self._shared)
            self._watched[target] = watched
            tasks[target] = asyncio.create_task(watched.run(), name=target.name)
        if gone or new:
            log.info("targets_changed", targets=len(tasks), new=len(new), gone=len(gone))


def _allow_files(targets: int) -> None:
    """Let the process hold a connection to each target; the usual soft limit is 1024."""
    wanted = targets + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning(
            "too_few_open_files_allowed",
            targets=targets,
            limit=allowed,
            fix=f"raise the limit of open files (ulimit -n) to {wanted}",
        )
