"""Reads the kernel log without blocking: /dev/kmsg, journald, or a file that is rotated.

A reader gives the lines that NVIDIA's driver wrote and drops all others unparsed, so that a flood of
other lines costs little. What one call reads is bounded; the rest comes with the next call. Only lines
of the kernel itself count where the source can tell: any program with the right may write into the
kernel's log, and a health report that it made up would make Galen reset a healthy GPU.
"""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from collectors.gpu.log_lines import LineBuffer, decode, line_time, may_be_ours

KMSG = Path("/dev/kmsg")
JOURNAL_COMMAND = (
    "journalctl", "--dmesg", "--follow", "--no-tail", "--since=-24h", "--output=json",
    "--output-fields=MESSAGE,SYSLOG_FACILITY,SYSLOG_IDENTIFIER,_SOURCE_MONOTONIC_TIMESTAMP", "--quiet",
)  # fmt: skip
LOG_FILES = (Path("/var/log/kern.log"), Path("/var/log/messages"), Path("/var/log/syslog"))

_MOST_RECORDS = 5000
_MOST_SECONDS = 0.15
_RECORD_BYTES = 32768  # the kernel's records are a few KiB at most; a smaller buffer is EINVAL
_CHUNK_BYTES = 65536
_MOST_BYTES = 2 * 1024 * 1024
_HISTORY_BYTES = 1024 * 1024
_RESTART_SECONDS = 10.0
_END_SECONDS = 0.05


class LogError(Exception):
    """A log cannot be read; the message names it and says why."""


class LogLine(NamedTuple):
    """A line that the driver may have written."""

    text: str
    time_seconds: float | None
    """Unix time, or None where the line does not tell it: then it is of now."""


@dataclass(slots=True)
class LogBatch:
    """What one call found."""

    lines: list[LogLine] = field(default_factory=list)
    lost: int = 0
    """Lines that were overwritten or too long before they could be read."""


class LogReader(Protocol):
    """Follows one log."""

    @property
    def name(self) -> str:
        """What is read, for messages."""

    def read(self) -> LogBatch:
        """Return what has come since the last call; the first gives what the log still holds.

        Raises:
            LogError: when it cannot be read.
        """

    def close(self) -> None:
        """Release what the reader holds."""


def _boot_seconds() -> float:
    # The kernel stamps its log with a clock that, like this one, stands still in suspend.
    return time.time() - time.monotonic()


def _open_kmsg() -> int:
    return os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK)


