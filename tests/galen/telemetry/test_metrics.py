from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from analysis.detection.contract import Detections, Realised, SignalState
from analysis.findings import (
    Anomaly,
    Direction,
    Hypothesis,
    Incident,
    IncidentState,
    Severity,
    Verdict,
)
from analysis.journal import EventKind, Journal
from collectors.contract import Sample, SeriesKey
from collectors.exporter import SeriesExporter, make_exporter_app
from collectors.exposition import Exposition, parse_exposition
from collectors.signals import Layer, catalogue
from collectors.store.contract import SeriesInfo
from collectors.store.sqlite import SqliteSeriesStore
from galen.paths import StatePaths
from galen.telemetry.metrics import GalenMetrics
from galen.telemetry.names import OWN_METRICS
from galen.telemetry.status import StatusBoard, StatusError, read_status

NOW = 1_700_000_000.0
GPU = "host/box/gpu/0"


def _state(signal: str, score: float, *, observed: float | None = 1.0) -> SignalState:
    return SignalState(
        key=SeriesKey(GPU, signal), observed=observed, age_seconds=0, expected=None, low=None,
        high=None, score=score, direction=Direction.UP, onset_seconds=None, active=score > 1,
        warmed_up=True,
    )  # fmt: skip


def _detections() -> Detections:
    states = [
        _state("gpu_temperature_celsius", 3.5),
        _state("gpu_power_usage_watts", 0.2),
        _state("gpu_xid", 9.0, observed=None),
    ]
    hot = Anomaly(
        entity=GPU, signal="gpu_temperature_celsius", time_seconds=NOW, onset_seconds=NOW - 5,
        score=3.5, direction=Direction.UP, observed=91.0, simulated=True,
    )  # fmt: skip
    realised = (
        Realised("baseline", 0.005, 60.0, 10_000.0, (GPU, "gpu_temperature_celsius"), 0.02),
        Realised("forest", 0.01, 0.0, 0.0, None, 0.0),
    )
    return Detections(NOW, (hot,), {state.key: state for state in states}, realised)


def _incident(number: int, cause: str | None, severity: Severity, opened: float) -> Incident:
    leading = () if cause is None else (
        Hypothesis(rank=1, cause=cause, title=cause, entity=GPU, confidence=0.87, log_odds=2.0),
    )  # fmt: skip
    return Incident(
        id=f"inc-{number}", state=IncidentState.OPEN, severity=severity, verdict=Verdict.FAULT,
        title="t", entity=GPU, onset_seconds=opened, opened_seconds=opened, updated_seconds=opened,
        hypotheses=leading,
    )  # fmt: skip


def _scrape(own: GalenMetrics, reader: Any, accept: str = "", now: float = NOW) -> str:
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ["HTTP_ACCEPT"] = accept
    app = make_exporter_app(reader, lambda: now, more=[own])
    return b"".join(app(environ, lambda *_: None)).decode()


def _families(own: GalenMetrics, now: float = NOW) -> Exposition:
    return parse_exposition(_scrape(own, SimpleNamespace(series=list), now=now))


def _values(exposition: Exposition, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for sample in exposition.named(name)
    }


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    return StatePaths(tmp_path)


@pytest.fixture
def own(paths: StatePaths) -> Iterator[GalenMetrics]:
    metrics = GalenMetrics(paths, lambda: NOW)
    yield metrics
    metrics.close()


def _watched(paths: StatePaths) -> None:
    board = StatusBoard(paths.status, started_seconds=NOW - 60, interval_seconds=1.0)
    board.failed("heal")
    board.failed("heal")
    samples = [Sample(NOW, GPU, "gpu_temperature_celsius", 91.0, {"simulated": "true"})]
    board.write(NOW - 1, 0.02, samples, _detections())
    board.write(NOW, 0.05, samples, _detections())


