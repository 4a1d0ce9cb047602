"""One collection from anything that a person can name: ``galen collect SOURCE``."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx

from collectors.access import HttpAccess
from collectors.addresses import shown_url
from collectors.contract import Collector, CollectorError, Sample
from collectors.exposition import (
    DEFAULT_MAX_BYTES,
    Exposition,
    ExpositionError,
    Family,
    RawSample,
    parse_exposition,
    stem,
)
from collectors.fetch import ACCEPT_METRICS, FetchError, check_media_type, fetch
from collectors.gpu.kernel_log import open_log
from collectors.gpu.nvml import NvmlCollector
from collectors.gpu.xid_collector import XidCollector
from collectors.gpu.xid_ledger import XidLedger
from collectors.host import HostCollector
from collectors.mapping import EntityNamer
from collectors.promapi import PrometheusClient
from collectors.recognition import Reading, recognise
from collectors.signals import unit_of

PROMETHEUS_PREFIX = "prometheus:"
# CPU shares and rates need two readings; a quarter of a second is enough for the kernel's 10 ms clock.
_BETWEEN_READINGS_SECONDS = 0.25
_XID_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class SourceReading:
    """What one collection found."""

    samples: Sequence[Reading]
    unrecognised: Sequence[str]
    """Names that the source offers and the catalogue does not know."""
    notes: Sequence[str]
    seconds: float
    kinds: Sequence[str] = ()
    """The presets that the source belongs to."""
    lines: int = 0
    """Lines of exposition text that held a sample, recognised or not."""


def collect_source(
    spec: str,
    *,
    client: httpx.Client | None = None,
    host: str | None = None,
    service: str | None = None,
    prometheus_url: str = "http://127.0.0.1:9090",
    prometheus_access: HttpAccess | None = None,
    deadline_seconds: float = 10.0,
    wall: Callable[[], float] = time.time,
) -> SourceReading:
    """Collect once from a source.

    Args:
        spec: ``http(s)://...`` of an exposition, the path of a file of exposition text, ``nvml``,
            ``xid`` (those of the last day in the kernel log), ``host``, or ``prometheus:QUERY``. A URL
            without a path means its ``/metrics``.
        client: for URLs; by default one is made for this call.
        host: the host's name for series that do not name theirs; by default that of the URL, or of
            this machine.
        service: the service's name for service-side series; by default the model's, or the host's.
        prometheus_url: where ``prometheus:QUERY`` asks.
        prometheus_access: its credentials and TLS.
        deadline_seconds: the longest that the source may take.
        wall: the clock of the samples.

    Raises:
        CollectorError: when the source cannot be read; the message names it and ``fix`` says what to
            do.
    """
    started = time.monotonic()
    if spec == "host":
        found = _from_collector(HostCollector(Path(), hostname=host), wall(), twice=True)
    elif spec == "nvml":
        found = _from_collector(NvmlCollector(host or socket.gethostname()), wall())
    elif spec == "xid":
        found = _from_collector(_xids(host or socket.gethostname()), wall())
    elif spec.startswith(PROMETHEUS_PREFIX):
        query = spec.removeprefix(PROMETHEUS_PREFIX)
        found = _from_prometheus(query, prometheus_url, prometheus_access, deadline_seconds)
    elif spec.startswith(("http://", "https://")):
        found = _from_url(
            spec,
            client or httpx.Client(trust_env=False),
            host,
            service,
            deadline_seconds=deadline_seconds,
            now_seconds=wall(),
        )
    else:
        found = _from_file(Path(spec), host, service, wall())
    return replace(found, seconds=time.monotonic() - started)


def _xids(host: str) -> XidCollector:
    # By hand one asks what has happened, not what stands at this moment.
    ledger = XidLedger(host, hold_seconds=_XID_SECONDS, advice_seconds=_XID_SECONDS)
    return XidCollector(host, ledger, open_log("auto"))


def _from_collector(
    collector: Collector, now_seconds: float, *, twice: bool = False
) -> SourceReading:
    support = collector.is_supported()
    if not support.supported:
        raise CollectorError(support.reason, retryable=False, fix=support.fix)
    try:
        collection = collector.collect(now_seconds)
        if twice:
            threading.Event().wait(_BETWEEN_READINGS_SECONDS)
            collection = collector.collect(now_seconds + _BETWEEN_READINGS_SECONDS)
    finally:
        collector.close()
    readings = [_reading(sample) for sample in collection.samples]
    return SourceReading(readings, collection.unrecognised, collection.notes, 0.0)


def _reading(sample: Sample) -> Reading:
    return Reading(
        sample.signal, sample.entity, sample.value, unit_of(sample.signal), sample.labels
    )


def _from_prometheus(
    query: str, url: str, access: HttpAccess | None, deadline_seconds: float
) -> SourceReading:
    client = PrometheusClient(url, access=access, deadline_seconds=deadline_seconds)
    try:
        series = client.query(query)
    finally:
        client.close()
    missing = client.take_warnings()
    if not series:
        return SourceReading([], [], [f"{query!r} has no series now", *missing], 0.0)
    families: dict[str, Family] = {}
    for one in series:
        name = one.labels.get("__name__", query)
        labels = {label: text for label, text in one.labels.items() if label != "__name__"}
        family = families.setdefault(stem(name) if "le" in labels else name, Family(name))
        family.samples.append(RawSample(name, labels, one.value))
    namer = EntityNamer()
    found = recognise(Exposition(families, {}), namer)
    raw = [
        Reading(name, namer.name_of(name, sample.labels), sample.value, "", sample.labels)
        for name in found.unrecognised
        for sample in families[name].samples
    ]
    return SourceReading(
        [*found.readings, *raw],
        found.unrecognised,
        [*found.notes, *missing],
        0.0,
        found.kinds,
    )


def _from_url(
    url: str,
    client: httpx.Client,
    host: str | None,
    service: str | None,
    *,
    deadline_seconds: float,
    now_seconds: float,
) -> SourceReading:
    try:
        parts = urlsplit(url)
        if parts.path in {"", "/"}:
            url = urlunsplit((parts.scheme, parts.netloc, "/metrics", parts.query, ""))
        answer = fetch(
            client,
            url,
            headers={"Accept": ACCEPT_METRICS},
            deadline_seconds=deadline_seconds,
            max_bytes=DEFAULT_MAX_BYTES,
        )
        if answer.status != httpx.codes.OK:
            raise CollectorError(
                f"{shown_url(url)} answered {answer.status}", fix=_fix_of(answer.status)
            )
    except (FetchError, ValueError) as error:
        raise CollectorError(str(error), fix="check the URL and that the target runs") from error
    try:
        open_metrics = check_media_type(answer.content_type)
    except FetchError as error:
        raise CollectorError(
            f"{shown_url(url)}: {error}", fix="give the URL of the metrics"
        ) from error
    text = answer.body.decode("utf-8", errors="replace")
    place = host or parts.hostname or "unknown"
    return _from_text(text, shown_url(url), place, service, now_seconds, open_metrics=open_metrics)


def _fix_of(status: int) -> str:
    if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        return "give the credentials: http://user:password@host/metrics"
    return "check the path of the URL"


def _from_file(
    path: Path, host: str | None, service: str | None, now_seconds: float
) -> SourceReading:
    try:
        if path.stat().st_size > DEFAULT_MAX_BYTES:
            raise CollectorError(
                f"{path} is longer than {DEFAULT_MAX_BYTES} bytes", retryable=False
            )
        text = path.read_text("utf-8", errors="replace")
    except OSError as error:
        raise CollectorError(
            f"cannot read {path}: {error.strerror or error}",
            retryable=False,
            fix="give a URL, a file of exposition text, nvml, xid, host or prometheus:QUERY",
        ) from error
    return _from_text(text, str(path), host or socket.gethostname(), service, now_seconds)


def _from_text(
    text: str,
    place: str,
    host: str,
    service: str | None,
    now_seconds: float,
    *,
    open_metrics: bool | None = None,
) -> SourceReading:
    try:
        exposition = parse_exposition(text, open_metrics=open_metrics)
    except ExpositionError as error:
        raise CollectorError(
            f"{place}: {error}", retryable=False, fix="this must be Prometheus exposition text"
        ) from error
    models = {
        name
        for sample in exposition.samples()
        if (name := sample.labels.get("model_name") or sample.labels.get("model"))
    }
    name = service or (models.pop() if len(models) == 1 else host)
    found = recognise(exposition, EntityNamer(host=host, service=name), now_seconds=now_seconds)
    return SourceReading(
        found.readings, found.unrecognised, found.notes, 0.0, found.kinds, exposition.lines
    )
