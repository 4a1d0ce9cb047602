"""Runs a drill: a quiet phase, then fault after fault, and measures what Galen made of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from analysis.findings import Hypothesis, Incident, IncidentState
from analysis.journal import Event, EventKind, Journal
from galen.drill.faults import DrillFault, Patient
from galen.drill.results import DrillResult, FaultResult, QuietResult
from galen.drill.traffic import TrafficStats
from healing.actions import Action, ActionState, Mode
from healing.ledger import Ledger

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.25
_CALM_SECONDS = 8.0
_LONGEST_CALM_SECONDS = 180.0
_UNSETTLED = frozenset(
    {ActionState.INTENT, ActionState.EXECUTED, ActionState.APPROVED, ActionState.PROPOSED}
)
_ACTED = frozenset({EventKind.ACTION_STARTED, EventKind.ACTION_PROPOSED, EventKind.ESCALATED})


@dataclass(frozen=True, slots=True)
class DrillPlan:
    """What a drill does."""

    suite: str
    faults: Sequence[DrillFault]
    repeats: int
    seed: int
    warm_up_seconds: float
    quiet_seconds: float
    interval_seconds: float


class DrillRunner:
    """Drives one live stack through a plan. ``tell`` takes progress in words."""

    def __init__(
        self, plan: DrillPlan, patient: Patient, journal: Journal, tell: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._patient = patient
        self._journal = journal
        self._ledger = Ledger(journal)
        self._tell = tell

    def run(self) -> DrillResult:
        """Run the whole plan and return what was measured."""
        plan = self._plan
        self._tell(f"warming up for {plan.warm_up_seconds:.0f} s")
        self._watch(time.time() + plan.warm_up_seconds)
        quiet = self._quiet()
        rows = [
            self._drill(fault, repeat)
            for repeat in range(1, plan.repeats + 1)
            for fault in plan.faults
        ]
        return DrillResult(
            suite=plan.suite,
            seed=plan.seed,
            interval_seconds=plan.interval_seconds,
            faults=tuple(rows),
            quiet=quiet,
        )

    def _quiet(self) -> QuietResult:
        start = time.time()
        self._tell(f"quiet phase: {self._plan.quiet_seconds:.0f} s of changing load, no fault")
        self._watch(start + self._plan.quiet_seconds)
        events = self._journal.events(since_seconds=start, kinds=[EventKind.INCIDENT_OPENED])
        actions = self._actions_since(start)
        result = QuietResult(
            seconds=self._plan.quiet_seconds,
            incidents=len(events),
            actions=len(actions),
            titles=tuple(event.summary for event in events),
        )
        self._tell(f"quiet phase: {result.incidents} incidents, {result.actions} actions")
        return result

    def _drill(self, fault: DrillFault, repeat: int) -> FaultResult:
        if not self._wait_for_calm():
            self._tell("the stack did not become calm; going on, the next result may be spoiled")
        start, before = time.time(), self._patient.traffic.stats()
        self._journal.append(
            EventKind.FAULT_INJECTED,
            time_seconds=start,
            actor="drill",
            summary=f"Fault injected: {fault.told}",
            data={"fault": fault.name, "repeat": repeat},
        )
        fault.inject(self._patient)
        self._wait_for_end(fault, start)
        cleared = time.time()
        self._patient.restore()
        self._journal.append(
            EventKind.FAULT_CLEARED,
            time_seconds=cleared,
            actor="drill",
            summary=f"Fault taken back: {fault.name}",
            data={"fault": fault.name, "repeat": repeat},
        )
        self._wait_for_calm()
        result = self._measure(fault, repeat, start, cleared, before)
        self._tell(_in_words(result))
        return result

    def _wait_for_end(self, fault: DrillFault, start: float) -> None:
        """Wait until the fault is healed and its incident over, or until it has lasted its time."""
        while time.time() < start + fault.lasts_seconds:
            time.sleep(_POLL_SECONDS)
            incidents = self._incidents_since(start)
            actions = self._actions_since(start)
            healed = bool(actions) and self._confirmed_seconds(actions[-1], start) is not None
            if healed and incidents and not self._open(incidents):
                return

    def _wait_for_calm(self) -> bool:
        """Wait until no incident is open and no action under way for a while."""
        calm_since: float | None = None
        end = time.time() + _LONGEST_CALM_SECONDS
        while (now := time.time()) < end:
            busy = (
                bool(self._journal.incidents(state=IncidentState.OPEN, limit=1))
                or bool(self._ledger.standing())
                or bool(self._ledger.actions(since_seconds=now - 600, states=_UNSETTLED))
            )
            calm_since = None if busy else calm_since or now
            if calm_since is not None and now - calm_since >= _CALM_SECONDS:
                return True
            time.sleep(_POLL_SECONDS)
        return False

    def _measure(
        self, fault: DrillFault, repeat: int, start: float, cleared: float, before: TrafficStats
    ) -> FaultResult:
        incidents = self._incidents_since(start)
        opened = [incident for incident in incidents if incident.opened_seconds < cleared]
        # The journal's events hold what was thought at the time; the incident row only the latest.
        decided = self._hypotheses_at_decision(opened, start)
        at_open = self._hypotheses_at_open(opened)
        truth = next((one for one in decided if one.cause == fault.cause), None)
        actions = self._actions_since(start)
        last = actions[-1] if actions else None
        proven = self._confirmed_seconds(last, start)
        # What was confirmed and needed another action after all did not heal.
        healed = (
            fault.remedy and proven is not None and proven <= cleared and not self._open(opened)
        )
        return FaultResult(
            fault=fault.name,
            repeat=repeat,
            detected=bool(opened),
            seconds_to_detect=_since(min((i.opened_seconds for i in opened), default=None), start),
            rank_of_cause=truth.rank if truth else None,
            rank_at_open=next((one.rank for one in at_open if one.cause == fault.cause), None),
            confidence=round(truth.confidence, 3) if truth else None,
            leading_cause=decided[0].cause if decided else None,
            remedy=fault.remedy,
            action=last.action if last else None,
            actions=tuple(f"{action.action}: {action.state.value}" for action in actions),
            healed=healed,
            seconds_to_heal=_since(proven, start) if healed else None,
            other_incidents=max(0, len(opened) - 1),
            requests=_difference(before, self._patient.traffic.stats()),
        )

    def _hypotheses_at_open(self, opened: Sequence[Incident]) -> list[Hypothesis]:
        for incident in opened:
            events = self._journal.events(
                incident_id=incident.id, kinds=[EventKind.INCIDENT_OPENED], limit=1
            )
            return _hypotheses(events)
        return []

    def _hypotheses_at_decision(self, opened: Sequence[Incident], start: float) -> list[Hypothesis]:
        """Return what was ranked when the first action was taken, else the last ranking of all."""
        thoughts = [EventKind.INCIDENT_OPENED, EventKind.INCIDENT_UPDATED]
        for incident in opened:
            events = self._journal.events(incident_id=incident.id, since_seconds=start)
            acted = next((event.seq for event in events if event.kind in _ACTED), None)
            known = [
                event
                for event in events
                if event.kind in thoughts and (acted is None or event.seq < acted)
            ]
            return _hypotheses(known[-1:])
        return []

    def _confirmed_seconds(self, action: Action | None, start: float) -> float | None:
        """Return when an action was confirmed, None where it was not."""
        confirmed = self._journal.events(since_seconds=start, kinds=[EventKind.ACTION_CONFIRMED])
        mine = (event for event in confirmed if action and event.data["action_id"] == action.id)
        return next((event.time_seconds for event in mine), None)

    def _actions_since(self, start: float) -> list[Action]:
        """Return what healing did or would have done; what the guard refused is not an action."""
        idle = {ActionState.BLOCKED, ActionState.DRY_RUN}
        found = self._ledger.actions(since_seconds=start)
        acted = [one for one in found if one.state not in idle and one.mode is not Mode.OFF]
        return sorted(acted, key=lambda one: one.created_seconds)

    def _incidents_since(self, start: float) -> list[Incident]:
        found = self._journal.incidents(since_seconds=start)
        return sorted(
            (incident for incident in found if incident.opened_seconds >= start),
            key=lambda incident: incident.opened_seconds,
        )

    @staticmethod
    def _open(incidents: Sequence[Incident]) -> bool:
        return any(incident.state is IncidentState.OPEN for incident in incidents)

    def _watch(self, until_seconds: float) -> None:
        while (left := until_seconds - time.time()) > 0:
            time.sleep(min(1.0, left))


def _hypotheses(events: Sequence[Event]) -> list[Hypothesis]:
    if not events:
        return []
    return [Hypothesis.model_validate(row) for row in events[0].data.get("hypotheses", [])]


def _since(moment: float | None, start: float) -> float | None:
    return None if moment is None else round(moment - start, 2)


def _difference(before: TrafficStats, after: TrafficStats) -> dict[str, int]:
    counts = {
        "none" if status == 0 else str(status): count - before.statuses.get(status, 0)
        for status, count in sorted(after.statuses.items())
    }
    return {status: count for status, count in counts.items() if count}


def _in_words(row: FaultResult) -> str:
    if not row.detected:
        return f"{row.fault} (repeat {row.repeat}): NOT detected"
    cause = f"true cause ranked {row.rank_of_cause or 'nowhere'}"
    healed = f"healed after {row.seconds_to_heal} s by {row.action}" if row.healed else "not healed"
    if not row.remedy:
        healed = f"no remedy to try; actions: {', '.join(row.actions) or 'none'}"
    return (
        f"{row.fault} (repeat {row.repeat}): detected after {row.seconds_to_detect} s, "
        f"{cause} ({row.leading_cause}), {healed}"
    )
