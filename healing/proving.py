"""Drives executed actions to their verdict: proven, failed, or taken back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import structlog

from analysis.findings import Evidence, Hypothesis, Incident
from analysis.history import History
from analysis.journal import Journal
from healing.actions import Action, ActionState
from healing.errors import WrongStateError
from healing.executors.contract import ExecutionResult, Outcome
from healing.ledger import Ledger
from healing.policy import Policy, Remedy, RollbackWhen
from healing.runner import JobKind, Runner
from healing.verification import Proof, Subject, VerificationResult, Verifier
from healing.wording import because_words, done_words

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Context:
    """What was known when an action was decided. After a restart the journal stands in for it."""

    incident_id: str
    because: str
    evidence: Sequence[Evidence]
    onset_seconds: float


class Prover:
    """Verifies every action in state EXECUTED at each tick."""

    def __init__(
        self, policy: Policy, ledger: Ledger, journal: Journal, runner: Runner, verifier: Verifier
    ) -> None:
        self._policy = policy
        self._ledger = ledger
        self._journal = journal
        self._runner = runner
        self._verifier = verifier
        self._contexts: dict[str, _Context] = {}
        self._begun: dict[str, float] = {}
        self._failed: dict[str, VerificationResult] = {}

    def remember(self, action_id: str, hypothesis: Hypothesis, incident: Incident) -> None:
        """Keep the evidence that an action was decided on: its bands are those from before."""
        self._contexts[action_id] = _Context(
            incident.id, because_words(hypothesis), hypothesis.evidence, incident.onset_seconds
        )

    def because(self, action: Action) -> str:
        """Return why an action was decided on, in words."""
        context = self._contexts.get(action.id) or self._context_of(action, {})
        return context.because

    def resume(self, action_id: str, now: float) -> None:
        """Begin the verification of an action again, such as after a restart of Galen."""
        self._begun[action_id] = now

    def tick(self, now: float, incidents: Mapping[str, Incident], history: History) -> None:
        """Judge what has been executed."""
        for action in self._ledger.actions(states={ActionState.EXECUTED}):
            if self._runner.has_job(action.id):
                continue
            remedy = self._policy.actions.get(action.action)
            subject = self._subject(action, remedy, incidents)
            if remedy is None or subject is None:
                self._close(
                    action, ActionState.FAILED, now, "the policy no longer says how to prove it"
                )
                continue
            result = self._verifier.verify(subject, history, now)
            if result.proof is Proof.CONFIRMED:
                self._confirm(action, remedy, subject, result, now)
            elif result.proof is Proof.FAILED:
                self._fail(action, remedy, result, now)

    def finish_roll_back(self, action_id: str, result: ExecutionResult, now: float) -> None:
        """Write down how taking back an action that failed went."""
        action = self._ledger.get(action_id)
        verdict = self._failed.pop(action_id, None)
        why = self._why(verdict) if verdict else "it was not proven"
        if result.outcome is Outcome.DONE:
            detail = f" ({result.detail})" if result.detail else ""
            words = f"Taken back{detail}: {self._words(action)}; {why}"
            self._close(action, ActionState.ROLLED_BACK, now, words, verdict)
        else:
            words = (
                f"Not proven, and could not be taken back ({result.detail}): {self._words(action)}"
            )
            self._close(action, ActionState.FAILED, now, f"{words}; {why}", verdict)

    def is_relapse(
        self, action: Action, incidents: Mapping[str, Incident], history: History, now: float
    ) -> bool:
        """Return whether the symptoms of a proven action are back."""
        subject = self._subject(action, self._policy.actions.get(action.action), incidents)
        return subject is not None and self._verifier.is_relapse(subject, history, now)

    def holds(
        self, action: Action, incidents: Mapping[str, Incident], history: History, now: float
    ) -> bool:
        """Return whether the proof of an action holds now."""
        subject = self._subject(action, self._policy.actions.get(action.action), incidents)
        if subject is None:
            return False
        return self._verifier.verify(subject, history, now).proof is Proof.CONFIRMED

    def forget(self, incident_ids: Collection[str]) -> None:
        """Drop what was kept for incidents other than these; the journal still has it."""
        under_way = {action.id for action in self._ledger.actions(states={ActionState.EXECUTED})}
        for action_id, context in list(self._contexts.items()):
            if context.incident_id not in incident_ids and action_id not in under_way:
                del self._contexts[action_id]
                self._begun.pop(action_id, None)

    def _subject(
        self, action: Action, remedy: Remedy | None, incidents: Mapping[str, Incident]
    ) -> Subject | None:
        if remedy is None or remedy.verification is None:
            return None
        context = self._contexts.get(action.id) or self._context_of(action, incidents)
        executed = action.executed_seconds or action.updated_seconds
        return Subject(
            entity=action.entity,
            verification=remedy.verification,
            evidence=context.evidence,
            onset_seconds=context.onset_seconds,
            executed_seconds=executed,
            from_seconds=max(executed, self._begun.get(action.id, executed)),
        )

    def _context_of(self, action: Action, incidents: Mapping[str, Incident]) -> _Context:
        incident = incidents.get(action.incident_id) or self._journal.incident(action.incident_id)
        if incident is None:
            return _Context(action.incident_id, "", (), action.created_seconds)
        of_cause = (one for one in incident.hypotheses if one.cause == action.cause)
        hypothesis = next(of_cause, incident.leading)
        if hypothesis is None:
            return _Context(incident.id, "", (), incident.onset_seconds)
        because = because_words(hypothesis)
        return _Context(incident.id, because, hypothesis.evidence, incident.onset_seconds)

    def _confirm(
        self,
        action: Action,
        remedy: Remedy,
        subject: Subject,
        result: VerificationResult,
        now: float,
    ) -> None:
        took = now - subject.executed_seconds
        words = done_words(remedy, action.entity, action.parameters)
        reason = f"Proven after {took:.0f} s: {words}; {'; '.join(result.statements)}"
        self._close(action, ActionState.CONFIRMED, now, reason, result)

    def _fail(self, action: Action, remedy: Remedy, result: VerificationResult, now: float) -> None:
        take_back = remedy.rollback is RollbackWhen.FAILED or (
            remedy.rollback is RollbackWhen.WORSE and bool(result.worse)
        )
        if take_back and action.undo and not self._runner.is_full:
            self._failed[action.id] = result
            self._runner.start(JobKind.ROLL_BACK, action, remedy, now)
            return
        words = f"Not proven: {self._words(action)}; {self._why(result)}"
        self._close(action, ActionState.FAILED, now, words, result)

    def _close(
        self,
        action: Action,
        state: ActionState,
        now: float,
        reason: str,
        result: VerificationResult | None = None,
    ) -> None:
        proof = () if result is None else (*result.statements, *result.worse)
        try:
            self._ledger.transition(
                action.id, {ActionState.EXECUTED}, state, now=now, reason=reason, proof=proof
            )
        except WrongStateError as error:
            log.warning("verdict_raced", action_id=action.id, error=str(error))

    def _words(self, action: Action) -> str:
        return done_words(self._policy.actions[action.action], action.entity, action.parameters)

    @staticmethod
    def _why(result: VerificationResult) -> str:
        worse = f"; worse than before: {'; '.join(result.worse)}" if result.worse else ""
        return f"{result.missing or 'nothing could be measured'}{worse}"
