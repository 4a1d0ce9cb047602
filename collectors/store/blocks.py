"""Samples of one series in one hour, as two compressed columns in one row."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from collectors.store.codec import DamagedError, checksum, decode_into, encode, verify
from collectors.store.columns import HOUR_MILLISECONDS, Columns, FloatArray, IntArray
from collectors.store.hot import Damage

_COLUMNS = "id, series_id, slot, start, stop, newest, count, crc, times, data"
_MOST_TIMES = 4096


class Block(NamedTuple):
    """A row of the table; times in milliseconds, ``stop`` is the newest one, ``size`` the count."""

    id: int
    series_id: int
    slot: int
    start: int
    stop: int
    newest: float
    size: int
    crc: int
    times: bytes
    data: bytes


class Times:
    """Times as bytes and back, each kind once: the series of one source share theirs."""

    def __init__(self) -> None:
        self._packed: dict[bytes, bytes] = {}
        self._unpacked: dict[bytes, IntArray] = {}

    def pack(self, times: IntArray) -> bytes:
        """Compress times ``[n]``."""
        raw = times.tobytes()
        found = self._packed.get(raw)
        if found is None:
            if len(self._packed) >= _MOST_TIMES:
                self._packed.clear()
            found = self._packed[raw] = encode(times)
        return found

    def unpack(self, packed: bytes, count: int) -> IntArray:
        """Decompress times ``[count]``; the result is shared and must not be written to.

        Raises:
            DamagedError: when the bytes are not as many times.
        """
        found = self._unpacked.get(packed)
        if found is None or len(found) != count:
            if len(self._unpacked) >= _MOST_TIMES:
                self._unpacked.clear()
            found = np.empty(count, np.int64)
            decode_into(packed, found)
            self._unpacked[packed] = found
        return found


def put(
    connection: sqlite3.Connection, blocks: Sequence[tuple[int, int, IntArray, FloatArray]],
    times: Times,
) -> None:  # fmt: skip
    """Write blocks ``(series, slot, times, values)``, each in the place of an older one."""
    connection.executemany(
        "INSERT OR REPLACE INTO blocks (series_id, slot, start, stop, newest, count, crc, times, data)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (_row(series, slot, at, values, times) for series, slot, at, values in blocks),
    )


def _row(
    series: int, slot: int, at: IntArray, values: FloatArray, times: Times
) -> tuple[int | float | bytes, ...]:
    packed, data = times.pack(at), encode(values)
    crc = checksum((series, slot, len(at)), packed, data)
    return series, slot, int(at[0]), int(at[-1]), float(values[-1]), len(at), crc, packed, data


def read(
    connection: sqlite3.Connection,
    *,
    first_slot: int,
    last_slot: int,
    series: IntArray | None = None,
) -> list[Block]:
    """Return the blocks of some series, or of all, in slots from the first to the last."""
    span = (first_slot, last_slot)
    if series is None:
        rows = connection.execute(
            f"SELECT {_COLUMNS} FROM blocks WHERE slot BETWEEN ? AND ?", span  # noqa: S608 - our own text
        )  # fmt: skip
    else:
        rows = connection.execute(
            f"SELECT {_COLUMNS} FROM blocks WHERE series_id IN (SELECT value FROM json_each(?)) "  # noqa: S608 - our own text
            "AND slot BETWEEN ? AND ?",
            (json.dumps(series.tolist()), *span),
        )  # fmt: skip
    return [_block(row) for row in rows]


def read_pairs(connection: sqlite3.Connection, pairs: Collection[tuple[int, int]]) -> list[Block]:
    """Return the blocks of some pairs of series and slot."""
    rows = connection.execute(
        f"SELECT {', '.join('b.' + name for name in _COLUMNS.split(', '))} "  # noqa: S608 - our own text
        "FROM json_each(?) AS p CROSS JOIN blocks AS b "
        "ON b.series_id = json_extract(p.value, '$[0]') AND b.slot = json_extract(p.value, '$[1]')",
        (json.dumps(list(pairs)),),
    )
    return [_block(row) for row in rows]


def _block(row: tuple[Any, ...]) -> Block:
    found = Block._make(row)
    # A flipped bit in the count must not ask for all the memory there is; the check sum finds it.
    if 0 < found.size <= HOUR_MILLISECONDS:
        return found
    return found._replace(size=1)


def unpack(block: Block, times: Times, out: FloatArray) -> IntArray:
    """Fill ``out [count]`` with a block's values and return its times ``[count]``.

    Raises:
        DamagedError: when the row is not what was written.
    """
    verify((block.series_id, block.slot, block.size), block.times, block.data, crc=block.crc)
    decode_into(block.data, out)
    return times.unpack(block.times, block.size)


def unpack_all(found: Sequence[Block], times: Times) -> tuple[Columns, Sequence[Damage]]:
    """Return the samples of blocks, one behind the other, and the blocks that are damaged."""
    values = np.empty(sum(block.size for block in found))
    at = np.empty(len(values), np.int64)
    series = np.empty(len(values), np.int64)
    damaged: list[Damage] = []
    done = 0
    for block in found:
        until = done + block.size
        try:
            at[done:until] = unpack(block, times, values[done:until])
        except DamagedError as error:
            damaged.append(damage_of(block, error))
            continue
        series[done:until] = block.series_id
        done = until
    return Columns(series[:done], at[:done], values[:done]), damaged


def damage_of(block: Block, error: DamagedError) -> Damage:
    """Name a block that cannot be read."""
    return Damage(
        "blocks", block.id, block.series_id, block.start, block.stop, block.size, str(error)
    )
