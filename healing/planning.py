"""Planning: which rung of the ladder is next, on what it acts, and with which parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.diagnosis.words import value_words
from analysis.findings import Direction, Evidence, Hypothesis, Incident
from analysis.history import History
from collectors.contract import SeriesKey
from collectors.signals import Kind, catalogue, unit_of
from healing.actions import Action, ActionState
from healing.executors.contract import Executor
from healing.ledger import related
from healing.policy import PAGE_HUMAN, MeasuredParameter, Policy, Remedy, When
from healing.verification import (
    BASELINE_GAP_SECONDS,
    BASELINE_SECONDS,
    BASELINE_VALUES,
    FRESH_SECONDS,
)

FRESH_WEIGHT_SHARE = 0.5
"""Share of the evidence's weight that has to be fresh."""


@dataclass(frozen=True, slots=True)
class Step:
    """One rung that could be taken: the remedy, its place and which try it is."""

    remedy: Remedy
    rung: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One step made concrete."""

    step: Step
    entity: str | None
    """What would be acted on; None where nothing here can."""
    parameters: Mapping[str, Any]
    missing_parameter: str = ""
    peers: int = 1


def ladder_of(hypothesis: Hypothesis) -> tuple[str, ...]:
    """Return the remedies of a cause, first rung first."""
    return hypothesis.remedies or ((hypothesis.action,) if hypothesis.action else ())


def open_steps(policy: Policy, hypothesis: Hypothesis, past: Sequence[Action]) -> Iterator[Step]:
    """Yield the rungs that are still open in an incident, in order, up to the call for a person.

    Args:
        policy: what each remedy may do.
        hypothesis: the leading cause with its ladder.
        past: every action of the incident so far. A remedy that was tried under another cause counts
            as tried; one that helped and was taken back does not.
    """
    for rung, name in enumerate(ladder_of(hypothesis)):
        remedy = policy.actions.get(name)
        if name == PAGE_HUMAN or remedy is None:
            # What the policy does not know cannot be done: that is for a person, too.
            break
        tried = [
            action
            for action in past
            if action.action == name
            and action.started_seconds is not None
            and action.state is not ActionState.UNDONE
        ]
        if len(tried) < remedy.attempts:
            yield Step(remedy, rung, len(tried) + 1)


def make_plan(
    step: Step,
    hypothesis: Hypothesis,
    incident: Incident,
    executors: Mapping[str, Executor],
    history: History,
) -> Plan:
    """Find what a step acts on and work out its parameters."""
    remedy = step.remedy
    executor = executors.get(remedy.executor)
    if executor is None or not executor.is_supported().supported:
        return Plan(step, None, {})
    entity = _target(executor, hypothesis, incident)
    parameters, missing = _parameters(step, entity, incident, history)
    return Plan(step, entity, parameters, missing, max(1, len(executor.entities)))


def stale_evidence(
    evidence: Sequence[Evidence], history: History, now: float, max_age_seconds: float
) -> str:
    """Return what of the evidence is too old to act on, in words; empty when it is fresh enough.

    A signal whose very absence is the evidence, and one that only exists while users ask, count by
    whether anything of their entity still arrives.
    """
    speaking = [item for item in evidence if item.weight > 0]
    if not speaking:
        return "there is no evidence to look at again"
    fresh = [item for item in speaking if _is_fresh(item, history, now, max_age_seconds)]
    share = sum(item.weight for item in fresh) / sum(item.weight for item in speaking)
    if share >= FRESH_WEIGHT_SHARE:
        return ""
    old = next(item for item in speaking if item not in fresh)
    return f"{old.signal} of {old.entity} is older than {max_age_seconds:.0f} s: nobody acts blind"


def not_asked_for(remedy: Remedy, entity: str, history: History) -> str:
    """Return, in words, that nobody asks for a remedy that has to be asked for; empty when one does.

    The conditions are looked for on what would be acted on and what belongs to it: a host is to be
    rebooted where one of its GPUs asks for it.
    """
    if not remedy.only_when:
        return ""
    measured = []
    for condition in remedy.only_when:
        for key in history.keys:
            if key.signal != condition.signal or not related(key.entity, entity):
                continue
            value = history.latest(key, max_age_seconds=FRESH_SECONDS)
            if value in condition.one_of:
                return ""
            if value is not None:
                words = value_words(value, unit_of(condition.signal), condition.signal)
                measured.append(f"{condition.signal} of {key.entity} is {words}")
    what = "; ".join(measured) or "nothing says what the device needs"
    return f"{remedy.name} is not asked for: {what}"


def identity(key: str) -> str:
    """Return an action's id, made from its idempotency key."""
    return f"act-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _target(executor: Executor, hypothesis: Hypothesis, incident: Incident) -> str | None:
    """Return what to act on for a cause, which may live on an entity of another kind.

    A hot GPU is eased by shedding load from the service whose symptoms are part of its incident: the
    cause's own entity comes first, then the incident's, then those that the evidence speaks of.
    """
    mentioned = [item.entity for item in hypothesis.evidence]
    anomalous = [anomaly.entity for anomaly in incident.anomalies]
    for entity in (hypothesis.entity, incident.entity, *mentioned, *anomalous):
        controlled = executor.controls(entity)
        if controlled is not None:
            return controlled
    # With one service or GPU on this machine there is no doubt which one is meant.
    return executor.entities[0] if len(executor.entities) == 1 else None


def _parameters(
    step: Step, entity: str | None, incident: Incident, history: History
) -> tuple[Mapping[str, Any], str]:
    resolved: dict[str, Any] = {}
    for name, given in step.remedy.parameters_of(step.attempt).items():
        if not isinstance(given, MeasuredParameter):
            resolved[name] = given
            continue
        measured = _measured(given, entity, incident, history)
        if measured is None:
            which = "present" if given.when is When.NOW else "normal"
            return resolved, f"{name} follows from {given.signal}, whose {which} value is not known"
        resolved[name] = round(max(given.at_least, given.times * measured), 2)
    return resolved, ""


def _measured(
    given: MeasuredParameter, entity: str | None, incident: Incident, history: History
) -> float | None:
    end = incident.onset_seconds - BASELINE_GAP_SECONDS
    for key in history.keys:
        if key.signal != given.signal or entity is None or not related(key.entity, entity):
            continue
        if given.when is When.NOW:
            return history.latest(key, max_age_seconds=FRESH_SECONDS)
        _, values = history.window(key, end - BASELINE_SECONDS, end)
        values = values[np.isfinite(values)]
        if values.size >= BASELINE_VALUES:
            return float(np.median(values))
    return None


def _is_fresh(item: Evidence, history: History, now: float, max_age_seconds: float) -> bool:
    seen = history.last_seen_seconds(SeriesKey(item.entity, item.signal))
    if seen is not None and now - seen <= max_age_seconds:
        return True
    known = catalogue().get(item.signal)
    comes_and_goes = known is not None and known.kind in {Kind.HISTOGRAM, Kind.RATIO, Kind.EVENT}
    if item.direction not in {Direction.ABSENT, Direction.EVENT} and not comes_and_goes:
        return False
    return any(
        now - (history.last_seen_seconds(key) or -np.inf) <= max_age_seconds
        for key in history.keys
        if key.entity == item.entity and not key.signal.startswith("canary_")
    )
