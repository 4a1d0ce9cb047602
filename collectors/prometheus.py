"""Canonical signals of a whole fleet, read from Prometheus by instant queries.

Works against anything with Prometheus' HTTP API: Prometheus, VictoriaMetrics, Thanos, Mimir.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence

import structlog

from collectors.access import HttpAccess
from collectors.backoff import Backoff
from collectors.contract import Collection, CollectorError, Sample, Support
from collectors.entities import entity
from collectors.expressions import Expression, Selector, parse_expression
from collectors.fleet_reader import FleetReader, PrometheusQuery
from collectors.mapping import (
    COLLECTOR_LABELS,
    GPU_LABELS,
    HOST_LABELS,
    MIG_LABEL,
    SERVICE_LABELS,
    is_additive,
)
from collectors.promapi import Matrix, PrometheusClient, PrometheusError, duration
from collectors.prometheus_links import PrometheusLinks
from collectors.settings import PrometheusTarget
from collectors.signals import Bad, Kind, Layer, Signal, catalogue

log = structlog.get_logger(__name__)

_SKEW_EVERY_SECONDS = 60.0
_SKEW_WARN_SECONDS = 2.0
DEFAULT_SOURCES = ("dcgm", "node", "vllm", "triton", "tgi", "kserve", "galen")


def default_queries(
    sources: Iterable[str] = DEFAULT_SOURCES, *, window_seconds: float = 60.0
) -> list[PrometheusQuery]:
    """Return a query for every name that the catalogue has in these exporters.

    Args:
        sources: exporters, as the catalogue calls them.
        window_seconds: the range of rates and quantiles; at least four scrape intervals.
    """
    wanted = tuple(sources)
    return [
        PrometheusQuery(
            signal.name, _promql(signal, parse_expression(name), window_seconds), exporter=source
        )
        for signal in catalogue().values()
        for source in wanted
        for name in signal.names.get(source, ())
    ]


def own_queries(target: PrometheusTarget) -> list[PrometheusQuery]:
    """Return the queries that a target's settings name; none means all that the catalogue knows."""
    return [PrometheusQuery(signal, promql) for signal, promql in target.queries.items()]


