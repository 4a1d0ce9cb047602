"""What the parts of a series file take, and what was set aside."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from collectors.store.contract import HOUR_SECONDS
from collectors.store.reader import SqliteSeriesReader
from collectors.store.schema import tables

_PARTS = {
    "newest": ("hot", "sum(count)", "sum(length(data))"),
    "blocks": ("blocks", "sum(count)", "sum(length(times) + length(data))"),
    "rollups": ("rollups", "sum(count)", "sum(coalesce(length(minutes), 0))"),
    "layout 1": ("samples", "count(*)", "0"),
}


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the file."""

    name: str
    rows: int
    samples: int
    """Samples that lie in it, or that it has counted."""
    size_bytes: int
    """Of the packed numbers, without what SQLite adds."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """A row that was damaged."""

    part: str
    entity: str
    signal: str
    start_seconds: float
    end_seconds: float
    samples: int
    reason: str


@dataclass(frozen=True, slots=True)
class RefusedSource:
    """A source that has more series than it may."""

    source: str
    series: int
    signal: str
    exploding: str


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a file holds."""

    parts: Sequence[Part]
    free_bytes: int
    """Pages that hold nothing."""
    first_minute_seconds: float | None
    """Where the roll-ups of minutes begin."""
    first_hour_seconds: float | None
    set_aside: Sequence[SetAside]
    refused: Sequence[RefusedSource]


def take_inventory(reader: SqliteSeriesReader) -> Inventory:
    """Count the parts of a file in one state of it; their content is not read.

    Raises:
        StoreError: when the file cannot be read.
    """
    refused = [
        RefusedSource(
            info.key.entity.removeprefix("collector/"),
            int(info.last_value),
            info.labels.get("signal", ""),
            info.labels.get("exploding", ""),
        )
        for info in reader.series()
        if info.key.signal == "scrape_series_refused" and info.last_value > 0
    ]

    def work(connection: sqlite3.Connection) -> Inventory:
        there = tables(connection)
        rolled = "rollups" in there
        return Inventory(
            parts=[
                Part(name, *_counted(connection, *columns))
                for name, columns in _PARTS.items()
                if columns[0] in there
            ],
            free_bytes=_pragma(connection, "freelist_count") * _pragma(connection, "page_size"),
            first_minute_seconds=(
                _first(connection, "WHERE minutes IS NOT NULL") if rolled else None
            ),
            first_hour_seconds=_first(connection, "") if rolled else None,
            set_aside=_set_aside(connection) if "set_aside" in there else [],
            refused=refused,
        )

    return reader.with_connection(work)


def _counted(
    connection: sqlite3.Connection, table: str, samples: str, size: str
) -> tuple[int, int, int]:
    rows, count, total = connection.execute(
        f"SELECT count(*), coalesce({samples}, 0), coalesce({size}, 0) FROM {table}"  # noqa: S608 - our own text
    ).fetchone()
    return int(rows), int(count), int(total)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _first(connection: sqlite3.Connection, where: str) -> float | None:
    (slot,) = connection.execute(
        f"SELECT min(slot) FROM rollups {where}"  # noqa: S608 - our own text
    ).fetchone()
    return None if slot is None else float(slot * HOUR_SECONDS)


def _set_aside(connection: sqlite3.Connection) -> list[SetAside]:
    rows = connection.execute(
        "SELECT origin, coalesce(entity, ''), coalesce(signal, ''), start, stop, count, reason "
        "FROM set_aside LEFT JOIN series ON series.id = series_id ORDER BY start"
    )
    return [
        SetAside(part, entity, signal, start / 1000, stop / 1000, count, reason)
        for part, entity, signal, start, stop, count, reason in rows
    ]
