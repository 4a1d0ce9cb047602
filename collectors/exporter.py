"""Publishes Galen's own view to Prometheus: ``galen export``.

Each canonical signal becomes a gauge of its own name. The entity is spread over the labels that people
write dashboards with (``host``, ``gpu_id``, ``service``, ``collector``) and stands whole in ``entity``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector as RegistryCollector

from collectors.signals import Kind, catalogue
from collectors.store.contract import SeriesInfo, SeriesReader, StoreError

log = structlog.get_logger(__name__)

DEFAULT_PORT = 9101
DEFAULT_MAX_AGE_SECONDS = 15.0
# Every family has the same labels, since one that some series lack is the empty string to Prometheus.
LABELS = ("entity", "host", "gpu_id", "service", "collector", "simulated")
_LABEL_OF_KIND = {"host": "host", "gpu": "gpu_id", "service": "service", "collector": "collector"}

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class SeriesExporter(RegistryCollector):
    """Turns the newest samples of a store into metrics.

    A sample older than ``max_age_seconds`` is absent, so that Prometheus sees a gap where there is one.

    Args:
        reader: the store.
        clock: the wall clock that ages are taken by.
        max_age_seconds: the oldest sample to publish.
    """

    def __init__(
        self,
        reader: SeriesReader,
        clock: Callable[[], float] = time.time,
        *,
        max_age_seconds: float = DEFAULT_MAX_AGE_SECONDS,
    ) -> None:
        self._reader = reader
        self._clock = clock
        self._max_age_seconds = max_age_seconds

    def describe(self) -> Iterable[Metric]:
        """Name nothing in advance: the store may not exist yet when the exporter starts."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield one family a signal, and whether the store could be read."""
        readable = GaugeMetricFamily(
            "galen_store_readable", "Whether the series store could be read"
        )
        try:
            series = self._reader.series()
        except StoreError as error:
            log.warning("export_failed", error=str(error))
            readable.add_metric([], 0.0)
            yield readable
            return
        readable.add_metric([], 1.0)
        yield readable
        oldest = self._clock() - self._max_age_seconds
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        newest = None
        for info in series:
            newest = max(newest or info.last_seconds, info.last_seconds)
            if info.last_seconds >= oldest:
                family = families.get(info.key.signal)
                if family is None:
                    family = families[info.key.signal] = family_of(info.key.signal)
                family.add_metric(_label_values(info), info.last_value)
        yield from families.values()
        yield GaugeMetricFamily("galen_store_series", "Series in the store", value=len(series))
        if newest is not None:
            yield GaugeMetricFamily(
                "galen_store_newest_timestamp_seconds", "Time of the newest sample", value=newest
            )


def make_exporter_app(
    reader: SeriesReader,
    clock: Callable[[], float] = time.time,
    *,
    max_age_seconds: float = DEFAULT_MAX_AGE_SECONDS,
    more: Sequence[RegistryCollector] = (),
) -> WsgiApp:
    """Return a WSGI application that answers scrapes from a store.

    It speaks the text format, and OpenMetrics to those who ask for it.

    Args:
        reader: the store.
        clock: the wall clock that ages are taken by.
        max_age_seconds: the oldest sample to publish.
        more: what to publish besides; their names must differ from the signals'.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SeriesExporter(reader, clock, max_age_seconds=max_age_seconds))
    for collector in more:
        registry.register(collector)
    app: WsgiApp = make_wsgi_app(registry)
    return app


class ExporterServer(ThreadingMixIn, WSGIServer):
    """The HTTP server of the exporter; a scraper that stalls holds up only its own thread."""

    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    timeout = 10.0

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class' name
        log.debug("export_request", message=format % args)


def make_exporter_server(
    reader: SeriesReader,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    clock: Callable[[], float] = time.time,
    max_age_seconds: float = DEFAULT_MAX_AGE_SECONDS,
    more: Sequence[RegistryCollector] = (),
) -> ExporterServer:
    """Bind the exporter; ``serve_forever`` runs it and ``shutdown`` from another thread stops it.

    Raises:
        OSError: when the address is taken.
    """
    app = make_exporter_app(reader, clock, max_age_seconds=max_age_seconds, more=more)
    return make_server(host, port, app, ExporterServer, handler_class=_QuietHandler)


def family_of(signal: str) -> GaugeMetricFamily | CounterMetricFamily:
    """Return the empty family of a signal: kind, help and unit as the catalogue has them.

    The unit stands in the help, too, since the text format has no place of its own for it; OpenMetrics
    has, for those whose name ends in it.
    """
    known = catalogue().get(signal)
    text = f"{known.description} ({known.unit})" if known else "not in the catalogue"
    unit = known.unit if known and signal.endswith(f"_{known.unit}") else ""
    if known and known.kind is Kind.COUNTER and signal.endswith("_total"):
        # OpenMetrics puts the unit before the suffix: such a counter's unit stands in its help.
        return CounterMetricFamily(signal, text, labels=LABELS)
    return GaugeMetricFamily(signal, text, labels=LABELS, unit=unit)


def labels_of(entity: str, described: Mapping[str, str]) -> dict[str, str]:
    """Return the Prometheus labels of a series: of :data:`LABELS`, those that it has.

    Args:
        entity: what the series is about.
        described: the labels of its samples.
    """
    pieces = entity.split("/")
    labels = {
        _LABEL_OF_KIND[kind]: name
        for kind, name in zip(pieces[::2], pieces[1::2], strict=False)
        if kind in _LABEL_OF_KIND
    }
    labels["entity"] = entity
    if simulated := described.get("simulated", ""):
        labels["simulated"] = simulated
    return labels


def _label_values(info: SeriesInfo) -> list[str]:
    labels = labels_of(info.key.entity, info.labels)
    return [labels.get(name, "") for name in LABELS]
