"""Deleting what is too old, and giving its space back to the disk."""

from __future__ import annotations

import json
import sqlite3

import numpy as np

from collectors.store import blocks, hot
from collectors.store.columns import HOUR_MILLISECONDS, Columns
from collectors.store.compaction import set_aside
from collectors.store.schema import tables, transaction

_INCREMENTAL = 2


def prune(connection: sqlite3.Connection, before: int) -> int:
    """Delete samples older than a time (milliseconds) in one transaction; return how many went.

    Roll-ups stay. A series that has neither samples nor roll-ups any more goes too.
    """
    with transaction(connection):
        gone = _prune_blocks(connection, before) + _prune_hot(connection, before)
        if "samples" in tables(connection):
            gone += connection.execute(
                # Naming the series lets SQLite use the key of the table.
                "DELETE FROM samples WHERE series_id IN (SELECT id FROM series) AND time < ?",
                (before,),
            ).rowcount
        forget_empty_series(connection)
    return gone


def _prune_blocks(connection: sqlite3.Connection, before: int) -> int:
    slot = before // HOUR_MILLISECONDS
    gone = connection.execute(
        "SELECT coalesce(sum(count), 0) FROM blocks WHERE slot < ?", (slot,)
    ).fetchone()[0]
    connection.execute("DELETE FROM blocks WHERE slot < ?", (slot,))
    cut = [
        block
        for block in blocks.read(connection, first_slot=slot, last_slot=slot)
        if block.start < before
    ]
    times = blocks.Times()
    samples, damaged = blocks.unpack_all(cut, times)
    set_aside(connection, damaged)
    connection.executemany(
        "DELETE FROM blocks WHERE id = ?", [(block.id,) for block in cut if block.stop < before]
    )
    left = samples.where(samples.times >= before)
    blocks.put(
        connection,
        [
            (series, at, left.times[places], left.values[places])
            for series, at, places in left.groups(HOUR_MILLISECONDS)
        ],
        times,
    )
    return int(gone) + len(samples) - len(left)


def _prune_hot(connection: sqlite3.Connection, before: int) -> int:
    rows = connection.execute(
        "SELECT id, stop, count FROM hot WHERE start < ? ORDER BY id", (before,)
    ).fetchall()
    mark = hot.read_mark(connection)
    gone = 0
    for row_id, stop, count in rows:
        if stop < before and (mark is None or row_id > mark.up_to):
            hot.replace(connection, row_id, Columns.empty())
            gone += count
            continue
        # Some are not older, or are in blocks already and counted there.
        found, damaged = hot.read(connection, after=row_id - 1, up_to=row_id)
        if damaged:
            set_aside(connection, damaged)
            continue
        left = found.where(found.times >= before)
        hot.replace(connection, row_id, left)
        gone += len(found) - len(left)
    return gone


def forget_empty_series(connection: sqlite3.Connection) -> int:
    """Delete the series of which nothing is left, and return how many."""
    newest, _ = hot.read(connection)
    legacy = (
        "AND NOT EXISTS (SELECT 1 FROM samples WHERE series_id = series.id)"
        if "samples" in tables(connection)
        else ""
    )
    return connection.execute(
        "DELETE FROM series WHERE id NOT IN (SELECT value FROM json_each(?)) "  # noqa: S608 - our own text
        "AND NOT EXISTS (SELECT 1 FROM blocks WHERE series_id = series.id) "
        f"AND NOT EXISTS (SELECT 1 FROM rollups WHERE series_id = series.id) {legacy}",
        (json.dumps(np.unique(newest.series).tolist()),),
    ).rowcount


def free_bytes(connection: sqlite3.Connection) -> int:
    """Return how much of the file holds nothing."""
    (pages,) = connection.execute("PRAGMA freelist_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    return int(pages) * int(size)


def can_shrink(connection: sqlite3.Connection) -> bool:
    """Say whether the file gives space back page by page; one of layout 1 does after a vacuum."""
    return bool(connection.execute("PRAGMA auto_vacuum").fetchone()[0] == _INCREMENTAL)


def give_back(connection: sqlite3.Connection, pages: int) -> None:
    """Shorten the file by some of the pages that hold nothing."""
    connection.execute(f"PRAGMA incremental_vacuum({int(pages)})").fetchall()
