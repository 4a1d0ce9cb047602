"""The gate before an incident: groups of anomalies wait here until it is worth telling people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from analysis.diagnosis.causes import CauseCatalogue, Role
from analysis.diagnosis.ranking import Diagnosis
from analysis.findings import Anomaly, Verdict
from analysis.settings import IncidentSettings
from collectors.contract import SeriesKey

_log = structlog.get_logger(__name__)

Anomalies = dict[SeriesKey, Anomaly]


@dataclass(slots=True)
class _Pending:
    """A group of anomalies of which nobody has been told yet."""

    since_seconds: float
    last_seconds: float
    anomalies: Anomalies = field(default_factory=dict)
    leader: str = ""
    stable_ticks: int = 0
    symptom_since_seconds: float | None = None
    suppressed: bool = False


class OpeningGate:
    """Holds at most one waiting group for each stack, and says when it is to become an incident."""

    def __init__(self, settings: IncidentSettings, causes: CauseCatalogue) -> None:
        self._settings = settings
        self._causes = causes
        self._pending: dict[str, _Pending] = {}
        self._suppressed = 0

    @property
    def stacks(self) -> frozenset[str]:
        """The stacks in which a group waits."""
        return frozenset(self._pending)

    @property
    def suppressed(self) -> int:
        """How many groups diagnosis has called no fault."""
        return self._suppressed

    def onsets(self, stack: str) -> list[float]:
        """Return the onsets of a waiting group's anomalies."""
        pending = self._pending.get(stack)
        return [each.onset_seconds for each in pending.anomalies.values()] if pending else []

    def drop(self, stack: str) -> None:
        """Forget the group of a stack, because its anomalies belong to an open incident."""
        self._pending.pop(stack, None)

    def consider(
        self,
        stack: str,
        anomalies: Sequence[Anomaly],
        diagnosis: Diagnosis,
        is_left_over: Callable[[Anomalies], bool],
    ) -> Anomalies | None:
        """Take in one tick of a stack and return the group's anomalies once it is to be told.

        Args:
            stack: the stack.
            anomalies: what is active in it now.
            diagnosis: what that means.
            is_left_over: says whether a group is only what an incident that has ended left behind.
        """
        now = diagnosis.time_seconds
        pending = self._group(now, stack, anomalies)
        if pending is None:
            return None
        self._note_leader(now, pending, anomalies, diagnosis)
        if diagnosis.verdict is Verdict.NO_FAULT:
            self._note_suppressed(stack, pending, diagnosis)
            return None
        if not self._is_ready(now, pending, diagnosis, is_left_over):
            return None
        del self._pending[stack]
        return pending.anomalies

    def _group(self, now: float, stack: str, anomalies: Sequence[Anomaly]) -> _Pending | None:
        pending = self._pending.get(stack)
        if pending is None:
            if not anomalies:
                return None
            pending = self._pending[stack] = _Pending(now, now)
        if anomalies:
            pending.last_seconds = now
            merge_anomalies(pending.anomalies, anomalies)
        elif now - pending.last_seconds > self._settings.pending_hold_seconds:
            del self._pending[stack]
            return None
        return pending

    def _note_leader(
        self, now: float, pending: _Pending, anomalies: Sequence[Anomaly], diagnosis: Diagnosis
    ) -> None:
        leader = diagnosis.leading.cause
        pending.stable_ticks = pending.stable_ticks + 1 if leader == pending.leader else 1
        pending.leader = leader
        if not any(self._is_symptom(each) for each in anomalies):
            pending.symptom_since_seconds = None
        elif pending.symptom_since_seconds is None:
            pending.symptom_since_seconds = now

    def _note_suppressed(self, stack: str, pending: _Pending, diagnosis: Diagnosis) -> None:
        if pending.suppressed:
            return
        pending.suppressed = True
        self._suppressed += 1
        _log.info(
            "anomalies_suppressed",
            stack=stack,
            cause=diagnosis.leading.cause,
            confidence=round(diagnosis.leading.confidence, 3),
            signals=sorted({key.signal for key in pending.anomalies}),
        )

    def _is_ready(
        self,
        now: float,
        pending: _Pending,
        diagnosis: Diagnosis,
        is_left_over: Callable[[Anomalies], bool],
    ) -> bool:
        own = self._settings
        age = now - pending.since_seconds
        if diagnosis.verdict is Verdict.UNKNOWN:
            since = pending.symptom_since_seconds
            lasted = since is not None and now - since >= own.unknown_after_seconds
            return lasted and not is_left_over(pending.anomalies)
        if age < diagnosis.min_duration_seconds:
            return False
        sure = diagnosis.leading.confidence >= own.confident
        stable = pending.stable_ticks >= own.stable_ticks
        return sure or stable or age >= own.decide_after_seconds

    def _is_symptom(self, anomaly: Anomaly) -> bool:
        return any(
            each.role in {Role.SYMPTOM, Role.INTERNAL}
            and (each.level is not None or each.direction is anomaly.direction)
            for each in self._causes.for_signal(anomaly.signal)
        )


def merge_anomalies(kept: Anomalies, newer: Iterable[Anomaly]) -> None:
    """Keep each series' anomaly as it was at its worst, with its first onset.

    That it is a new level shows later than how bad it is, and is added.
    """
    for anomaly in newer:
        key = SeriesKey(anomaly.entity, anomaly.signal)
        before = kept.get(key)
        if before is None:
            kept[key] = anomaly
        elif anomaly.score > before.score:
            onset = min(anomaly.onset_seconds, before.onset_seconds)
            update = {"onset_seconds": onset, "shift": anomaly.shift or before.shift}
            kept[key] = anomaly.model_copy(update=update)
        elif anomaly.shift is not None and before.shift is None:
            kept[key] = before.model_copy(update={"shift": anomaly.shift})
