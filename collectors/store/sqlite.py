"""The embedded series store: one SQLite file in write-ahead-log mode.

One process writes and any number read at the same time. Samples lie clustered by ``(series, time)``,
so a series over a span of time is one contiguous read. Reads go through ADBC straight into Arrow.
"""

from __future__ import annotations

import fcntl
import json
import math
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import adbc_driver_sqlite.dbapi as adbc
import pandas as pd
import structlog

from collectors.contract import Sample, SeriesKey
from collectors.store.contract import SeriesInfo, StoreError
from collectors.store.frames import sample_frame

log = structlog.get_logger(__name__)

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS series (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  entity TEXT NOT NULL,
  signal TEXT NOT NULL,
  labels TEXT NOT NULL,
  UNIQUE (entity, signal)
);
CREATE TABLE IF NOT EXISTS samples (
  series_id INTEGER NOT NULL,
  time INTEGER NOT NULL,
  value REAL NOT NULL,
  PRIMARY KEY (series_id, time)
) WITHOUT ROWID;
"""
_SCHEMA_VERSION = 1

# A tick touches one leaf page of every series. Small pages keep what it appends to the log small:
# 150 series a second cost 0.15 MB/s at 1 KiB a page and 0.6 MB/s at SQLite's default of 4 KiB.
_PAGE_BYTES = 1024
_BUSY_SECONDS = 5.0
_SIDE_FILES = ("", "-wal", "-shm")


class SqliteSeriesReader:
    """Reads a series file that another process may be writing.

    The file is opened on the first read, so a reader may be made before the writer has started. When
    the writer starts a new file (after quarantining a damaged one) the next read follows it. Calls are
    serialised, so one reader may be shared by threads.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._connection: Any = None
        self._identity: tuple[int, int] | None = None

    def series(self) -> Sequence[SeriesInfo]:
        """List every series with its newest value."""
        rows = self._rows(
            """
            SELECT entity, signal, labels,
              (SELECT time FROM samples WHERE series_id = id ORDER BY time LIMIT 1) AS first,
              (SELECT time FROM samples WHERE series_id = id ORDER BY time DESC LIMIT 1) AS last,
              (SELECT value FROM samples WHERE series_id = id ORDER BY time DESC LIMIT 1) AS value
            FROM series WHERE last IS NOT NULL ORDER BY entity, signal
            """
        )
        return [
            SeriesInfo(
                key=SeriesKey(row["entity"], row["signal"]),
                labels=json.loads(row["labels"]),
                first_seconds=row["first"] / 1000,
                last_seconds=row["last"] / 1000,
                last_value=row["value"],
            )
            for row in rows
        ]

    def read(
        self,
        *,
        start_seconds: float,
        end_seconds: float,
        entities: Collection[str] | None = None,
        signals: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """Read samples with ``start <= time < end``; see :class:`SeriesReader`."""
        keys = {
            row["id"]: SeriesKey(row["entity"], row["signal"])
            for row in self._rows("SELECT id, entity, signal FROM series")
            if (entities is None or row["entity"] in entities)
            and (signals is None or row["signal"] in signals)
        }
        if not keys:
            return sample_frame([], [], [], {})
        # The ids come from this file as integers, so putting them into the text is safe, and a list of
        # any length keeps the clustered key in use where bound parameters would be limited in number.
        ids = ",".join(str(int(identity)) for identity in keys)
        table = self._query(
            f"SELECT series_id, time, value FROM samples WHERE series_id IN ({ids}) "  # noqa: S608
            "AND time >= ? AND time < ?",
            (_milliseconds(start_seconds), _milliseconds(end_seconds)),
        )
        return sample_frame(
            table.column("series_id").to_numpy(),
            table.column("time").to_numpy() / 1000.0,
            table.column("value").to_numpy(),
            keys,
        )

    def close(self) -> None:
        """Release the connection; a later read opens it again."""
        with self._lock:
            self._disconnect()

    def _rows(self, sql: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._query(sql, ()).to_pylist()
        return rows

    def _query(self, sql: str, parameters: tuple[int, ...]) -> Any:
        with self._lock:
            try:
                with self._connect().cursor() as cursor:
                    cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": "65536"})
                    cursor.execute(sql, parameters or None)
                    return cursor.fetch_arrow_table()
            except adbc.Error as error:
                self._disconnect()
                raise StoreError(
                    f"cannot read the series store {self._path}: {error}; if this persists, "
                    "restart `galen watch`, which sets a damaged file aside and starts a new one"
                ) from error

    def _connect(self) -> Any:
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
            # Without autocommit the driver would hold one read transaction open for ever, and the
            # writer could never fold its log back into the file.
            self._connection = adbc.connect(
                f"{self._path.absolute().as_uri()}?mode=ro", autocommit=True
            )
            self._identity = identity
            with self._connection.cursor() as cursor:
                cursor.execute(f"PRAGMA busy_timeout = {int(_BUSY_SECONDS * 1000)}")
                cursor.fetchall()
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(adbc.Error):
                self._connection.close()
            self._connection = None


class SqliteSeriesStore:
    """The one writer of a series file, and a reader of it.

    A file that SQLite calls damaged is renamed to ``<name>.damaged-<n>`` and a new one is started:
    losing history is better than losing sight. After ``kill -9`` SQLite replays its log by itself.

    Raises:
        StoreError: when another process already writes this file, or it cannot be created.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._ids: dict[SeriesKey, tuple[int, Mapping[str, str]]] = {}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the directory of {self._path}: {error}") from error
        self._guard = _claim(self._path)
        try:
            self._connection = self._open()
        except StoreError:
            self._guard.close()
            raise
        self._reader = SqliteSeriesReader(self._path)

    def write(self, samples: Sequence[Sample]) -> int:
        """Append samples in one transaction; see :class:`SeriesStore`."""
        finite = [sample for sample in samples if math.isfinite(sample.value)]
        if finite:
            self._guarded(lambda: self._write(finite))
        return len(finite)

    def prune(self, *, before_seconds: float) -> int:
        """Delete samples older than a time, and series that have none left."""
        return self._guarded(lambda: self._prune(_milliseconds(before_seconds)))

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

    def close(self) -> None:
        """Fold the log into the file and let another process write it."""
        self._reader.close()
        with self._lock:
            self._connection.close()
            self._guard.close()

    def _open(self) -> sqlite3.Connection:
        try:
            return _connect(self._path)
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise StoreError(
                    f"cannot open the series store {self._path}: {error}; check that the directory "
                    "is writable and that the disk has space"
                ) from error
            self._quarantine(error)
            return _connect(self._path)

    def _guarded(self, work: Callable[[], T]) -> T:
        with self._lock:
            try:
                return work()
            except sqlite3.Error as error:
                self._ids.clear()  # a series that was new in the failed transaction has no number
                if not _is_damage(error):
                    raise StoreError(
                        f"cannot write the series store {self._path}: {error}; check that the disk "
                        "has space and that the file is writable"
                    ) from error
                self._connection.close()
                self._quarantine(error)
                self._connection = _connect(self._path)
                return work()

    def _quarantine(self, error: Exception) -> None:
        target = next(
            candidate
            for number in range(1, 10_000)
            if not (
                candidate := self._path.with_name(f"{self._path.name}.damaged-{number}")
            ).exists()
        )
        for suffix in _SIDE_FILES:
            with suppress(FileNotFoundError):
                Path(f"{self._path}{suffix}").rename(f"{target}{suffix}")
        log.error(
            "series_store_quarantined", path=str(self._path), kept_as=str(target), error=str(error)
        )

    def _write(self, samples: Sequence[Sample]) -> None:
        with _transaction(self._connection) as connection:
            rows = [
                (
                    self._series_id(connection, sample),
                    _milliseconds(sample.time_seconds),
                    sample.value,
                )
                for sample in samples
            ]
            connection.executemany(
                "INSERT INTO samples VALUES (?, ?, ?) "
                "ON CONFLICT (series_id, time) DO UPDATE SET value = excluded.value",
                rows,
            )

    def _series_id(self, connection: sqlite3.Connection, sample: Sample) -> int:
        key = SeriesKey(sample.entity, sample.signal)
        known = self._ids.get(key)
        if known is not None and known[1] == sample.labels:
            return known[0]
        labels = dict(sample.labels)
        row = connection.execute(
            "INSERT INTO series (entity, signal, labels) VALUES (?, ?, ?) "
            "ON CONFLICT (entity, signal) DO UPDATE SET labels = excluded.labels RETURNING id",
            (*key, json.dumps(labels, sort_keys=True)),
        ).fetchone()
        self._ids[key] = (int(row[0]), labels)
        return int(row[0])

    def _prune(self, before: int) -> int:
        with _transaction(self._connection) as connection:
            gone = connection.execute(
                "DELETE FROM samples WHERE series_id IN (SELECT id FROM series) AND time < ?",
                (before,),
            ).rowcount
            connection.execute(
                "DELETE FROM series WHERE NOT EXISTS (SELECT 1 FROM samples WHERE series_id = id)"
            )
        self._ids.clear()
        return gone


def _connect(path: Path) -> sqlite3.Connection:
    # check_same_thread: the store's own lock serialises the callers.
    connection = sqlite3.connect(
        path, isolation_level=None, timeout=_BUSY_SECONDS, check_same_thread=False
    )
    try:
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = WAL")
        # NORMAL never corrupts in WAL mode; only the last transactions can be lost, on power failure.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_SCHEMA)
        _check_layout(connection, path)
        connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        connection.execute("SELECT count(*) FROM series").fetchone()
    except (sqlite3.Error, StoreError):
        connection.close()
        raise
    return connection


def _check_layout(connection: sqlite3.Connection, path: Path) -> None:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version not in {0, _SCHEMA_VERSION}:
        raise StoreError(
            f"the series store {path} has layout {version} and this Galen writes layout "
            f"{_SCHEMA_VERSION}; move the file away or use the Galen that wrote it"
        )


def _is_damage(error: sqlite3.Error) -> bool:
    # Some errors (a misuse of the module) carry no code.
    return getattr(error, "sqlite_errorcode", None) in {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    }


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


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        # A failed commit may already have rolled back, and a damaged file cannot.
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _milliseconds(seconds: float) -> int:
    # SQLite holds 64-bit integers; an unbounded end such as infinity reads as the largest time.
    if not math.isfinite(seconds):
        return -(2**62) if seconds < 0 else 2**62
    return round(seconds * 1000)
