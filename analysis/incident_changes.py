"""What is told about an incident: its changes, its identifier and its words."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from analysis.findings import Incident


class ChangeKind(StrEnum):
    """What happened to an incident."""

    OPENED = "opened"
    REOPENED = "reopened"
    UPDATED = "updated"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class IncidentChange:
    """One thing that people are told about an incident."""

    kind: ChangeKind
    incident: Incident
    summary: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class IncidentTick:
    """What one tick did."""

    incidents: Sequence[Incident]
    """Those that are open now, the oldest first."""
    changes: Sequence[IncidentChange]
    refreshed: Sequence[Incident]
    """Open incidents whose evidence grew without anything that people need to be told."""


def incident_id(now: float, stack: str, cause: str) -> str:
    """Return an identifier that sorts by time and is the same for the same course of events."""
    moment = datetime.fromtimestamp(now, tz=UTC).strftime("%Y%m%d-%H%M%S")
    digest = hashlib.sha256(f"{now!r}|{stack}|{cause}".encode()).hexdigest()
    return f"inc-{moment}-{digest[:6]}"


def cause_words(incident: Incident) -> str:
    """Return the cause, the place and the two best reasons in one line."""
    leading = incident.leading
    if leading is None:
        return f"{incident.title}, on {incident.entity}."
    words = f"{incident.title}, on {incident.entity} ({leading.confidence:.0%} sure)."
    reasons = [each.statement for each in leading.evidence[:2]]
    return f"{words} {'; '.join(reasons)}." if reasons else words


def change_of(kind: ChangeKind, incident: Incident, summary: str) -> IncidentChange:
    """Make a change with the data that alerts and reports look for."""
    leading = incident.leading
    data: dict[str, Any] = {
        "entity": incident.entity,
        "severity": incident.severity.value,
        "verdict": incident.verdict.value,
        "onset_seconds": incident.onset_seconds,
        "simulated": incident.simulated,
        "reopened": kind is ChangeKind.REOPENED,
    }
    if leading is not None:
        data |= {
            "cause": leading.cause,
            "confidence": round(leading.confidence, 4),
            "action": leading.action,
        }
    if kind is not ChangeKind.RESOLVED:
        data["hypotheses"] = [each.model_dump(mode="json") for each in incident.hypotheses]
    return IncidentChange(kind, incident, summary, data)
