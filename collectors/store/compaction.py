"""Moving samples from rows into blocks, and counting them into roll-ups on the way.

A step is one transaction: a reader sees a sample in its old place or in its new one, never in both,
and ``kill -9`` leaves it in one of them. A step ends when its time is over and leaves the rest, so a
caller with a tick to keep may give it a few milliseconds at a time.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import structlog

from collectors.store import blocks, hot, rollups
from collectors.store.buckets import refreshed
from collectors.store.columns import (
    HOUR_MILLISECONDS,
    MINUTE_MILLISECONDS,
    Columns,
    joined,
    settled,
    without,
)
from collectors.store.hot import Damage
from collectors.store.schema import tables, transaction

log = structlog.get_logger(__name__)

_PAIRS = 128
"""Pairs of series and hour between two looks at the clock: about 10 ms."""
_PORTION_SAMPLES = 1_000_000
_LEGACY_ROWS = 20_000

Expired = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did."""

    damaged: Sequence[Damage] = ()
    """What was set aside, because it could not be read."""
    done: bool = True
    """Whether nothing is left to do for now."""


@dataclass(frozen=True, slots=True)
class _Portion:
    """The oldest rows in memory, while they are moved a few series at a time."""

    up_to: int
    before: int
    late: Columns
    """What goes to blocks, sorted by series and time."""
    groups: Sequence[tuple[int, int, slice]]
    """Its series and hours, and where they lie."""
    rest: Columns
    """What stays."""


class HotCompaction:
    """Moves the oldest rows of ``hot`` into blocks, one series after the other.

    The rows stay until all their series are moved; a mark says how far that is, and a read leaves out
    what is in blocks already. So a step costs what it moves, however much it leaves.
    """

    def __init__(self, connection: sqlite3.Connection, most_samples: int) -> None:
        self._connection = connection
        self._most_samples = most_samples
        self._portion: _Portion | None = None

    def forget(self) -> None:
        """Read the rows again before the next step; something else has changed them."""
        self._portion = None

    def step(self, cutoff: int, expired: Expired) -> Step:
        """Move samples before a time, and the older half of too many, until the time is over.

        Args:
            cutoff: milliseconds since the epoch; the end of an hour.
            expired: says that the time is over. At least some samples are moved first.
        """
        try:
            with transaction(self._connection):
                return self._step(cutoff, expired)
        except BaseException:
            self._portion = None
            raise

    def _step(self, cutoff: int, expired: Expired) -> Step:
        connection = self._connection
        mark = hot.read_mark(connection)
        if mark is None:
            up_to, before = _due(connection, cutoff, self._most_samples)
            if up_to is None:
                return Step()
            mark = hot.Mark(up_to, before, -1)
        damaged: list[Damage] = []
        if self._portion is None:
            self._portion, found = _read_portion(connection, mark)
            damaged += found
        portion = self._portion
        first = bisect_right(portion.groups, mark.series_id, key=itemgetter(0))
        until, broken = _into_blocks(connection, portion.late, portion.groups[first:], expired)
        damaged += broken
        if first + until < len(portion.groups):
            moved_series = portion.groups[first + until - 1][0]
            hot.set_mark(connection, hot.Mark(mark.up_to, mark.before, moved_series))
            return Step(damaged, done=False)
        hot.set_mark(connection, None)
        hot.put_back(connection, mark.up_to, portion.rest)
        self._portion = None
        return Step(damaged, done=_due(connection, cutoff, self._most_samples)[0] is None)


def _read_portion(
    connection: sqlite3.Connection, mark: hot.Mark
) -> tuple[_Portion, Sequence[Damage]]:
    found, damaged = hot.read(connection, up_to=mark.up_to)
    set_aside(connection, damaged)
    is_due = found.times < mark.before
    late = settled(found.where(is_due))
    groups = list(late.groups(HOUR_MILLISECONDS))
    return _Portion(mark.up_to, mark.before, late, groups, found.where(~is_due)), damaged


