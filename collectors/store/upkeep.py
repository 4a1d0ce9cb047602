"""Keeping the store in order beside the watch loop: compaction, retention, space given back.

Everything is done in small portions, each of them safe to end at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog

from collectors.cardinality import SeriesLimit
from collectors.store.contract import HOUR_SECONDS, SeriesStore

log = structlog.get_logger(__name__)

_PRUNE_EVERY_SECONDS = 600.0
_COMPACT_EVERY_SECONDS = 60.0
_BUDGET_SECONDS = 0.1
"""Of a tick of a second; a tick that is late delays the next one only."""
_JUMP_SECONDS = 3600.0
_HOLD_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Retention:
    """How old samples and roll-ups may become. Roll-ups are never kept shorter than samples."""

    raw_seconds: float
    minute_seconds: float
    hour_seconds: float


class StoreUpkeep:
    """Runs what is due. The caller runs the duties one by one, so that one that fails holds up no other.

    A clock that jumps forward would make everything too old at once. After such a jump, and after a
    start long after the newest sample, nothing is deleted for an hour; a clock that was wrong is put
    right by then.

    Args:
        store: what to look after.
        retention: what to keep.
        limit: told which series are left after each deletion.
        monotonic: a clock that never goes back.

    Raises:
        StoreError: when the store cannot be read.
    """

    def __init__(
        self,
        store: SeriesStore,
        retention: Retention,
        *,
        limit: SeriesLimit | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._retention = retention
        self._limit = limit
        self._monotonic = monotonic
        self._next_prune = self._next_compaction = monotonic()
        self._last: tuple[float, float] | None = None
        self._held_until = self._next_prune
        # Now: the first round comes after the first samples are written.
        self._newest = max((info.last_seconds for info in store.series()), default=None)

    def due(self, now_seconds: float) -> Iterator[tuple[str, Callable[[], object]]]:
        """Yield the names of the duties that are due, and what does them."""
        now = self._monotonic()
        self._watch_clock(now_seconds, now)
        if now >= max(self._next_prune, self._held_until):
            self._next_prune = now + _PRUNE_EVERY_SECONDS
            yield "prune", lambda: self._prune(now_seconds)
            yield "give back", self._store.give_back
        if now >= self._next_compaction:
            self._next_compaction = now + _COMPACT_EVERY_SECONDS
            yield "compact", lambda: self._compact(now_seconds)

    def _prune(self, now_seconds: float) -> None:
        keep = self._retention
        # Whole hours: a block is dropped, not written again without its first minutes.
        before = (now_seconds - keep.raw_seconds) // HOUR_SECONDS * HOUR_SECONDS
        self._store.prune_rollups(
            minutes_before_seconds=min(before, now_seconds - keep.minute_seconds),
            hours_before_seconds=min(before, now_seconds - keep.hour_seconds),
        )
        self._store.prune(before_seconds=before)
        if self._limit is not None:
            self._limit.recount(info.key for info in self._store.series())

    def _compact(self, now_seconds: float) -> None:
        if not self._store.compact(now_seconds=now_seconds, budget_seconds=_BUDGET_SECONDS):
            self._next_compaction = self._monotonic()

    def _watch_clock(self, now_seconds: float, now: float) -> None:
        if self._last is None:
            jump = 0.0 if self._newest is None else max(0.0, now_seconds - self._newest)
        else:
            last_seconds, last = self._last
            jump = now_seconds - last_seconds - (now - last)
        self._last = (now_seconds, now)
        if jump > _JUMP_SECONDS:
            self._held_until = now + _HOLD_SECONDS
            log.warning(
                "store_prune_held", hours=round(jump / HOUR_SECONDS, 1),
                reason="the clock went forward, or nothing was written for this long; "
                "nothing is deleted for an hour",
            )  # fmt: skip
        elif jump < -_JUMP_SECONDS:
            self._held_until = now
