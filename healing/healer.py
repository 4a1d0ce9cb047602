"""The healer: drives incidents from their leading cause to a proven remedy, or to a person.

Each tick collects what ended, judges what was executed, takes every open incident a step further, and
takes back what is no longer needed. What was done lives in the ledger, so that a restart goes on where
it stopped; in memory is only what may be forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor as Workers
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from analysis.findings import Incident, IncidentState
from analysis.history import History
from analysis.journal import Journal
from healing.actions import Action, ActionState
from healing.climber import Climber
from healing.executors.contract import Executor
from healing.guard import Guard
from healing.ledger import UNDER_WAY, Ledger
from healing.policy import Policy, load_policy
from healing.proving import Prover
from healing.runner import JobKind, Runner
from healing.settings import HealingSettings
from healing.temporary import TemporaryActions
from healing.verification import Verifier

log = structlog.get_logger(__name__)

_WORKERS = 4


class Healer:
    """Acts on incidents. Called by one thread; approvals come through the ledger.

    Args:
        settings: how far it may go.
        ledger: where actions are kept.
        journal: where incidents are kept.
        executors: by the name that the policy uses.
        policy: what each action does; the one that the settings name where it is not given.
        workers: threads that execute; a small pool where none is given.
        state_dir: what the kill switch file is relative to.

    Raises:
        PolicyError: when the policy or an override of it has a fault.
    """

    def __init__(
        self,
        settings: HealingSettings,
        ledger: Ledger,
        journal: Journal,
        executors: Mapping[str, Executor],
        *,
        policy: Policy | None = None,
        workers: Workers | None = None,
        state_dir: Path = Path("var"),
    ) -> None:
        policy = policy or load_policy(settings.policy_file)
        policy = policy.with_overrides(settings.actions)
        self._settings = settings
        self._policy = policy
        self._ledger = ledger
        self._journal = journal
        self._executors = dict(executors)
        guard = Guard(settings, policy, ledger, state_dir / settings.kill_switch_file)
        pool = workers or ThreadPoolExecutor(_WORKERS, thread_name_prefix="healing")
        verifier = Verifier(policy)
        self._runner = Runner(self._executors, ledger, pool, guard.kill_switch)
        self._prover = Prover(policy, ledger, journal, self._runner, verifier)
        self._climber = Climber(
            settings=settings,
            policy=policy,
            ledger=ledger,
            guard=guard,
            runner=self._runner,
            prover=self._prover,
            verifier=verifier,
            executors=self._executors,
        )
        self._temporary = TemporaryActions(settings, policy, ledger, journal, self._runner)
        self._recovered = False

    def tick(self, now: float, incidents: Sequence[Incident], history: History) -> None:
        """Do what is due, without waiting for anything.

        Args:
            now: the time of the tick in seconds since the epoch.
            incidents: the open ones, and those that were resolved since the last tick.
            history: the recent past, which proof is read from.
        """
        if not self._recovered:
            self.recover(now)
        known = {incident.id: incident for incident in incidents}

        def symptoms_gone(action: Action) -> bool:
            return self._prover.holds(action, known, history, now)

        self._guarded("collect", lambda: self._collect(now))
        self._guarded("prove", lambda: self._prover.tick(now, known, history))
        for incident in incidents:
            if incident.state is IncidentState.OPEN:
                self._guarded("climb", self._climbing(incident, known, history, now))
        self._guarded("expire", lambda: self._expire_orphans(known, now))
        self._guarded("take_back", lambda: self._temporary.tick(now, known, symptoms_gone))
        self._climber.forget(known)
        self._guarded("forget", lambda: self._prover.forget(known))

    def recover(self, now: float) -> None:
        """Take up what a stop or a crash of Galen interrupted. Nothing is done a second time.

        An action that was under way a short while ago may or may not have had an effect: it is
        verified. An older one is given up, since the world has gone on without it.
        """
        self._recovered = True
        for action in self._ledger.actions(states=UNDER_WAY):
            age = now - (action.executed_seconds or action.started_seconds or now)
            state = action.state
            if state is ActionState.INTENT:
                # EXECUTED, since it may have been: then a temporary one is taken back later, too.
                self._ledger.transition(
                    action.id,
                    {ActionState.INTENT},
                    ActionState.EXECUTED,
                    now=now,
                    reason=f"Galen was stopped while it did {action.action} on {action.entity}: it "
                    "may or may not have happened, and is not repeated",
                )
            if age <= self._settings.max_intent_age_seconds:
                self._prover.resume(action.id, now)
                continue
            self._ledger.transition(
                action.id,
                {ActionState.EXECUTED},
                ActionState.FAILED,
                now=now,
                reason=f"Given up: {action.action} on {action.entity} was interrupted {age:.0f} s ago, "
                "and what it did can no longer be told",
            )

    def close(self) -> None:
        """Wait for what is under way, and release the executors."""
        self._runner.close()
        for executor in self._executors.values():
            executor.close()

    def _climbing(
        self, incident: Incident, known: Mapping[str, Incident], history: History, now: float
    ) -> Callable[[], None]:
        return lambda: self._climber.advance(incident, known, history, now)

    def _collect(self, now: float) -> None:
        for ended in self._runner.finished(now):
            if ended.kind is JobKind.EXECUTE:
                self._climber.executed(self._ledger.get(ended.action_id), ended.result, now)
            elif ended.kind is JobKind.ROLL_BACK:
                self._prover.finish_roll_back(ended.action_id, ended.result, now)
            else:
                self._temporary.finish(ended.action_id, ended.result, now)

    def _expire_orphans(self, known: Mapping[str, Incident], now: float) -> None:
        """Let proposals end with their incident."""
        for action in self._ledger.actions(states={ActionState.PROPOSED, ActionState.APPROVED}):
            incident = known.get(action.incident_id) or self._journal.incident(action.incident_id)
            if incident is None or incident.state is not IncidentState.OPEN:
                self._climber.expire(action, now, "the incident is over")

    def _guarded(self, part: str, call: Callable[[], None]) -> None:
        try:
            call()
        # One incident or one action that cannot be dealt with must not keep the others from being
        # healed, whatever the reason: it is logged, and tried again at the next tick.
        except Exception:
            log.exception("healing_part_failed", part=part)
