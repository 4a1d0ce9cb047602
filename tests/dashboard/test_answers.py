from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.journal import EventKind
from dashboard import approval, context, investigation, switch
from dashboard.data import StateDirectory
from healing.actions import ActionState

Point = Callable[..., None]
PROPOSAL = "act-0012"


@pytest.fixture
def state(state_dir: Path, dashboard_at: Point) -> StateDirectory:
    dashboard_at(state_dir)
    return StateDirectory(state_dir)


def answer(state: StateDirectory, *, approve: bool = True, actor: str = " ann  lee ") -> str:
    return approval.answer(
        state, PROPOSAL, approve=approve, actor=actor, reason="too hot outside", now_seconds=5.0
    )


def test_an_approval_is_written_with_the_name(state: StateDirectory) -> None:
    assert answer(state) == ""
    approved = state.action(PROPOSAL)
    assert (approved.state, approved.actor) == (ActionState.APPROVED, "ann lee")


def test_a_rejection_keeps_its_reason(state: StateDirectory) -> None:
    assert answer(state, approve=False) == ""
    rejected = state.action(PROPOSAL)
    assert rejected.state is ActionState.REJECTED
    assert "too hot outside" in rejected.reason


def test_the_second_of_two_answers_changes_nothing_and_is_told(state: StateDirectory) -> None:
    assert answer(state, approve=False, actor="bob") == ""
    problem = answer(state)
    assert "Nothing was changed" in problem
    assert "rejected" in problem
    assert state.action(PROPOSAL).actor == "bob"


def test_nobody_answers_without_a_name(state: StateDirectory) -> None:
    assert "name" in answer(state, actor="  ")
    assert state.action(PROPOSAL).state is ActionState.PROPOSED


def test_an_answer_without_a_journal_is_told(tmp_path: Path) -> None:
    assert "Nothing was changed" in answer(StateDirectory(tmp_path))


def test_feedback_is_an_event_of_the_incident(state: StateDirectory) -> None:
    incident = state.incident("inc-20261121-0007")
    assert incident is not None
    problem = investigation.give_feedback(
        state, incident, "wrong", actor="ann", note="a fan", now_seconds=9.0
    )
    assert problem == ""
    event = state.incident_events(incident.id)[-1]
    assert (event.kind, event.actor) == (EventKind.FEEDBACK_GIVEN, "ann")
    assert event.data == {"answer": "wrong", "cause": "gpu_overheating", "note": "a fan"}


def test_the_switch_is_a_file_with_a_name_in_it(state: StateDirectory) -> None:
    current = context.current()
    assert switch.throw(state, "ann", "maintenance", current, stop=True) == ""
    reason = state.stop_reason() or ""
    assert "ann" in reason
    assert "maintenance" in reason
    assert state.recent_events(limit=1)[0].kind is EventKind.HEALING_STOPPED
    assert switch.throw(state, "bob", "", current, stop=False) == ""
    assert state.stop_reason() is None
    last = state.recent_events(limit=1)[0]
    assert (last.kind, last.actor) == (EventKind.HEALING_ALLOWED, "bob")


def test_the_switch_works_without_a_journal_and_says_what_is_missing(
    tmp_path: Path, dashboard_at: Point
) -> None:
    dashboard_at(tmp_path)
    state = StateDirectory(tmp_path)
    problem = switch.throw(state, "ann", "", context.current(), stop=True)
    assert "was moved" in problem
    assert state.stop_reason()


def test_nobody_throws_the_switch_without_a_name(state: StateDirectory) -> None:
    assert "name" in switch.throw(state, " ", "", context.current(), stop=True)
    assert state.stop_reason() is None


def test_the_window_of_an_incident_ends_soon_after_it(state: StateDirectory) -> None:
    current = dataclasses.replace(context.current(), now_seconds=context.clock() + 86_400)
    over = state.incident("inc-20261121-0006")
    assert over is not None
    assert over.resolved_seconds is not None
    start, end = investigation.window_of(over, current)
    assert start == over.onset_seconds - 600
    assert end == over.resolved_seconds + 300


def test_evidence_is_put_heaviest_first_and_in_words(state: StateDirectory) -> None:
    incident = state.incident("inc-20261121-0007")
    assert incident is not None
    leading = incident.hypotheses[0]
    rows = investigation.evidence_rows(
        leading.evidence[::-1], heaviest=2.31, onset_seconds=incident.onset_seconds
    )
    assert [row.onset for row in rows] == ["+0 s", "+31 s", "+44 s"]
    assert rows[0].share == 1.0
    assert (rows[2].baseline, rows[2].observed, rows[2].normal) == (
        "400 ms",
        "860 ms",
        "290 to 520 ms",
    )
