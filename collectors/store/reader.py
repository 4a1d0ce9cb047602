"""Reading a series file that another process may be writing."""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import structlog
from numpy.typing import NDArray

from collectors.contract import SeriesKey
from collectors.store import hot
from collectors.store.contract import SeriesInfo, StoreError, check_resolution
from collectors.store.frames import sorted_frame
from collectors.store.hot import Damage
from collectors.store.reading import choose_series, read_buckets, read_samples
from collectors.store.schema import BUSY_SECONDS, FILE_ERRORS, snapshot, tables

log = structlog.get_logger(__name__)

T = TypeVar("T")

_MOST_NAMED = 1000
"""Damaged rows that are remembered as named in the log."""


class SqliteSeriesReader:
    """Reads a series file that another process may be writing.

    The file is opened on the first read, so a reader may be made before the writer has started. When
    the writer starts a new file (after quarantining a damaged one) the next read follows it. A read
    sees one state of the file, whatever is written or compacted meanwhile. A row that is damaged is
    left out and named in the log. Calls are serialised, so one reader may be shared by threads.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._named: set[tuple[str, int]] = set()

    def series(self) -> Sequence[SeriesInfo]:
        """List every series with its newest value."""
        return self._with_snapshot(_list_series)

    def read(
        self,
        *,
        start_seconds: float,
        end_seconds: float,
        entities: Collection[str] | None = None,
        signals: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """Read samples with ``start <= time < end``; see :class:`SeriesReader`."""
        start, stop = milliseconds(start_seconds), milliseconds(end_seconds)

        def work(connection: sqlite3.Connection) -> pd.DataFrame:
            there = tables(connection)
            keys = _chosen(connection, there, entities, signals)
            if not keys or start >= stop:
                return sorted_frame(
                    np.empty(0, np.int32), [SeriesKey("", "")], np.empty(0), {"value": np.empty(0)}
                )
            known = np.array(list(keys), np.int64)
            some = None if entities is None and signals is None else known
            found = read_samples(connection, there, some, known, start=start, stop=stop)
            self._name(found.damaged)
            return sorted_frame(
                found.places, list(keys.values()), found.times / 1000.0, {"value": found.values}
            )

        return self._with_snapshot(work)

    def read_times(self, *, start_seconds: float, end_seconds: float) -> NDArray[np.float64]:
        """Read the times ``[n]`` of all samples with ``start <= time < end``, sorted.

        Raises:
            StoreError: when the file cannot be read.
        """
        start, stop = milliseconds(start_seconds), milliseconds(end_seconds)

        def work(connection: sqlite3.Connection) -> NDArray[np.float64]:
            there = tables(connection)
            known = np.array(list(_chosen(connection, there, None, None)), np.int64)
            found = read_samples(connection, there, None, known, start=start, stop=stop)
            self._name(found.damaged)
            return found.times / 1000.0

        return self._with_snapshot(work)

    def read_rollup(
        self,
        *,
        start_seconds: float,
        end_seconds: float,
        resolution_seconds: float = 60.0,
        entities: Collection[str] | None = None,
        signals: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """Read buckets that begin in ``start <= time < end``; see :class:`SeriesReader`.

        The newest samples, which nothing has counted yet, are counted by the read. Buckets outlive
        their samples.
        """
        start, stop = milliseconds(start_seconds), milliseconds(end_seconds)
        size = check_resolution(resolution_seconds) * 1000

        def work(connection: sqlite3.Connection) -> pd.DataFrame:
            there = tables(connection)
            keys = _chosen(connection, there, entities, signals) or {0: SeriesKey("", "")}
            known = np.array(list(keys), np.int64)
            some = None if entities is None and signals is None else known
            found = read_buckets(
                connection, there, some, known, start=start, stop=stop, milliseconds=size
            )
            self._name(found.damaged)
            counted = found.buckets
            return sorted_frame(
                found.places,
                list(keys.values()),
                (counted.numbers * size) / 1000.0,
                {
                    "min": counted.low,
                    "max": counted.high,
                    "mean": counted.mean,
                    "count": counted.count,
                },
            )

        return self._with_snapshot(work)

    def with_connection(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Ask one state of the file something else, such as how large its parts are.

        Raises:
            StoreError: when the file cannot be read.
        """
        return self._with_snapshot(work)

    def close(self) -> None:
        """Release the connection; a later read opens it again."""
        with self._lock:
            self._disconnect()

    def _with_snapshot(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            try:
                with snapshot(self._connect()) as connection:
                    return work(connection)
            except FILE_ERRORS as error:
                self._disconnect()
                raise StoreError(
                    f"cannot read the series store {self._path}: {error}; if this persists, "
                    "restart `galen watch`, which sets a damaged file aside and starts a new one"
                ) from error

    def _connect(self) -> sqlite3.Connection:
        try:
            status = self._path.stat()
        except OSError as error:
            self._disconnect()
            raise StoreError(
                f"there is no series store at {self._path}; start `galen watch` (or `galen up`), "
                "or point --state-dir at the directory that it uses"
            ) from error
        identity = (status.st_dev, status.st_ino)
        if self._connection is None or identity != self._identity:
            self._disconnect()
            self._connection = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode=ro",
                uri=True,
                isolation_level=None,
                timeout=BUSY_SECONDS,
                check_same_thread=False,
            )
            self._identity = identity
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _name(self, damaged: Sequence[Damage]) -> None:
        for one in damaged:
            if (one.origin, one.row_id) in self._named or len(self._named) >= _MOST_NAMED:
                continue
            self._named.add((one.origin, one.row_id))
            log.error(
                "series_store_row_damaged", path=str(self._path), table=one.origin,
                series_id=one.series_id, samples=one.count, reason=one.reason,
                start_seconds=one.start / 1000, end_seconds=one.stop / 1000,
            )  # fmt: skip


