from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.findings import Incident, IncidentState, Severity, Verdict
from analysis.journal import Event, EventKind
from reporting.alerts.messages import Step
from reporting.alerts.routing import (
    Decision,
    Routed,
    Rules,
    Thread,
    idempotency_key,
    remind,
    route,
    taken,
)

RULES = Rules(
    minimum_severity=Severity.WARNING,
    group_wait_seconds=30.0,
    repeat_interval_seconds=14400.0,
    max_age_seconds=86400.0,
)
EMPTY = Thread(channel="slack", incident_id="inc-1")


def event(kind: EventKind, time: float = 1004.0, seq: int = 1, summary: str = "x") -> Event:
    return Event(
        seq=seq,
        time_seconds=time,
        kind=kind,
        incident_id="inc-1",
        actor="galen",
        summary=summary,
        data={},
        previous_hash="",
        hash="",
    )


def routed(
    incident: Incident, *events: Event, thread: Thread = EMPTY, **now: Any
) -> tuple[Routed, Thread]:
    outcome = Routed(Decision.NOT_A_STEP, thread)
    for each in events:
        at = now.get("now", each.time_seconds)
        outcome = route(each, incident, outcome.thread, RULES, at)
    return outcome, outcome.thread


def test_steps_within_the_wait_become_one_message(make_incident: Callable[..., Incident]) -> None:
    _, thread = routed(
        make_incident(),
        event(EventKind.INCIDENT_OPENED, 1004.0, 1),
        event(EventKind.ACTION_EXECUTED, 1006.0, 2),
        event(EventKind.ACTION_CONFIRMED, 1016.0, 3),
    )
    assert thread.due_seconds == 1034.0
    assert thread.steps == (Step.OPENED, Step.ACTED, Step.ACTED)
    assert thread.seqs == (1, 2, 3)


@pytest.mark.parametrize("kind", [EventKind.ESCALATED, EventKind.ACTION_PROPOSED])
def test_what_needs_a_person_goes_at_once(
    make_incident: Callable[..., Incident], kind: EventKind
) -> None:
    _, thread = routed(
        make_incident(), event(EventKind.INCIDENT_OPENED, 1004.0, 1), event(kind, 1006.0, 2)
    )
    assert thread.due_seconds == 1006.0
    assert len(thread.steps) == 2


def test_below_the_severity_nothing_is_told(make_incident: Callable[..., Incident]) -> None:
    quiet = make_incident(severity=Severity.INFO)
    outcome, thread = routed(quiet, event(EventKind.INCIDENT_OPENED))
    assert outcome.decision is Decision.BELOW_SEVERITY
    assert thread == EMPTY


def test_an_incident_that_grows_is_told_when_it_reaches_the_severity(
    make_incident: Callable[..., Incident],
) -> None:
    update = event(EventKind.INCIDENT_UPDATED, 1100.0, 2)
    _, thread = routed(make_incident(severity=Severity.WARNING), update)
    assert thread.steps == (Step.OPENED,)
    _, worse = routed(make_incident(severity=Severity.CRITICAL), update, thread=thread)
    assert worse.steps == (Step.OPENED, Step.WORSENED)
    again, _ = routed(make_incident(severity=Severity.CRITICAL), update, thread=worse)
    assert again.decision is Decision.NOT_A_STEP


def test_the_same_refusal_is_told_once_in_the_repeat_interval(
    make_incident: Callable[..., Incident],
) -> None:
    first = event(EventKind.ACTION_BLOCKED, 1004.0, 1, "Cooldown, 60.5 s left")
    outcome, thread = routed(make_incident(), first)
    for seq in range(2, 20):
        later = event(EventKind.ACTION_BLOCKED, 1004.0 + seq, seq, f"Cooldown, {60 - seq} s left")
        outcome, thread = routed(make_incident(), later, thread=thread)
        assert outcome.decision is Decision.REPEATED
    much_later = event(EventKind.ACTION_BLOCKED, 1004.0 + 14401, 99, "Cooldown, 1 s left")
    outcome, _ = routed(make_incident(), much_later, thread=thread)
    assert outcome.decision is Decision.QUEUED


