"""Builds the scrape pool from the settings."""

from __future__ import annotations

from functools import cache, partial

import structlog

from collectors.cardinality import SeriesLimit
from collectors.clock import SteadyClock
from collectors.presets import presets
from collectors.reading import TargetReader
from collectors.scraping.buffer import SampleBuffer
from collectors.scraping.collector import ScrapeCollector
from collectors.scraping.discovery import Discovery, FileDiscovery, StaticDiscovery
from collectors.scraping.jobs import Reader, ScrapeJob
from collectors.scraping.pool import ScrapePool
from collectors.scraping.targets import USUAL, ScrapeTarget, Usual
from collectors.settings import CollectorsSettings, ReadingSettings, ScrapeJobSettings

log = structlog.get_logger(__name__)

_WINDOW_INTERVALS = 3.0
"""A window must hold some scrapes: with fewer, one that fails leaves no rate at all."""


def scrape_collector(
    settings: CollectorsSettings, limit: SeriesLimit | None = None
) -> ScrapeCollector:
    """Return one collector of one pool for all jobs.

    Raises:
        TargetError: when an address of the configuration is none.
    """
    buffer = SampleBuffer(max_samples=settings.scrape_buffer_samples)
    pool = ScrapePool(
        [_job(job) for job in settings.scrape],
        buffer,
        wall=SteadyClock(),
        memory_bytes=int(settings.scrape_memory_megabytes * 1e6),
    )
    return ScrapeCollector(pool, buffer, limit)


def _job(job: ScrapeJobSettings) -> ScrapeJob:
    usual = _usual(job.kind)
    if not job.verify_tls:
        log.warning("tls_not_verified", job=job.name)
    discoveries: list[Discovery] = []
    if job.targets:
        discoveries.append(StaticDiscovery(job.name, job.targets, job.labels, usual))
    if job.files:
        discoveries.append(FileDiscovery(job.name, job.files, job.labels, usual))
    return ScrapeJob(
        job.name,
        discoveries,
        partial(_reader, _reading(job)),
        interval_seconds=job.interval_seconds,
        deadline_seconds=job.deadline_seconds,
        max_bytes=int(job.max_megabytes * 1e6),
        headers=job.request_headers,
        verify=cache(job.ssl_context) if _has_own_tls(job) else None,
    )


def _reader(settings: ReadingSettings, target: ScrapeTarget) -> Reader:
    return TargetReader(target.labels, settings)


def _reading(job: ScrapeJobSettings) -> ReadingSettings:
    given = {name: getattr(job, name) for name in ReadingSettings.model_fields}
    given["window_seconds"] = max(job.window_seconds, _WINDOW_INTERVALS * job.interval_seconds)
    return ReadingSettings.model_construct(**given)


def _usual(kind: str) -> Usual:
    known = presets().get(kind)
    return Usual(known.port, known.path) if known is not None else USUAL


def _has_own_tls(job: ScrapeJobSettings) -> bool:
    # Otherwise all jobs share one context, which costs half a megabyte.
    return not job.verify_tls or bool(job.ca_file or job.client_certificate_file)