def _due(connection: sqlite3.Connection, cutoff: int, most_samples: int) -> tuple[int | None, int]:
    """Return the last row to take and the time before which samples go."""
    rows = connection.execute("SELECT id, count, start FROM hot ORDER BY id").fetchall()
    counts = np.cumsum([count for _, count, _ in rows], dtype=np.int64)
    before = cutoff
    last = max((at for at, row in enumerate(rows) if row[2] < cutoff), default=-1)
    if rows and counts[-1] > most_samples:
        forced = int(np.searchsorted(counts, counts[-1] - most_samples // 2))
        if forced > last:
            last, before = forced, hot.EVER
    if last < 0:
        return None, before
    # Memory: a file that was never compacted is taken in portions.
    last = min(last, max(0, int(np.searchsorted(counts, _PORTION_SAMPLES, side="right")) - 1))
    return rows[last][0], before


def compact_legacy(connection: sqlite3.Connection, *, expired: Expired) -> Step:
    """Move the rows of layout 1. A block has what came later, so its samples stay."""
    if "samples" not in tables(connection):
        return Step()
    moved, damaged = 0, list[Damage]()
    while not expired() or not moved:
        with transaction(connection):
            rows = connection.execute(
                "SELECT series_id, time, value FROM samples ORDER BY series_id, time LIMIT ?",
                (_LEGACY_ROWS,),
            ).fetchall()
            if not rows:
                connection.execute("DROP TABLE samples")
                return Step(damaged)
            columns = zip(*rows, strict=True)
            older = Columns(*map(np.array, columns))
            groups = list(older.groups(HOUR_MILLISECONDS))
            _, broken = _into_blocks(connection, older, groups, lambda: False, older=True)
            damaged += broken
            connection.execute(
                "DELETE FROM samples WHERE (series_id, time) <= (?, ?)", rows[-1][:2]
            )
        moved += len(rows)
    return Step(damaged, done=False)


def set_aside(connection: sqlite3.Connection, damaged: Sequence[Damage]) -> None:
    """Move rows that cannot be read to where nobody reads them; of a roll-up only the minutes go."""
    for one in damaged:
        column = "minutes" if one.origin == "rollups" else "data"
        connection.execute(
            "INSERT INTO set_aside (origin, series_id, start, stop, count, reason, data) "  # noqa: S608 - our own text
            f"SELECT ?, ?, ?, ?, ?, ?, {column} FROM {one.origin} WHERE id = ?",
            (one.origin, one.series_id, one.start, one.stop, one.count, one.reason, one.row_id),
        )
        if one.origin == "rollups":
            connection.execute("UPDATE rollups SET minutes = NULL WHERE id = ?", (one.row_id,))
        else:
            connection.execute(
                f"DELETE FROM {one.origin} WHERE id = ?",  # noqa: S608 - our own text
                (one.row_id,),
            )
        log.error(
            "series_store_set_aside", table=one.origin, series_id=one.series_id, samples=one.count,
            start_seconds=one.start / 1000, end_seconds=one.stop / 1000, reason=one.reason,
        )  # fmt: skip


def _into_blocks(
    connection: sqlite3.Connection,
    late: Columns,
    groups: Sequence[tuple[int, int, slice]],
    expired: Expired,
    *,
    older: bool = False,
) -> tuple[int, list[Damage]]:
    """Merge groups of settled samples into blocks until the time is over; return how many it were.

    It stops between two series only.
    """
    times = blocks.Times()
    damaged: list[Damage] = []
    done = 0
    while done < len(groups) and not (done and expired()):
        last = groups[min(done + _PAIRS, len(groups)) - 1][0]
        until = bisect_right(groups, last, lo=done, key=itemgetter(0))
        portion = groups[done:until]
        pairs = [(series, slot) for series, slot, _ in portion]
        places = slice(portion[0][2].start, portion[-1][2].stop)
        damaged += _merge(connection, late.where(places), pairs, times, older=older)
        done = until
    return done, damaged


def _merge(
    connection: sqlite3.Connection,
    late: Columns,
    pairs: Sequence[tuple[int, int]],
    times: blocks.Times,
    *,
    older: bool,
) -> list[Damage]:
    before, broken = blocks.unpack_all(blocks.read_pairs(connection, pairs), times)
    stored = rollups.read_pairs(connection, pairs)
    # Before they are replaced.
    set_aside(connection, [*broken, *stored.damaged])
    before = settled(before)
    after = settled(joined([late, before] if older else [before, late])) if len(before) else late
    if older:
        late = without(late, before)
    blocks.put(
        connection,
        [
            (series, slot, after.times[places], after.values[places])
            for series, slot, places in after.groups(HOUR_MILLISECONDS)
        ],
        times,
    )
    rollups.put(
        connection,
        refreshed(stored.hours, before, late, HOUR_MILLISECONDS),
        refreshed(stored.minutes, before, late, MINUTE_MILLISECONDS),
    )
    return [*broken, *stored.damaged]
