"""Galen's own metrics for the exporter: watch loop, anomalies, incidents, healing, alerts, store."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import sqlalchemy as sa
import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector as RegistryCollector

from analysis.diagnosis.causes import catalogue as cause_catalogue
from analysis.findings import Incident, IncidentState, Severity
from analysis.journal import EventKind, Journal
from collectors.exporter import labels_of
from galen.paths import StatePaths
from galen.telemetry.names import OWN_METRICS
from galen.telemetry.status import StatusError, WatchStatus, read_status
from healing.ledger import Ledger
from reporting.alerts.outbox import Outbox

log = structlog.get_logger(__name__)

_MOST_INCIDENTS = 100
_OTHER = "other"

Family = GaugeMetricFamily | CounterMetricFamily


class GalenMetrics(RegistryCollector):
    """Reads Galen's state when somebody scrapes.

    A part that cannot be read is absent, and ``galen_export_part_readable`` says so; the others are
    there.

    Args:
        paths: where the state lies.
        clock: the wall clock that ages are taken by.
        max_age_seconds: scores of an older tick are left out.
    """

    def __init__(
        self,
        paths: StatePaths,
        clock: Callable[[], float] = time.time,
        *,
        max_age_seconds: float = 15.0,
    ) -> None:
        self._paths = paths
        self._clock = clock
        self._max_age_seconds = max_age_seconds
        self._journal: Journal | None = None
        self._ledger: Ledger | None = None
        self._outbox: Outbox | None = None
        self._events: Counter[str] = Counter()
        self._last_seq = 0
        self._unreadable: dict[str, str] = {}
        # Scrapes come in threads of their own, and counting events goes on from the last scrape.
        self._lock = threading.Lock()

    def describe(self) -> Iterable[Metric]:
        """Name nothing in advance: what there is depends on what runs."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every part that can be read."""
        yield _single("galen_build_info", 1.0, version("galen"))
        readable = _family("galen_export_part_readable")
        parts: Mapping[str, Callable[[], list[Family]]] = {
            "watch": lambda: list(self._watch()),
            "store": lambda: list(self._store()),
            "journal": lambda: list(self._of_journal()),
            "healing": lambda: list(self._healing()),
            "alerts": lambda: list(self._alerts()),
        }
        for part, read in parts.items():
            with self._lock:
                families = self._guarded(part, read)
            readable.add_metric([part], float(families is not None))
            yield from families or ()
        yield readable

    def close(self) -> None:
        """Release the journal."""
        if self._journal is not None:
            self._journal.close()

    def _guarded(self, part: str, read: Callable[[], list[Family]]) -> list[Family] | None:
        try:
            families = read()
        except (StatusError, OSError, sa.exc.SQLAlchemyError, ValueError) as error:
            reason = str(error)[:300]
            if self._unreadable.get(part) is None:
                log.warning("export_part_failed", part=part, reason=reason)
            self._unreadable[part] = reason
            return None
        if self._unreadable.pop(part, None) is not None:
            log.info("export_part_readable_again", part=part)
        return families

    def _watch(self) -> Iterator[Family]:
        status = read_status(self._paths.status)
        yield _single("galen_watch_start_timestamp_seconds", status.started_seconds)
        yield _single("galen_watch_interval_seconds", status.interval_seconds)
        yield _single("galen_watch_last_tick_timestamp_seconds", status.time_seconds)
        yield _single("galen_watch_ticks_total", status.ticks)
        yield _single("galen_watch_samples_total", status.samples)
        failures = _family("galen_watch_part_failures_total")
        for part, count in sorted(status.part_failures.items()):
            failures.add_metric([part], count)
        yield failures
        yield _single("galen_config_last_reload_successful", status.config_reload_successful)
        if (since := status.config_reload_success_seconds) is not None:
            yield _single("galen_config_last_reload_success_timestamp_seconds", since)
        # Once the loop has ended nobody knows how anything is: absent, not calm.
        if self._clock() - status.time_seconds <= self._max_age_seconds:
            yield from _scores(status)

    def _store(self) -> Iterator[Family]:
        size = 0
        for path in (self._paths.series, Path(f"{self._paths.series}-wal")):
            with suppress(FileNotFoundError):
                size += path.stat().st_size
        yield _single("galen_store_size_bytes", size)

    def _of_journal(self) -> Iterator[Family]:
        journal = self._open()
        last = journal.last_seq()
        if last < self._last_seq:  # another journal lies there now
            self._events.clear()
            self._last_seq = 0
        for kind, count in journal.counts(after_seq=self._last_seq, until_seq=last).items():
            self._events[kind] += count
        self._last_seq = last
        events = _family("galen_journal_events_total")
        for kind in EventKind:
            events.add_metric([kind.value], self._events[kind.value])
        yield events
        yield from _incidents(journal.incidents(state=IncidentState.OPEN, limit=1000))

    def _healing(self) -> Iterator[Family]:
        journal = self._open()
        self._ledger = self._ledger or Ledger(journal)
        actions = _family("galen_healing_actions")
        for (action, state), count in sorted(self._ledger.counts().items()):
            actions.add_metric([action, state], count)
        yield actions

    def _alerts(self) -> Iterator[Family]:
        journal = self._open()
        self._outbox = self._outbox or Outbox(journal.engine)
        messages = _family("galen_alert_messages_pending")
        for channel, count in sorted(self._outbox.pending().items()):
            messages.add_metric([channel], count)
        yield messages

    def _open(self) -> Journal:
        if self._journal is None:
            if not self._paths.journal.exists():
                # Opening it would make an empty one, and an empty journal says that all was quiet.
                raise StatusError(f"{self._paths.journal}: no journal; does `galen watch` run?")
            self._journal = Journal(self._paths.journal)
        return self._journal


