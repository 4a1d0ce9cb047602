from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from analysis.findings import Incident, IncidentState
from analysis.journal import Event, EventKind
from reporting.alerts.messages import AlertMessage, Step, build_message, duration, incident_link


def event(seq: int, kind: EventKind, summary: str = "", **data: Any) -> Event:
    return Event(
        seq=seq,
        time_seconds=1004.0 + seq,
        kind=kind,
        incident_id="inc-1",
        actor="galen",
        summary=summary or kind.value,
        data=data,
        previous_hash="",
        hash="",
    )


def build(incident: Incident, events: list[Event], *steps: Step, **changes: Any) -> AlertMessage:
    fields: dict[str, Any] = {"idempotency_key": "k", "now_seconds": 1010.0}
    return build_message(incident, events, steps=steps, **{**fields, **changes})


def test_it_says_cause_confidence_evidence_deed_and_proof(
    make_incident: Callable[..., Incident],
) -> None:
    events = [
        event(1, EventKind.INCIDENT_OPENED),
        event(2, EventKind.ACTION_EXECUTED, "Restarted the engine", action_id="a1"),
        event(
            3,
            EventKind.ACTION_CONFIRMED,
            "The restart helped",
            action_id="a1",
            proof=["engine_step_age_seconds fell from 12 s to 0.1 s"],
        ),
    ]
    message = build(
        make_incident(), events, Step.OPENED, Step.ACTED, dashboard_url="https://galen.example.org/"
    )
    assert message.cause == "engine_hang"
    assert message.confidence == 0.93
    assert message.evidence[0].startswith("The engine has finished no step")
    assert message.against == ("The GPU answers its driver.",)
    assert message.rivals == ("More traffic than it can take (5%)",)
    assert [line.outcome for line in message.actions] == ["action_executed", "action_confirmed"]
    assert message.actions[1].proof == ("engine_step_age_seconds fell from 12 s to 0.1 s",)
    assert message.link == "https://galen.example.org/incidents?incident=inc-1"
    assert message.headline.endswith("acted, and the check afterwards confirms it.")


def test_a_proposal_asks_and_an_answer_ends_the_asking(
    make_incident: Callable[..., Incident],
) -> None:
    proposed = event(1, EventKind.ACTION_PROPOSED, "Roll the model back", action_id="a7")
    message = build(make_incident(), [proposed], Step.APPROVAL_NEEDED)
    assert message.asks == (
        "Approve or reject with 'galen actions approve a7': Roll the model back",
    )
    answered = event(2, EventKind.ACTION_REJECTED, "No", action_id="a7")
    assert build(make_incident(), [proposed, answered], Step.APPROVAL_NEEDED).asks == ()


def test_a_resolved_incident_asks_for_nothing(make_incident: Callable[..., Incident]) -> None:
    resolved = make_incident(state=IncidentState.RESOLVED, resolved_seconds=1191.0)
    proposed = event(1, EventKind.ACTION_PROPOSED, "Roll back", action_id="a7")
    message = build(resolved, [proposed], Step.OPENED, Step.RESOLVED)
    assert message.asks == ()
    assert message.headline == "Engine makes no progress on service/llm: resolved after 3 min 7 s."


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ((Step.OPENED,), "on service/llm."),
        ((Step.OPENED, Step.ACTED), "not proven yet"),
        ((Step.OPENED, Step.REFUSED), "held the remedy back"),
        ((Step.OPENED, Step.ESCALATED), "needs a person now"),
        ((Step.APPROVAL_NEEDED,), "waits for approval"),
        ((Step.REMINDER,), "still open"),
        ((Step.WORSENED,), "is now critical"),
    ],
)
def test_the_headline_says_what_matters_most(
    make_incident: Callable[..., Incident], steps: tuple[Step, ...], says: str
) -> None:
    assert says in build(make_incident(), [], *steps).headline


def test_a_refusal_at_every_tick_is_one_line(make_incident: Callable[..., Incident]) -> None:
    refusals = [event(n, EventKind.ACTION_BLOCKED, "Cooldown") for n in range(1, 30)]
    message = build(make_incident(), refusals, Step.REFUSED)
    assert [line.time_seconds for line in message.actions] == [1004.0 + 29]


def test_secrets_and_line_breaks_do_not_get_in(make_incident: Callable[..., Incident]) -> None:
    title = "Cannot reach\nhttps://user:hunter2@db/x" + " and more" * 200
    message = build(make_incident(title=title), [], Step.OPENED)
    assert "hunter2" not in message.model_dump_json()
    assert "\n" not in message.title
    assert len(message.title) <= 600


def test_an_incident_without_a_cause_is_told_too(make_incident: Callable[..., Incident]) -> None:
    message = build(make_incident(hypotheses=()), [], Step.OPENED)
    assert message.cause is None
    assert message.confidence is None


def test_the_link_escapes_the_identity() -> None:
    assert incident_link("http://x/", "a b&c") == "http://x/incidents?incident=a%20b%26c"
    assert incident_link(None, "a") is None


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(-3, "0 s"), (59.4, "59 s"), (60, "1 min"), (3599, "59 min 59 s"), (3600, "1 h")],
)
def test_durations(seconds: float, says: str) -> None:
    assert duration(seconds) == says