def test_the_watch_loop_and_its_scores(paths: StatePaths, own: GalenMetrics) -> None:
    _watched(paths)
    found = _families(own)
    assert _values(found, "galen_watch_ticks_total") == {(): 2}
    assert _values(found, "galen_watch_samples_total") == {(): 2}
    assert _values(found, "galen_watch_last_tick_timestamp_seconds") == {(): NOW}
    assert _values(found, "galen_watch_tick_duration_seconds") == {(): 0.05}
    assert _values(found, "galen_watch_part_failures_total", "part") == {("heal",): 2}
    labels = ("host", "gpu_id", "simulated")
    # The highest of those that have a value: what has none now is not unusual, it is unknown.
    assert _values(found, "galen_entity_anomaly_score", *labels) == {("box", "0", "true"): 3.5}
    assert _values(found, "galen_anomaly_score", "signal", "direction") == {
        ("gpu_temperature_celsius", "up"): 3.5
    }


def test_calibration_of_each_detector_and_its_worst_series(
    paths: StatePaths, own: GalenMetrics
) -> None:
    _watched(paths)
    found = _families(own)
    by = {
        name: _values(found, f"galen_detection_{name}", "detector")
        for name in ("nominal_rate_ratio", "normal_values_total", "normal_values_unusual_total")
    }
    assert by == {
        "nominal_rate_ratio": {("baseline",): 0.005, ("forest",): 0.01},
        "normal_values_total": {("baseline",): 10_000, ("forest",): 0},
        "normal_values_unusual_total": {("baseline",): 60, ("forest",): 0},
    }
    labels = ("detector", "gpu_id", "signal", "simulated")
    assert _values(found, "galen_detection_worst_rate_ratio", *labels) == {
        ("baseline", "0", "gpu_temperature_celsius", "true"): 0.02
    }


def test_the_last_reload_of_the_configuration(paths: StatePaths, own: GalenMetrics) -> None:
    def told() -> tuple[float, float]:
        board.write(NOW, 0.01, (), None)
        found = _families(own)
        successful = _values(found, "galen_config_last_reload_successful")
        since = _values(found, "galen_config_last_reload_success_timestamp_seconds")
        return successful[()], since[()]

    board = StatusBoard(paths.status, started_seconds=NOW - 60, interval_seconds=1.0)
    assert told() == (1, NOW - 60)
    board.reloaded(True, NOW - 30)
    assert told() == (1, NOW - 30)
    board.reloaded(False, NOW - 10)
    assert told() == (0, NOW - 30)


def test_a_real_host_with_a_simulated_gpu_is_real(paths: StatePaths, own: GalenMetrics) -> None:
    board = StatusBoard(paths.status, started_seconds=NOW, interval_seconds=1.0)
    samples = [
        Sample(NOW, GPU, "gpu_temperature_celsius", 91.0, {"simulated": "true"}),
        Sample(NOW, GPU, "gpu_power_usage_watts", 300.0),
    ]
    board.write(NOW, 0.01, samples, _detections())
    scores = _values(_families(own), "galen_entity_anomaly_score", "simulated")
    assert scores == {("",): 3.5}


def test_scores_of_a_loop_that_has_ended_are_absent(paths: StatePaths) -> None:
    _watched(paths)
    late = GalenMetrics(paths, lambda: NOW + 3600)
    found = _families(late, NOW + 3600)
    assert found.named("galen_entity_anomaly_score") == []
    assert found.named("galen_anomalies") == []
    assert _values(found, "galen_watch_last_tick_timestamp_seconds") == {(): NOW}


def test_open_incidents_by_severity_and_cause(paths: StatePaths, own: GalenMetrics) -> None:
    journal = Journal(paths.journal)
    causes = ["engine_hang", "engine_hang", "<script>", None]
    for number, cause in enumerate(causes):
        severity = Severity.CRITICAL if cause else Severity.WARNING
        journal.save_incident(_incident(number, cause, severity, NOW - number))
    for kind in (EventKind.STARTED, EventKind.INCIDENT_OPENED, EventKind.INCIDENT_OPENED):
        journal.append(kind, time_seconds=NOW, summary="s")
    found = _families(own)
    assert _values(found, "galen_incidents_open", "severity", "cause") == {
        ("critical", "engine_hang"): 2,
        ("critical", "other"): 1,
        ("warning", ""): 1,
        ("critical", ""): 0,
        ("info", ""): 0,
    }
    assert _values(found, "galen_incident_confidence_ratio", "severity", "cause") == {
        ("critical", "engine_hang"): 0.87,
        ("critical", "other"): 0.87,
        ("warning", ""): 0.0,
    }
    assert _values(found, "galen_incidents_oldest_open_timestamp_seconds") == {(): NOW - 3}
    assert _values(found, "galen_journal_events_total", "kind")[("incident_opened",)] == 2
    journal.append(EventKind.INCIDENT_OPENED, time_seconds=NOW, summary="s")
    again = _values(_families(own), "galen_journal_events_total", "kind")
    assert again[("incident_opened",)] == 3
    assert again[("started",)] == 1
    assert set(again) == {(kind.value,) for kind in EventKind}
    journal.close()


