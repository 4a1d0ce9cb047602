"""Roll-ups in the file: a row a series and hour, with the hour as numbers and its minutes packed."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from collectors.store.buckets import Buckets, coarser, key_of, put_together
from collectors.store.codec import DamagedError, checksum, decode_into, encode, verify
from collectors.store.columns import (
    HOUR_MILLISECONDS,
    MINUTE_MILLISECONDS,
    IntArray,
)
from collectors.store.hot import Damage

_MINUTES = HOUR_MILLISECONDS // MINUTE_MILLISECONDS
_HEAD = struct.Struct("<Q4H")
"""Which of the 60 minutes are there, a bit each, and the lengths of the four columns."""
_NAMES = ("id", "series_id", "slot", "count", "low", "high", "mean", "crc", "minutes")
_COLUMNS = ", ".join(_NAMES)

_Row = tuple[int, int, int, int, float, float, float, int, bytes | None]


@dataclass(frozen=True, slots=True)
class Rollups:
    """Stored roll-ups; an hour whose minutes are gone or damaged has none in ``minutes``."""

    hours: Buckets
    minutes: Buckets
    damaged: Sequence[Damage] = ()


def put(connection: sqlite3.Connection, hours: Buckets, minutes: Buckets) -> None:
    """Write whole hours with all their minutes, each in the place of an older row."""
    owners, starts = np.unique(
        key_of(minutes.series, minutes.numbers // _MINUTES), return_index=True
    )
    ends = np.append(starts, len(minutes))[1:]
    packed = {
        key: _pack(minutes.where(slice(start, end)))
        for key, start, end in zip(owners.tolist(), starts.tolist(), ends.tolist(), strict=True)
    }
    rows = []
    for key, series, slot, count, low, high, mean in zip(
        hours.keys.tolist(), hours.series.tolist(), hours.numbers.tolist(), hours.count.tolist(),
        hours.low.tolist(), hours.high.tolist(), hours.mean.tolist(), strict=True,
    ):  # fmt: skip
        data = packed.get(key)
        crc = 0 if data is None else checksum((series, slot), data)
        rows.append((series, slot, count, low, high, mean, crc, data))
    connection.executemany(
        f"INSERT OR REPLACE INTO rollups ({', '.join(_NAMES[1:])}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - our own text
        rows,
    )


def read(
    connection: sqlite3.Connection,
    *,
    first_slot: int,
    last_slot: int,
    minutes: bool,
    series: IntArray | None = None,
) -> Rollups:
    """Return the roll-ups of some series, or of all, in slots from the first to the last."""
    chosen = "" if series is None else "AND series_id IN (SELECT value FROM json_each(?))"
    parameters = () if series is None else (json.dumps(series.tolist()),)
    rows = connection.execute(
        f"SELECT {_COLUMNS if minutes else _COLUMNS.replace('minutes', 'NULL')} FROM rollups "  # noqa: S608 - our own text
        f"WHERE slot BETWEEN ? AND ? {chosen}",
        (first_slot, last_slot, *parameters),
    )
    return _unpacked(rows.fetchall())


def read_pairs(connection: sqlite3.Connection, pairs: Collection[tuple[int, int]]) -> Rollups:
    """Return the roll-ups of some pairs of series and slot."""
    rows = connection.execute(
        f"SELECT {', '.join('r.' + name for name in _NAMES)} "  # noqa: S608 - our own text
        "FROM json_each(?) AS p CROSS JOIN rollups AS r "
        "ON r.series_id = json_extract(p.value, '$[0]') AND r.slot = json_extract(p.value, '$[1]')",
        (json.dumps(list(pairs)),),
    )
    return _unpacked(rows.fetchall())


def replace(connection: sqlite3.Connection, given: Buckets, milliseconds: int) -> None:
    """Put buckets of a minute or an hour, sorted by their keys, in the place of stored ones.

    An hour is what its minutes say, unless it is known to have had more samples than they have.
    """
    per_hour = HOUR_MILLISECONDS // milliseconds
    pairs = set(zip(given.series.tolist(), (given.numbers // per_hour).tolist(), strict=True))
    stored = read_pairs(connection, pairs)
    if per_hour == 1:
        put(connection, given, stored.minutes)
        return
    minutes = put_together([stored.minutes.where(~np.isin(stored.minutes.keys, given.keys)), given])
    counted = coarser(minutes, per_hour)
    fuller = stored.hours.where(stored.hours.count > counted.count_at(stored.hours.keys))
    hours = put_together([counted.where(~np.isin(counted.keys, fuller.keys)), fuller])
    put(connection, hours, minutes)


def forget_minutes(connection: sqlite3.Connection, before_slot: int) -> int:
    """Drop the minutes of hours before a slot, keep the hours, and return how many had some."""
    return connection.execute(
        "UPDATE rollups SET minutes = NULL WHERE slot < ? AND minutes IS NOT NULL", (before_slot,)
    ).rowcount


def forget_hours(connection: sqlite3.Connection, before_slot: int) -> int:
    """Drop the roll-ups of hours before a slot and return how many there were."""
    return connection.execute("DELETE FROM rollups WHERE slot < ?", (before_slot,)).rowcount


def _pack(minutes: Buckets) -> bytes:
    places = minutes.numbers % _MINUTES
    present = int((np.uint64(1) << places.astype(np.uint64)).sum())
    columns = [
        encode(minutes.low),
        encode(minutes.high),
        encode(minutes.mean),
        encode(minutes.count),
    ]
    return _HEAD.pack(present, *map(len, columns)) + b"".join(columns)


def _unpacked(rows: list[_Row]) -> Rollups:
    rows.sort(key=lambda row: (row[1], row[2]))
    damaged: list[Damage] = []
    pieces: list[tuple[int, int, list[Any]]] = []
    for row_id, series, slot, count, *_, crc, data in rows:
        if data is None:
            continue
        try:
            verify((series, slot), data, crc=crc)
            pieces.append((series, slot, _columns(data)))
        except DamagedError as error:
            start = slot * HOUR_MILLISECONDS
            damaged.append(
                Damage(
                    "rollups", row_id, series, start, start + HOUR_MILLISECONDS - 1, count,
                    str(error),
                )
            )  # fmt: skip
    return Rollups(_hours(rows), _minutes(pieces), damaged)


def _hours(rows: list[_Row]) -> Buckets:
    if not rows:
        return Buckets.empty()
    _, series, slots, count, low, high, mean, *_ = zip(*rows, strict=True)
    return Buckets(
        key_of(np.array(series, np.int64), np.array(slots, np.int64)),
        np.array(count, np.int64),
        np.array(low, np.float64),
        np.array(high, np.float64),
        np.array(mean, np.float64),
    )


def _minutes(pieces: list[tuple[int, int, list[Any]]]) -> Buckets:
    if not pieces:
        return Buckets.empty()
    keys = [key_of(series, slot * _MINUTES + columns[0]) for series, slot, columns in pieces]
    low, high, mean, count = (
        np.concatenate([columns[at] for _, _, columns in pieces]) for at in range(1, 5)
    )
    return Buckets(np.concatenate(keys), count, low, high, mean)


def _columns(data: bytes) -> list[Any]:
    present, *lengths = _HEAD.unpack_from(data)
    places = np.flatnonzero(
        np.unpackbits(np.frombuffer(data[:8], np.uint8), bitorder="little")[:_MINUTES]
    ).astype(np.int64)
    if len(places) != present.bit_count():
        raise DamagedError("the minutes are not among 60")
    columns = [places]
    at = _HEAD.size
    for length, kind in zip(lengths, (np.float64, np.float64, np.float64, np.int64), strict=True):
        column = np.empty(len(places), kind)
        decode_into(data[at : at + length], column)
        columns.append(column)
        at += length
    return columns
