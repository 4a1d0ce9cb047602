"""Galen's own metrics: every name with its kind, help and labels, in one table.

The exporter makes its families of it, and rules and dashboards are tested against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from collectors.exporter import LABELS

ENTITY_LABELS = LABELS


class MetricKind(StrEnum):
    """What the number is."""

    GAUGE = "gauge"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True)
class OwnMetric:
    """One metric of Galen's own."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: MetricKind = MetricKind.GAUGE
    unit: str = ""

    def family(self) -> GaugeMetricFamily | CounterMetricFamily:
        """Return its empty family."""
        make = CounterMetricFamily if self.kind is MetricKind.COUNTER else GaugeMetricFamily
        return make(self.name, self.help, labels=self.labels, unit=self.unit)


def _counter(name: str, text: str, *labels: str) -> OwnMetric:
    return OwnMetric(name, text, labels, MetricKind.COUNTER)


OWN_METRICS: Mapping[str, OwnMetric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            OwnMetric("galen_build_info", "Always 1; the version is in the label", ("version",)),
            OwnMetric(
                "galen_export_part_readable",
                "Whether this part of Galen's state could be read for this scrape",
                ("part",),
            ),
            OwnMetric("galen_store_readable", "Whether the series store could be read"),
            OwnMetric("galen_store_series", "Series in the store"),
            OwnMetric("galen_store_size_bytes", "Size of the store's files", unit="bytes"),
            OwnMetric(
                "galen_store_newest_timestamp_seconds", "Time of the newest sample", unit="seconds"
            ),
            OwnMetric(
                "galen_watch_start_timestamp_seconds",
                "When the watch loop started",
                unit="seconds",
            ),
            OwnMetric(
                "galen_watch_last_tick_timestamp_seconds",
                "When the newest tick of the watch loop began",
                unit="seconds",
            ),
            OwnMetric(
                "galen_watch_tick_duration_seconds",
                "How long the newest tick took",
                unit="seconds",
            ),
            OwnMetric(
                "galen_watch_interval_seconds", "Time between two ticks as set", unit="seconds"
            ),
            _counter("galen_watch_ticks_total", "Ticks since the watch loop started"),
            _counter("galen_watch_samples_total", "Samples collected since the watch loop started"),
            _counter(
                "galen_watch_part_failures_total",
                "Failures of a part of the watch loop since it started",
                "part",
            ),
            OwnMetric(
                "galen_config_last_reload_successful",
                "Whether the newest attempt to read the configuration succeeded and was not rolled back",
            ),
            OwnMetric(
                "galen_config_last_reload_success_timestamp_seconds",
                "When the configuration was last read with success",
                unit="seconds",
            ),
            OwnMetric(
                "galen_detection_nominal_rate_ratio",
                "Share of normal values that a detector should call unusual",
                ("detector",),
                unit="ratio",
            ),
            _counter(
                "galen_detection_normal_values_total",
                "Normal values that a detector has judged",
                "detector",
            ),
            _counter(
                "galen_detection_normal_values_unusual_total",
                "Normal values that a detector has called unusual",
                "detector",
            ),
            OwnMetric(
                "galen_detection_worst_rate_ratio",
                "Realised rate of late of the series, or entity, of which a detector calls most normal "
                "values unusual",
                ("detector", *ENTITY_LABELS, "signal"),
                unit="ratio",
            ),
            OwnMetric("galen_watch_series", "Series that detection watches"),
            OwnMetric(
                "galen_detection_state_bytes",
                "Memory that the arrays of detection take; over galen_watch_series it is bounded",
                unit="bytes",
            ),
            OwnMetric("galen_anomalies", "Series that are anomalous now"),
            OwnMetric(
                "galen_entity_anomaly_score",
                "Highest anomaly score of an entity's series; above 1 is an anomaly",
                ENTITY_LABELS,
            ),
            OwnMetric(
                "galen_anomaly_score",
                "Score of each anomalous series, the highest first, 200 at most",
                (*ENTITY_LABELS, "signal", "direction"),
            ),
            OwnMetric(
                "galen_incidents_open",
                "Open incidents by severity and leading cause",
                ("severity", "cause", "simulated"),
            ),
            OwnMetric(
                "galen_incident_confidence_ratio",
                "Confidence in the leading cause of each open incident, the newest 100",
                (*ENTITY_LABELS, "severity", "cause"),
                unit="ratio",
            ),
            OwnMetric(
                "galen_incidents_oldest_open_timestamp_seconds",
                "When the oldest of the open incidents was opened",
                unit="seconds",
            ),
            _counter("galen_journal_events_total", "Events in the journal", "kind"),
            OwnMetric(
                "galen_healing_actions", "Actions in the ledger by their state", ("action", "state")
            ),
            OwnMetric(
                "galen_alert_messages_pending",
                "Messages that wait to be delivered to a channel",
                ("channel",),
            ),
        )
    }
)