def test_what_cannot_be_read_says_so_and_the_rest_is_there(
    paths: StatePaths, own: GalenMetrics
) -> None:
    _watched(paths)
    found = _families(own)
    readable = _values(found, "galen_export_part_readable", "part")
    assert (readable[("watch",)], readable[("journal",)]) == (1, 0)
    assert not paths.journal.exists()  # looking must not make an empty one
    paths.status.write_text('{"half": ')
    readable = _values(_families(own), "galen_export_part_readable", "part")
    assert readable[("watch",)] == 0
    with pytest.raises(StatusError, match="not a status"):
        read_status(paths.status)
    paths.journal.write_bytes(b"this is no database" * 500)
    assert _values(_families(own), "galen_export_part_readable", "part")[("journal",)] == 0


def test_every_metric_of_the_table_is_offered(paths: StatePaths, own: GalenMetrics) -> None:
    _watched(paths)
    journal = Journal(paths.journal)
    journal.save_incident(_incident(1, "engine_hang", Severity.CRITICAL, NOW))
    store = SqliteSeriesStore(paths.series)
    store.write([Sample(NOW, GPU, "gpu_temperature_celsius", 91.0)])
    found = parse_exposition(_scrape(own, store))
    own_names = {name.removesuffix("_total") for name in OWN_METRICS}
    app_alone = SeriesExporter(store, lambda: NOW)
    offered = {family.name for family in (*own.collect(), *app_alone.collect())}
    assert {name for name in offered if name.startswith("galen_")} == own_names
    for name, family in found.families.items():
        if f"{name}_total" in OWN_METRICS or name in OWN_METRICS:
            known = OWN_METRICS.get(name) or OWN_METRICS[f"{name}_total"]
            assert family.help == known.help
            assert family.kind == known.kind.value
    store.close()
    journal.close()


def _everything() -> SimpleNamespace:
    """A store that has every signal of the catalogue."""
    places = {Layer.GPU: GPU, Layer.HOST: "host/box", Layer.MONITORING: "collector/host"}
    infos = [
        SeriesInfo(SeriesKey(places.get(signal.layer, "service/llm"), name), {}, NOW, NOW, 1.0)
        for name, signal in catalogue().items()
    ]
    return SimpleNamespace(series=lambda: infos)


def test_promtool_finds_nothing_to_mend(paths: StatePaths, own: GalenMetrics) -> None:
    binary = shutil.which("promtool")
    if binary is None:
        if os.environ.get("GALEN_REQUIRE_SERVICES") == "1":
            pytest.fail("GALEN_REQUIRE_SERVICES=1 and there is no promtool on the PATH")
        pytest.skip("there is no promtool on the PATH")
    _watched(paths)
    Journal(paths.journal).close()
    text = _scrape(own, _everything())
    found = subprocess.run(
        [binary, "check", "metrics"], input=text, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    told = [line for line in (found.stdout + found.stderr).splitlines() if line]
    # The name is older than this check, and people's dashboards have it.
    assert [line.split()[0] for line in told] == ["gpu_count"]


def test_open_metrics_is_spoken_to_those_who_ask(paths: StatePaths, own: GalenMetrics) -> None:
    _watched(paths)
    text = _scrape(own, _everything(), "application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    temperature = families["gpu_temperature_celsius"]
    assert (temperature.unit, temperature.type) == ("celsius", "gauge")
    assert temperature.documentation.startswith(catalogue()["gpu_temperature_celsius"].description)
    assert families["gpu_ecc_uncorrectable"].type == "counter"
    wanted = {
        "gpu_utilization_percent",
        "gpu_memory_used_bytes",
        "gpu_memory_total_bytes",
        "gpu_power_usage_watts",
    }
    for name in wanted:
        assert families[name].samples[0].labels["gpu_id"] == "0"
