"""The watch loop: sense, think, act and tell, once a tick, in one direction."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from analysis.analyst import Analyst, AnalystTick
from analysis.history import History
from analysis.journal import EventKind, Journal
from collectors.clock import SteadyClock
from collectors.contract import Sample
from collectors.poller import Poller
from collectors.store.contract import SeriesStore
from collectors.store.upkeep import StoreUpkeep
from galen.errors import GalenError
from galen.reload import Reloader
from galen.seasons import SeasonFitter
from galen.telemetry.status import StatusBoard
from healing.healer import Healer
from healing.ledger import Ledger

log = structlog.get_logger(__name__)

_SAVE_EVERY_SECONDS = 60.0
_REPEAT_FAILURE_SECONDS = 300.0
WATCH_ENTITY = "collector/watch"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class WatchParts:
    """What the loop joins."""

    poller: Poller
    store: SeriesStore
    history: History
    analyst: Analyst
    healer: Healer
    ledger: Ledger
    journal: Journal
    seasons: SeasonFitter
    upkeep: StoreUpkeep


class WatchLoop:
    """Runs the parts. One part that fails is logged and journaled, and the loop goes on."""

    def __init__(
        self,
        parts: WatchParts,
        *,
        interval_seconds: float,
        clock: Callable[[], float] | None = None,
        board: StatusBoard | None = None,
        reloader: Reloader | None = None,
    ) -> None:
        self._parts = parts
        self._board = board
        self._reloader = reloader
        self._interval_seconds = interval_seconds
        self._clock = clock or SteadyClock()
        self._last_tick_seconds = 0.0
        self._next_save_seconds = 0.0
        self._failures: dict[str, float] = {}
        self._held: set[str] = set()

    def run(self, stop: threading.Event) -> None:
        """Tick until told to stop. A tick that takes too long delays the next; none is made up for."""
        while not stop.is_set():
            started = time.monotonic()
            # In the store's own resolution, so that a replay sees the same times to the last bit.
            self.tick(round(self._clock(), 3))
            took = time.monotonic() - started
            if took > self._interval_seconds:
                log.warning("tick_took_too_long", seconds=round(took, 3))
            stop.wait(max(0.0, self._interval_seconds - took))
        self._guarded("save", self._parts.analyst.save)

    def tick(self, now: float) -> None:
        """Do everything once."""
        parts = self._parts
        started = time.monotonic()
        if self._reloader is not None:
            reloader = self._reloader
            self._guarded("reload", lambda: reloader.step(now))
        polled = self._guarded("poll", lambda: parts.poller.tick(now))
        if polled is None:
            self._show(now, started, (), None)
            return
        own = self._guarded("self", lambda: list(self._own_samples(now)))
        samples = [*polled.samples, *(own or ())]
        self._guarded("store", lambda: parts.store.write(samples))
        thought = self._guarded("analyse", lambda: parts.analyst.tick(now, samples, polled.links))
        if thought is not None:
            self._guarded("heal", lambda: parts.healer.tick(now, thought.incidents, parts.history))
        self._keep_house(now)
        self._last_tick_seconds = time.monotonic() - started
        self._show(now, started, samples, thought)

    def _show(
        self, now: float, started: float, samples: Sequence[Sample], thought: AnalystTick | None
    ) -> None:
        if self._board is not None:
            board, took = self._board, time.monotonic() - started
            found = None if thought is None else thought.detections
            self._guarded("status", lambda: board.write(now, took, samples, found))

    def _own_samples(self, now: float) -> Iterator[Sample]:
        """Yield what Galen knows of itself: how long a tick takes, and what it holds in force.

        A temporary action changes what is measured, such as a power limit. Diagnosis has to see that
        it was done on purpose, and sees it as it sees everything: as a sample.
        """
        if self._last_tick_seconds:
            yield Sample(now, WATCH_ENTITY, "scrape_duration_seconds", self._last_tick_seconds)
            yield Sample(now, WATCH_ENTITY, "scrape_success", 1.0)
        standing = Counter(action.entity for action in self._parts.ledger.standing())
        for entity in self._held | set(standing):
            yield Sample(now, entity, "healing_actions_in_force", float(standing[entity]))
        self._held |= set(standing)

    def _keep_house(self, now: float) -> None:
        for name, duty in self._guarded("upkeep", lambda: list(self._parts.upkeep.due(now))) or ():
            self._guarded(name, duty)
        if shapes := self._parts.seasons.take(now):
            self._guarded("seasons", lambda: self._parts.analyst.adopt_shapes(shapes))
        if now >= self._next_save_seconds:
            self._next_save_seconds = now + _SAVE_EVERY_SECONDS
            self._guarded("save", self._parts.analyst.save)

    def _guarded(self, part: str, call: Callable[[], _T]) -> _T | None:
        try:
            return call()
        # One part that fails must not end the loop, whatever the reason: it is said aloud instead.
        except Exception as error:
            log.exception("part_failed", part=part)
            if self._board is not None:
                self._board.failed(part)
            self._tell_failure(part, error)
            return None

    def _tell_failure(self, part: str, error: Exception) -> None:
        now = self._clock()
        if now < self._failures.get(part, 0.0):
            return
        self._failures[part] = now + _REPEAT_FAILURE_SECONDS
        try:
            self._parts.journal.append(
                EventKind.PART_FAILED,
                time_seconds=now,
                summary=f"The part '{part}' of the watch loop failed: {type(error).__name__}: {error}",
                data={"part": part},
            )
        # The journal itself may be what is broken; the log line above has said it already.
        except Exception:
            log.exception("journal_failed", part=part)


@contextmanager
def only_watch(state_dir: Path) -> Iterator[None]:
    """Hold the lock that lets one watch loop write to a state directory.

    Raises:
        GalenError: when another one holds it, with its process number.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    path = state_dir / "watch.lock"
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise GalenError(
                f"another watch loop (process {file.read().strip() or 'unknown'}) "
                f"already writes to {state_dir}",
                fix="Stop it, or give this one another --state-dir.",
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
