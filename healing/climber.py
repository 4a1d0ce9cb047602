"""Takes an incident up the remedy ladder of its leading cause, a rung at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import structlog

from analysis.findings import Hypothesis, Incident, Verdict
from analysis.history import History
from healing.actions import Action, ActionState, Mode
from healing.errors import DuplicateActionError, EntityBusyError, WrongStateError
from healing.executors.contract import ExecutionResult, Executor, Outcome
from healing.guard import Course, Decision, Guard, GuardReason, Request
from healing.ledger import UNDER_WAY, Ledger
from healing.planning import (
    Plan,
    Step,
    identity,
    ladder_of,
    make_plan,
    not_asked_for,
    open_steps,
    stale_evidence,
)
from healing.policy import PAGE_HUMAN, Policy, Remedy
from healing.proving import Prover
from healing.runner import JobKind, Runner
from healing.settings import HealingSettings
from healing.verification import Verifier
from healing.wording import because_words, done_words, plan_words

log = structlog.get_logger(__name__)

_NOTICE_SECONDS = 5.0
"""An obstacle that passes sooner is not worth a line in the journal."""

_ANSWERABLE = frozenset({ActionState.PROPOSED, ActionState.APPROVED})


@dataclass(slots=True)
class _Watch:
    """What is kept of an open incident between ticks."""

    first_seen_seconds: float
    lead: tuple[str, str] = ("", "")
    lead_since_seconds: float = 0.0
    held_since: dict[str, float] = field(default_factory=dict)
    """Since when an obstacle has held a step back."""


@dataclass(frozen=True, slots=True)
class _Case:
    """One open incident at one tick."""

    incident: Incident
    lead: Hypothesis
    past: Sequence[Action]
    """Its actions, oldest first."""
    watch: _Watch
    incidents: Mapping[str, Incident]
    history: History
    now: float

    @property
    def stable_seconds(self) -> float:
        """How long the leading cause has not changed."""
        return self.now - self.watch.lead_since_seconds


class _Words(NamedTuple):
    """One step as people read it: what would be done, what was, and why."""

    plan: str
    done: str
    because: str


class Climber:
    """Chooses, asks the guard, proposes, and starts; what follows an execution is the prover's."""

    def __init__(
        self,
        *,
        settings: HealingSettings,
        policy: Policy,
        ledger: Ledger,
        guard: Guard,
        runner: Runner,
        prover: Prover,
        verifier: Verifier,
        executors: Mapping[str, Executor],
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._ledger = ledger
        self._guard = guard
        self._runner = runner
        self._prover = prover
        self._verifier = verifier
        self._executors = executors
        self._watches: dict[str, _Watch] = {}

    def advance(
        self, incident: Incident, incidents: Mapping[str, Incident], history: History, now: float
    ) -> None:
        """Take one open incident as far as it goes in this tick."""
        lead = incident.leading
        if lead is None or self._settings.mode is Mode.OFF:
            return
        watch = self._watches.setdefault(incident.id, _Watch(now))
        if watch.lead != (lead.cause, lead.entity):
            watch.lead, watch.lead_since_seconds = (lead.cause, lead.entity), now
        past = self._ledger.actions(incident_id=incident.id)[::-1]
        case = _Case(incident, lead, past, watch, incidents, history, now)
        if any(one.state in UNDER_WAY or self._runner.has_job(one.id) for one in past):
            return
        waiting = next((one for one in past if one.state in _ANSWERABLE), None)
        if waiting is not None:
            self._advance_waiting(case, waiting)
        elif self._may_begin(case):
            self._climb(case)

    def executed(self, action: Action, result: ExecutionResult, now: float) -> None:
        """Write down how an execution went."""
        remedy = self._policy.actions[action.action]
        words = done_words(remedy, action.entity, action.parameters)
        because = self._prover.because(action)
        if result.outcome is Outcome.NOT_DONE:
            plan = plan_words(remedy, action.entity, action.parameters)
            self._move(
                action, ActionState.FAILED, now, f"Could not be done: {plan}; {result.detail}"
            )
            return
        if result.outcome is Outcome.UNKNOWN:
            words = f"{words}, as far as is known ({result.detail})"
        self._move(action, ActionState.EXECUTED, now, f"{words} {because}".strip())

    def expire(self, action: Action, now: float, why: str) -> None:
        """End a proposal or an approval that is no longer of use."""
        words = f"No longer of use: {action.action} on {action.entity}; {why}"
        self._move(action, ActionState.EXPIRED, now, words)

    def forget(self, incident_ids: Collection[str]) -> None:
        """Drop what was kept of incidents other than these."""
        for incident_id in self._watches.keys() - set(incident_ids):
            del self._watches[incident_id]

    def _may_begin(self, case: _Case) -> bool:
        """Return whether anything new is to be considered for an incident."""
        if case.incident.verdict is Verdict.NO_FAULT or not ladder_of(case.lead):
            return False
        if self._is_with_a_person(case) or not self._is_stable(case):
            return False
        if any(
            one.cause == case.lead.cause and self._was_left_unanswered(one) for one in case.past
        ):
            self._escalate(case, "nobody answered the proposal")
            return False
        return not self._is_proven(case)

    @staticmethod
    def _is_with_a_person(case: _Case) -> bool:
        """Return whether a person said no, was called for this cause, or reads what would be done."""
        told = {ActionState.ESCALATED, ActionState.DRY_RUN}
        return any(
            one.state is ActionState.REJECTED
            or (one.state in told and one.cause == case.lead.cause)
            for one in case.past
        )

    def _is_proven(self, case: _Case) -> bool:
        """Return whether what was done last still helps, so that the incident only has to close."""
        proven = [one for one in case.past if one.state is ActionState.CONFIRMED]
        if not proven:
            return False
        last = max(proven, key=lambda one: one.updated_seconds)
        if last.cause == case.lead.cause:
            return not self._prover.is_relapse(last, case.incidents, case.history, case.now)
        return case.now - last.updated_seconds < self._settings.rest_seconds

    def _is_stable(self, case: _Case) -> bool:
        needed = self._settings.stable_seconds
        if case.incident.verdict is Verdict.UNKNOWN:
            # Most that is unknown at first becomes clear; a person is only called to what does not.
            needed = max(needed, self._settings.unknown_after_seconds)
        if case.stable_seconds >= needed:
            return True
        if case.now - case.watch.first_seen_seconds >= self._settings.patience_seconds:
            self._escalate(case, "no cause leads for long enough to act on it")
        return False

    def _climb(self, case: _Case) -> None:
        for step in open_steps(self._policy, case.lead, case.past):
            if step.remedy.touches and case.incident.verdict is Verdict.UNKNOWN:
                continue
            if not self._try(case, step):
                return
        self._escalate(case, "")

    def _try(self, case: _Case, step: Step) -> bool:
        """Try one step; return whether it can never be taken and the next one is to be tried."""
        plan = make_plan(step, case.lead, case.incident, self._executors, case.history)
        decision = self._guard.decide(self._request(case, plan), case.now)
        match decision.course:
            case Course.ACT:
                self._begin(case, plan)
            case Course.PROPOSE:
                self._propose(case, plan, decision)
            case Course.REHEARSE:
                words = self._words(case, plan)
                would = f"Would be done: {words.plan} {words.because}"
                self._record(case, plan, ActionState.DRY_RUN, would)
            case Course.WAIT:
                self._hold(case, plan, decision)
            case Course.SKIP:
                self._note_blocked(case, plan, decision)
                return True
            case Course.STOP:
                self._note_blocked(case, plan, decision)
        return False

    def _request(
        self, case: _Case, plan: Plan, *, approved: bool = False, action_id: str = ""
    ) -> Request:
        remedy = plan.step.remedy
        stale, unasked = "", ""
        blind: tuple[str, ...] = ()
        if plan.entity is not None:
            unasked = not_asked_for(remedy, plan.entity, case.history)
        if remedy.touches and plan.entity is not None:
            stale = stale_evidence(
                case.lead.evidence, case.history, case.now, self._settings.max_evidence_age_seconds
            )
            if remedy.verification is not None:
                blind = self._verifier.blind_spots(plan.entity, remedy.verification, case.history)
        return Request(
            incident=case.incident,
            remedy=remedy,
            entity=plan.entity,
            confidence=case.lead.confidence,
            peers=plan.peers,
            not_asked_for=unasked,
            missing_parameter=plan.missing_parameter,
            stale=stale,
            blind_spots=blind,
            approved=approved,
            own_action_id=action_id,
        )

    def _begin(self, case: _Case, plan: Plan) -> None:
        if self._runner.is_full:
            return
        try:
            words = self._words(case, plan)
            reason = f"{words.plan} {words.because}"
            action = self._record(case, plan, ActionState.INTENT, reason)
        except EntityBusyError as error:
            self._hold(case, plan, Decision(GuardReason.ENTITY_BUSY, str(error)))
            return
        if action is not None:
            self._launch(case, action, plan.step.remedy)

    def _launch(self, case: _Case, action: Action, remedy: Remedy) -> None:
        self._prover.remember(action.id, case.lead, case.incident)
        case.watch.held_since.clear()
        if remedy.touches:
            self._runner.start(JobKind.EXECUTE, action, remedy, case.now)
        else:
            self.executed(action, ExecutionResult(Outcome.DONE), case.now)

    def _propose(self, case: _Case, plan: Plan, decision: Decision) -> None:
        if decision.reason is GuardReason.LOW_CONFIDENCE:
            rehearsed = self._guard.mode_of(plan.step.remedy) is Mode.DRY_RUN
            if rehearsed or case.stable_seconds < self._settings.propose_after_seconds:
                return
        words = self._words(case, plan)
        reason = f"Proposed: {words.plan} {words.because}. It waits for a person: {decision.words}"
        self._record(case, plan, ActionState.PROPOSED, reason)

    def _advance_waiting(self, case: _Case, action: Action) -> None:
        """Deal with a proposal, or with a person's yes."""
        approved = action.state is ActionState.APPROVED
        remedy = self._policy.actions.get(action.action)
        if case.now - action.updated_seconds >= self._settings.approval_expiry_seconds:
            minutes = self._settings.approval_expiry_seconds / 60
            what = "it could not be done" if approved else "nobody answered"
            self.expire(action, case.now, f"{what} within {minutes:.0f} minutes")
            return
        if remedy is None:
            self.expire(action, case.now, "the policy no longer has it")
            return
        stable = case.stable_seconds >= self._settings.stable_seconds
        if not approved and stable and case.lead.cause != action.cause:
            self.expire(action, case.now, f"the leading cause is now {case.lead.cause}")
            return
        plan = self._plan_of(action, remedy)
        request = self._request(case, plan, approved=approved, action_id=action.id)
        decision = self._guard.decide(request, case.now)
        if decision.course is Course.ACT and not self._runner.is_full:
            self._begin_waiting(case, action, remedy)
        elif approved and decision.course in {Course.SKIP, Course.STOP, Course.REHEARSE}:
            plan_text = plan_words(remedy, action.entity, action.parameters)
            words = f"Approved, and not done: {plan_text}; {decision.words}"
            self._move(action, ActionState.BLOCKED, case.now, words)

    def _begin_waiting(self, case: _Case, action: Action, remedy: Remedy) -> None:
        plan = plan_words(remedy, action.entity, action.parameters)
        by = f", approved by {action.actor}" if action.state is ActionState.APPROVED else ""
        try:
            started = self._ledger.transition(
                action.id,
                {action.state},
                ActionState.INTENT,
                now=case.now,
                reason=f"{plan} {because_words(case.lead)}{by}",
                confidence=case.lead.confidence if not by else None,
            )
        except (EntityBusyError, WrongStateError) as error:
            log.info("start_postponed", action_id=action.id, reason=str(error))
            return
        self._launch(case, started, remedy)

    def _plan_of(self, action: Action, remedy: Remedy) -> Plan:
        executor = self._executors.get(remedy.executor)
        able = executor is not None and executor.controls(action.entity) is not None
        peers = len(executor.entities) if executor is not None else 1
        step = Step(remedy, action.rung, action.attempt)
        return Plan(step, action.entity if able else None, action.parameters, "", max(1, peers))

    def _hold(self, case: _Case, plan: Plan, decision: Decision) -> None:
        """Wait for an obstacle to pass, and call a person when it does not."""
        key = f"{plan.step.remedy.name}/{decision.reason.value}"
        since = case.watch.held_since.setdefault(key, case.now)
        if case.now - since >= _NOTICE_SECONDS:
            self._note_blocked(case, plan, decision)
        longest = min(case.watch.held_since.values())
        if case.now - longest >= self._settings.patience_seconds:
            self._escalate(case, f"{plan.step.remedy.name} is held back: {decision.words}")

    def _note_blocked(self, case: _Case, plan: Plan, decision: Decision) -> None:
        """Write down, once, that the guard said no."""
        step = plan.step
        key = f"{case.incident.id}/{case.lead.cause}/{step.rung}/{step.attempt}/{step.remedy.name}"
        if any(one.idempotency_key == f"{key}/{decision.reason.value}" for one in case.past):
            return
        reason = f"Not done: {self._words(case, plan).plan}; {decision.words}"
        self._record(case, plan, ActionState.BLOCKED, reason, key=f"{key}/{decision.reason.value}")

    def _escalate(self, case: _Case, why: str) -> None:
        """Hand an incident to a person, once."""
        key = f"{case.incident.id}/{PAGE_HUMAN}"
        if any(one.idempotency_key == key for one in case.past):
            return
        remedy = self._policy.actions[PAGE_HUMAN]
        rung = len(ladder_of(case.lead)) - 1
        plan = Plan(Step(remedy, max(0, rung), 1), case.lead.entity, {})
        tried = ", ".join(
            f"{one.action} ({one.state.value.replace('_', ' ')})"
            for one in case.past
            if one.started_seconds is not None
        )
        words = self._words(case, plan)
        told = [f"{words.done} {words.because}."]
        told += [f"Tried before: {tried}."] if tried else []
        told += [f"{why[:1].upper()}{why[1:]}."] if why else []
        self._record(case, plan, ActionState.ESCALATED, " ".join(told), key=key)

    def _record(
        self, case: _Case, plan: Plan, state: ActionState, reason: str, *, key: str = ""
    ) -> Action | None:
        """Write a new action; None where it is known already, by whatever process."""
        remedy, lead = plan.step.remedy, case.lead
        entity = plan.entity or lead.entity
        number = sum(1 for one in case.past if one.state is not ActionState.BLOCKED)
        key = key or f"{case.incident.id}/{number + 1}/{remedy.name}"
        started: dict[str, Any] = (
            {"started_seconds": case.now} if state is ActionState.INTENT else {}
        )
        ended = state not in {*UNDER_WAY, *_ANSWERABLE}
        action = Action(
            id=identity(key),
            incident_id=case.incident.id,
            cause=lead.cause,
            entity=entity,
            action=remedy.name,
            rung=plan.step.rung,
            attempt=plan.step.attempt,
            mode=self._guard.mode_of(remedy),
            state=state,
            confidence=lead.confidence,
            parameters=plan.parameters,
            reason=reason,
            risk=remedy.risk.value,
            reversible=remedy.reversible,
            temporary=remedy.temporary,
            idempotency_key=key,
            created_seconds=case.now,
            updated_seconds=case.now,
            finished_seconds=case.now if ended else None,
            **started,
        )
        try:
            return self._ledger.record(action)
        except DuplicateActionError as error:
            log.warning("action_known_already", key=key, reason=str(error))
            return None

    @staticmethod
    def _words(case: _Case, plan: Plan) -> _Words:
        remedy, entity = plan.step.remedy, plan.entity or case.lead.entity
        return _Words(
            plan_words(remedy, entity, plan.parameters),
            done_words(remedy, entity, plan.parameters),
            because_words(case.lead),
        )

    def _was_left_unanswered(self, action: Action) -> bool:
        lasted = action.updated_seconds - action.created_seconds
        expired = action.state is ActionState.EXPIRED
        return expired and lasted >= self._settings.approval_expiry_seconds

    def _move(self, action: Action, state: ActionState, now: float, reason: str) -> None:
        try:
            self._ledger.transition(action.id, {action.state}, state, now=now, reason=reason)
        except WrongStateError as error:
            # Another process was first, such as a person who approved while this expired.
            log.info("transition_lost", action_id=action.id, reason=str(error))
