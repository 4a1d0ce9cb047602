"""Proof after acting: what must hold, for how long, and what the numbers say.

The verdict is worked out from the history alone at each tick and nothing is kept in between, so that
verification goes on where it was after a restart. Missing data is never proof.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.diagnosis.words import value_words
from analysis.findings import Direction, Evidence
from analysis.history import FloatArray, History
from collectors.contract import SeriesKey
from collectors.signals import Bad, Kind, Layer, catalogue, unit_of
from healing.ledger import related
from healing.policy import EVIDENCE, CheckRule, Policy, Verification

BASELINE_SECONDS = 300.0
"""How much of the time before the onset tells what is normal, where the evidence has no band."""
BASELINE_GAP_SECONDS = 5.0
BASELINE_VALUES = 10
ROBUST_DEVIATIONS = 4.0
"""Width of a normal band in robust standard deviations (1.4826 MAD); 4 is one false alarm in 30,000 of
a normal distribution."""
BAND_SLACK = 0.1
"""A value this share beyond its band's edge counts as back: bands are estimates."""
FRESH_SECONDS = 6.0
"""A series silent for longer says nothing of now; the slowest signal used here comes every 2 s."""
EVIDENCE_SHARE = 0.75
"""Share of the evidence's weight that has to be gone. Weights are log odds: without three quarters of
them the diagnosis would not be made."""
BEFORE_SECONDS = 5.0
"""How long before an action tells whether a check held before it."""
_MOST_SYMPTOMS_TOLD = 4
RELAPSE_SECONDS = 10.0
"""A check that fails for so long without a break after it was proven means that the symptom is back."""

Predicate = Callable[[FloatArray], NDArray[np.bool_]]


class CheckState(StrEnum):
    """What one check says now."""

    HOLDS = "holds"
    FAILS = "fails"
    UNMEASURED = "unmeasured"
    """No data, or not enough to say what is normal."""
    SKIPPED = "skipped"
    """There is nothing to check: the diagnosis rests on events only, for instance."""


