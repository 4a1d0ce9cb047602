"""The layout of the series file, and how it is opened.

``hot``
    What was written lately, one row a call, in the order of the calls. A row touches one page however
    many series it has.
``blocks``
    Everything older: one row a series and hour, times and values as compressed columns.
``rollups``
    Count, lowest, highest and mean of a series in an hour, and in each of its minutes.
``compacting``
    How far compaction is through the oldest rows of ``hot``: samples of series up to ``series_id``,
    older than ``before``, are in blocks already. At most one row.
``set_aside``
    Rows that did not pass their check sum.
``samples``
    The rows of layout 1, a sample each. Only in a file of that layout; compaction moves them into
    blocks, and the table goes when it is empty.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from collectors.store.contract import StoreError

LAYOUT = 3
SIDE_FILES = ("", "-wal", "-shm")
BUSY_SECONDS = 5.0

_TABLES = """
CREATE TABLE IF NOT EXISTS series (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  entity TEXT NOT NULL,
  signal TEXT NOT NULL,
  labels TEXT NOT NULL,
  UNIQUE (entity, signal)
);
CREATE TABLE IF NOT EXISTS hot (
  id INTEGER PRIMARY KEY,
  start INTEGER NOT NULL,
  stop INTEGER NOT NULL,
  count INTEGER NOT NULL,
  crc INTEGER NOT NULL,
  data BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS blocks (
  id INTEGER PRIMARY KEY,
  series_id INTEGER NOT NULL,
  slot INTEGER NOT NULL,
  start INTEGER NOT NULL,
  stop INTEGER NOT NULL,
  newest REAL NOT NULL,
  count INTEGER NOT NULL,
  crc INTEGER NOT NULL,
  times BLOB NOT NULL,
  data BLOB NOT NULL,
  UNIQUE (series_id, slot)
);
CREATE INDEX IF NOT EXISTS blocks_by_slot ON blocks (slot);
CREATE TABLE IF NOT EXISTS rollups (
  id INTEGER PRIMARY KEY,
  series_id INTEGER NOT NULL,
  slot INTEGER NOT NULL,
  count INTEGER NOT NULL,
  low REAL NOT NULL,
  high REAL NOT NULL,
  mean REAL NOT NULL,
  crc INTEGER NOT NULL,
  minutes BLOB,
  UNIQUE (series_id, slot)
);
CREATE INDEX IF NOT EXISTS rollups_by_slot ON rollups (slot);
CREATE TABLE IF NOT EXISTS compacting (
  up_to INTEGER NOT NULL,
  before INTEGER NOT NULL,
  series_id INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS set_aside (
  id INTEGER PRIMARY KEY,
  origin TEXT NOT NULL,
  series_id INTEGER,
  start INTEGER NOT NULL,
  stop INTEGER NOT NULL,
  count INTEGER NOT NULL,
  reason TEXT NOT NULL,
  data BLOB
);
"""
# A block of an hour is 0.1 to 8 KiB. Larger pages pack them closer; smaller ones make a call's row
# cheaper in the log.
_PAGE_BYTES = 8192
_CHECKPOINT_PAGES = 256


_PROBES = (
    "SELECT id, entity, signal, labels FROM series",
    "SELECT id, start, stop, count, crc, data FROM hot",
    "SELECT id, series_id, slot, start, stop, newest, count, crc, times, data FROM blocks",
    "SELECT id, series_id, slot, count, low, high, mean, crc, minutes FROM rollups",
    "SELECT up_to, before, series_id FROM compacting",
    "SELECT id, origin, series_id, start, stop, count, reason, data FROM set_aside",
)


# A damaged name makes a message that is not text, which the module fails to decode while it raises.
FILE_ERRORS = (sqlite3.Error, UnicodeDecodeError)


class LayoutDamage(sqlite3.DatabaseError):
    """A file that SQLite opens and that is not what was written."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Open or create the file and bring it to this layout.

    Raises:
        StoreError: when a newer Galen wrote it.
        sqlite3.Error: when it cannot be opened.
    """
    # check_same_thread: the store's own lock serialises the callers.
    connection = sqlite3.connect(
        path, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False
    )
    try:
        # Both only count in a new file; `galen store vacuum` gives them to an old one.
        set_page_layout(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        # NORMAL never corrupts in WAL mode; only the last transactions can be lost, on power failure.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        if _layout(connection, path) < LAYOUT:  # else a full disk could not be opened
            with transaction(connection):
                for statement in _TABLES.split(";")[:-1]:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {LAYOUT}")
        for statement in _PROBES:
            connection.execute(f"{statement} LIMIT 1").fetchone()
    except FILE_ERRORS as error:
        connection.close()
        if _is_hidden_damage(error, path):
            raise LayoutDamage(str(error)) from error
        raise
    except StoreError:
        connection.close()
        raise
    return connection


def _is_hidden_damage(error: Exception, path: Path) -> bool:
    """Recognise what SQLite takes for a file of its future, or for a mistake of the caller."""
    if isinstance(error, UnicodeDecodeError):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_READONLY:
        return os.access(path, os.W_OK)
    return code == sqlite3.SQLITE_ERROR  # a name is not there, or its format is unknown


def set_page_layout(connection: sqlite3.Connection) -> None:
    """Ask for this layout's pages; SQLite takes it up in a new file and in a vacuum."""
    connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")


def _layout(connection: sqlite3.Connection, path: Path) -> int:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > LAYOUT:
        raise StoreError(
            f"the series store {path} has layout {version} and this Galen writes layout "
            f"{LAYOUT}; move the file away or use the Galen that wrote it"
        )
    return version


def tables(connection: sqlite3.Connection) -> frozenset[str]:
    """Return the names of the tables that a file has; one of layout 1 has fewer."""
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return frozenset(name for (name,) in rows)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Write everything in the block, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        # A failed commit may already have rolled back, and a damaged file cannot.
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


@contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Read everything in the block from one state of the file, whatever is written meanwhile."""
    connection.execute("BEGIN")
    try:
        yield connection
    finally:
        # Nothing was written; a connection that is broken has no transaction any more.
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


def is_damage(error: BaseException) -> bool:
    """Say whether SQLite calls the file itself damaged, or cannot even say what is wrong."""
    if isinstance(error, UnicodeDecodeError):
        return True
    # Some errors (a misuse of the module) carry no code; the upper bits of one tell details.
    code = getattr(error, "sqlite_errorcode", None) or 0
    return code & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def is_full(error: BaseException | None) -> bool:
    """Say whether an error may be that the disk is full; a limit of the system reads as an I/O error."""
    code = getattr(error, "sqlite_errorcode", None) or 0
    return code & 0xFF in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
