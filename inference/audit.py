"""The audit log: who administered what, and, where it is wanted, who asked what.

One JSON object a line in ``<state_dir>/audit.jsonl``, in files of a bounded size and number. The
event loop only appends to a bounded queue; a thread writes. A disk that is full or gone costs lines,
which are counted, and nothing else. Keys, tokens and texts of prompts are never in it, the texts
unless ``audit_prompts`` is set.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import structlog
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

_log = structlog.get_logger(__name__)

FILE = "audit.jsonl"
QUEUE_FULL = "queue_full"
WRITE_FAILED = "write_failed"
# Some seconds of a busy front; a line is a few hundred bytes.
_QUEUE_LINES = 10_000
_PAUSE_SECONDS = 0.2


class AuditFile:
    """Lines in files of a bounded size: ``audit.jsonl``, and ``.1`` to ``.N``, newest first."""

    def __init__(self, path: Path, *, max_bytes: int, files: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._files = files
        self._descriptor: int | None = None
        self._size = 0

    def write(self, lines: list[bytes]) -> None:
        """Append lines, and have them on the disk before returning.

        Raises:
            OSError: they could not be written; some of them may have been.
        """
        try:
            for line in lines:
                self._append(line)
            if self._descriptor is not None:
                os.fsync(self._descriptor)
        except OSError:
            self.close()  # the next attempt opens the file anew
            raise

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def _append(self, line: bytes) -> None:
        if self._descriptor is None:
            self._open()
        if self._size and self._size + len(line) > self._max_bytes:
            self._rotate()
        assert self._descriptor is not None  # noqa: S101 - for the type checker
        written = os.write(self._descriptor, line)
        self._size += written
        if written < len(line):
            # The disk became full inside the line; a line must stay a line.
            os.ftruncate(self._descriptor, self._size - written)
            raise OSError(f"{self._path}: {written} of {len(line)} bytes written")

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._descriptor = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._descriptor).st_size

    def _rotate(self) -> None:
        self.close()
        if self._files == 1:
            self._path.unlink()
        for number in range(self._files - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            newer = self._path.with_name(f"{self._path.name}.{number - 1}") if number > 1 else None
            source = newer or self._path
            if source.exists():
                source.replace(older)
        self._open()


class AuditLog(Collector):
    """Takes records on the event loop and writes them in a thread."""

    def __init__(self, file: AuditFile) -> None:
        self.written: Counter[str] = Counter({"access": 0, "admin": 0})
        self.dropped: Counter[str] = Counter({QUEUE_FULL: 0, WRITE_FAILED: 0})
        self._file = file
        self._queue: deque[dict[str, Any]] = deque()
        self._ending = threading.Event()
        self._failing = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to write."""
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def record(self, entry: dict[str, Any]) -> None:
        """Take a record; never waits."""
        if len(self._queue) >= _QUEUE_LINES:
            self.dropped[QUEUE_FULL] += 1
        else:
            self._queue.append(entry)

    def close(self, limit_seconds: float) -> None:
        """Write what waits, but not for longer than the limit."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(limit_seconds)

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        written = CounterMetricFamily("audit_records", "Audit lines written", labels=["kind"])
        dropped = CounterMetricFamily("audit_dropped", "Audit lines lost", labels=["reason"])
        for family, counts in ((written, self.written), (dropped, self.dropped)):
            for name, count in list(counts.items()):
                family.add_metric([name], count)
            yield family

    def _run(self) -> None:
        while not self._ending.wait(_PAUSE_SECONDS):
            self._write()
        self._write()
        self._file.close()

    def _write(self) -> None:
        """Write what is in the queue."""
        entries = [self._queue.popleft() for _ in range(len(self._queue))]
        if not entries:
            return
        lines = [orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE) for entry in entries]
        try:
            self._file.write(lines)
        except OSError as error:
            self.dropped[WRITE_FAILED] += len(lines)
            if not self._failing:
                _log.error("audit_failing", error=str(error), lost=len(lines))
            self._failing = True
            return
        self.written.update(str(entry["kind"]) for entry in entries)
        if self._failing:
            _log.warning("audit_recovered", lost=self.dropped[WRITE_FAILED])
        self._failing = False
