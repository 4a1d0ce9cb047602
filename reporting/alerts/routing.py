"""Decides what is told, to which channel, and when. Pure: the outbox keeps what this returns.

One thread is one incident on one channel. Steps of a thread that come within the group wait become one
message; a step that needs a person is sent at once, with all that was waiting (Alertmanager's group_wait
and repeat_interval, applied to one incident each).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from analysis.findings import Incident, IncidentState, Severity
from analysis.journal import Event, EventKind
from reporting.alerts.messages import NEEDS_A_PERSON, Step, action_id

_RANK = {Severity.INFO: 0, Severity.WARNING: 1, Severity.CRITICAL: 2}
_STEPS: Mapping[EventKind, Step] = {
    EventKind.INCIDENT_OPENED: Step.OPENED,
    EventKind.INCIDENT_RESOLVED: Step.RESOLVED,
    EventKind.ACTION_PROPOSED: Step.APPROVAL_NEEDED,
    EventKind.ACTION_BLOCKED: Step.REFUSED,
    EventKind.ACTION_DRY_RUN: Step.ACTED,
    EventKind.ACTION_EXECUTED: Step.ACTED,
    EventKind.ACTION_CONFIRMED: Step.ACTED,
    EventKind.ACTION_FAILED: Step.ACTED,
    EventKind.ACTION_ROLLED_BACK: Step.ACTED,
    EventKind.ACTION_UNDONE: Step.ACTED,
    EventKind.ESCALATED: Step.ESCALATED,
}
ROUTED_KINDS = frozenset({*_STEPS, EventKind.INCIDENT_UPDATED})
_MAX_REMEMBERED = 64
_SETTLING_SECONDS = 60.0
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class Decision(StrEnum):
    """What became of an event on one channel, and why."""

    QUEUED = "queued"
    NOT_A_STEP = "not_a_step"
    BELOW_SEVERITY = "below_severity"
    REPEATED = "repeated"
    NEVER_TOLD = "never_told"
    """It resolved before anybody was told of it."""
    OLD_NEWS = "old_news"
    """Long ago, resolved since, and never told."""


class Rules(BaseModel):
    """What routing needs to know of one channel."""

    model_config = ConfigDict(frozen=True)

    minimum_severity: Severity
    group_wait_seconds: float
    repeat_interval_seconds: float
    max_age_seconds: float


class Thread(BaseModel):
    """One incident on one channel: what was told, and what waits to be told."""

    model_config = ConfigDict(frozen=True)

    channel: str
    incident_id: str
    told_severity: Severity | None = None
    """The highest severity that was queued; None while the channel knows nothing of the incident."""
    queued_seconds: float | None = None
    """When a message was last handed to the outbox."""
    due_seconds: float | None = None
    """When the waiting steps become a message; None while nothing waits."""
    steps: tuple[Step, ...] = ()
    seqs: tuple[int, ...] = ()
    """The journal events behind the waiting steps."""
    remembered: Mapping[str, float] = {}
    """Steps that were told, by what they were about, and when."""


@dataclass(frozen=True, slots=True)
class Routed:
    """The outcome for one event on one channel."""

    decision: Decision
    thread: Thread


def route(
    event: Event, incident: Incident, thread: Thread, rules: Rules, now_seconds: float
) -> Routed:
    """Decide what an event means to one channel.

    Args:
        event: one journal event of the incident.
        incident: as it now stands.
        thread: what the channel knows of the incident.
        rules: of the channel.
        now_seconds: when the event is looked at, which after an outage is long after it happened.
    """
    step = _step(event, incident, thread)
    if step is None:
        return Routed(Decision.NOT_A_STEP, thread)
    told = thread.told_severity is not None
    if not told and _RANK[incident.severity] < _RANK[rules.minimum_severity]:
        return Routed(Decision.BELOW_SEVERITY, thread)
    if not told and incident.state is IncidentState.RESOLVED:
        if now_seconds - event.time_seconds > rules.max_age_seconds:
            return Routed(Decision.OLD_NEWS, thread)
        if step is Step.RESOLVED:
            return Routed(Decision.NEVER_TOLD, thread)
    subject = f"{step.value}:{_subject(event, step, incident)}"
    last = thread.remembered.get(subject)
    if last is not None and event.time_seconds - last < rules.repeat_interval_seconds:
        return Routed(Decision.REPEATED, thread)
    wait = 0.0 if step in NEEDS_A_PERSON else rules.group_wait_seconds
    due = event.time_seconds + wait
    remembered = {**thread.remembered, subject: event.time_seconds}
    newest = sorted(remembered.items(), key=lambda item: item[1])[-_MAX_REMEMBERED:]
    severities = (thread.told_severity or Severity.INFO, incident.severity)
    return Routed(
        Decision.QUEUED,
        thread.model_copy(
            update={
                "told_severity": max(severities, key=_RANK.__getitem__),
                "due_seconds": due if thread.due_seconds is None else min(due, thread.due_seconds),
                "steps": (*thread.steps, step),
                "seqs": (*thread.seqs, event.seq),
                "remembered": dict(newest),
            }
        ),
    )


def remind(thread: Thread, incident: Incident, rules: Rules, now_seconds: float) -> Thread:
    """Queue a reminder where an incident is still open and the channel was told too long ago.

    A channel that was never told, such as one that was configured during the incident, is told once.
    """
    if incident.state is not IncidentState.OPEN or thread.due_seconds is not None:
        return thread
    last = thread.queued_seconds
    if last is None:
        quiet = _RANK[incident.severity] < _RANK[rules.minimum_severity]
        # Its opening may be on the way: an incident is saved before its event is written.
        fresh = now_seconds - incident.opened_seconds < rules.group_wait_seconds + _SETTLING_SECONDS
        if quiet or fresh:
            return thread
    elif now_seconds - last < rules.repeat_interval_seconds:
        return thread
    severities = (thread.told_severity or Severity.INFO, incident.severity)
    return thread.model_copy(
        update={
            "due_seconds": now_seconds,
            "steps": (Step.REMINDER,),
            "told_severity": max(severities, key=_RANK.__getitem__),
        }
    )


def taken(thread: Thread, now_seconds: float) -> Thread:
    """Return the thread after its waiting steps became a message."""
    return thread.model_copy(
        update={"due_seconds": None, "steps": (), "seqs": (), "queued_seconds": now_seconds}
    )


def idempotency_key(thread: Thread) -> str:
    """Name the message of the waiting steps; the same steps always get the same name."""
    parts = [thread.channel, thread.incident_id, *map(str, thread.seqs)]
    if not thread.seqs:
        parts.append(f"reminder after {thread.queued_seconds}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _step(event: Event, incident: Incident, thread: Thread) -> Step | None:
    if event.kind is not EventKind.INCIDENT_UPDATED:
        return _STEPS.get(event.kind)
    if incident.state is IncidentState.RESOLVED:
        return None
    if thread.told_severity is None:
        return Step.OPENED
    worse = _RANK[incident.severity] > _RANK[thread.told_severity]
    return Step.WORSENED if worse else None


def _subject(event: Event, step: Step, incident: Incident) -> str:
    """Say what a step is about, so that saying the same again can be recognised."""
    if step in {Step.OPENED, Step.RESOLVED}:
        # A reopened incident is news, so each opening is a subject of its own.
        return f"{incident.opened_seconds}:{incident.resolved_seconds}"
    if step is Step.WORSENED:
        return incident.severity.value
    if step is Step.REFUSED:
        # The guard says no at every tick, with a new action id and another "12 s left".
        return _NUMBER.sub("#", event.summary)
    return f"{event.kind.value}:{action_id(event) or event.summary}"
