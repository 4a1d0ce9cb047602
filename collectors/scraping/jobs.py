"""A scrape job: targets that are asked alike, and how."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from collectors.contract import Collection
from collectors.scraping.discovery import Discovery
from collectors.scraping.targets import ScrapeTarget

DEFAULT_MAX_BYTES = 8 * 1024 * 1024


class Reader(Protocol):
    """Turns the answers of one target into samples; called from one thread at a time."""

    def take(
        self,
        text: str,
        now_seconds: float,
        at_seconds: float,
        *,
        open_metrics: bool | None = None,
    ) -> Collection:
        """Read one answer; see :class:`collectors.reading.TargetReader`."""


@dataclass(frozen=True, slots=True)
class ScrapeJob:
    """Targets that are scraped alike."""

    name: str
    discoveries: Sequence[Discovery]
    make_reader: Callable[[ScrapeTarget], Reader]
    interval_seconds: float = 15.0
    deadline_seconds: float = 10.0
    max_bytes: int = DEFAULT_MAX_BYTES
    """The longest answer, after decompression."""
    headers: Callable[[], Mapping[str, str]] = field(default=dict, repr=False)
    """Such as Authorization: asked for at each scrape, sent to every target, shown nowhere."""
    verify: Callable[[], ssl.SSLContext] | None = field(default=None, repr=False)
    """TLS of its own, where certificates are not checked against the usual authorities."""