def milliseconds(seconds: float) -> int:
    """Return a time as the file has it; an unbounded one is the largest that there is."""
    if not math.isfinite(seconds):
        return -hot.EVER if seconds < 0 else hot.EVER
    return max(-hot.EVER, min(hot.EVER, round(seconds * 1000)))


def _chosen(
    connection: sqlite3.Connection,
    there: Collection[str],
    entities: Collection[str] | None,
    signals: Collection[str] | None,
) -> dict[int, SeriesKey]:
    return choose_series(connection, entities, signals) if "series" in there else {}


_LAST_BLOCK = "FROM blocks WHERE series_id = s.id ORDER BY slot"
_LAST_ROW = "FROM samples WHERE series_id = s.id ORDER BY time"


def _list_series(connection: sqlite3.Connection) -> Sequence[SeriesInfo]:
    there = tables(connection)
    if "series" not in there:
        return []
    spans: dict[int, tuple[int, int, float]] = {}
    if "samples" in there:
        _widen(
            spans,
            connection.execute(
                f"SELECT s.id, (SELECT time {_LAST_ROW} LIMIT 1), "  # noqa: S608 - our own text
                f"(SELECT time {_LAST_ROW} DESC LIMIT 1), (SELECT value {_LAST_ROW} DESC LIMIT 1) "
                "FROM series AS s"
            ),
        )
    if "blocks" in there:
        _widen(
            spans,
            connection.execute(
                f"SELECT s.id, (SELECT start {_LAST_BLOCK} LIMIT 1), "  # noqa: S608 - our own text
                f"(SELECT stop {_LAST_BLOCK} DESC LIMIT 1), "
                f"(SELECT newest {_LAST_BLOCK} DESC LIMIT 1) FROM series AS s"
            ),
        )
        _widen(spans, _newest(connection))
    rows = connection.execute(
        "SELECT id, entity, signal, labels FROM series ORDER BY entity, signal"
    )
    return [
        SeriesInfo(SeriesKey(entity, signal), _labels(labels), first / 1000, last / 1000, value)
        for number, entity, signal, labels in rows
        if number in spans
        for first, last, value in (spans[number],)
    ]


def _newest(connection: sqlite3.Connection) -> list[tuple[int, int, int, float]]:
    """Return series, first and last time and newest value of what is in no block yet."""
    found, _ = hot.read(connection)
    if not len(found):
        return []
    order = np.argsort(found.times, kind="stable")  # nearly sorted already, which makes it fast
    series = found.series[order]
    numbers = np.unique(series)
    # Of repeated places the last assignment stays.
    places = np.zeros((2, int(numbers[-1]) + 1), np.intp)
    places[0, series[::-1]] = order[::-1]
    places[1, series] = order
    first, last = places[:, numbers]
    columns = (numbers, found.times[first], found.times[last], found.values[last])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _widen(
    spans: dict[int, tuple[int, int, float]],
    rows: sqlite3.Cursor | list[tuple[int, int, int, float]],
) -> None:
    for number, first, last, value in rows:
        if first is None:
            continue
        known = spans.get(number)
        if known is None:
            spans[number] = (first, last, value)
        elif last >= known[1]:
            spans[number] = (min(first, known[0]), last, value)
        else:
            spans[number] = (min(first, known[0]), known[1], known[2])


@lru_cache(maxsize=65536)
def _labels(text: str) -> Mapping[str, str]:
    labels: Mapping[str, str] = json.loads(text)
    return labels
