from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from analysis.analyst import Analyst
from analysis.detection.contract import Detections, FloatArray
from analysis.findings import IncidentState, LevelShift
from analysis.history import History
from analysis.journal import EventKind, Journal
from analysis.settings import AnalysisSettings

Scenarios = Mapping[str, Callable[[], Any]]


class PlayedPipeline:
    """Detection that gives what a world says."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.broken = False

    def tick(self, now_seconds: float, row: FloatArray) -> Detections:
        if self.broken:
            raise RuntimeError("detection is broken")
        return self.world.detections(now_seconds)

    def save(self, path: Path) -> None:
        path.write_text("saved")

    def load(self, path: Path) -> bool:
        return path.exists()

    def close(self) -> None:
        pass


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.sqlite")


def make(journal: Journal, world: Any) -> tuple[Analyst, PlayedPipeline]:
    pipeline = PlayedPipeline(world)
    return Analyst(AnalysisSettings(), journal, History(), pipeline=pipeline), pipeline


def events(journal: Journal) -> list[EventKind]:
    return [each.kind for each in journal.events()]


def test_the_life_of_an_incident_is_in_the_journal(
    journal: Journal, world: Any, scenarios: Scenarios
) -> None:
    analyst, pipeline = make(journal, scenarios["engine_hang"]())
    for tick in range(5):
        found = analyst.tick(1000.0 + tick, [])
    assert [each.id for each in found.incidents] == [each.id for each in journal.incidents()]
    pipeline.world = world
    for tick in range(5, 30):
        found = analyst.tick(1000.0 + tick, [])
    assert found.incidents == ()
    assert events(journal) == [EventKind.INCIDENT_OPENED, EventKind.INCIDENT_RESOLVED]
    opened = journal.events()[0]
    assert opened.data["cause"] == "engine_hang"
    assert opened.data["entity"] == "service/llm"
    assert opened.data["confidence"] > 0.5
    assert journal.broken_links() == []
    assert journal.incidents(state=IncidentState.OPEN) == []


def test_a_restart_takes_up_what_was_open(
    journal: Journal, world: Any, scenarios: Scenarios
) -> None:
    first, _ = make(journal, scenarios["engine_hang"]())
    for tick in range(5):
        first.tick(1000.0 + tick, [])
    (incident,) = journal.incidents(state=IncidentState.OPEN)
    second, pipeline = make(journal, scenarios["engine_hang"]())
    for tick in range(5, 10):
        found = second.tick(1000.0 + tick, [])
    assert [each.id for each in found.incidents] == [incident.id]
    pipeline.world = world
    for tick in range(10, 30):
        second.tick(1000.0 + tick, [])
    assert events(journal) == [EventKind.INCIDENT_OPENED, EventKind.INCIDENT_RESOLVED]


def test_broken_detection_leaves_open_incidents_open(
    journal: Journal, scenarios: Scenarios
) -> None:
    analyst, pipeline = make(journal, scenarios["engine_hang"]())
    for tick in range(5):
        analyst.tick(1000.0 + tick, [])
    pipeline.broken = True
    with capture_logs() as logged:
        for tick in range(5, 40):
            found = analyst.tick(1000.0 + tick, [])
    assert {(row["event"], row["stage"]) for row in logged} == {
        ("analysis_stage_failed", "detection")
    }
    assert len(found.incidents) == 1
    assert events(journal) == [EventKind.INCIDENT_OPENED]


def test_what_the_journal_could_not_take_is_written_later(
    journal: Journal, scenarios: Scenarios, monkeypatch: pytest.MonkeyPatch
) -> None:
    analyst, _ = make(journal, scenarios["engine_hang"]())

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched, capture_logs():
        patched.setattr(journal, "append", fail)
        for tick in range(5):
            analyst.tick(1000.0 + tick, [])
    assert events(journal) == []
    analyst.tick(1005.0, [])
    assert events(journal) == [EventKind.INCIDENT_OPENED]
    assert journal.events()[0].time_seconds < 1005.0


def test_the_state_file_is_written_and_a_damaged_one_is_no_end(
    journal: Journal, tmp_path: Path
) -> None:
    path = tmp_path / "detection.npz"
    path.write_bytes(b"not an archive")
    analyst = Analyst(AnalysisSettings(), journal, History(), state_path=path)
    analyst.tick(1.0, [])
    analyst.save()
    assert path.read_bytes() != b"not an archive"
    analyst.close()


SHIFT = LevelShift(
    entity="service/llm",
    signal="llm_requests_per_second",
    unit="requests/second",
    at_seconds=900.0,
    before=20,
    after=90,
)


def test_a_shift_of_level_is_written_once_and_not_lost(
    journal: Journal, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    analyst, pipeline = make(journal, world)
    quiet = pipeline.tick
    monkeypatch.setattr(pipeline, "tick", lambda now, row: replace(quiet(now, row), shifts=[SHIFT]))
    with monkeypatch.context() as patched, capture_logs():

        def fail(*args: object, **kwargs: object) -> None:
            raise OSError("disk full")

        patched.setattr(journal, "append", fail)
        analyst.tick(1000.0, [])
    monkeypatch.setattr(pipeline, "tick", quiet)
    analyst.tick(1001.0, [])
    analyst.tick(1002.0, [])
    (event,) = journal.events()
    assert event.kind is EventKind.LEVEL_SHIFTED
    assert "from 20 requests/second to 90 requests/second" in event.summary
    assert LevelShift.model_validate(event.data) == SHIFT


def test_an_incident_learns_that_its_anomaly_is_a_new_level(
    journal: Journal, scenarios: Scenarios, monkeypatch: pytest.MonkeyPatch
) -> None:
    analyst, pipeline = make(journal, scenarios["engine_hang"]())
    for tick in range(5):
        analyst.tick(1000.0 + tick, [])
    played = pipeline.tick

    def shifted(now: float, row: FloatArray) -> Detections:
        result = played(now, row)
        first, *others = result.anomalies
        weaker = first.model_copy(update={"shift": SHIFT, "score": first.score - 0.1})
        return replace(result, anomalies=(weaker, *others))

    monkeypatch.setattr(pipeline, "tick", shifted)
    for tick in range(5, 90):
        found = analyst.tick(1000.0 + tick, [])
    (incident,) = found.incidents
    assert sum(each.shift is not None for each in incident.anomalies) == 1
    (stored,) = journal.incidents()
    assert stored.anomalies == incident.anomalies
