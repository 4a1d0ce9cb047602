"""What an alert says: one model for all channels, built from an incident and its journal events."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from analysis.findings import Evidence, Incident, IncidentState, Severity, Verdict
from analysis.journal import Event, EventKind
from reporting.redaction import redact

_MAX_LINES = 12
_MAX_LINE_CHARACTERS = 600


class Step(StrEnum):
    """What happened to an incident that people are told about."""

    OPENED = "opened"
    WORSENED = "worsened"
    """Its severity rose."""
    ACTED = "acted"
    REFUSED = "refused"
    """The guard held an action back."""
    APPROVAL_NEEDED = "approval_needed"
    ESCALATED = "escalated"
    RESOLVED = "resolved"
    REMINDER = "reminder"
    """Still open after the repeat interval."""


NEEDS_A_PERSON = frozenset({Step.APPROVAL_NEEDED, Step.ESCALATED})


class ActionLine(BaseModel):
    """One thing that was done, refused or asked, with the proof where there is one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time_seconds: float
    outcome: str
    """The kind of the journal event, such as ``action_confirmed``."""
    summary: str
    proof: tuple[str, ...] = ()


class AlertMessage(BaseModel):
    """One message about one incident. All text is plain, redacted and bounded; no markup."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal["galen.alert/1"] = "galen.alert/1"
    idempotency_key: str
    incident_id: str
    steps: tuple[Step, ...] = Field(min_length=1)
    """What is new since the message before, in the order of happening."""
    headline: str
    """The whole story in one sentence."""
    severity: Severity
    state: IncidentState
    verdict: Verdict
    title: str
    entity: str
    simulated: bool = False
    onset_seconds: float
    opened_seconds: float
    resolved_seconds: float | None = None
    as_of_seconds: float
    cause: str | None = None
    cause_title: str | None = None
    cause_entity: str | None = None
    confidence: float | None = Field(default=None, ge=0, le=1)
    """Of the leading cause, 0 to 1."""
    evidence: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    """Other causes that are still possible, with their confidence."""
    actions: tuple[ActionLine, ...] = ()
    asks: tuple[str, ...] = ()
    """What a person should do now."""
    next_check: str = ""
    link: str | None = None


_ACTION_KINDS = frozenset(
    {
        EventKind.ACTION_PROPOSED,
        EventKind.ACTION_APPROVED,
        EventKind.ACTION_REJECTED,
        EventKind.ACTION_EXPIRED,
        EventKind.ACTION_BLOCKED,
        EventKind.ACTION_DRY_RUN,
        EventKind.ACTION_EXECUTED,
        EventKind.ACTION_FAILED,
        EventKind.ACTION_CONFIRMED,
        EventKind.ACTION_ROLLED_BACK,
        EventKind.ACTION_UNDONE,
        EventKind.ESCALATED,
    }
)
_VERDICTS = frozenset(
    {
        EventKind.ACTION_CONFIRMED,
        EventKind.ACTION_FAILED,
        EventKind.ACTION_ROLLED_BACK,
        EventKind.ACTION_UNDONE,
    }
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SETTLED = frozenset(
    {
        EventKind.ACTION_APPROVED,
        EventKind.ACTION_REJECTED,
        EventKind.ACTION_EXPIRED,
        EventKind.ACTION_EXECUTED,
        EventKind.ACTION_FAILED,
        EventKind.ACTION_CONFIRMED,
    }
)


def build_message(
    incident: Incident,
    events: Sequence[Event],
    *,
    steps: Sequence[Step],
    idempotency_key: str,
    now_seconds: float,
    dashboard_url: str | None = None,
) -> AlertMessage:
    """Say where an incident stands.

    Args:
        incident: as it now stands.
        events: the incident's journal events, oldest first.
        steps: what is new, oldest first.
        idempotency_key: the same for every try to deliver this message.
        now_seconds: the time of which the message speaks.
        dashboard_url: address under which people reach the dashboard; None leaves the link out.
    """
    leading = incident.leading
    actions = _action_lines(events)
    return AlertMessage(
        idempotency_key=idempotency_key,
        incident_id=incident.id,
        steps=tuple(dict.fromkeys(steps)),
        headline=_headline(incident, steps, actions),
        severity=incident.severity,
        state=incident.state,
        verdict=incident.verdict,
        title=_line(incident.title),
        entity=_line(incident.entity),
        simulated=incident.simulated,
        onset_seconds=incident.onset_seconds,
        opened_seconds=incident.opened_seconds,
        resolved_seconds=incident.resolved_seconds,
        as_of_seconds=now_seconds,
        cause=leading.cause if leading else None,
        cause_title=_line(leading.title) if leading else None,
        cause_entity=_line(leading.entity) if leading else None,
        confidence=leading.confidence if leading else None,
        evidence=_statements(leading.evidence if leading else ()),
        against=_statements(leading.against if leading else ()),
        rivals=tuple(
            f"{_line(rival.title)} ({rival.confidence:.0%})" for rival in incident.hypotheses[1:4]
        ),
        actions=actions,
        asks=_asks(incident, events, steps),
        next_check=_line(leading.next_check) if leading else "",
        link=incident_link(dashboard_url, incident.id),
    )


def incident_link(dashboard_url: str | None, incident_id: str) -> str | None:
    """Return the dashboard's address of an incident, or None without a public dashboard."""
    if dashboard_url is None:
        return None
    return f"{dashboard_url.rstrip('/')}/incidents?incident={quote(incident_id, safe='')}"