def _scores(status: WatchStatus) -> Iterator[Family]:
    yield _single("galen_watch_tick_duration_seconds", status.tick_seconds)
    yield _single("galen_watch_series", status.series)
    yield _single("galen_detection_state_bytes", status.detection_state_bytes)
    yield _single("galen_anomalies", status.anomalies)
    entities = _family("galen_entity_anomaly_score")
    for each in status.entities:
        entities.add_metric(_entity_values(each.entity, simulated=each.simulated), each.score)
    yield entities
    worst = _family("galen_anomaly_score")
    for one in status.worst:
        values = _entity_values(one.entity, simulated=one.simulated)
        worst.add_metric([*values, one.signal, one.direction], one.score)
    yield worst
    yield from _calibration(status)


def _calibration(status: WatchStatus) -> Iterator[Family]:
    nominal = _family("galen_detection_nominal_rate_ratio")
    seen = _family("galen_detection_normal_values_total")
    above = _family("galen_detection_normal_values_unusual_total")
    worst = _family("galen_detection_worst_rate_ratio")
    for each in status.realised:
        for family, value in (
            (nominal, each.nominal_rate),
            (seen, each.seen),
            (above, each.above),
        ):
            family.add_metric([each.detector], value)
        if each.worst_entity is not None:
            entity = _entity_values(each.worst_entity, simulated=each.simulated)
            worst.add_metric([each.detector, *entity, each.worst_signal], each.worst_rate)
    yield from (nominal, seen, above, worst)


def _incidents(found: list[Incident]) -> Iterator[Family]:
    # Zeros for each severity: a sum over nothing would be nothing, and alerts could not tell.
    counts = Counter({(severity.value, "", ""): 0 for severity in Severity})
    confidence: dict[tuple[str, ...], float] = {}
    for incident in found:
        cause, simulated = _cause(incident), "true" if incident.simulated else ""
        counts[incident.severity.value, cause, simulated] += 1
        if len(confidence) < _MOST_INCIDENTS:
            values = _entity_values(incident.entity, simulated=incident.simulated)
            sure = incident.leading.confidence if incident.leading else 0.0
            confidence.setdefault((*values, incident.severity.value, cause), sure)
    by_cause = _family("galen_incidents_open")
    for labels, count in sorted(counts.items()):
        by_cause.add_metric(labels, count)
    yield by_cause
    each = _family("galen_incident_confidence_ratio")
    for key, sure in sorted(confidence.items()):
        each.add_metric(key, sure)
    yield each
    if found:
        oldest = min(incident.opened_seconds for incident in found)
        yield _single("galen_incidents_oldest_open_timestamp_seconds", oldest)


def _cause(incident: Incident) -> str:
    if incident.leading is None:
        return ""
    known = incident.leading.cause
    return known if known in cause_catalogue().causes else _OTHER


def _entity_values(entity: str, *, simulated: bool) -> list[str]:
    labels = labels_of(entity, {"simulated": "true"} if simulated else {})
    return [labels.get(name, "") for name in OWN_METRICS["galen_entity_anomaly_score"].labels]


def _family(name: str) -> Family:
    return OWN_METRICS[name].family()


def _single(name: str, value: float, *labels: str) -> Family:
    family = _family(name)
    family.add_metric(labels, value)
    return family
