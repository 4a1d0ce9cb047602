"""Spans to a collector by OTLP over HTTP: in batches, from a thread, out of a bounded queue.

A collector that is slow or gone costs spans, which are counted, and never a request: putting a span
into the queue does not wait, and what does not fit is dropped.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from urllib.parse import urlsplit, urlunsplit

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased

from inference.settings import InferenceSettings

_log = structlog.get_logger(__name__)

QUEUE_FULL = "queue_full"
EXPORT_FAILED = "export_failed"
# The specification's default of OTEL_BSP_MAX_QUEUE_SIZE: some 290 traced requests.
_DEFAULT_QUEUE_SPANS = 2048


class OtlpExport:
    """Provider, queue and exporter, with counts of what was sent and lost."""

    def __init__(self, settings: InferenceSettings, version: str) -> None:
        self.exported = 0
        self.dropped = {QUEUE_FULL: 0, EXPORT_FAILED: 0}
        self._lock = threading.Lock()
        self._waiting = 0
        self._limit = _queue_spans()
        self._failing = False
        exporter = OTLPSpanExporter(endpoint=settings.trace_endpoint)
        self.endpoint = _without_secrets(exporter._endpoint)  # noqa: SLF001 - for the log only
        self._exporter = _Counting(exporter, self)
        self._processor = _Bounded(self._exporter, self)
        self._provider = TracerProvider(
            resource=_resource(version),
            sampler=_sampler(settings),
            # At exit it would wait for an unreachable collector; the service closes it itself.
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(self._processor)
        self.tracer = self._provider.get_tracer("inference", version)

    def enters(self) -> bool:
        """Say whether the queue has room for a span, and count it."""
        with self._lock:
            if self._waiting >= self._limit:
                self.dropped[QUEUE_FULL] += 1
                return False
            self._waiting += 1
            return True

    def left(self, spans: int, *, sent: bool) -> None:
        """Count a batch that left the queue."""
        with self._lock:
            self._waiting -= spans
            if sent:
                self.exported += spans
            else:
                self.dropped[EXPORT_FAILED] += spans
        if sent is self._failing:
            self._failing = not sent
            event = "trace_export_recovered" if sent else "trace_export_failing"
            _log.warning(event, endpoint=self.endpoint)

    def close(self, limit_seconds: float) -> None:
        """Send what waits, but not for longer than the limit."""
        # A thread that may be left behind: the processor's own end has no deadline.
        closing = threading.Thread(target=self._provider.shutdown, name="otlp-end", daemon=True)
        closing.start()
        closing.join(limit_seconds)
        if closing.is_alive():
            _log.warning("trace_export_cut_off", endpoint=self.endpoint, spans=self._waiting)
            self._exporter.shutdown()


class _Bounded(BatchSpanProcessor):
    """The SDK's processor, which counts what its queue has no room for."""

    def __init__(self, exporter: SpanExporter, export: OtlpExport) -> None:
        super().__init__(exporter)
        self._counts = export

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span, or drop it."""
        if span.context is not None and span.context.trace_flags.sampled and self._counts.enters():
            super().on_end(span)


class _Counting(SpanExporter):
    """An exporter that says what became of each batch."""

    def __init__(self, exporter: SpanExporter, export: OtlpExport) -> None:
        self._exporter = exporter
        self._export = export

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; the exporter retries within its own deadline."""
        sent = False
        try:
            result = self._exporter.export(spans)
            sent = result is SpanExportResult.SUCCESS
            return result
        finally:
            self._export.left(len(spans), sent=sent)

    def shutdown(self) -> None:
        """End retries."""
        self._exporter.shutdown()


def _queue_spans() -> int:
    """Return the queue's bound, which the SDK reads from the same variable."""
    given = os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE", "")
    return int(given) if given.isdecimal() and int(given) > 0 else _DEFAULT_QUEUE_SPANS


def _resource(version: str) -> Resource:
    """Describe this service; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before."""
    ours = Resource({SERVICE_NAME: "galen-inference", SERVICE_VERSION: version})
    given = Resource.create()
    named = not str(given.attributes.get(SERVICE_NAME, "")).startswith("unknown_service")
    if named:
        return ours.merge(given)
    return given.merge(ours)


def _sampler(settings: InferenceSettings) -> Sampler | None:
    """Return the configured sampler; None leaves it to OTEL_TRACES_SAMPLER."""
    if settings.trace_sample_ratio is None:
        return None
    return ParentBased(TraceIdRatioBased(settings.trace_sample_ratio))


def _without_secrets(url: str) -> str:
    """Return a URL without user, password and query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
