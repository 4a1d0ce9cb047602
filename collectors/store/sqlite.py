"""The embedded series store: one SQLite file in write-ahead-log mode.

One process writes and any number read at the same time. A call of the writer is one row; an hour later
its samples lie in a compressed block a series and hour (see :mod:`collectors.store.schema`).
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import pandas as pd
import structlog

from collectors.contract import Sample
from collectors.store import compaction, hot, retention, rollups
from collectors.store.buckets import Buckets, key_of
from collectors.store.columns import HOUR_MILLISECONDS, Columns, FloatArray, IntArray
from collectors.store.compaction import HotCompaction, Step
from collectors.store.contract import SeriesInfo, StoreError
from collectors.store.reader import SqliteSeriesReader, milliseconds
from collectors.store.reserve import Reserve
from collectors.store.schema import (
    FILE_ERRORS,
    SIDE_FILES,
    is_damage,
    is_full,
    open_for_writing,
    set_page_layout,
    transaction,
)

__all__ = ["SqliteSeriesReader", "SqliteSeriesStore"]

log = structlog.get_logger(__name__)

T = TypeVar("T")

LARGEST_EPOCH_SECONDS = 1e11
"""Of the year 5138; no clock is further off without being in another unit."""
MOST_HOT_SAMPLES = 1_000_000
"""20 MB, which a read has to look through."""
RESERVE_BYTES = 4 << 20
"""Twice what the log of SQLite grows to before it is folded into the file."""
_GRACE_SECONDS = 120.0
"""How long after an hour its samples may still come without opening its blocks again."""
_GIVE_BACK_PAGES = 2048
_LEAST_FREE_SHARE = 0.1
"""Less than this is kept for the samples to come."""


class SqliteSeriesStore:
    """The one writer of a series file, and a reader of it.

    A file that SQLite calls damaged is renamed to ``<name>.damaged-<n>`` and a new one is started:
    losing history is better than losing sight. After ``kill -9`` SQLite replays its log by itself.

    Args:
        path: the file; it is made with its directory where it is missing.
        most_hot_samples: samples outside blocks, above which compaction does not wait for the hour.
        reserve_bytes: space held back beside the file, so that a full disk can be opened and pruned.
        clock: for the budget of compaction; it never goes back.

    Raises:
        StoreError: when another process already writes this file, or it cannot be created.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        most_hot_samples: int = MOST_HOT_SAMPLES,
        reserve_bytes: int = RESERVE_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = Path(path)
        self._most_hot_samples = most_hot_samples
        self._clock = clock
        self._lock = threading.Lock()
        self._ids: dict[tuple[str, str], tuple[int, Mapping[str, str]]] = {}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the directory of {self._path}: {error}") from error
        self._guard = _claim(self._path)
        self._reserve = Reserve(self._path.with_name(f"{self._path.name}.reserve"), reserve_bytes)
        try:
            self._connection = self._open()
        except StoreError:
            self._guard.close()
            raise
        self._compaction = HotCompaction(self._connection, most_hot_samples)
        self._reader = SqliteSeriesReader(self._path)
        self._reserve.hold()

    def write(self, samples: Sequence[Sample]) -> int:
        """Append samples in one transaction; see :class:`SeriesStore`."""
        if not samples:
            return 0
        times = np.array([sample[0] for sample in samples], np.float64)
        values = np.array([sample[3] for sample in samples], np.float64)
        # Also false for what is not a number.
        good = (np.abs(times) <= LARGEST_EPOCH_SECONDS) & (np.abs(values) < np.inf)
        if not good.all():
            samples = [samples[place] for place in np.flatnonzero(good).tolist()]
            times, values = times[good], values[good]
        if samples:
            stamps = np.rint(times * 1000).astype(np.int64)
            self._guarded(lambda: self._write(samples, stamps, values))
        return len(samples)

    def write_rollups(self, buckets: pd.DataFrame, *, resolution_seconds: int) -> None:
        """Put roll-ups in the place of those that the store has, in one transaction.

        Args:
            buckets: the columns of :meth:`read_rollup`, a bucket at most once.
            resolution_seconds: 60 or 3600.
        """
        size = resolution_seconds * 1000

        def work() -> None:
            with transaction(self._connection) as connection:
                keys = zip(buckets["entity"], buckets["signal"], strict=True)
                known = {
                    key: self._ids.get(key) or self._find_or_register(connection, *key)
                    for key in dict.fromkeys(keys)
                }
                keys = zip(buckets["entity"], buckets["signal"], strict=True)
                series = np.array([known[key][0] for key in keys], np.int64)
                numbers = np.rint(buckets["time"].to_numpy() * 1000).astype(np.int64) // size
                order = np.argsort(key_of(series, numbers))
                given = Buckets(
                    key_of(series, numbers),
                    *(buckets[name].to_numpy() for name in ("count", "min", "max", "mean")),
                )
                rollups.replace(connection, given.where(order), size)

        self._guarded(work)

    def prune(self, *, before_seconds: float) -> int:
        """Delete samples older than a time, and series that have nothing left."""
        return self._on_a_full_disk(lambda: self._prune(milliseconds(before_seconds)))

    def prune_rollups(self, *, minutes_before_seconds: float, hours_before_seconds: float) -> int:
        """Delete old roll-ups; see :class:`SeriesStore`."""
        minutes, hours = (
            milliseconds(seconds) // HOUR_MILLISECONDS
            for seconds in (minutes_before_seconds, hours_before_seconds)
        )

        def work() -> int:
            with transaction(self._connection) as connection:
                return rollups.forget_hours(connection, hours) + rollups.forget_minutes(
                    connection, minutes
                )

        return self._on_a_full_disk(work)

    def compact(self, *, now_seconds: float, budget_seconds: float) -> bool:
        """Move the samples of hours that are over into blocks; see :class:`SeriesStore`."""
        until = self._clock() + budget_seconds
        cutoff = milliseconds(now_seconds - _GRACE_SECONDS)
        cutoff -= cutoff % HOUR_MILLISECONDS

        def expired() -> bool:
            return self._clock() >= until

        def work() -> bool:
            steps: Sequence[Callable[[], Step]] = (
                lambda: self._compaction.step(cutoff, expired),
                lambda: compaction.compact_legacy(self._connection, expired=expired),
            )
            for step in steps:
                while not step().done:
                    if expired():
                        return False
            return True

        return self._guarded(work)

    def give_back(self) -> int:
        """Shorten the file where much of it holds nothing; see :class:`SeriesStore`."""

        def work() -> int:
            free = retention.free_bytes(self._connection)
            if free < _LEAST_FREE_SHARE * self._path.stat().st_size or not retention.can_shrink(
                self._connection
            ):
                return 0
            retention.give_back(self._connection, _GIVE_BACK_PAGES)
            return free - retention.free_bytes(self._connection)

        return self._guarded(work)

    def vacuum(self, progress: Callable[[], None] | None = None) -> int:
        """Rewrite the whole file without what holds nothing; return the bytes that it is shorter.

        It needs as much free space again as the file has content. Interrupted, it changes nothing.

        Raises:
            StoreError: when somebody else has the file open, or the space is missing.
        """

        def work() -> int:
            connection = self._connection
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            before = self._path.stat().st_size
            if progress is not None:
                connection.set_progress_handler(progress, 100_000)
            try:
                # The size of a page can only change outside of the log's mode.
                connection.execute("PRAGMA journal_mode = DELETE").fetchone()
                set_page_layout(connection)
                connection.execute("VACUUM")
            finally:
                connection.set_progress_handler(None, 0)
                connection.execute("PRAGMA journal_mode = WAL").fetchone()
            return before - self._path.stat().st_size

        self._reader.close()
        return self._guarded(work)

    def series(self) -> Sequence[SeriesInfo]:
        """List every series with its newest value."""
        return self._reader.series()

    def read(
        self,
        *,
        start_seconds: float,
        end_seconds: float,
        entities: Collection[str] | None = None,
        signals: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """Read samples with ``start <= time < end``; see :class:`SeriesReader`."""
        return self._reader.read(
            start_seconds=start_seconds, end_seconds=end_seconds, entities=entities, signals=signals
        )

    def read_rollup(
        self,
        *,
        start_seconds: float,
        end_seconds: float,
        resolution_seconds: float = 60.0,
        entities: Collection[str] | None = None,
        signals: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """Read buckets that begin in ``start <= time < end``; see :class:`SeriesReader`."""
        return self._reader.read_rollup(
            start_seconds=start_seconds,
            end_seconds=end_seconds,
            resolution_seconds=resolution_seconds,
            entities=entities,
            signals=signals,
        )

    def close(self) -> None:
        """Fold the log into the file and let another process write it."""
        self._reader.close()
        with self._lock:
            self._connection.close()
            self._guard.close()

    def _open(self) -> sqlite3.Connection:
        try:
            return open_for_writing(self._path)
        except FILE_ERRORS as error:
            if is_full(error) and self._reserve.spend():
                return self._open()
            if not is_damage(error):
                raise StoreError(
                    f"cannot open the series store {self._path}: {error}; check that the directory "
                    "is writable and that the disk has space"
                ) from error
            self._quarantine(error)
            return open_for_writing(self._path)

    def _on_a_full_disk(self, work: Callable[[], T]) -> T:
        """Do what frees space, if need be with the space held back for it."""
        try:
            done = self._guarded(work)
        except StoreError as error:
            if not is_full(error.__cause__) or not self._reserve.spend():
                raise
            done = self._guarded(work)
            # The log has taken what the reserve gave; the pages that are free now are in the file.
            self._guarded(
                lambda: self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            )
        self._reserve.hold()
        return done

    def _guarded(self, work: Callable[[], T]) -> T:
        with self._lock:
            try:
                return work()
            except BaseException as error:
                self._ids.clear()  # a series that was new in the failed transaction has no number
                if not isinstance(error, FILE_ERRORS):
                    raise
                if not is_damage(error):
                    raise StoreError(
                        f"cannot write the series store {self._path}: {error}; check that the disk "
                        "has space and that the file is writable"
                    ) from error
                self._connection.close()
                self._quarantine(error)
                self._connection = open_for_writing(self._path)
                self._compaction = HotCompaction(self._connection, self._most_hot_samples)
                return work()

    def _quarantine(self, error: Exception) -> None:
        target = next(
            candidate
            for number in range(1, 10_000)
            if not (
                candidate := self._path.with_name(f"{self._path.name}.damaged-{number}")
            ).exists()
        )
        for suffix in SIDE_FILES:
            with suppress(FileNotFoundError):
                Path(f"{self._path}{suffix}").rename(f"{target}{suffix}")
        log.error(
            "series_store_quarantined", path=str(self._path), kept_as=str(target), error=str(error)
        )

    def _write(self, samples: Sequence[Sample], times: IntArray, values: FloatArray) -> None:
        with transaction(self._connection) as connection:
            known = self._ids
            numbers = np.empty(len(samples), np.int64)
            for place, (_, entity, signal, _, labels) in enumerate(samples):
                entry = known.get((entity, signal))
                if entry is None or (entry[1] is not labels and entry[1] != labels):
                    entry = self._register(connection, entity, signal, labels)
                numbers[place] = entry[0]
            hot.add(connection, Columns(numbers, times, values))

    def _find_or_register(
        self, connection: sqlite3.Connection, entity: str, signal: str
    ) -> tuple[int, Mapping[str, str]]:
        row = connection.execute(
            "SELECT id, labels FROM series WHERE entity = ? AND signal = ?", (entity, signal)
        ).fetchone()
        if row is None:
            return self._register(connection, entity, signal, {})
        return int(row[0]), json.loads(row[1])

    def _register(
        self, connection: sqlite3.Connection, entity: str, signal: str, labels: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str]]:
        described = dict(labels)
        row = connection.execute(
            "INSERT INTO series (entity, signal, labels) VALUES (?, ?, ?) "
            "ON CONFLICT (entity, signal) DO UPDATE SET labels = excluded.labels RETURNING id",
            (entity, signal, json.dumps(described, sort_keys=True)),
        ).fetchone()
        entry = (int(row[0]), described)
        self._ids[entity, signal] = entry
        return entry

    def _prune(self, before: int) -> int:
        self._compaction.forget()
        gone = retention.prune(self._connection, before)
        self._ids.clear()
        return gone


def _claim(path: Path) -> IO[str]:
    """Lock the file's writer seat; the system frees it when the process ends, however it ends."""
    try:
        handle = path.with_name(f"{path.name}.lock").open("w", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write beside the series store {path}: {error}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise StoreError(
            f"another process already writes the series store {path}; stop the other "
            "`galen watch`, or give this one its own --state-dir"
        ) from error
    return handle
