"""Reading samples out of one snapshot of a series file, sorted by time."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collectors.contract import SeriesKey
from collectors.store import blocks, hot, rollups
from collectors.store.blocks import Block
from collectors.store.buckets import Buckets, coarser, refreshed
from collectors.store.codec import DamagedError
from collectors.store.columns import (
    HOUR_MILLISECONDS,
    MINUTE_MILLISECONDS,
    Columns,
    IntArray,
    joined,
    settled,
    settled_places,
    sorted_places,
    without,
)
from collectors.store.hot import EVER, Damage


@dataclass(frozen=True, slots=True)
class Found:
    """Samples ``[n]`` sorted by time and series."""

    places: NDArray[np.int32]
    """Where the sample's series stands among those that were asked for."""
    times: IntArray
    """Milliseconds since the epoch."""
    values: NDArray[np.float64]
    damaged: Sequence[Damage]


def choose_series(
    connection: sqlite3.Connection,
    entities: Collection[str] | None,
    signals: Collection[str] | None,
) -> dict[int, SeriesKey]:
    """Return the series that pass both filters by number, in the order of the numbers."""
    wanted: list[str] = []
    parameters: list[str] = []
    for column, names in (("entity", entities), ("signal", signals)):
        if names is not None:
            wanted.append(f"{column} IN (SELECT value FROM json_each(?))")  # noqa: S608 - our own text
            parameters.append(json.dumps(sorted(names)))
    where = f"WHERE {' AND '.join(wanted)}" if wanted else ""
    rows = connection.execute(
        f"SELECT id, entity, signal FROM series {where} ORDER BY id",  # noqa: S608 - our own text
        parameters,
    )
    return {number: SeriesKey(entity, signal) for number, entity, signal in rows}


def read_samples(
    connection: sqlite3.Connection,
    tables: Collection[str],
    series: IntArray | None,
    known: IntArray,
    *,
    start: int,
    stop: int,
) -> Found:
    """Read samples with ``start <= time < stop`` from all places in which they lie.

    Args:
        connection: of the series file, in one snapshot.
        tables: the tables that the file has.
        series: the numbers to read, ascending; None reads all of ``known``.
        known: the numbers to which places refer, ascending.
        start: milliseconds since the epoch.
        stop: milliseconds since the epoch.
    """
    old = legacy_rows(connection, series, start, stop) if "samples" in tables else Columns.empty()
    found: list[Block] = []
    new, damaged = Columns.empty(), list[Damage]()
    if "blocks" in tables:
        first, last = start // HOUR_MILLISECONDS, (stop - 1) // HOUR_MILLISECONDS
        found = blocks.read(connection, first_slot=first, last_slot=last, series=series)
        new, broken = hot.read(connection, start=start, stop=stop, series=series)
        damaged += broken
    sorter = _Sorter(known, len(old) + len(new) + sum(block.size for block in found))
    by_slot: defaultdict[int, list[Block]] = defaultdict(list)
    for block in found:
        by_slot[block.slot].append(block)
    loose_old, loose_new = _by_slot(old), _by_slot(new)
    for slot in sorted({*by_slot, *loose_old, *loose_new}):
        damaged += sorter.add(
            by_slot.get(slot, []),
            loose_old.get(slot, Columns.empty()),
            loose_new.get(slot, Columns.empty()),
        )
    return sorter.cut(start, stop, damaged)


def legacy_rows(
    connection: sqlite3.Connection, series: IntArray | None, start: int, stop: int
) -> Columns:
    """Read rows of layout 1."""
    chosen = "" if series is None else "AND series_id IN (SELECT value FROM json_each(?))"
    rows = connection.execute(
        "SELECT series_id, time, value FROM samples "  # noqa: S608 - our own text
        f"WHERE time >= ? AND time < ? {chosen}",
        (start, stop, *(() if series is None else (json.dumps(series.tolist()),))),
    ).fetchall()
    if not rows:
        return Columns.empty()
    numbers, times, values = zip(*rows, strict=True)
    return Columns(np.array(numbers, np.int64), np.array(times, np.int64), np.array(values, float))


def _by_slot(samples: Columns) -> Mapping[int, Columns]:
    if not len(samples):
        return {}
    slots = samples.times // HOUR_MILLISECONDS
    order = np.argsort(slots, kind="stable")
    numbers, starts = np.unique(slots[order], return_index=True)
    return {
        number: samples.where(places)
        for number, places in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True)
    }


