from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from analysis.findings import Incident, IncidentState, Severity, Verdict
from analysis.journal import EventKind, Journal


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.sqlite")


def make_incident(incident_id: str = "i1", **changes: object) -> Incident:
    fields: dict[str, object] = {
        "id": incident_id,
        "state": IncidentState.OPEN,
        "severity": Severity.CRITICAL,
        "verdict": Verdict.FAULT,
        "title": "Engine makes no progress",
        "entity": "service/llm",
        "onset_seconds": 99.0,
        "opened_seconds": 100.0,
        "updated_seconds": 100.0,
    }
    return Incident.model_validate({**fields, **changes})


def test_an_incident_is_replaced_not_repeated(journal: Journal) -> None:
    journal.save_incident(make_incident())
    journal.save_incident(make_incident(state=IncidentState.RESOLVED, resolved_seconds=120.0))
    (stored,) = journal.incidents()
    assert stored.state is IncidentState.RESOLVED
    assert journal.incident("i1") == stored
    assert journal.incident("nobody") is None


def test_a_window_keeps_incidents_that_were_open_in_it(journal: Journal) -> None:
    journal.save_incident(make_incident("old", resolved_seconds=110.0))
    journal.save_incident(make_incident("long", resolved_seconds=None))
    journal.save_incident(make_incident("late", opened_seconds=300.0))
    found = journal.incidents(since_seconds=200.0, until_seconds=250.0)
    assert [incident.id for incident in found] == ["long"]


def test_events_keep_their_order_and_can_be_read_from_a_cursor(journal: Journal) -> None:
    for number in range(5):
        journal.append(EventKind.STARTED, time_seconds=float(number), summary=f"event {number}")
    assert [event.seq for event in journal.events(after_seq=3)] == [4, 5]
    assert journal.last_seq() == 5


def test_the_chain_shows_a_change_and_a_gap(journal: Journal) -> None:
    for number in range(4):
        journal.append(EventKind.STARTED, time_seconds=float(number), summary="x", data={"n": 1})
    assert journal.broken_links() == []
    with journal.engine.begin() as connection:
        connection.execute(sa.text("UPDATE events SET summary = 'y' WHERE seq = 2"))
        connection.execute(sa.text("DELETE FROM events WHERE seq = 3"))
    assert journal.broken_links() == [2, 4]


def test_writers_in_several_threads_make_one_chain(journal: Journal) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda n: journal.append(EventKind.STARTED, time_seconds=float(n), summary="x"),
                range(40),
            )
        )
    assert journal.last_seq() == 40
    assert journal.broken_links() == []