def test_the_end_is_told_to_those_who_know_of_the_beginning(
    make_incident: Callable[..., Incident],
) -> None:
    resolved = make_incident(state=IncidentState.RESOLVED, resolved_seconds=1100.0)
    ended = event(EventKind.INCIDENT_RESOLVED, 1100.0, 9)
    outcome, _ = routed(resolved, ended)
    assert outcome.decision is Decision.NEVER_TOLD
    _, told = routed(make_incident(), event(EventKind.INCIDENT_OPENED))
    outcome, thread = routed(resolved, ended, thread=taken(told, 1034.0), now=999_999.0)
    assert outcome.decision is Decision.QUEUED
    assert thread.steps == (Step.RESOLVED,)


def test_old_incidents_that_are_over_are_not_news(make_incident: Callable[..., Incident]) -> None:
    opened = event(EventKind.INCIDENT_OPENED)
    over = make_incident(state=IncidentState.RESOLVED, resolved_seconds=1100.0)
    outcome, _ = routed(over, opened, now=1004.0 + 86401)
    assert outcome.decision is Decision.OLD_NEWS
    outcome, _ = routed(make_incident(), opened, now=1004.0 + 86401)
    assert outcome.decision is Decision.QUEUED


def test_a_reminder_after_the_repeat_interval(make_incident: Callable[..., Incident]) -> None:
    _, thread = routed(make_incident(), event(EventKind.INCIDENT_OPENED))
    assert remind(thread, make_incident(), RULES, 99_999.0) is thread  # still waits to be told
    told = taken(thread, 1034.0)
    assert remind(told, make_incident(), RULES, 1034.0 + 14399) is told
    reminded = remind(told, make_incident(), RULES, 1034.0 + 14400)
    assert reminded.steps == (Step.REMINDER,)
    over = make_incident(state=IncidentState.RESOLVED)
    assert remind(told, over, RULES, 99_999.0) is told
    assert idempotency_key(reminded) != idempotency_key(thread)


def test_the_key_depends_on_channel_incident_and_events_only(
    make_incident: Callable[..., Incident],
) -> None:
    _, thread = routed(make_incident(), event(EventKind.INCIDENT_OPENED))
    assert idempotency_key(thread) == idempotency_key(thread.model_copy(update={"due_seconds": 1}))
    other = thread.model_copy(update={"channel": "pager"})
    assert idempotency_key(thread) != idempotency_key(other)


@given(
    kinds=st.lists(st.sampled_from(list(EventKind)), max_size=120),
    gaps=st.lists(st.floats(0.0, 7200.0), min_size=120, max_size=120),
    severity=st.sampled_from(list(Severity)),
)
def test_whatever_happens_a_thread_stays_sound(
    kinds: list[EventKind], gaps: list[float], severity: Severity
) -> None:
    incident = Incident(
        id="inc-1",
        state=IncidentState.OPEN,
        severity=severity,
        verdict=Verdict.UNKNOWN,
        title="t",
        entity="service/llm",
        onset_seconds=0.0,
        opened_seconds=0.0,
        updated_seconds=0.0,
    )
    thread, now = EMPTY, 0.0
    for seq, (kind, gap) in enumerate(zip(kinds, gaps, strict=False), start=1):
        now += gap
        thread = route(event(kind, now, seq, f"s{seq}"), incident, thread, RULES, now).thread
        assert (thread.due_seconds is None) == (thread.steps == ())
        assert len(thread.steps) == len(thread.seqs)
        assert len(thread.remembered) <= 64
        if thread.due_seconds is not None:
            assert thread.due_seconds <= now + RULES.group_wait_seconds
    if severity is Severity.INFO:
        assert thread == EMPTY
