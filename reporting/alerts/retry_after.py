"""Reads the Retry-After header (RFC 9110, section 10.2.3)."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_SECONDS = 3600.0
"""A longer wish is cut: an alert that waits a day because of one header is lost to its reader."""


def retry_after_seconds(header: str | None, now: datetime | None = None) -> float | None:
    """Return how long to wait, between 0 and :data:`MAX_SECONDS`; None where nothing sound is said.

    Args:
        header: a number of seconds, or an HTTP date.
        now: what a date is compared with; the present by default.
    """
    if header is None or not header.strip():
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:12]), MAX_SECONDS)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    wait = (date - (now or datetime.now(UTC))).total_seconds()
    return min(max(wait, 0.0), MAX_SECONDS)
