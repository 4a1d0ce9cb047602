"""A bounded queue on disk: what has to be sent survives outages and restarts.

Records leave in the order in which they came. When the queue is full the oldest goes, first of those
that a server has refused, then of those that wait; it is counted and logged.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  samples INTEGER NOT NULL,
  payload BLOB NOT NULL,
  refused TEXT
);
CREATE INDEX IF NOT EXISTS by_state ON records (refused IS NOT NULL, id);
CREATE TABLE IF NOT EXISTS totals (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""
_DROPPED = "dropped_samples"
_RECORD_BYTES = 64  # what a row costs beside its payload


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of the queue."""

    id: int
    samples: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class SpoolState:
    """What the queue holds now, and what it has lost since it was made."""

    waiting_samples: int
    parked_samples: int
    dropped_samples: int
    size_bytes: int


class SpoolError(Exception):
    """The queue cannot be used; the message names the file and what to do."""


class Spool:
    """The queue, in one SQLite file that one process holds at a time. Calls may come from any thread.

    A file that SQLite calls damaged is renamed to ``<name>.damaged`` and a new one is started.

    Args:
        path: the file.
        max_bytes: the most that the payloads may take together.

    Raises:
        SpoolError: when another process holds the file, or it cannot be made.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._open()
        except (OSError, sqlite3.Error) as error:
            raise self._failure(error) from error
        self._size = self._sum("length(payload) + ?", "1", _RECORD_BYTES)

    def append(self, payload: bytes, samples: int) -> int:
        """Add a record and return how many samples were dropped to make room.

        Raises:
            SpoolError: when it cannot be written; the record is lost then.
        """
        return self._guarded(lambda: self._append(payload, samples))

    def peek(self, *, max_samples: int) -> Sequence[Record]:
        """Return the oldest records that wait, as many as hold ``max_samples``, at least one."""
        return self._guarded(lambda: self._peek(max_samples))

    def remove(self, records: Collection[Record]) -> None:
        """Forget records that were delivered."""
        self._guarded(lambda: self._delete([record.id for record in records]))

    def park(self, records: Collection[Record], reason: str) -> None:
        """Set records aside that a server has refused; they are kept until room is needed."""
        rows = [(reason, record.id) for record in records]
        self._guarded(
            lambda: self._connection.executemany(
                "UPDATE records SET refused = ? WHERE id = ?", rows
            )
        )

    def unpark(self) -> int:
        """Let refused records wait again, in their old order; return how many."""
        return self._guarded(
            lambda: (
                self._connection.execute(
                    "UPDATE records SET refused = NULL WHERE refused IS NOT NULL"
                ).rowcount
            )
        )

    def state(self) -> SpoolState:
        """Count what is there."""
        return self._guarded(
            lambda: SpoolState(
                waiting_samples=self._sum("samples", "refused IS NULL"),
                parked_samples=self._sum("samples", "refused IS NOT NULL"),
                dropped_samples=self._dropped(),
                size_bytes=self._size,
            )
        )

    def close(self) -> None:
        """Let another process use the file."""
        with self._lock:
            self._connection.close()

    def _append(self, payload: bytes, samples: int) -> int:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            dropped = self._make_room(len(payload) + _RECORD_BYTES)
            self._connection.execute(
                "INSERT INTO records (samples, payload) VALUES (?, ?)", (samples, payload)
            )
            self._connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # a failed commit may have rolled back already
                self._connection.execute("ROLLBACK")
            self._size = self._sum("length(payload) + ?", "1", _RECORD_BYTES)
            raise
        self._size += len(payload) + _RECORD_BYTES
        if dropped:
            log.warning("spool_dropped", samples=dropped, in_all=self._dropped())
        return dropped

    def _make_room(self, needed_bytes: int) -> int:
        dropped = 0
        while self._size + needed_bytes > self._max_bytes:
            oldest = self._connection.execute(
                "SELECT id, samples FROM records ORDER BY refused IS NULL, id LIMIT 1"
            ).fetchone()
            if oldest is None:
                break  # one record alone is larger than the bound; the newest is never dropped
            self._delete([oldest[0]])
            dropped += int(oldest[1])
        if dropped:
            self._connection.execute(
                "INSERT INTO totals VALUES (?, ?) "
                "ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                (_DROPPED, dropped),
            )
        return dropped

    def _peek(self, max_samples: int) -> Sequence[Record]:
        found: list[Record] = []
        count = 0
        cursor = self._connection.execute(
            "SELECT id, samples, payload FROM records WHERE refused IS NULL ORDER BY id"
        )
        for row in cursor:
            record = Record(*row)
            if found and count + record.samples > max_samples:
                break
            found.append(record)
            count += record.samples
        cursor.close()
        return found

    def _delete(self, ids: Sequence[int]) -> None:
        for identity in ids:
            gone = self._connection.execute(
                "DELETE FROM records WHERE id = ? RETURNING length(payload)", (identity,)
            ).fetchall()
            self._size -= sum(length + _RECORD_BYTES for (length,) in gone)

    def _sum(self, what: str, where: str, *parameters: int) -> int:
        # Both parts are literals of this module.
        query = f"SELECT coalesce(sum({what}), 0) FROM records WHERE {where}"  # noqa: S608
        return int(self._connection.execute(query, parameters).fetchone()[0])

    def _dropped(self) -> int:
        row = self._connection.execute(
            "SELECT value FROM totals WHERE name = ?", (_DROPPED,)
        ).fetchone()
        return int(row[0]) if row else 0

    def _guarded(self, work: Callable[[], T]) -> T:
        with self._lock:
            try:
                return work()
            except sqlite3.Error as error:
                raise self._failure(error) from error

    def _open(self) -> sqlite3.Connection:
        try:
            return _connect(self._path)
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", None) not in {
                sqlite3.SQLITE_CORRUPT,
                sqlite3.SQLITE_NOTADB,
            }:
                raise
            kept = self._path.with_name(f"{self._path.name}.damaged")
            self._path.replace(kept)
            # The log of the damaged file must not be replayed into the new one.
            with suppress(FileNotFoundError):
                Path(f"{self._path}-wal").replace(f"{kept}-wal")
            log.exception("spool_quarantined", path=str(self._path), kept_as=str(kept))
            return _connect(self._path)

    def _failure(self, error: Exception) -> SpoolError:
        if "locked" in str(error):
            return SpoolError(
                f"another process uses the buffer {self._path}; stop the other `galen agent`, "
                "or give this one its own --state-dir"
            )
        return SpoolError(
            f"the buffer {self._path} cannot be used: {error}; check that the disk has space and "
            "that the directory is writable"
        )


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=0.0, check_same_thread=False)
    try:
        # Exclusive: the file is its own lock, and the system frees it when the process ends.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(_SCHEMA)
    except sqlite3.Error:
        connection.close()
        raise
    return connection
