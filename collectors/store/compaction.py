"""Moving samples from rows into blocks, and counting them into roll-ups on the way.

A step is one transaction: a reader sees a sample in its old place or in its new one, never in both,
and ``kill -9`` leaves it in one of them. A step ends when its time is over and leaves the rest, so a
caller with a tick to keep may give it a few milliseconds at a time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
_STEP_SAMPLES = 2_000_000
_LEGACY_ROWS = 20_000

Expired = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did."""

    samples: int = 0
    """Samples that are in blocks now and were not before."""
    damaged: Sequence[Damage] = ()
    """What was set aside, because it could not be read."""
    done: bool = True
    """Whether nothing is left to do for now."""


def compact_hot(
    connection: sqlite3.Connection, *, cutoff: int, most_samples: int, expired: Expired
) -> Step:
    """Move samples before a time, and the oldest calls where there are too many samples.

    Args:
        connection: of the series file, to write.
        cutoff: milliseconds since the epoch; an hour that has ended.
        most_samples: above it the older half goes, whatever its time.
        expired: says that the time is over. At least some samples are moved first.
    """
    with transaction(connection):
        up_to, before = _due(connection, cutoff, most_samples)
        if up_to is None:
            return Step()
        found, damaged = hot.read(connection, up_to=up_to)
        set_aside(connection, damaged)
        is_due = found.times < before
        late = settled(found.where(is_due))
        moved, broken = _into_blocks(connection, late, expired)
        left_over = joined([late.where(slice(moved, None)), found.where(~is_due)])
        hot.put_back(connection, up_to, left_over)
        left = moved < len(late) or _due(connection, cutoff, most_samples)[0] is not None
    return Step(moved, [*damaged, *broken], done=not left)


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
    last = min(last, max(0, int(np.searchsorted(counts, _STEP_SAMPLES, side="right")) - 1))
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
                return Step(moved, damaged)
            columns = zip(*rows, strict=True)
            older = Columns(*map(np.array, columns))
            _, broken = _into_blocks(connection, older, lambda: False, older=True)
            damaged += broken
            connection.execute(
                "DELETE FROM samples WHERE (series_id, time) <= (?, ?)", rows[-1][:2]
            )
        moved += len(rows)
    return Step(moved, damaged, done=False)


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
    connection: sqlite3.Connection, late: Columns, expired: Expired, *, older: bool = False
) -> tuple[int, list[Damage]]:
    """Merge settled samples into blocks until the time is over; return how many were merged."""
    groups = list(late.groups(HOUR_MILLISECONDS))
    times = blocks.Times()
    damaged: list[Damage] = []
    moved = 0
    for at in range(0, len(groups), _PAIRS):
        if at and expired():
            break
        portion = groups[at : at + _PAIRS]
        until = portion[-1][2].stop
        pairs = [(series, slot) for series, slot, _ in portion]
        damaged += _merge(connection, late.where(slice(moved, until)), pairs, times, older=older)
        moved = until
    return moved, damaged


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
