"""Files as Galen wrote them in layout 1: a row a sample."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

_TABLES = """
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


def write_layout_one(path: Path, rows: Iterable[tuple[int, str, str, float]]) -> None:
    """Make a file of ``(milliseconds, entity, signal, value)``."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA page_size = 1024")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(_TABLES)
    connection.execute("PRAGMA user_version = 1")
    for at, entity, signal, value in rows:
        connection.execute(
            "INSERT OR IGNORE INTO series (entity, signal, labels) VALUES (?, ?, '{}')",
            (entity, signal),
        )
        connection.execute(
            "INSERT OR REPLACE INTO samples SELECT id, ?, ? FROM series "
            "WHERE entity = ? AND signal = ?",
            (at, value, entity, signal),
        )
    connection.commit()
    connection.close()
