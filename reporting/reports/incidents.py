"""What the journal and the ledger say of each incident, as it stood at the end of the window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, Protocol

from analysis.findings import Anomaly, Evidence, Hypothesis, Incident, IncidentState, Severity
from analysis.journal import Event, EventKind, Journal
from collectors.contract import SeriesKey
from collectors.store.contract import SeriesInfo
from healing.actions import Action, ActionState
from reporting.redaction import redact
from reporting.reports.figures import chart
from reporting.reports.model import (
    ActionRow,
    AnomalousSignal,
    Chart,
    EvidenceRow,
    IncidentRow,
    Mark,
    Region,
    Rival,
    TimelineRow,
)
from reporting.reports.series import SeriesSource

MAX_INCIDENTS = 200
CHARTED_INCIDENTS = 12
_CHARTS_AN_INCIDENT = 3
_MAX_TIMELINE = 30
_MAX_EVIDENCE = 10
_MAX_EVENTS = 2000
_MAX_TEXT = 600
_RANK = {Severity.CRITICAL: 0, Severity.WARNING: 1, Severity.INFO: 2}

_TAKEN = frozenset(
    {
        ActionState.INTENT,
        ActionState.EXECUTED,
        ActionState.FAILED,
        ActionState.CONFIRMED,
        ActionState.ROLLED_BACK,
        ActionState.UNDONE,
    }
)
_REFUSED = frozenset({ActionState.BLOCKED, ActionState.REJECTED, ActionState.EXPIRED})
_AWAITING = frozenset({ActionState.PROPOSED, ActionState.APPROVED})
_HELPED = frozenset({ActionState.CONFIRMED, ActionState.UNDONE})
# Shown on a chart: the moments at which something was done to the patient.
_DONE_KINDS = frozenset(
    {EventKind.ACTION_EXECUTED, EventKind.ACTION_ROLLED_BACK, EventKind.ACTION_UNDONE}
)
# The notes of alerting say nothing about the incident itself.
_UNTOLD_KINDS = frozenset({EventKind.NOTIFICATION_SENT, EventKind.NOTIFICATION_FAILED})


class ActionLog(Protocol):
    """The part of the ledger that reports read."""

    def actions(
        self,
        *,
        since_seconds: float | None = None,
        until_seconds: float | None = None,
        incident_id: str | None = None,
        limit: int = 1000,
    ) -> list[Action]:
        """Return actions, newest first, by the time of their creation."""


def clean(text: str) -> str:
    """Return text on one line, bounded, without credentials."""
    flat = redact(" ".join(text.split()))
    return flat if len(flat) <= _MAX_TEXT else flat[: _MAX_TEXT - 1].rstrip() + "…"


def as_of(incident: Incident, until_seconds: float) -> Incident:
    """Return an incident as open when it was resolved only after the window."""
    if incident.resolved_seconds is not None and incident.resolved_seconds >= until_seconds:
        return incident.model_copy(update={"state": IncidentState.OPEN, "resolved_seconds": None})
    return incident


def worst_first(incidents: Iterable[Incident]) -> list[Incident]:
    """Sort: open ones first, then by severity, then the newest first."""
    return sorted(
        incidents,
        key=lambda each: (
            each.state is IncidentState.RESOLVED,
            _RANK[each.severity],
            -each.opened_seconds,
            each.id,
        ),
    )


def impact_starts(incidents: Sequence[Incident], events: Iterable[Event]) -> Mapping[str, float]:
    """Say when the fault behind an incident began, where that is known.

    It is known for faults that were injected. A fault belongs to the first incident that opened after it
    and before the next fault was injected; with no such incident it belongs to none.
    """
    injected = sorted(
        event.time_seconds for event in events if event.kind is EventKind.FAULT_INJECTED
    )
    ends = [*injected[1:], float("inf")]
    starts: dict[str, float] = {}
    for start, end in zip(injected, ends, strict=False):
        opened = [each for each in incidents if start <= each.opened_seconds < end]
        if opened:
            starts[min(opened, key=lambda each: each.opened_seconds).id] = start
    return starts


class IncidentRows:
    """Builds the rows of incidents over one window."""

    def __init__(
        self,
        journal: Journal,
        ledger: ActionLog,
        source: SeriesSource,
        known: Sequence[SeriesInfo],
        until_seconds: float,
    ) -> None:
        self._journal = journal
        self._ledger = ledger
        self._source = source
        self._known = known
        self._until_seconds = until_seconds

    def build(
        self, incidents: Sequence[Incident], starts: Mapping[str, float]
    ) -> list[IncidentRow]:
        """Return a row for each incident, in the given order; the first ones have charts."""
        return [
            self._row(incident, starts.get(incident.id), charted=place < CHARTED_INCIDENTS)
            for place, incident in enumerate(incidents)
        ]

    def _row(self, incident: Incident, impact_start: float | None, *, charted: bool) -> IncidentRow:
        events = self._journal.events(
            incident_id=incident.id, until_seconds=self._until_seconds, limit=_MAX_EVENTS
        )
        actions = self._ledger.actions(
            incident_id=incident.id, until_seconds=self._until_seconds, limit=100
        )
        leading = incident.leading
        over = incident.state is IncidentState.RESOLVED
        resolved = incident.resolved_seconds
        return IncidentRow(
            id=incident.id,
            title=clean(incident.title),
            entity=clean(incident.entity),
            severity=incident.severity,
            state=incident.state,
            verdict=incident.verdict,
            healed=over and any(action.state in _HELPED for action in actions),
            escalated=any(event.kind is EventKind.ESCALATED for event in events),
            simulated=incident.simulated,
            onset_seconds=incident.onset_seconds,
            opened_seconds=incident.opened_seconds,
            resolved_seconds=resolved,
            impact_start_seconds=impact_start,
            detect_seconds=(
                None if impact_start is None else incident.opened_seconds - impact_start
            ),
            repair_seconds=None if resolved is None else resolved - incident.opened_seconds,
            cause=leading.cause if leading else None,
            cause_title=clean(leading.title) if leading else None,
            cause_entity=clean(leading.entity) if leading else None,
            confidence=leading.confidence if leading else None,
            evidence=_evidence(leading) if leading else (),
            rivals=_rivals(incident.hypotheses),
            next_check=clean(leading.next_check) if leading else "",
            actions=tuple(action_row(action) for action in reversed(actions)),
            timeline=_timeline(events),
            charts=tuple(self._charts(incident, events)) if charted else (),
        )

    def _charts(self, incident: Incident, events: Sequence[Event]) -> Iterator[Chart]:
        end = incident.resolved_seconds or self._until_seconds
        # As much before as during, so that normal is on the picture; at least two minutes, at most six
        # hours.
        pad = min(max(0.6 * (end - incident.onset_seconds), 120.0), 6 * 3600.0)
        window = (incident.onset_seconds - pad, min(end + 0.5 * pad, self._until_seconds))
        region = Region(start_seconds=incident.onset_seconds, end_seconds=end, kind="incident")
        drawn = 0
        for key, low, high in _charted(incident):
            if drawn == _CHARTS_AN_INCIDENT:
                return
            found = chart(self._source, self._known, key.entity, key.signal, window)
            if found is None:
                continue
            drawn += 1
            yield found.model_copy(
                update={
                    "low": low,
                    "high": high,
                    "marks": tuple(_marks(incident, events)),
                    "regions": (region,),
                }
            )


def _charted(incident: Incident) -> Iterator[tuple[SeriesKey, float | None, float | None]]:
    """Yield the series that tell most.

    First the leading cause's evidence, then the loudest anomalies, then what speaks against: a series
    that did not move tells something too.
    """
    bands = {
        SeriesKey(each.entity, each.signal): (each.low, each.high) for each in incident.anomalies
    }
    seen: set[SeriesKey] = set()
    evidence = incident.leading.evidence if incident.leading else ()
    pieces: list[Evidence | Anomaly] = [
        *sorted(evidence, key=lambda piece: -piece.weight),
        *sorted(incident.anomalies, key=lambda anomaly: -anomaly.score),
        *(incident.leading.against if incident.leading else ()),
    ]
    for piece in pieces:
        key = SeriesKey(piece.entity, piece.signal)
        if key not in seen:
            seen.add(key)
            low, high = bands.get(key, (None, None))
            yield key, piece.low if low is None else low, piece.high if high is None else high


def _marks(incident: Incident, events: Sequence[Event]) -> Iterator[Mark]:
    yield Mark(time_seconds=incident.onset_seconds, label="onset", kind="onset")
    for event in events:
        if event.kind in _DONE_KINDS:
            name = event.data.get("action")
            label = clean(name if isinstance(name, str) and name else event.summary)
            if event.kind is not EventKind.ACTION_EXECUTED:
                label = f"{label} taken back"
            yield Mark(time_seconds=event.time_seconds, label=label, kind="action")
    if incident.resolved_seconds is not None:
        yield Mark(time_seconds=incident.resolved_seconds, label="resolved", kind="resolved")


def _evidence(leading: Hypothesis) -> tuple[EvidenceRow, ...]:
    def rows(pieces: Sequence[Evidence], *, supports: bool) -> Iterator[EvidenceRow]:
        strongest = sorted(pieces, key=lambda piece: -abs(piece.weight))
        for piece in strongest[:_MAX_EVIDENCE]:
            yield EvidenceRow(
                entity=clean(piece.entity),
                signal=clean(piece.signal),
                statement=clean(piece.statement),
                weight=piece.weight,
                supports=supports,
                simulated=piece.simulated,
            )

    return (*rows(leading.evidence, supports=True), *rows(leading.against, supports=False))


def _rivals(hypotheses: Sequence[Hypothesis]) -> tuple[Rival, ...]:
    return tuple(
        Rival(
            rank=each.rank,
            title=clean(each.title),
            entity=clean(each.entity),
            confidence=each.confidence,
        )
        for each in hypotheses[1:4]
    )


def _timeline(events: Sequence[Event]) -> tuple[TimelineRow, ...]:
    """Return the events that a person wants to read; of a run of the same kind the last."""
    told = [event for event in events if event.kind not in _UNTOLD_KINDS]
    told.sort(key=lambda event: (event.time_seconds, event.seq))
    rows: list[TimelineRow] = []
    for event in told:
        row = TimelineRow(
            time_seconds=event.time_seconds,
            kind=event.kind.value,
            summary=clean(event.summary),
            actor=clean(event.actor),
        )
        if rows and rows[-1].kind == row.kind == EventKind.INCIDENT_UPDATED.value:
            rows[-1] = row
        elif not (rows and (rows[-1].kind, rows[-1].summary) == (row.kind, row.summary)):
            rows.append(row)
    if len(rows) <= _MAX_TIMELINE:
        return tuple(rows)
    # Beginnings and ends tell more than the middle.
    half = _MAX_TIMELINE // 2
    return (*rows[:half], *rows[-half:])


def action_row(action: Action) -> ActionRow:
    """Return an action as a row of the report."""
    return ActionRow(
        id=action.id,
        incident_id=action.incident_id,
        action=clean(action.action),
        entity=clean(action.entity),
        group=_group(action.state),
        state=action.state,
        mode=action.mode.value,
        confidence=action.confidence,
        risk=action.risk,
        reversible=action.reversible,
        reason=clean(action.reason),
        actor=clean(action.actor),
        proof=tuple(clean(piece) for piece in action.proof),
        created_seconds=action.created_seconds,
        executed_seconds=action.executed_seconds,
        finished_seconds=action.finished_seconds,
    )


def _group(state: ActionState) -> Literal["taken", "refused", "awaiting", "other"]:
    if state in _TAKEN:
        return "taken"
    if state in _REFUSED:
        return "refused"
    return "awaiting" if state in _AWAITING else "other"


def anomalous_signals(incidents: Iterable[Incident], limit: int = 10) -> list[AnomalousSignal]:
    """Return the series that were anomalous in most incidents, then with the highest score."""
    scores: dict[SeriesKey, dict[str, float]] = {}
    simulated: set[SeriesKey] = set()
    for incident in incidents:
        for anomaly in incident.anomalies:
            key = SeriesKey(anomaly.entity, anomaly.signal)
            by_incident = scores.setdefault(key, {})
            by_incident[incident.id] = max(anomaly.score, by_incident.get(incident.id, 0.0))
            if anomaly.simulated:
                simulated.add(key)
    rows = [
        AnomalousSignal(
            entity=clean(key.entity),
            signal=clean(key.signal),
            incidents=len(found),
            highest_score=max(found.values()),
            simulated=key in simulated,
        )
        for key, found in scores.items()
    ]
    rows.sort(key=lambda row: (-row.incidents, -row.highest_score, row.entity, row.signal))
    return rows[:limit]
