"""The newest samples: one row a call of the writer, in the order of the calls.

A record is 20 bytes: series number, milliseconds, value. Where a series has two at one time, the later
record counts, and any of them counts more than a block.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collectors.store.codec import DamagedError, checksum, verify
from collectors.store.columns import Columns

_RECORD = np.dtype([("series", "<u4"), ("time", "<i8"), ("value", "<f8")])
EVER = 2**62


@dataclass(frozen=True, slots=True)
class Damage:
    """A row that does not pass its check sum, and what it should have held; times in milliseconds."""

    origin: str
    """The table that it lies in."""
    row_id: int
    series_id: int | None
    start: int
    stop: int
    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class Mark:
    """How far compaction is: series up to one are in blocks, of the rows up to one, before a time."""

    up_to: int
    before: int
    series_id: int


def read_mark(connection: sqlite3.Connection) -> Mark | None:
    """Return how far compaction is, None between two portions."""
    try:
        row = connection.execute("SELECT up_to, before, series_id FROM compacting").fetchone()
    except sqlite3.OperationalError:  # a file of layout 2, which no writer has opened since
        return None
    return None if row is None else Mark(*row)


def set_mark(connection: sqlite3.Connection, mark: Mark | None) -> None:
    """Note how far compaction is."""
    connection.execute("DELETE FROM compacting")
    if mark is not None:
        connection.execute(
            "INSERT INTO compacting VALUES (?, ?, ?)", (mark.up_to, mark.before, mark.series_id)
        )


def add(connection: sqlite3.Connection, log: Columns) -> None:
    """Append what one call wrote."""
    connection.execute(
        # Above the mark of compaction as well, where the rows up to it are pruned meanwhile.
        "INSERT INTO hot (id, start, stop, count, crc, data) "
        "SELECT 1 + max(coalesce((SELECT max(id) FROM hot), 0), "
        "coalesce((SELECT up_to FROM compacting), 0)), ?, ?, ?, ?, ?",
        _row(log),
    )


def put_back(connection: sqlite3.Connection, up_to: int, log: Columns) -> None:
    """Put what is left of the rows up to one of them in their place."""
    connection.execute("DELETE FROM hot WHERE id <= ?", (up_to,))
    if len(log):
        connection.execute(
            "INSERT INTO hot (id, start, stop, count, crc, data) VALUES (?, ?, ?, ?, ?, ?)",
            (up_to, *_row(log)),
        )


def replace(connection: sqlite3.Connection, row_id: int, log: Columns) -> None:
    """Put other samples in the place of a row; none deletes it."""
    if len(log):
        connection.execute(
            "UPDATE hot SET start = ?, stop = ?, count = ?, crc = ?, data = ? WHERE id = ?",
            (*_row(log), row_id),
        )
    else:
        connection.execute("DELETE FROM hot WHERE id = ?", (row_id,))


def _row(log: Columns) -> tuple[int, int, int, int, bytes]:
    records = np.empty(len(log), _RECORD)
    records["series"], records["time"], records["value"] = log.series, log.times, log.values
    data = records.tobytes()
    start, stop = int(log.times.min()), int(log.times.max())
    return start, stop, len(log), checksum((start, stop, len(log)), data), data


def read(
    connection: sqlite3.Connection,
    *,
    start: int = -EVER,
    stop: int = EVER,
    up_to: int = EVER,
    after: int = -EVER,
    series: NDArray[np.int64] | None = None,
) -> tuple[Columns, Sequence[Damage]]:
    """Return the records with ``start <= time < stop`` in the order in which they were written.

    Args:
        connection: of the series file.
        start: milliseconds since the epoch.
        stop: milliseconds since the epoch.
        up_to: the last row to read.
        after: the row before the first to read.
        series: the series to read; all where it is None.
    """
    rows = connection.execute(
        "SELECT id, start, stop, count, crc, data FROM hot "
        "WHERE id > ? AND id <= ? AND stop >= ? AND start < ? ORDER BY id",
        (after, up_to, start, stop),
    )
    mark = read_mark(connection)
    pieces: list[bytes] = []
    damaged: list[Damage] = []
    whole, in_portion = True, 0
    for row_id, first, last, count, crc, data in rows:
        try:
            verify((first, last, count), data, crc=crc)
        except DamagedError as error:
            damaged.append(Damage("hot", row_id, None, first, last, count, str(error)))
            continue
        pieces.append(data)
        if mark is not None and row_id <= mark.up_to:
            in_portion += len(data) // _RECORD.itemsize
        whole = whole and first >= start and last < stop
    records = np.frombuffer(b"".join(pieces), _RECORD)
    if mark is not None and in_portion:
        portion = records[:in_portion]
        moved = (portion["series"] <= mark.series_id) & (portion["time"] < mark.before)
        records = np.concatenate((portion[~moved], records[in_portion:]))
    if not whole:
        records = records[(records["time"] >= start) & (records["time"] < stop)]
    if series is not None and len(records):
        wanted = np.zeros(int(max(records["series"].max(), series.max(initial=0))) + 1, bool)
        wanted[series] = True
        records = records[wanted[records["series"]]]
    found = Columns(
        records["series"].astype(np.int64),
        records["time"].astype(np.int64),
        records["value"].astype(np.float64),
    )
    return found, damaged
