"""Traces of requests: context in and out as the W3C says, spans made when a request has ended.

A request that is not traced costs one comparison. One that is gets a server span at its beginning,
for its identity; the spans inside it are made at its end from times that were taken anyway, the
worker's among them, so that nothing is measured twice and workers know nothing of tracing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import structlog
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from inference.settings import InferenceSettings

_log = structlog.get_logger(__name__)

Attributes = Mapping[str, AttributeValue]

_NANOSECONDS = 1e9
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class SpanExport(Protocol):
    """What sends spans away: how much it sent and lost, and its end."""

    @property
    def exported(self) -> int:
        """Spans that the collector took."""

    @property
    def dropped(self) -> Mapping[str, int]:
        """Spans that were lost, by reason."""

    def close(self, limit_seconds: float) -> None:
        """Send what waits, but not for longer than the limit."""


class TraceCollector(Collector):
    """Reads how many spans were sent and lost."""

    def __init__(self, export: SpanExport) -> None:
        self._export = export

    def collect(self) -> Iterator[Metric]:
        """Yield both counters."""
        yield CounterMetricFamily(
            "trace_spans_exported", "Spans that the collector took", self._export.exported
        )
        dropped = CounterMetricFamily(
            "trace_spans_dropped", "Spans that were lost", labels=["reason"]
        )
        for reason, count in self._export.dropped.items():
            dropped.add_metric([reason], count)
        yield dropped


class RequestTrace:
    """The server span of one request, and the stages inside it. Times are the service's clock."""

    def __init__(self, tracer: Tracer, span: Span, wall_offset_seconds: float) -> None:
        self._tracer = tracer
        self._span = span
        self._offset = wall_offset_seconds
        context = span.get_span_context()
        self.trace_id = trace.format_trace_id(context.trace_id)
        self.span_id = trace.format_span_id(context.span_id)
        self.recording = span.is_recording()
        """Whether it was sampled; the identity is passed on in any case."""
        self._context = trace.set_span_in_context(span)

    def headers(self) -> dict[str, str]:
        """Return what the answer says: ``traceresponse`` as the W3C drafts it, and the state.

        ``traceparent`` is said as well, for those who look for it there.
        """
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, self._context)
        parent = carrier.get("traceparent")
        return {**carrier, "traceresponse": parent} if parent else carrier

    def stage(
        self, name: str, begin: float, end: float, attributes: Attributes, error: str = ""
    ) -> None:
        """Add a span inside the request."""
        span = self._tracer.start_span(
            name,
            context=self._context,
            attributes=dict(attributes),
            start_time=self._wall(begin),
        )
        if error:
            span.set_attribute("error.type", error)
            span.set_status(Status(StatusCode.ERROR))
        span.end(self._wall(max(begin, end)))

    def end(self, at: float, attributes: Attributes, *, failed: str = "") -> None:
        """End the request; ``failed`` is the message of a failure that is ours."""
        self._span.set_attributes(dict(attributes))
        if failed:
            self._span.set_status(Status(StatusCode.ERROR, failed))
        self._span.end(self._wall(at))

    def _wall(self, at: float) -> int:
        return int((at + self._offset) * _NANOSECONDS)


class Tracing:
    """Begins traces of requests."""

    def __init__(
        self,
        tracer: Tracer,
        export: SpanExport,
        clock: Callable[[], float],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.export = export
        self._tracer = tracer
        self._clock = clock
        self._wall_clock = wall_clock
        self._propagator = TraceContextTextMapPropagator()

    def begin(
        self, name: str, at: float, headers: Mapping[str, str], attributes: Attributes
    ) -> RequestTrace:
        """Begin the trace of a request, inside that of its client if the headers name one."""
        offset = self._wall_clock() - self._clock()
        span = self._tracer.start_span(
            name,
            context=self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            attributes=dict(attributes),
            start_time=int((at + offset) * _NANOSECONDS),
        )
        return RequestTrace(self._tracer, span, offset)


def tracing_of(
    settings: InferenceSettings, clock: Callable[[], float], version: str
) -> Tracing | None:
    """Return what traces requests, or None where it is off.

    ``trace_endpoint`` of the settings goes before the ``OTEL_EXPORTER_OTLP_*ENDPOINT`` variables;
    without any of them, with ``OTEL_SDK_DISABLED=true`` or with ``OTEL_TRACES_EXPORTER=none`` there
    are no traces. All other ``OTEL_*`` variables of the SDK and of the exporter hold.
    """
    wanted = settings.trace_endpoint or any(os.environ.get(name) for name in _ENDPOINTS)
    switched_off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not wanted or switched_off or os.environ.get("OTEL_TRACES_EXPORTER", "").strip() == "none":
        return None
    # Takes 0.15 s to import, which those without traces need not pay.
    from inference.otlp import OtlpExport  # noqa: PLC0415

    export = OtlpExport(settings, version)
    _log.info("tracing_started", endpoint=export.endpoint)
    return Tracing(export.tracer, export, clock)