class _Sorter:
    """Puts samples in order, an hour at a time, into columns that were made for all of them.

    Hours do not overlap, so only the samples of one are sorted at a time, which stays in the cache of
    the processor. Where all series of an hour share their times, as those of one source do, nothing
    is sorted at all: their values form a table that is turned.
    """

    def __init__(self, known: IntArray, size: int) -> None:
        self._place_of = np.zeros(int(known.max(initial=0)) + 1, np.int32)
        self._place_of[known] = np.arange(len(known), dtype=np.int32)
        self._places = np.empty(size, np.int32)
        self._times = np.empty(size, np.int64)
        self._values = np.empty(size)
        self._unpacked = blocks.Times()
        self._done = 0

    def add(self, found: list[Block], old: Columns, new: Columns) -> Sequence[Damage]:
        """Append an hour: of two samples of a series at one time, new ones count most, old least."""
        shared = len({(block.times, block.size) for block in found}) == 1
        if shared and not len(old) and not len(new):
            return self._add_table(found)
        stored, damaged = blocks.unpack_all(found, self._unpacked)
        samples = joined([old, stored, new])
        order = settled_places(samples.times, samples.series)
        self._put(
            self._place_of[samples.series[order]], samples.times[order], samples.values[order]
        )
        return damaged

    def _add_table(self, found: list[Block]) -> Sequence[Damage]:
        found.sort(key=lambda block: block.series_id)
        table = np.empty((len(found), found[0].size))
        damaged: list[Damage] = []
        series: list[int] = []
        times = np.empty(0, np.int64)
        for block in found:
            try:
                times = blocks.unpack(block, self._unpacked, table[len(series)])
                series.append(block.series_id)
            except DamagedError as error:
                damaged.append(blocks.damage_of(block, error))
        table = table[: len(series)]
        places = self._place_of[series]
        self._put(
            np.broadcast_to(places, table.T.shape),
            np.broadcast_to(times[:, None], table.T.shape),
            table.T,
        )
        return damaged

    def _put(self, places: NDArray[np.int32], times: IntArray, values: NDArray[np.float64]) -> None:
        until = self._done + values.size
        for target, given in (
            (self._places, places), (self._times, times), (self._values, values),
        ):  # fmt: skip
            target[self._done : until].reshape(values.shape)[...] = given
        self._done = until

    def cut(self, start: int, stop: int, damaged: Sequence[Damage]) -> Found:
        """Return what lies in the span; the hours at its ends stick out of it."""
        times = self._times[: self._done]
        first, last = np.searchsorted(times, [max(start, -EVER), min(stop, EVER)])
        return Found(self._places[first:last], times[first:last], self._values[first:last], damaged)


@dataclass(frozen=True, slots=True)
class FoundBuckets:
    """Buckets ``[m]`` of one length, sorted by time and series."""

    places: NDArray[np.int32]
    buckets: Buckets
    damaged: Sequence[Damage]


def read_buckets(
    connection: sqlite3.Connection,
    tables: Collection[str],
    series: IntArray | None,
    known: IntArray,
    *,
    start: int,
    stop: int,
    milliseconds: int,
) -> FoundBuckets:
    """Read roll-ups of the buckets that begin in a span, those of the newest samples with them.

    Args:
        connection: of the series file, in one snapshot.
        tables: the tables that the file has.
        series: the numbers to read, ascending; None reads all of ``known``.
        known: the numbers to which places refer, ascending.
        start: milliseconds since the epoch.
        stop: milliseconds since the epoch.
        milliseconds: the length of a bucket, whole minutes.
    """
    hourly = milliseconds % HOUR_MILLISECONDS == 0
    base = HOUR_MILLISECONDS if hourly else MINUTE_MILLISECONDS
    first, last = start // HOUR_MILLISECONDS, (stop + milliseconds - 2) // HOUR_MILLISECONDS
    span = (first * HOUR_MILLISECONDS, (last + 1) * HOUR_MILLISECONDS)
    old = legacy_rows(connection, series, *span) if "samples" in tables else Columns.empty()
    stored, before, new, damaged = Buckets.empty(), Columns.empty(), Columns.empty(), list[Damage]()
    if "rollups" in tables:
        kept = rollups.read(
            connection, first_slot=first, last_slot=last, minutes=not hourly, series=series
        )
        stored = kept.hours if hourly else kept.minutes
        new, broken = hot.read(connection, start=span[0], stop=span[1], series=series)
        pairs = {(number, slot) for part in (old, new) for number, slot in _pairs(part)}
        before, lost = blocks.unpack_all(blocks.read_pairs(connection, pairs), blocks.Times())
        damaged = [*kept.damaged, *broken, *lost]
    before = settled(before)
    late = settled(joined([without(settled(old), before), new]))
    found = coarser(refreshed(stored, before, late, base), milliseconds // base)
    found = found.where(
        (found.numbers * milliseconds >= start) & (found.numbers * milliseconds < stop)
    )
    found = found.where(sorted_places(found.numbers, found.series))
    return FoundBuckets(np.searchsorted(known, found.series).astype(np.int32), found, damaged)


def _pairs(samples: Columns) -> set[tuple[int, int]]:
    slots = samples.times // HOUR_MILLISECONDS
    found = np.unique(np.stack((samples.series, slots)), axis=1)
    return set(zip(*found.tolist(), strict=True))
