from __future__ import annotations

import numpy as np

from analysis.findings import Incident, IncidentState, Severity, Verdict
from collectors.contract import SeriesKey
from dashboard import ribbon
from dashboard.data import Latest, Reading
from dashboard.sampling import Line, thin

KEY = SeriesKey("service/llm", "engine_up")


def incident(onset: float, resolved: float | None, entity: str = "service/llm") -> Incident:
    return Incident(
        id="i", state=IncidentState.OPEN if resolved is None else IncidentState.RESOLVED,
        severity=Severity.WARNING, verdict=Verdict.FAULT, title="t", entity=entity,
        onset_seconds=onset, opened_seconds=onset, updated_seconds=onset,
        resolved_seconds=resolved,
    )  # fmt: skip


def levels(line: Line, *incidents: Incident) -> list[int]:
    laid = ribbon.ribbon({"service/llm": KEY}, {KEY: line}, incidents, 0.0, 1200.0)
    return laid.levels[0].tolist()


def test_what_was_not_watched_is_not_normal() -> None:
    times = np.concatenate([np.arange(300.0, 600.0, 2.0), np.arange(900.0, 1000.0, 2.0)])
    found = levels(thin(times, np.ones(len(times))))
    assert found[:30] == [ribbon.NO_DATA] * 30
    assert found[30:60] == [ribbon.NORMAL] * 30
    assert set(found[62:88]) == {ribbon.NO_DATA}
    assert set(found[90:99]) == {ribbon.NORMAL}
    assert set(found[101:]) == {ribbon.NO_DATA}


def test_incidents_lie_over_what_was_watched_from_onset_to_end() -> None:
    times = np.arange(0.0, 1200.0, 5.0)
    found = levels(thin(times, times), incident(200.0, 300.0), incident(1100.0, None))
    assert found[19] == ribbon.NORMAL
    assert set(found[20:31]) == {3}
    assert set(found[31:109]) == {ribbon.NORMAL}
    assert set(found[110:]) == {3}


def test_rows_are_services_then_hosts_and_whatever_an_incident_names() -> None:
    seen = Latest(
        {
            SeriesKey("host/b", "host_cpu_percent"): Reading(1.0, 9.0),
            SeriesKey("collector/x", "scrape_success"): Reading(1.0, 9.0),
            SeriesKey("service/llm", "engine_state"): Reading(1.0, 5.0),
            KEY: Reading(1.0, 9.0),
        }
    )
    assert list(ribbon.witnesses(seen, [])) == ["service/llm", "host/b"]
    rows = ribbon.witnesses(seen, [incident(0.0, None, "collector/x"), incident(0, None, "fleet")])
    assert list(rows) == ["service/llm", "collector/x", "host/b", "fleet"]
    assert rows["service/llm"] == KEY
    assert rows["fleet"] is None
