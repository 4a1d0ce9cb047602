"""Incidents: which anomalies belong together, when to tell, and when it is over.

Anomalies of one stack (a host, its GPUs, the services on it and their collectors) belong together. A
group opens an incident when diagnosis calls it a fault, or when a symptom lasts that no cause explains;
what diagnosis calls a change of load or a planned restart opens nothing. While an incident is open its
diagnosis keeps the best explanation seen, because remedies and recovery change the picture.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from analysis.detection.contract import Detections
from analysis.detection.states import readings
from analysis.diagnosis.causes import Cause, Role
from analysis.diagnosis.context import BeforeAndNow
from analysis.diagnosis.evidence import is_event
from analysis.diagnosis.memory import EvidenceMemory, StatesOverlay
from analysis.diagnosis.ranking import Diagnoser, Diagnosis
from analysis.findings import Anomaly, Incident, IncidentState, Severity, Verdict
from analysis.homes import OpenOn, homes
from analysis.incident_changes import (
    ChangeKind,
    IncidentChange,
    IncidentTick,
    cause_words,
    change_of,
    incident_id,
)
from analysis.incident_opening import Anomalies, OpeningGate, merge_anomalies
from analysis.settings import IncidentSettings
from analysis.topology import Topology, reads_gpus
from collectors.contract import SeriesKey
from collectors.entities import kind_of

_SEVERITIES = (Severity.INFO, Severity.WARNING, Severity.CRITICAL)
_HOLDING_RATIO = 2.5
"""A signal keeps an incident open when the cause makes it this much more likely than the background."""
_KEPT_RESOLVED = 20
_OWN_REMEDY, _IN_FORCE = "own_remedy", "healing_actions_in_force"


@dataclass(slots=True)
class _Open:
    """An open incident and what is needed to change it calmly."""

    incident: Incident
    stack: str
    on_gpu: bool
    clear_since_seconds: float | None = None
    hidden_since_seconds: float | None = None
    challenger: str = ""
    challenger_ticks: int = 0


@dataclass(slots=True)
class _Told:
    """What one tick collects for its result."""

    changes: list[IncidentChange] = field(default_factory=list)
    refreshed: list[Incident] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _View:
    """One stack at one tick."""

    stack: str
    members: frozenset[str]
    visible: Collection[str]
    """Entities of which something was measured now."""
    remembered: Detections
    told: _Told


class IncidentTracker:
    """The state machine of incidents. Call :meth:`tick` once a tick, with times that never go back.

    Args:
        settings: the debouncing.
        diagnoser: explains groups of anomalies.
        memory: what diagnosis remembers of the recent past.
        context: says what else changed since the first symptom; nothing is added when left out.
    """

    def __init__(
        self,
        settings: IncidentSettings,
        diagnoser: Diagnoser,
        memory: EvidenceMemory,
        context: BeforeAndNow | None = None,
    ) -> None:
        self._settings = settings
        self._diagnoser = diagnoser
        self._memory = memory
        self._context = context
        self._gate = OpeningGate(settings, diagnoser.causes)
        self._open: list[_Open] = []
        self._resolved: list[_Open] = []

    @property
    def open_incidents(self) -> tuple[Incident, ...]:
        """The incidents that are open, the oldest first."""
        return tuple(each.incident for each in self._open)

    @property
    def suppressed(self) -> int:
        """How many groups of anomalies diagnosis has called no fault."""
        return self._gate.suppressed

    def restore(self, incidents: Iterable[Incident]) -> None:
        """Take up open incidents again, such as after a restart of the watch loop."""
        for incident in sorted(incidents, key=lambda each: (each.opened_seconds, each.id)):
            topology = Topology([incident.entity, *(each.entity for each in incident.anomalies)])
            on_gpu = bool(incident.anomalies) and all(map(_on_gpu_side, incident.anomalies))
            self._open.append(_Open(incident, topology.stack_of(incident.entity), on_gpu))

    def tick(self, detections: Detections) -> IncidentTick:
        """Move every incident on by one tick."""
        now = detections.time_seconds
        remembered = self._memory.remember(detections)
        topology = self._diagnoser.topology({key.entity for key in remembered.states})
        home = self._place(topology, detections.anomalies)
        by_stack: dict[str, list[Anomaly]] = {}
        for anomaly in detections.anomalies:
            stack = topology.stack_of(anomaly.entity)
            by_stack.setdefault(home.get(stack, stack), []).append(anomaly)
        stacks = set(by_stack) | {each.stack for each in self._open} | self._gate.stacks
        visible = {key.entity for key, *_ in readings(detections.states)}
        told = _Told()
        for stack in sorted(stacks):
            anomalies = self._without_old_events(stack, by_stack.get(stack, []))
            guests = (topology.members(guest) for guest, host in home.items() if host == stack)
            members = topology.reach(stack).union(*guests)
            view = _View(
                stack=stack,
                members=members,
                visible=visible,
                remembered=self._with_context(stack, members, anomalies, remembered),
                told=told,
            )
            self._tick_stack(view, anomalies)
            self._forget_resolved(now, stack, members)
        return IncidentTick(self.open_incidents, tuple(told.changes), tuple(told.refreshed))

    def _place(self, topology: Topology, anomalies: Sequence[Anomaly]) -> Mapping[str, str]:
        """Put every open incident on its stack, and return which stacks are part of another now."""
        opened = [
            OpenOn(each.incident, topology.stack_of(each.incident.entity), each.on_gpu)
            for each in self._open
        ]
        home = homes(topology, anomalies, opened, join_seconds=self._settings.join_seconds)
        for each, now in zip(self._open, opened, strict=True):
            each.stack = home.get(now.stack, now.stack)
        return home

    def _with_context(
        self,
        stack: str,
        members: Collection[str],
        anomalies: Sequence[Anomaly],
        remembered: Detections,
    ) -> Detections:
        onsets = [each.incident.onset_seconds for each in self._open if each.stack == stack]
        onsets += [each.onset_seconds for each in anomalies]
        onsets += self._gate.onsets(stack)
        if self._context is None or not onsets:
            return remembered
        changed = self._context.states(remembered, members, min(onsets))
        return replace(remembered, states=StatesOverlay(changed, remembered.states))

    def _tick_stack(self, view: _View, anomalies: Sequence[Anomaly]) -> None:
        """Move one stack on: as one incident, or as a GPU's and the service's beside each other."""
        opened = [each for each in self._open if each.stack == view.stack]
        on_gpu = next((each for each in opened if each.on_gpu), None)
        main = next((each for each in opened if not each.on_gpu), None)
        if on_gpu is None:
            self._tick_side(view, main, anomalies, self._diagnose(view))
            return
        felt = [each for each in anomalies if not _on_gpu_side(each)]
        rest = self._diagnose(view, explained_by=on_gpu) if felt or main is not None else None
        is_separate = rest is not None and rest.verdict is Verdict.FAULT
        if main is not None or is_separate:
            self._tick_side(view, main, felt, rest)
            anomalies = [each for each in anomalies if _on_gpu_side(each)]
        else:
            self._gate.drop(view.stack)
        whole = self._diagnose(view)
        concerns_gpu = self._cause(whole.leading.cause).entity_kind == "gpu"
        self._tick_incident(view, on_gpu, anomalies, whole if concerns_gpu else None)

    def _diagnose(self, view: _View, *, explained_by: _Open | None = None) -> Diagnosis:
        leading = explained_by.incident.leading if explained_by is not None else None
        return self._diagnoser.diagnose(
            view.remembered.time_seconds,
            view.remembered,
            view.members,
            explained_by=leading.cause if leading is not None else None,
        )

    def _tick_side(
        self,
        view: _View,
        tracked: _Open | None,
        anomalies: Sequence[Anomaly],
        diagnosis: Diagnosis | None,
    ) -> None:
        if tracked is not None:
            self._gate.drop(view.stack)
            self._tick_incident(view, tracked, anomalies, diagnosis)
        elif diagnosis is not None:
            self._consider_opening(view, anomalies, diagnosis)

    def _tick_incident(
        self,
        view: _View,
        tracked: _Open,
        anomalies: Sequence[Anomaly],
        diagnosis: Diagnosis | None,
    ) -> None:
        if diagnosis is not None:
            self._consider(tracked, anomalies, diagnosis, view.told)
        # What nobody can see is not known to be over.
        now = view.remembered.time_seconds
        if tracked.incident.entity not in view.visible:
            tracked.clear_since_seconds = None
            self._consider_abandoning(now, tracked, view.told)
            return
        tracked.hidden_since_seconds = None
        remedied = self._remedied(view.remembered)
        if any(
            self._holds(tracked, each) and not self._is_meant(each, remedied) for each in anomalies
        ):
            tracked.clear_since_seconds = None
        else:
            self._consider_end(now, tracked, view.told)

    # --- opening ---------------------------------------------------------------------------------

    def _consider_opening(
        self, view: _View, anomalies: Sequence[Anomaly], diagnosis: Diagnosis
    ) -> None:
        ready = self._gate.consider(
            view.stack, anomalies, diagnosis, partial(self._is_left_over, view.stack)
        )
        if ready is not None:
            view.told.changes.append(self._open_incident(view.stack, ready, diagnosis))

    def _is_left_over(self, stack: str, group: Anomalies) -> bool:
        """Say whether everything in a group was already part of an incident that has ended."""
        known = {
            SeriesKey(anomaly.entity, anomaly.signal): each.incident.resolved_seconds or 0.0
            for each in self._resolved
            if each.stack == stack
            for anomaly in each.incident.anomalies
        }
        return all(
            anomaly.onset_seconds <= known.get(key, float("-inf")) for key, anomaly in group.items()
        )

    def _open_incident(self, stack: str, group: Anomalies, diagnosis: Diagnosis) -> IncidentChange:
        now, leading = diagnosis.time_seconds, diagnosis.leading
        anomalies = self._limited(group)
        on_gpu = all(_on_gpu_side(each) for each in anomalies)
        again = self._recent_twin(now, leading.cause, leading.entity)
        if again is not None:
            self._resolved.remove(again)
            incident = again.incident.model_copy(
                update={
                    "state": IncidentState.OPEN,
                    "resolved_seconds": None,
                    "updated_seconds": now,
                    "hypotheses": diagnosis.hypotheses,
                    "anomalies": anomalies,
                }
            )
            self._open.append(_Open(incident, stack, again.on_gpu))
            return change_of(ChangeKind.REOPENED, incident, f"Again: {cause_words(incident)}")
        incident = Incident(
            id=incident_id(now, stack, leading.cause),
            state=IncidentState.OPEN,
            severity=diagnosis.severity,
            verdict=diagnosis.verdict,
            title=leading.title,
            entity=leading.entity,
            onset_seconds=min(each.onset_seconds for each in anomalies),
            opened_seconds=now,
            updated_seconds=now,
            anomalies=anomalies,
            hypotheses=diagnosis.hypotheses,
            simulated=_is_simulated(anomalies, diagnosis),
        )
        self._open.append(_Open(incident, stack, on_gpu))
        return change_of(ChangeKind.OPENED, incident, cause_words(incident))

    def _recent_twin(self, now: float, cause: str, entity: str) -> _Open | None:
        for each in reversed(self._resolved):
            incident, leading = each.incident, each.incident.leading
            ended = incident.resolved_seconds or 0.0
            same = leading is not None and (leading.cause, leading.entity) == (cause, entity)
            if same and now - ended <= self._settings.reopen_within_seconds:
                return each
        return None

    # --- while open ------------------------------------------------------------------------------

    def _consider(
        self, tracked: _Open, anomalies: Sequence[Anomaly], diagnosis: Diagnosis, told: _Told
    ) -> None:
        now, incident = diagnosis.time_seconds, tracked.incident
        replaced = self._is_replaced(tracked, diagnosis)
        worse = diagnosis.verdict is Verdict.FAULT and _rank(diagnosis) > _rank(incident)
        merged = {SeriesKey(each.entity, each.signal): each for each in incident.anomalies}
        merge_anomalies(merged, anomalies)
        update = self._update_of(incident, self._limited(merged), diagnosis, replaced=replaced)
        due = now - incident.updated_seconds >= self._settings.refresh_seconds
        if not (replaced or worse or (update and due)):
            return
        changed = incident.model_copy(update={**update, "updated_seconds": now})
        tracked.incident = changed
        if replaced:
            before = incident.leading.title if incident.leading is not None else "not known"
            words = f"{cause_words(changed)} Before: {before}."
            told.changes.append(change_of(ChangeKind.UPDATED, changed, words))
        elif worse:
            words = f"Now {changed.severity.value}: {cause_words(changed)}"
            told.changes.append(change_of(ChangeKind.UPDATED, changed, words))
        else:
            told.refreshed.append(changed)

    @staticmethod
    def _update_of(
        incident: Incident,
        anomalies: tuple[Anomaly, ...],
        diagnosis: Diagnosis,
        *,
        replaced: bool,
    ) -> dict[str, Any]:
        """Return the fields that this tick's diagnosis changes; what is known only gets worse."""
        old, new = incident.leading, diagnosis.leading
        surer = old is not None and new.cause == old.cause and new.confidence > old.confidence
        update: dict[str, Any] = {}
        shifted = _shifts(anomalies) > _shifts(incident.anomalies)
        if len(anomalies) > len(incident.anomalies) or surer or replaced or shifted:
            update["anomalies"] = anomalies
        if replaced or surer:
            update["hypotheses"] = diagnosis.hypotheses
            update["simulated"] = _is_simulated(anomalies, diagnosis)
        if replaced:
            update["verdict"] = diagnosis.verdict
            update["title"], update["entity"] = new.title, new.entity
        if diagnosis.verdict is Verdict.FAULT and _rank(diagnosis) > _rank(incident):
            update["severity"] = diagnosis.severity
        return update

    def _is_replaced(self, tracked: _Open, diagnosis: Diagnosis) -> bool:
        """Say whether another cause has led for long enough and surely enough.

        Recovery and remedies show as planned restarts or as nothing at all; neither replaces what was
        wrong. Only a fault does.
        """
        incident, leading = tracked.incident, tracked.incident.leading
        challenger = diagnosis.leading
        if (
            diagnosis.verdict is not Verdict.FAULT
            or (leading is not None and challenger.cause == leading.cause)
            or challenger.confidence < self._settings.change_confidence
        ):
            tracked.challenger, tracked.challenger_ticks = "", 0
            return False
        ticks = tracked.challenger_ticks + 1 if challenger.cause == tracked.challenger else 1
        tracked.challenger, tracked.challenger_ticks = challenger.cause, ticks
        needed = self._settings.change_ticks
        if incident.verdict is Verdict.UNKNOWN:
            needed = min(needed, self._settings.stable_ticks)
        return ticks >= needed

    def _consider_end(self, now: float, tracked: _Open, told: _Told) -> None:
        if tracked.clear_since_seconds is None:
            tracked.clear_since_seconds = now
        if now - tracked.clear_since_seconds >= self._settings.resolve_after_seconds:
            lasted = now - tracked.incident.onset_seconds
            self._close(now, tracked, told, f"Over after {lasted:.0f} s: {tracked.incident.title}.")

    def _consider_abandoning(self, now: float, tracked: _Open, told: _Told) -> None:
        if tracked.hidden_since_seconds is None:
            tracked.hidden_since_seconds = now
        if now - tracked.hidden_since_seconds >= self._settings.abandon_after_seconds:
            entity, title = tracked.incident.entity, tracked.incident.title
            words = (
                f"Closed without being seen to end, nothing measures {entity} any more: {title}."
            )
            self._close(now, tracked, told, words)

    def _close(self, now: float, tracked: _Open, told: _Told, words: str) -> None:
        update = {
            "state": IncidentState.RESOLVED,
            "resolved_seconds": now,
            "updated_seconds": now,
        }
        incident = tracked.incident.model_copy(update=update)
        self._open.remove(tracked)
        self._resolved = [*self._resolved, _Open(incident, tracked.stack, tracked.on_gpu)]
        self._resolved = self._resolved[-_KEPT_RESOLVED:]
        # What this tick added to it is in the change: written down after it, it would open it again.
        told.refreshed = [each for each in told.refreshed if each.id != incident.id]
        told.changes.append(change_of(ChangeKind.RESOLVED, incident, words))

    def _holds(self, tracked: _Open, anomaly: Anomaly) -> bool:
        """Say whether an anomaly keeps an incident open: what it did to users, or what its cause does.

        An event has happened and cannot end; what follows demand does not wait for a remedy; and what
        nobody can see is not known to be over.
        """
        if is_event(anomaly.signal):
            return False
        matching = [
            each
            for each in self._diagnoser.causes.for_signal(anomaly.signal)
            if each.level is not None or each.direction is anomaly.direction
        ]
        if any(each.role is Role.SYMPTOM or each.group == "scrape" for each in matching):
            return True
        leading = tracked.incident.leading
        cause = self._cause(leading.cause) if leading is not None else None
        if cause is None or not cause.expects:
            return not any(each.role is Role.LOAD for each in matching)
        return any(
            cause.expects.get(each.name, 0.0) >= _HOLDING_RATIO * each.background
            for each in matching
        )

    @staticmethod
    def _remedied(detections: Detections) -> frozenset[str]:
        """Return the entities on which a remedy of Galen's own stands."""
        return frozenset(
            key.entity
            for key in detections.states
            if key.signal == _IN_FORCE and (detections.states[key].observed or 0.0) > 0
        )

    def _is_meant(self, anomaly: Anomaly, remedied: Collection[str]) -> bool:
        """Say whether an anomaly is what a standing remedy does, such as a low clock under a low limit.

        Were the incident held by that, the remedy would wait for its end and it for the remedy's.
        """
        meant = self._cause(_OWN_REMEDY).expects
        return anomaly.entity in remedied and any(
            each.name in meant
            for each in self._diagnoser.causes.for_signal(anomaly.signal)
            if each.level is not None or each.direction is anomaly.direction
        )

    # --- helpers ---------------------------------------------------------------------------------

    def _cause(self, name: str) -> Cause:
        # The journal may hold a cause that an older catalogue knew.
        causes = self._diagnoser.causes.causes
        return causes.get(name, causes["unknown"])

    def _without_old_events(self, stack: str, anomalies: Sequence[Anomaly]) -> list[Anomaly]:
        """Leave out events that an incident which is over has already accounted for."""
        ends = [
            each.incident.resolved_seconds or 0.0 for each in self._resolved if each.stack == stack
        ]
        last_end = max(ends, default=float("-inf"))
        return [
            each
            for each in anomalies
            if not (is_event(each.signal) and each.onset_seconds <= last_end)
        ]

    def _forget_resolved(self, now: float, stack: str, members: Iterable[str]) -> None:
        ended_now = any(
            each.stack == stack and each.incident.resolved_seconds == now for each in self._resolved
        )
        if ended_now and not any(each.stack == stack for each in self._open):
            self._memory.forget(set(members), now)

    def _limited(self, anomalies: Mapping[SeriesKey, Anomaly]) -> tuple[Anomaly, ...]:
        strongest = sorted(anomalies.values(), key=lambda each: -each.score)
        kept = strongest[: self._settings.max_anomalies]
        return tuple(sorted(kept, key=lambda each: (each.onset_seconds, each.entity, each.signal)))


def _on_gpu_side(anomaly: Anomaly) -> bool:
    return kind_of(anomaly.entity) in {"gpu", "mig"} or reads_gpus(anomaly.entity)


def _shifts(anomalies: Iterable[Anomaly]) -> int:
    return sum(each.shift is not None for each in anomalies)


def _rank(rated: Diagnosis | Incident) -> int:
    return _SEVERITIES.index(rated.severity)


def _is_simulated(anomalies: Iterable[Anomaly], diagnosis: Diagnosis) -> bool:
    listed = tuple(anomalies)
    told = any(each.simulated for each in diagnosis.leading.evidence)
    return told or (bool(listed) and all(each.simulated for each in listed))
