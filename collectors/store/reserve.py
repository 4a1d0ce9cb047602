"""Space held back for the moment at which the disk is full.

SQLite needs space to delete: the deletion goes to its log first. And a log that could not be folded
into the file before a restart needs 32 KiB beside it to be opened at all.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)


class Reserve:
    """A file of nothing beside the store, which is deleted when its space is needed.

    Args:
        path: the file.
        size_bytes: its size; 0 holds nothing.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes

    def hold(self) -> None:
        """Take the space, where there is some."""
        if not self._size_bytes or self._is_held():
            return
        try:
            handle = os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600)
            try:
                os.posix_fallocate(handle, 0, self._size_bytes)
            finally:
                os.close(handle)
        except OSError:
            # The disk is full already, or cannot promise space; the next call tries again.
            with suppress(OSError):
                self._path.unlink()

    def spend(self) -> bool:
        """Give the space up and say whether there was any."""
        if not self._is_held():
            return False
        with suppress(OSError):
            self._path.unlink()
        log.warning("series_store_reserve_spent", path=str(self._path), size_bytes=self._size_bytes)
        return True

    def _is_held(self) -> bool:
        try:
            return self._path.stat().st_size > 0
        except OSError:
            return False
