"""Takes temporary actions back when they are no longer needed, and later after each relapse."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from analysis.findings import Incident, IncidentState
from analysis.journal import EventKind, Journal
from healing.actions import Action, ActionState
from healing.errors import WrongStateError
from healing.executors.contract import ExecutionResult, Outcome
from healing.ledger import IN_EFFECT, UNDER_WAY, Ledger, related
from healing.policy import Policy
from healing.runner import JobKind, Runner
from healing.settings import HealingSettings
from healing.wording import done_words

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 10.0
_TRIES_BEFORE_ESCALATION = 3
_CHAIN_SECONDS = 86_400.0
"""How far back relapses are followed."""


@dataclass(slots=True)
class _Failures:
    count: int = 0
    next_try_seconds: float = 0.0


class TemporaryActions:
    """Decides when a temporary action is taken back, and has it done.

    ``symptoms_gone`` says of an action whose incident is still open whether its proof holds now.
    """

    def __init__(
        self,
        settings: HealingSettings,
        policy: Policy,
        ledger: Ledger,
        journal: Journal,
        runner: Runner,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._ledger = ledger
        self._journal = journal
        self._runner = runner
        self._unclear: dict[str, float] = {}
        self._failures: dict[str, _Failures] = {}

    def tick(
        self,
        now: float,
        incidents: Mapping[str, Incident],
        symptoms_gone: Callable[[Action], bool],
    ) -> None:
        """Start taking back what is due, the newest first and one at a time on an entity."""
        standing = self._ledger.standing()
        self._forget(standing)
        under_way = self._ledger.actions(states=UNDER_WAY) if standing else []
        seen: list[str] = []
        for action in standing:
            blocked = any(related(action.entity, entity) for entity in seen)
            seen.append(action.entity)
            busy = self._runner.busy_with(action.entity) or any(
                related(other.entity, action.entity) for other in under_way
            )
            # Looked at even while it has to wait, so that "clear since" is known.
            due = self._is_due(action, now, incidents, symptoms_gone)
            if due and not blocked and not busy and not self._runner.is_full:
                self._runner.start(JobKind.UNDO, action, self._policy.actions[action.action], now)

    def finish(self, action_id: str, result: ExecutionResult, now: float) -> None:
        """Write down how taking an action back went."""
        action = self._ledger.get(action_id)
        what = self._words(action)
        if result.outcome is Outcome.DONE:
            detail = f" ({result.detail})" if result.detail else ""
            try:
                self._ledger.transition(
                    action_id,
                    IN_EFFECT,
                    ActionState.UNDONE,
                    now=now,
                    reason=f"Taken back, since it is no longer needed: {what}{detail}",
                )
            except WrongStateError as error:
                log.warning("undo_raced", action_id=action_id, error=str(error))
            return
        failures = self._failures.setdefault(action_id, _Failures())
        failures.count += 1
        failures.next_try_seconds = now + _RETRY_SECONDS * 2 ** min(failures.count, 6)
        log.warning("undo_failed", action_id=action_id, tries=failures.count, detail=result.detail)
        if failures.count == _TRIES_BEFORE_ESCALATION:
            self._journal.append(
                EventKind.ESCALATED,
                time_seconds=now,
                incident_id=action.incident_id,
                summary=f"Could not be taken back after {failures.count} tries, and still stands: "
                f"{what} ({result.detail}). It needs a person; Galen goes on trying.",
                data={"action_id": action_id, "action": action.action, "entity": action.entity},
            )

    def delay_seconds(self, action: Action, now: float) -> float:
        """Return how long an incident has to stay clear: doubled for each relapse before it."""
        remedy = self._policy.actions.get(action.action)
        base = remedy.undo_after_seconds if remedy else None
        if base is None:
            return self._settings.max_undo_delay_seconds
        doubled = base * 2.0 ** min(self._relapses(action, now), 30)
        return min(doubled, max(base, self._settings.max_undo_delay_seconds))

    def _relapses(self, action: Action, now: float) -> int:
        undone = [
            other
            for other in self._ledger.started_since(now - _CHAIN_SECONDS)
            if other.state is ActionState.UNDONE
            and other.action == action.action
            and other.entity == action.entity
        ]
        count, needed_again = 0, action.created_seconds
        for other in sorted(undone, key=lambda one: -one.updated_seconds):
            gap = needed_again - other.updated_seconds
            if 0 <= gap <= self._settings.relapse_window_seconds:
                count, needed_again = count + 1, other.created_seconds
        return count

    def _is_due(
        self,
        action: Action,
        now: float,
        incidents: Mapping[str, Incident],
        symptoms_gone: Callable[[Action], bool],
    ) -> bool:
        failures = self._failures.get(action.id)
        if action.action not in self._policy.actions:
            return False
        if failures is not None and now < failures.next_try_seconds:
            return False
        delay = self.delay_seconds(action, now)
        executed = action.executed_seconds or action.updated_seconds
        incident = incidents.get(action.incident_id) or self._journal.incident(action.incident_id)
        open_now = [one for one in incidents.values() if one.state is IncidentState.OPEN]
        explains = self._policy.actions[action.action].explains
        same_place = any(
            related(one.entity, action.entity)
            or (one.leading is not None and related(one.leading.entity, action.entity))
            for one in open_now
            # What only shows that the action stands would keep it standing for good.
            if one.leading is None or one.leading.cause not in explains
        )
        if same_place or (incident is not None and incident.state is IncidentState.OPEN):
            self._unclear[action.id] = now
            held = now - executed >= max(delay, self._settings.max_temporary_seconds)
            return held and symptoms_gone(action)
        resolved = incident.resolved_seconds if incident is not None else None
        clear_since = max(executed, resolved or 0.0, self._unclear.get(action.id, 0.0))
        return now - clear_since >= delay

    def _forget(self, standing: Sequence[Action]) -> None:
        known = {action.id for action in standing}
        for kept in (self._unclear, self._failures):
            for action_id in kept.keys() - known:
                del kept[action_id]

    def _words(self, action: Action) -> str:
        remedy = self._policy.actions[action.action]
        return done_words(remedy, action.entity, action.parameters)