class PrometheusCollector:
    """Reads canonical signals from Prometheus.

    The first query of a signal that gives an entity wins, so the order of queries is the preference.
    Without queries of one's own it reads what other Galens export, and every exporter that the
    catalogue knows. Queries are evaluated at the server's now and dated by our clock, so that a clock
    that differs does no harm; how much it differs is ``prometheus_clock_skew_seconds`` on
    ``collector/prometheus-<name>``.

    A query that the server refuses is left out for ten minutes and noted, and the others go on. A
    server that fails is left alone for a pause that doubles, or for as long as it asks.

    Args:
        name: a short name; the collector is called ``prometheus-<name>``.
        url: Prometheus' base address.
        queries: what to ask; by default everything that the catalogue knows.
        access: credentials and TLS.
        deadline_seconds: the longest that one collection may take.
        every_seconds: how often to ask; the scrape interval of Prometheus is a good choice.
        max_age_seconds: samples older than this are stale and left out.
        longest_backoff_seconds: the longest pause between attempts while the server fails.
        monotonic: the clock of the deadline and of pauses.
        rng: jitter of pauses.
    """

    def __init__(
        self,
        name: str,
        url: str,
        queries: Sequence[PrometheusQuery] | None = None,
        *,
        access: HttpAccess | None = None,
        deadline_seconds: float = 5.0,
        every_seconds: float = 15.0,
        max_age_seconds: float = 60.0,
        longest_backoff_seconds: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._name = f"prometheus-{name}"
        self._client = PrometheusClient(
            url, access=access, deadline_seconds=deadline_seconds, monotonic=monotonic
        )
        self._reader = FleetReader(
            self._name,
            default_queries() if queries is None else queries,
            exported=queries is None,
            monotonic=monotonic,
        )
        self._links = (
            PrometheusLinks(self._name, DEFAULT_SOURCES, monotonic=monotonic)
            if queries is None
            else None
        )
        self._deadline_seconds = deadline_seconds
        self._every_seconds = every_seconds
        self._max_age_seconds = max_age_seconds
        self._monotonic = monotonic
        self._backoff = Backoff(
            min(every_seconds, longest_backoff_seconds), longest_backoff_seconds,
            monotonic=monotonic, rng=rng,
        )  # fmt: skip
        self._last_error = ""
        self._told: Sequence[str] = ()
        self._skew_seconds: float | None = None
        self._skew_due = -float("inf")

    @property
    def name(self) -> str:
        """``prometheus-<name>``."""
        return self._name

    @property
    def deadline_seconds(self) -> float:
        """The longest that one collection may take."""
        return self._deadline_seconds

    @property
    def every_seconds(self) -> float:
        """How often the poller asks."""
        return self._every_seconds

    def is_supported(self) -> Support:
        """Always; whether Prometheus is there is for :meth:`collect` to say."""
        return Support(supported=True)

    def collect(self, now_seconds: float) -> Collection:
        """Ask every query, many in one request.

        Raises:
            CollectorError: when Prometheus cannot be reached in time, refuses every query, or is left
                alone after a failure.
        """
        if (wait := self._backoff.wait_seconds()) > 0:
            raise CollectorError(f"not asked for another {wait:.0f} s; {self._last_error}")
        try:
            collection = self._collect(now_seconds)
        except CollectorError as error:
            self._last_error = str(error)
            self._backoff.failed(getattr(error, "retry_after_seconds", None))
            raise
        self._backoff.succeeded()
        return collection

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _collect(self, now_seconds: float) -> Collection:
        started = self._monotonic()

        def fetch(promql: str) -> Matrix:
            if self._monotonic() - started > self._deadline_seconds:
                raise CollectorError(
                    f"{self._name} is slower than {self._deadline_seconds:g} s",
                    fix="raise the deadline or ask for fewer signals",
                )
            found = self._client.query(promql, lookback_seconds=self._max_age_seconds)
            return [(one.labels, [(now_seconds, one.value)]) for one in found]

        samples = self._reader.read(fetch)
        links = self._links.read(fetch) if self._links is not None else ()
        notes = [*self._reader.notes(), *self._client.take_warnings()]
        self._tell(notes)
        if (skew := self._clock_skew()) is not None:
            own = entity("collector", self._name)
            samples.append(Sample(now_seconds, own, "prometheus_clock_skew_seconds", skew))
        return Collection(samples=samples, notes=notes, links=links)

    def _tell(self, notes: Sequence[str]) -> None:
        """Log what is missing when it changes, not at every collection."""
        if notes != self._told:
            if notes:
                log.warning("prometheus_incomplete", collector=self._name, notes=notes[:10])
            else:
                log.info("prometheus_complete_again", collector=self._name)
        self._told = list(notes)

    def _clock_skew(self) -> float | None:
        if self._monotonic() >= self._skew_due:
            self._skew_due = self._monotonic() + _SKEW_EVERY_SECONDS
            try:
                skew = self._client.clock_skew_seconds()
            except PrometheusError as error:  # the samples are here, and they are what counts
                log.info("clock_skew_unknown", collector=self._name, error=str(error))
                return None
            was, self._skew_seconds = self._skew_seconds, skew
            if abs(skew) > _SKEW_WARN_SECONDS >= abs(was or 0.0):
                log.warning(
                    "prometheus_clock_differs", collector=self._name, seconds=round(skew, 2)
                )
        return self._skew_seconds


def _promql(signal: Signal, expression: Expression, window_seconds: float) -> str:
    window = f"[{duration(window_seconds)}]"
    by = _labels_of(signal)
    scaled = expression.scaled
    # A summary gives its quantiles itself, as gauges with a label of that name.
    summary = scaled is not None and any(m.label == "quantile" for m in scaled[0].matchers)
    if signal.kind is Kind.HISTOGRAM and scaled is not None and not summary:
        rate = f"rate({scaled[0].promql('_bucket')}{window})"
        query = f"histogram_quantile({signal.quantile:g}, sum by ({by}, le) ({rate}))"
        return query if scaled[1] == 1 else f"({query}) * {scaled[1]:.12g}"
    return expression.promql(lambda selector: _operand(signal, selector, by, window))


def _operand(signal: Signal, selector: Selector, by: str, window: str) -> str:
    series = selector.promql()
    if selector.counted:
        return f"count by ({by}) ({series})"
    if signal.sticky:
        # The exporter repeats its last event for ever: it stands while it is new. Not by changes(),
        # which counts the first sample of a series as one in VictoriaMetrics.
        spread = f"max_over_time({series}{window}) > bool min_over_time({series}{window})"
        return f"max by ({by}) ({series} * ({spread}))"
    if selector.is_counter and signal.kind is not Kind.COUNTER:
        change = "increase" if signal.kind is Kind.EVENT else "rate"
        grown = f"{selector.fold or 'sum'} by ({by}) ({change}({series}{window}))"
        if not selector.matchers:
            return grown
        # No such event so far is zero where the target counts their like.
        return f"({grown} or 0 * sum by ({by}) ({change}({selector.name}{window})))"
    if selector.fold or is_additive(signal) or selector.is_counter:
        return f"{selector.fold or 'sum'} by ({by}) ({series})"
    return f"{'min' if signal.bad_direction is Bad.DOWN else 'max'} by ({by}) ({series})"


def _labels_of(signal: Signal) -> str:
    """The labels that can name the entity of a signal, and tell simulated series from real ones."""
    by_layer = {
        Layer.GPU: (*HOST_LABELS, *GPU_LABELS, MIG_LABEL),
        Layer.HOST: HOST_LABELS,
        Layer.STORAGE: HOST_LABELS,
        Layer.NETWORK: HOST_LABELS,
        Layer.MONITORING: COLLECTOR_LABELS,
    }
    return ", ".join((*by_layer.get(signal.layer, SERVICE_LABELS), "simulated"))