class Proof(StrEnum):
    """What verification says as a whole."""

    PENDING = "pending"
    CONFIRMED = "confirmed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check, in numbers and in words."""

    name: str
    state: CheckState
    statement: str
    since_seconds: float | None = None
    """Since when it has been in this state."""


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """The verdict on one action."""

    proof: Proof
    checks: Sequence[CheckResult]
    worse: Sequence[str] = ()
    """Checks that held before the action and fail now, in words."""

    @property
    def statements(self) -> tuple[str, ...]:
        """Every check in words."""
        return tuple(check.statement for check in self.checks)

    @property
    def missing(self) -> str:
        """What keeps the proof from being complete, in words."""
        wanting = {CheckState.FAILS, CheckState.UNMEASURED}
        return "; ".join(check.statement for check in self.checks if check.state in wanting)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is verified."""

    entity: str
    verification: Verification
    evidence: Sequence[Evidence]
    onset_seconds: float
    executed_seconds: float
    from_seconds: float
    """When verification began: the time of execution, or later where Galen was restarted between."""


class _Reading(NamedTuple):
    """One series judged over the time since the action settled."""

    state: CheckState
    since_seconds: float | None = None
    """Since when it has been in this state without a break."""
    value: float | None = None


class _Band(NamedTuple):
    """What counts as well, as a test and in words."""

    holds: Predicate
    words: str


class Verifier:
    """Judges actions by the checks of a policy."""

    def __init__(self, policy: Policy) -> None:
        self._checks = policy.checks
        self._lagging = policy.lagging

    def verify(self, subject: Subject, history: History, now: float) -> VerificationResult:
        """Judge an action that has been executed.

        Returns:
            PENDING until the required checks have held for the hold time (CONFIRMED) or the deadline
            has passed (FAILED).
        """
        wanted = subject.verification
        required = [self._check(name, subject, history, now) for name in wanted.required]
        optional = [self._check(name, subject, history, now) for name in wanted.optional]
        told = [*required, *(one for one in optional if one.state is not CheckState.UNMEASURED)]
        if _is_proven(required, told, wanted.hold_seconds, now):
            return VerificationResult(Proof.CONFIRMED, told)
        if now < subject.from_seconds + wanted.deadline_seconds:
            return VerificationResult(Proof.PENDING, told)
        return VerificationResult(Proof.FAILED, told, self._worse(told, subject, history))

    def is_relapse(self, subject: Subject, history: History, now: float) -> bool:
        """Return whether a required check fails again, for a while, after the action was proven."""
        for name in subject.verification.required:
            check = self._check(name, subject, history, now)
            since = check.since_seconds
            if check.state is CheckState.FAILS and since and now - since >= RELAPSE_SECONDS:
                return True
        return False

    def blind_spots(self, entity: str, wanted: Verification, history: History) -> tuple[str, ...]:
        """Return the required checks that nothing measures on an entity."""
        return tuple(
            name
            for name in wanted.required
            if name != EVIDENCE
            and not any(
                history.latest(key, max_age_seconds=FRESH_SECONDS) is not None
                for key in _series(self._checks[name].signal, entity, history)
            )
        )

    def _check(self, name: str, subject: Subject, history: History, now: float) -> CheckResult:
        if name == EVIDENCE:
            return self._check_evidence(subject, history, now)
        rule = self._checks[name]
        start = subject.from_seconds + self._wait_seconds(rule.signal, subject, history)
        readings, words = [], ""
        for key in _series(rule.signal, subject.entity, history):
            band = _band_of_rule(rule, key, subject, history)
            if band is None:
                readings.append(_Reading(CheckState.UNMEASURED))
            else:
                readings.append(_read(history, key, band, start, now))
                words = band.words
        worst = _worst(readings)
        told = _told(rule.signal, worst, words, now)
        return CheckResult(name, worst.state, told, worst.since_seconds)

    def _check_evidence(self, subject: Subject, history: History, now: float) -> CheckResult:
        judged: list[_Judged] = []
        waiting = False
        for item in symptoms(subject):
            wait = self._wait_seconds(item.signal, subject, history)
            if now < subject.from_seconds + wait:
                waiting |= wait > subject.verification.settle_seconds
                continue
            found = _judge(item, subject, history, subject.from_seconds + wait, now)
            if found is not None:
                judged.append(found)
        if judged:
            # What another check says in words already is weighed, and not said again.
            wanted = subject.verification
            names = {*wanted.required, *wanted.optional} & self._checks.keys()
            return _weigh(judged, now, said={self._checks[name].signal for name in names})
        if waiting or now < subject.from_seconds + subject.verification.settle_seconds:
            words = "the symptoms: only values from before the action so far"
            return CheckResult(EVIDENCE, CheckState.UNMEASURED, words)
        words = "the symptoms: none that could be measured again"
        return CheckResult(EVIDENCE, CheckState.SKIPPED, words)

    def _wait_seconds(self, signal: str, subject: Subject, history: History) -> float:
        """Return how long after the action a signal tells of the time after it alone."""
        lagging = self._lagging
        settle = subject.verification.settle_seconds
        if signal not in lagging.signals:
            return settle
        key = SeriesKey(subject.entity, lagging.traffic_signal)
        _, rates = history.window(key, subject.from_seconds, np.inf)
        rates = rates[np.isfinite(rates)]
        sparse = not rates.size or float(np.median(rates)) < lagging.sparse_below_per_second
        return max(settle, lagging.sparse_window_seconds if sparse else lagging.window_seconds)

    def _worse(
        self, told: Sequence[CheckResult], subject: Subject, history: History
    ) -> tuple[str, ...]:
        """Return the checks that held all the time just before the action and fail now."""
        broken = []
        for check in told:
            rule = self._checks.get(check.name)
            if rule is None or check.state is not CheckState.FAILS:
                continue
            before: list[bool] = []
            for key in _series(rule.signal, subject.entity, history):
                band = _band_of_rule(rule, key, subject, history)
                end = subject.executed_seconds
                _, values = history.window(key, end - BEFORE_SECONDS, end)
                values = values[np.isfinite(values)]
                if band is not None:
                    before.extend(bool(held) for held in band.holds(values))
            if before and all(before):
                broken.append(f"{check.statement}, which held before the action")
        return tuple(broken)


class _Judged(NamedTuple):
    """One symptom and how it is now."""

    signal: str
    weight: float
    reading: _Reading
    words: str


def symptoms(subject: Subject) -> Sequence[Evidence]:
    """Return the evidence whose return to normal would show that an action helped.

    Left out are events and counters (what happened stays so), demand and configuration (no action
    changes them back), what the policy excludes, and what speaks against the diagnosis.
    """
    wanted = subject.verification
    strongest: dict[SeriesKey, Evidence] = {}
    for item in subject.evidence:
        known = catalogue().get(item.signal)
        lasting = known is None or known.kind not in {Kind.EVENT, Kind.COUNTER}
        external = known is not None and known.layer in {Layer.TRAFFIC, Layer.CONFIG}
        chosen = not wanted.only_signals or item.signal in wanted.only_signals
        deviates = item.direction in {Direction.UP, Direction.DOWN, Direction.ABSENT}
        if item.signal in wanted.ignore_signals or external:
            continue
        if item.weight > 0 and lasting and chosen and deviates:
            key = SeriesKey(item.entity, item.signal)
            if key not in strongest or strongest[key].weight < item.weight:
                strongest[key] = item
    return sorted(strongest.values(), key=lambda item: -item.weight)


def _is_proven(
    required: Sequence[CheckResult], told: Sequence[CheckResult], hold: float, now: float
) -> bool:
    if any(check.state in {CheckState.FAILS, CheckState.UNMEASURED} for check in told):
        return False
    if not any(check.state is CheckState.HOLDS for check in required):
        return False
    since = [check.since_seconds for check in told if check.since_seconds is not None]
    return now - max(since) >= hold


def _series(signal: str, entity: str, history: History) -> list[SeriesKey]:
    return [key for key in history.keys if key.signal == signal and related(key.entity, entity)]


def _read(history: History, key: SeriesKey, band: _Band, start: float, now: float) -> _Reading:
    times, values = history.window(key, start, np.inf)
    present = np.isfinite(values)
    times, values = times[present], values[present]
    if not times.size or now - times[-1] > FRESH_SECONDS:
        return _Reading(CheckState.UNMEASURED)
    held = band.holds(values)
    changed = np.flatnonzero(held != held[-1])
    since = float(times[changed[-1] + 1 if changed.size else 0])
    state = CheckState.HOLDS if held[-1] else CheckState.FAILS
    return _Reading(state, since, float(values[-1]))


def _worst(readings: Sequence[_Reading]) -> _Reading:
    """Return the reading that decides for several series: all of them have to hold."""
    for state in (CheckState.FAILS, CheckState.UNMEASURED):
        found = [reading for reading in readings if reading.state is state]
        if found:
            return min(found, key=lambda reading: reading.since_seconds or 0.0)
    if not readings:
        return _Reading(CheckState.UNMEASURED)
    return max(readings, key=lambda reading: reading.since_seconds or 0.0)


def _band_of_rule(
    rule: CheckRule, key: SeriesKey, subject: Subject, history: History
) -> _Band | None:
    unit = unit_of(rule.signal)
    if rule.at_least is not None:
        return _at_least(rule.at_least, _limit_words("at least", rule.at_least, unit))
    if rule.at_most is not None:
        return _at_most(rule.at_most, _limit_words("at most", rule.at_most, unit))
    known = next(
        (i for i in subject.evidence if (i.entity, i.signal) == key and _edge_of(i) is not None),
        None,
    )
    if known is not None:
        return _band_of_evidence(known, subject, history)
    falls = catalogue()[rule.signal].bad_direction is Bad.DOWN
    edge = _edge_from_history(key, subject, history, upper=not falls)
    return None if edge is None else _normal(edge, rule.signal, upper=not falls)


def _judge(
    item: Evidence, subject: Subject, history: History, start: float, now: float
) -> _Judged | None:
    """Judge one symptom; None where nobody can say what is normal or there is nothing to measure."""
    band = _band_of_evidence(item, subject, history)
    if band is None:
        return None
    key = SeriesKey(item.entity, item.signal)
    reading = _read(history, key, band, start, now)
    if reading.state is CheckState.UNMEASURED and _needs_traffic(item, history):
        return None
    return _Judged(item.signal, item.weight, reading, _told(item.signal, reading, band.words, now))


def _band_of_evidence(item: Evidence, subject: Subject, history: History) -> _Band | None:
    if item.direction is Direction.ABSENT:
        return _Band(np.isfinite, "arrives again")
    upper = item.direction is not Direction.DOWN
    key = SeriesKey(item.entity, item.signal)
    edge = _edge_of(item)
    if edge is None:
        edge = _edge_from_history(key, subject, history, upper=upper)
    if edge is None:
        return None
    share = subject.verification.relief_share
    if share < 1:
        _, values = history.window(key, subject.onset_seconds, subject.executed_seconds)
        values = values[np.isfinite(values)]
        worst = edge if not values.size else float(values.max() if upper else values.min())
        excess = max(0.0, worst - edge) if upper else min(0.0, worst - edge)
        edge += (1 - share) * excess
    return _normal(edge, item.signal, upper=upper)


def _edge_of(item: Evidence) -> float | None:
    edge = item.low if item.direction is Direction.DOWN else item.high
    return item.baseline if edge is None else edge


def _edge_from_history(
    key: SeriesKey, subject: Subject, history: History, *, upper: bool
) -> float | None:
    end = subject.onset_seconds - BASELINE_GAP_SECONDS
    _, values = history.window(key, end - BASELINE_SECONDS, end)
    values = values[np.isfinite(values)]
    if values.size < BASELINE_VALUES:
        return None
    middle = float(np.median(values))
    width = ROBUST_DEVIATIONS * 1.4826 * float(np.median(np.abs(values - middle)))
    return middle + width if upper else middle - width


def _normal(edge: float, signal: str, *, upper: bool) -> _Band:
    known = catalogue().get(signal)
    slack = max(BAND_SLACK * abs(edge), known.deadband if known else 0.0)
    words = value_words(edge, unit_of(signal), signal)
    if upper:
        return _at_most(edge + slack, f"normal up to {words}")
    return _at_least(edge - slack, f"normal from {words}")


def _limit_words(relation: str, limit: float, unit: str) -> str:
    words = value_words(limit, unit)
    return f"has to be {words}" if unit == "bool" else f"{relation} {words}"


def _at_least(limit: float, words: str) -> _Band:
    return _Band(lambda values: values >= limit, words)


def _at_most(limit: float, words: str) -> _Band:
    return _Band(lambda values: values <= limit, words)


def _needs_traffic(item: Evidence, history: History) -> bool:
    """Return whether a value is absent because no user asks, while its source does deliver."""
    known = catalogue().get(item.signal)
    if known is None or known.kind not in {Kind.HISTOGRAM, Kind.RATIO}:
        return False
    if item.direction is Direction.ABSENT or item.signal.startswith("canary_"):
        return False
    return any(
        history.latest(key, max_age_seconds=FRESH_SECONDS) is not None
        for key in history.keys
        if key.entity == item.entity and not key.signal.startswith("canary_")
    )


def _weigh(judged: Sequence[_Judged], now: float, said: Collection[str]) -> CheckResult:
    """Judge the symptoms together, each by its weight in the diagnosis."""
    total = sum(one.weight for one in judged)
    news = [one.words for one in judged if one.signal not in said]
    told = "; ".join(news[:_MOST_SYMPTOMS_TOLD]) or "the symptoms are among these"
    for state, share in (
        (CheckState.HOLDS, EVIDENCE_SHARE),
        (CheckState.FAILS, 1 - EVIDENCE_SHARE + 1e-9),
    ):
        counted = 0.0
        matching = [one for one in judged if one.reading.state is state]
        for one in sorted(matching, key=lambda each: each.reading.since_seconds or now):
            counted += one.weight
            if counted >= share * total:
                return CheckResult(EVIDENCE, state, told, one.reading.since_seconds)
    return CheckResult(EVIDENCE, CheckState.UNMEASURED, told)


def _told(signal: str, reading: _Reading, limit: str, now: float) -> str:
    if reading.value is None or reading.since_seconds is None:
        return f"{signal}: no value since the action"
    value = value_words(reading.value, unit_of(signal), signal)
    verb = "for" if reading.state is CheckState.HOLDS else "not so for"
    return f"{signal} {value} ({limit}, {verb} {now - reading.since_seconds:.0f} s)"
