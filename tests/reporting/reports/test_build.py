from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.findings import Incident, IncidentState
from analysis.journal import EventKind
from collectors.contract import Sample
from collectors.store.sqlite import SqliteSeriesReader
from healing.actions import ActionState
from reporting.reports.build import build_report
from reporting.reports.incidents import impact_starts
from reporting.reports.model import Report, Status

DAY = 86400.0


def row(report: Report, incident_id: str) -> Any:
    return next(each for each in report.incidents if each.id == incident_id)


def test_the_same_window_gives_the_same_report(world: Any, report: Report) -> None:
    assert world.report() == report


def test_what_is_open_comes_first_in_words_and_in_order(report: Report) -> None:
    assert report.status is Status.ATTENTION
    assert report.verdict == (
        "1 incident is still open: GPU temperature climbs towards its slowdown on host/box1/gpu/0 "
        "(warning). 1 action waits for approval."
    )
    assert [each.id for each in report.incidents] == ["inc-hot", "inc-hang", "inc-busy"]


def test_an_incident_tells_cause_deed_proof_and_durations(report: Report) -> None:
    hang = row(report, "inc-hang")
    assert hang.healed
    assert (hang.cause, hang.confidence) == ("engine_hang", 0.94)
    assert hang.detect_seconds == 5.5
    assert hang.repair_seconds == 71.0
    assert [piece.supports for piece in hang.evidence] == [True, True, True, False]
    (action,) = hang.actions
    assert action.state is ActionState.CONFIRMED
    assert "12 of 12 canaries answered" in action.proof
    assert [each.kind for each in hang.timeline] == [
        "incident_opened",
        "action_started",
        "action_executed",
        "action_confirmed",
        "incident_resolved",
        "feedback_given",
    ]


def test_charts_show_the_evidence_with_band_action_and_incident(report: Report) -> None:
    charts = row(report, "inc-hang").charts
    assert [chart.signal for chart in charts] == [
        "engine_step_age_seconds",
        "llm_request_latency_seconds",
        "llm_queue_depth",
    ]
    assert (charts[0].low, charts[0].high) == (0.0, 0.4)
    assert max(charts[0].values) == 50.0
    assert [mark.label for mark in charts[0].marks] == ["onset", "engine_restart", "resolved"]
    assert charts[0].times[0] < charts[0].regions[0].start_seconds


def test_a_surge_that_ended_by_itself_is_not_called_healed(report: Report) -> None:
    busy = row(report, "inc-busy")
    assert not busy.healed
    assert busy.actions[0].group == "refused"


def test_simulated_devices_are_labelled(report: Report) -> None:
    assert report.simulated
    assert report.gpus[0].simulated
    assert all(chart.simulated for chart in report.gpus[0].charts)
    assert not report.services[0].simulated


def test_durations_say_what_is_not_counted(report: Report) -> None:
    detect, repair = report.durations
    assert (detect.count, detect.not_counted) == (1, 2)
    assert (repair.count, repair.not_counted) == (2, 1)
    assert repair.median_seconds == pytest.approx((71.0 + 630.0) / 2)


def test_changes_come_from_journal_and_series(report: Report) -> None:
    kinds = [change.kind for change in report.changes]
    assert kinds == ["model_version_change", "action_executed", "fault_injected", "started"]


def test_gaps_and_channels(report: Report) -> None:
    missing = {gap.collector: gap.missing_minutes for gap in report.gaps}
    assert missing == {"service-llm": 1, "simulated-gpu": 21}
    assert report.window.observed_minutes == 360
    assert [(each.channel, each.delivered, each.failed) for each in report.channels] == [
        ("pager", 0, 1),
        ("slack", 1, 0),
    ]


def test_an_incident_that_ends_after_the_window_is_open_in_it(world: Any, report: Report) -> None:
    middle = report.incidents[1].opened_seconds + 30.0
    earlier = world.report(until=middle)
    hang = row(earlier, "inc-hang")
    assert hang.state is IncidentState.OPEN
    assert hang.repair_seconds is None
    assert not hang.healed
    assert "incident_resolved" not in [each.kind for each in hang.timeline]


def test_the_window_before_is_compared(world: Any) -> None:
    start = world.report().window.since_seconds
    later = world.report(since=start + 3 * 3600.0, until=start + 6 * 3600.0)
    figures = {each.name: (each.now, each.before) for each in later.comparisons}
    assert figures["incidents opened"] == (2.0, 1.0)
    now, before = figures["service/llm: availability"]
    assert now is not None
    assert before is not None


def test_nothing_found_is_said_only_when_enough_was_seen(empty_world: Any) -> None:
    blind = empty_world.report(0.0, DAY)
    assert blind.status is Status.UNKNOWN
    assert "0 of 1440 minutes" in blind.verdict
    empty_world.store.write(
        [Sample(60.0 * minute, "collector/a", "scrape_success", 1.0) for minute in range(1440)]
    )
    quiet = empty_world.report(0.0, DAY)
    assert quiet.status is Status.QUIET
    assert quiet.verdict == "Nothing abnormal was found in 1 d."


def test_half_a_day_unseen_is_part_of_the_verdict(empty_world: Any) -> None:
    empty_world.store.write(
        [Sample(60.0 * minute, "collector/a", "scrape_success", 1.0) for minute in range(1000)]
    )
    found = empty_world.report(0.0, DAY)
    assert found.status is Status.QUIET
    assert "Only 1000 of 1440 minutes have data" in found.verdict


def test_a_missing_store_is_a_note_and_not_an_end(empty_world: Any, tmp_path: Path) -> None:
    found = build_report(
        empty_world.journal,
        empty_world.ledger,
        SqliteSeriesReader(tmp_path / "nowhere.sqlite"),
        since_seconds=0.0,
        until_seconds=DAY,
        clock=lambda: DAY,
    )
    assert found.status is Status.UNKNOWN
    assert "could not be read" in found.notes[0]


def test_an_empty_window_is_refused(empty_world: Any) -> None:
    with pytest.raises(ValueError, match="empty"):
        empty_world.report(5.0, 5.0)


def test_a_fault_belongs_to_the_first_incident_after_it(
    empty_world: Any, make_incident: Any
) -> None:
    def opened(name: str, at: float) -> Incident:
        incident: Incident = make_incident(name, opened_seconds=at)
        return incident

    for at in (100.0, 500.0, 900.0):
        empty_world.journal.append(EventKind.FAULT_INJECTED, time_seconds=at, summary="x")
    incidents = [opened("before", 50.0), opened("first", 120.0), opened("second", 300.0)]
    incidents.append(opened("last", 950.0))
    found = impact_starts(incidents, empty_world.journal.events())
    assert found == {"first": 100.0, "last": 900.0}