def _line(text: str) -> str:
    flat = redact(" ".join(text.split()))
    if len(flat) <= _MAX_LINE_CHARACTERS:
        return flat
    return flat[: _MAX_LINE_CHARACTERS - 1].rstrip() + "…"


def _statements(evidence: Sequence[Evidence]) -> tuple[str, ...]:
    strongest = sorted(evidence, key=lambda piece: -abs(piece.weight))[:_MAX_LINES]
    return tuple(_line(piece.statement) for piece in strongest)


def _action_lines(events: Sequence[Event]) -> tuple[ActionLine, ...]:
    lines: dict[tuple[str, str], ActionLine] = {}
    for event in events:
        if event.kind not in _ACTION_KINDS:
            continue
        summary = _line(event.summary)
        # The guard may refuse the same action at every tick: only the newest refusal is told.
        same = (event.kind.value, _NUMBER.sub("#", summary))
        lines.pop(same, None)
        lines[same] = ActionLine(
            time_seconds=event.time_seconds,
            outcome=event.kind.value,
            summary=summary,
            proof=_proof(event),
        )
    return tuple(lines.values())[-_MAX_LINES:]


def _proof(event: Event) -> tuple[str, ...]:
    # Measurements pile up on an action; they are proof once there is a verdict.
    if event.kind not in _VERDICTS:
        return ()
    proof = event.data.get("proof", ())
    if isinstance(proof, str):
        proof = (proof,)
    if not isinstance(proof, Collection):
        return ()
    return tuple(_line(str(piece)) for piece in proof)[-_MAX_LINES:]


def action_id(event: Event) -> str | None:
    """Return the id of the action that an event is about, where it names one."""
    found = event.data.get("action_id")
    return found if isinstance(found, str) and found else None


def _asks(incident: Incident, events: Sequence[Event], steps: Collection[Step]) -> tuple[str, ...]:
    if incident.state is IncidentState.RESOLVED:
        return ()
    asks: list[str] = []
    for event in _waiting(events):
        identity = action_id(event)
        command = f" with 'galen actions approve {_line(identity)}'" if identity else ""
        asks.append(f"Approve or reject{command}: {_line(event.summary)}")
    if Step.ESCALATED in steps:
        asks.append("Galen has handed this incident to a person and does nothing more by itself.")
    return tuple(asks[:_MAX_LINES])


def _waiting(events: Sequence[Event]) -> list[Event]:
    proposed: dict[str, Event] = {}
    for event in events:
        identity = action_id(event) or event.summary
        if event.kind is EventKind.ACTION_PROPOSED:
            proposed[identity] = event
        elif event.kind in _SETTLED:
            proposed.pop(identity, None)
    return list(proposed.values())


def _headline(incident: Incident, steps: Collection[Step], actions: Sequence[ActionLine]) -> str:
    confirmed = any(line.outcome == EventKind.ACTION_CONFIRMED.value for line in actions)
    if incident.state is IncidentState.RESOLVED:
        took = (incident.resolved_seconds or incident.updated_seconds) - incident.opened_seconds
        how = "healed by Galen" if confirmed else "resolved"
        says = f"{how} after {duration(took)}"
    else:
        says = _open_headline(incident, steps, confirmed=confirmed)
    return f"{_line(incident.title)} on {_line(incident.entity)}" + (f": {says}." if says else ".")


def _open_headline(incident: Incident, steps: Collection[Step], *, confirmed: bool) -> str:
    # The first that holds is what matters most to whoever reads only this sentence.
    candidates = (
        (Step.ESCALATED in steps, "needs a person now"),
        (Step.APPROVAL_NEEDED in steps, "an action waits for approval"),
        (set(steps) == {Step.REMINDER}, "still open"),
        (confirmed, "acted, and the check afterwards confirms it"),
        (Step.ACTED in steps, "acted, the result is not proven yet"),
        (Step.REFUSED in steps, "the guard held the remedy back"),
        (Step.WORSENED in steps, f"is now {incident.severity.value}"),
    )
    return next((says for holds, says in candidates if holds), "")


def duration(seconds: float) -> str:
    """Say a length of time the way people do.

    >>> duration(42.4), duration(187), duration(9000), duration(200000)
    ('42 s', '3 min 7 s', '2 h 30 min', '2 d 7 h')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    for size, unit, small_size, small_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // small_size
            return f"{whole // size} {unit}" + (f" {rest} {small_unit}" if rest else "")
    return f"{whole} s"
