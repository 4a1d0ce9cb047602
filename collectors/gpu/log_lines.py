"""Cuts a log into lines, picks those of NVIDIA's driver, and reads their times."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta

_LONGEST_LINE = 8192
_WORDS = (b"NVRM", b"SXid")

_ISO = re.compile(r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?")
_SYSLOG = re.compile(r"^(?:<\d+>)?([A-Z][a-z]{2}) {1,2}(\d{1,2}) (\d\d):(\d\d):(\d\d) ")
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


class LineBuffer:
    """Cuts bytes into lines; one that is too long is cut off at its end, and counted."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False
        self._lost = 0

    def skip_to_next(self) -> None:
        """Drop what comes up to the next line's start."""
        self._skipping = True

    def take_lost(self) -> int:
        """Return how many lines were too long since the last call."""
        lost, self._lost = self._lost, 0
        return lost

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yield the lines that a piece completes."""
        *whole, rest = (self._rest + piece).split(b"\n")
        for line in whole:
            if self._skipping:
                self._skipping = False
                continue
            yield line[:_LONGEST_LINE]
        self._rest = b"" if self._skipping else rest
        if len(self._rest) > _LONGEST_LINE:
            # Its head holds what matters; the rest is dropped as it comes.
            head, self._rest, self._skipping = self._rest[:_LONGEST_LINE], b"", True
            self._lost += 1
            yield head


def may_be_ours(line: bytes) -> bool:
    """Say whether NVIDIA's driver may have written a line; cheap, for floods of others."""
    return any(word in line for word in _WORDS)


def decode(line: bytes) -> str:
    """Return a line as text; what is not UTF-8 is replaced."""
    return line.decode("utf-8", errors="replace")


def line_time(line: str, now_seconds: float) -> float | None:
    """Return the Unix time at the head of a line of a log file, in ISO 8601 or as syslog writes it.

    Syslog leaves out the year and the zone: the time is local, and the latest that is not in the
    future.
    """
    iso = _ISO.match(line)
    try:
        if iso is not None:
            return datetime.fromisoformat(_six_digits(iso[0])).astimezone().timestamp()
        old = _SYSLOG.match(line)
        if old is None or old[1] not in _MONTHS:
            return None
        now = datetime.fromtimestamp(now_seconds).astimezone()
        day, hour, minute, second = (int(part) for part in old.groups()[1:])
        month = _MONTHS.index(old[1]) + 1
        found = datetime(now.year, month, day, hour, minute, second).astimezone()
        if found > now + timedelta(days=1):
            found = found.replace(year=now.year - 1)
        return found.timestamp()
    except (ValueError, OverflowError):
        return None


def _six_digits(text: str) -> str:
    # fromisoformat takes at most six digits of a second.
    return re.sub(r"[.,](\d{1,6})\d*", lambda found: f".{found[1]:0<6}", text)