class KmsgReader:
    """The kernel's ring buffer. Each read of the device gives one record.

    Args:
        open_device: opens it without blocking.
        boot_seconds: Unix time of the kernel's time zero.
        kernel_only: whether to leave out records that a program wrote; the kernel does not let a
            program forge its facility.
    """

    def __init__(
        self,
        open_device: Callable[[], int] = _open_kmsg,
        *,
        boot_seconds: Callable[[], float] = _boot_seconds,
        kernel_only: bool = True,
    ) -> None:
        self._open_device = open_device
        self._boot_seconds = boot_seconds
        self._kernel_only = kernel_only
        self._file: int | None = None
        self._next_sequence: int | None = None

    @property
    def name(self) -> str:
        """``/dev/kmsg``."""
        return str(KMSG)

    def read(self) -> LogBatch:
        """Return the records that have come."""
        batch, boot = LogBatch(), self._boot_seconds()
        try:
            if self._file is None:
                self._file = self._open_device()
            for record in self._records(self._file):
                self._take(record, boot, batch)
        except OSError as error:
            self.close()
            raise LogError(f"{self.name}: {error.strerror or error}") from error
        return batch

    def close(self) -> None:
        """Close the device."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _records(self, file: int) -> Iterator[bytes]:
        end = time.monotonic() + _MOST_SECONDS
        for _ in range(_MOST_RECORDS):
            if time.monotonic() > end:
                return
            try:
                record = os.read(file, _RECORD_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                # EPIPE: what was next has been overwritten, and reading goes on after the gap, which
                # the numbers of the records show.
                if error.errno != errno.EPIPE:
                    raise
                continue
            if not record:
                return
            yield record

    def _take(self, record: bytes, boot: float, batch: LogBatch) -> None:
        head, _, rest = record.partition(b";")
        fields = head.split(b",")
        try:
            priority, sequence, microseconds = (int(part) for part in fields[:3])
        except ValueError:
            return
        if self._next_sequence is not None:
            if sequence < self._next_sequence:  # the device was opened again and tells its history
                return
            batch.lost += sequence - self._next_sequence
        self._next_sequence = sequence + 1
        if may_be_ours(rest) and not (self._kernel_only and priority >> 3):
            line = rest.partition(b"\n")[0]
            batch.lines.append(LogLine(decode(line), boot + microseconds / 1e6))


class JournalReader:
    """journald, through ``journalctl --follow``, which is started again when it ends.

    Args:
        command: the command line; it must print one JSON document a line.
        kernel_only: whether to leave out what a program wrote into the kernel's log.
        monotonic: the clock that restarts are paced with.
        boot_seconds: Unix time of the kernel's time zero.
    """

    def __init__(
        self,
        command: Sequence[str] = JOURNAL_COMMAND,
        *,
        kernel_only: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
        boot_seconds: Callable[[], float] = _boot_seconds,
    ) -> None:
        self._command = list(command)
        self._boot_seconds = boot_seconds
        self._kernel_only = kernel_only
        self._monotonic = monotonic
        self._process: subprocess.Popen[bytes] | None = None
        self._lines = LineBuffer()
        self._start_after = float("-inf")
        self._newest = self._known_until = float("-inf")

    @property
    def name(self) -> str:
        """``journald``."""
        return "journald"

    def read(self) -> LogBatch:
        """Return the entries that have come."""
        process, batch = self._running(), LogBatch()
        ended = False
        try:
            if process.stdout is None:
                raise LogError(f"{self.name}: no pipe")
            for _ in range(_MOST_BYTES // _CHUNK_BYTES):
                piece = os.read(process.stdout.fileno(), _CHUNK_BYTES)
                ended = not piece
                if ended:
                    break
                for line in self._lines.feed(piece):
                    self._take(line, batch)
        except BlockingIOError:
            pass  # the usual end: nothing more has come
        except OSError as error:
            self.close()
            raise LogError(f"{self.name}: {error.strerror or error}") from error
        batch.lost += self._lines.take_lost()
        if ended and not batch.lines:
            self.close()
            raise LogError(
                f"{self.name}: {self._command[0]} ended with status {process.returncode}"
            )
        return batch

    def close(self) -> None:
        """End journalctl."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdout is not None:
            process.stdout.close()
        # One that has closed its output is about to end, and its status is worth knowing.
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_END_SECONDS)
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1.0)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            now = self._monotonic()
            if now < self._start_after:
                raise LogError(f"{self.name}: {self._command[0]} ended; it is started again soon")
            self._start_after = now + _RESTART_SECONDS
            self._lines = LineBuffer()
            self._known_until = self._newest  # it tells its history again
            try:
                self._process = subprocess.Popen(  # noqa: S603  # a fixed command, no shell
                    self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
            except OSError as error:
                raise LogError(f"{self.name}: {error.strerror or error}") from error
            if self._process.stdout is not None:
                os.set_blocking(self._process.stdout.fileno(), False)
        return self._process

    def _take(self, line: bytes, batch: LogBatch) -> None:
        # A message that is not UTF-8 comes as a list of bytes, in which no word can be found.
        if not may_be_ours(line) and not re.search(rb'"MESSAGE"\s*:\s*\[', line):
            return
        try:
            entry = json.loads(line)
            message = entry["MESSAGE"]
            text = decode(bytes(message)) if isinstance(message, list) else str(message)
            # Of what a program wrote, journald cuts off the word before the colon.
            if (writer := entry.get("SYSLOG_IDENTIFIER", "kernel")) != "kernel":
                text = f"{writer}: {text}"
            seconds, read_at = self._seconds(entry), int(entry["__REALTIME_TIMESTAMP"])
            facility = str(entry.get("SYSLOG_FACILITY", "0"))
        except (ValueError, KeyError, TypeError):
            batch.lost += 1
            return
        if self._kernel_only and facility != "0":
            return
        self._newest = max(self._newest, read_at)
        if read_at > self._known_until and may_be_ours(text.encode("utf-8", errors="replace")):
            batch.lines.append(LogLine(text, seconds))

    def _seconds(self, entry: dict[str, str]) -> float:
        """Return when the kernel wrote a line; journald's own time is that of its reading it.

        The two are far apart when journald has been started late. Only lines of this boot are asked
        for, so that the kernel's clock can be told from ours.
        """
        since_boot = entry.get("_SOURCE_MONOTONIC_TIMESTAMP")
        if since_boot is not None:
            return self._boot_seconds() + int(since_boot) / 1e6
        return int(entry["__REALTIME_TIMESTAMP"]) / 1e6


class FileReader:
    """A log file, followed through rotation by renaming and by truncation.

    The first call reads the last MiB; lines of it that do not tell their time are left out, since they
    may be of last month.

    Args:
        path: the file.
        now: the clock, for times without a year.
    """

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._now = now
        self._file: int | None = None
        self._position = 0
        self._lines = LineBuffer()
        self._history_ends = 0
        self._identity: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """The file's path."""
        return str(self._path)

    def read(self) -> LogBatch:
        """Return the lines that have been added."""
        batch = LogBatch()
        try:
            if self._file is None:
                self._open_or_resume()
            left = self._read_on(batch, _MOST_BYTES)
            if left and self._rotated():
                self._read_on(batch, left)  # what came between the last reading and the rotation
                self._open()
                self._read_on(batch, left)
        except OSError as error:
            self.close()
            raise LogError(f"{self.name}: {error.strerror or error}") from error
        batch.lost += self._lines.take_lost()
        return batch

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _open_or_resume(self) -> None:
        """Open the file the first time, or after an error where reading had stopped."""
        position, known = self._position, self._identity
        self._open()
        size = self._path.stat().st_size
        if known is not None:
            self._position = position if known == self._identity and position <= size else 0
            return
        self._history_ends = size
        self._position = max(0, size - _HISTORY_BYTES)
        if self._position:  # the first line is cut
            self._lines.skip_to_next()

    def _open(self) -> None:
        file = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        self.close()
        self._file, self._lines = file, LineBuffer()
        self._position = self._history_ends = 0
        opened = os.fstat(file)
        self._identity = (opened.st_dev, opened.st_ino)

    def _rotated(self) -> bool:
        """Whether the path names another file, or this one was cut."""
        if self._file is None:
            return False
        try:
            there = self._path.stat()
        except FileNotFoundError:  # between renaming and the making of the new one
            return False
        cut = os.fstat(self._file).st_size < self._position
        return cut or (there.st_dev, there.st_ino) != self._identity

    def _read_on(self, batch: LogBatch, most_bytes: int) -> int:
        """Read to the end of the file or the bound; return what is left of the bound."""
        while self._file is not None and most_bytes > 0:
            piece = os.pread(self._file, _CHUNK_BYTES, self._position)
            if not piece:
                return most_bytes
            old = self._position < self._history_ends
            self._position += len(piece)
            most_bytes -= len(piece)
            for line in self._lines.feed(piece):
                if not may_be_ours(line):
                    continue
                text = decode(line)
                seconds = line_time(text, self._now())
                if seconds is not None or not old:
                    batch.lines.append(LogLine(text, seconds))
        return 0


def open_log(source: str, *, kernel_only: bool = True) -> LogReader | None:
    """Return what follows a log.

    Args:
        source: ``kmsg``, ``journal``, the path of a file, ``none``, or ``auto`` for the best that this
            process may read: kmsg, then journald, then a file.
        kernel_only: whether to leave out what programs wrote into the kernel's log. A file cannot tell.

    Returns:
        The reader, or None when there is none to read.
    """
    if source == "kmsg":
        return KmsgReader(kernel_only=kernel_only)
    if source == "journal":
        return JournalReader(kernel_only=kernel_only)
    if source == "auto":
        return _find_log(kernel_only=kernel_only)
    return None if source == "none" else FileReader(Path(source))


def _find_log(*, kernel_only: bool) -> LogReader | None:
    with suppress(OSError):
        os.close(_open_kmsg())
        return KmsgReader(kernel_only=kernel_only)
    if Path("/run/systemd/journal/socket").exists():
        with suppress(OSError, subprocess.SubprocessError):
            # Without the right to read it, journalctl shows no kernel lines and no error.
            seen = subprocess.run(
                ["journalctl", "--dmesg", "--lines=1", "--quiet"],  # noqa: S607
                capture_output=True, timeout=5.0, check=True,
            )  # fmt: skip
            if seen.stdout.strip():
                return JournalReader(kernel_only=kernel_only)
    return next((FileReader(path) for path in LOG_FILES if os.access(path, os.R_OK)), None)
