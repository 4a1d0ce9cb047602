"""From the states of series to evidence: which observations of the catalogue are there, and how surely.

An observation about an entity is answered from the entity's own series where it has one, else from
those of its relatives. The answer is a strength from 0 (looked, and not there) to 1 (there), or unknown:
a series that nothing delivers now, because its collector is down or it has no baseline yet, says
nothing for or against any cause. An absent value is never read as a healthy one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from analysis.detection.contract import SignalState
from analysis.diagnosis.causes import CauseCatalogue, Observation, Role
from analysis.diagnosis.settings import DiagnosisSettings
from analysis.diagnosis.words import ahead_words, clock_words, range_words, value_words
from analysis.findings import Direction, Evidence
from analysis.topology import Topology
from collectors.contract import SeriesKey
from collectors.signals import Kind, unit_of
from collectors.signals import catalogue as signal_catalogue

_MOST_VALUES_TOLD = 6
SEEN_STRENGTH = 0.5
"""From this strength an observation is spoken of as seen."""


@dataclass(frozen=True, slots=True)
class Observed:
    """The answer to one observation. ``strength`` is None where nothing is known."""

    observation: Observation
    strength: float | None
    state: SignalState | None = None

    @property
    def seen(self) -> bool:
        """Say whether the observation is there."""
        return self.strength is not None and self.strength >= SEEN_STRENGTH


class EvidenceReader:
    """Answers the catalogue's observations for one tick.

    Args:
        settings: which scores count as seen.
        causes: the catalogue whose observations are asked.
        topology: where to look beside the entity itself.
        states: every series, as detection (or the memory over it) sees it.
    """

    def __init__(
        self,
        settings: DiagnosisSettings,
        causes: CauseCatalogue,
        topology: Topology,
        states: Mapping[SeriesKey, SignalState],
    ) -> None:
        self._settings = settings
        self._causes = causes
        self._topology = topology
        self._by_signal: dict[str, dict[str, SignalState]] = {}
        for key, state in states.items():
            self._by_signal.setdefault(key.signal, {})[key.entity] = state
        self._dead_collectors = self._find_dead_collectors()

    def about(self, entity: str) -> dict[str, Observed]:
        """Answer every observation for a cause that lives on ``entity``."""
        return {
            name: self._answer(observation, self._states_for(observation.signal, entity))
            for name, observation in self._causes.observations.items()
        }

    def about_all(self, entities: Collection[str]) -> dict[str, Observed]:
        """Answer every observation for a set of entities as a whole: the strongest answer of any."""
        return {
            name: self._answer(
                observation,
                [
                    state
                    for entity, state in self._by_signal.get(observation.signal, {}).items()
                    if entity in entities
                ],
            )
            for name, observation in self._causes.observations.items()
        }

    def _states_for(self, signal: str, entity: str) -> list[SignalState]:
        holders = self._by_signal.get(signal, {})
        if entity in holders:
            return [holders[entity]]
        return [holders[other] for other in self._topology.related(entity) if other in holders]

    def _answer(self, observation: Observation, states: Iterable[SignalState]) -> Observed:
        best = Observed(observation, None)
        for state in sorted(states, key=lambda each: each.key):
            strength = self._strength(observation, state)
            if strength is not None and (best.strength is None or strength > best.strength):
                best = Observed(observation, strength, state)
        return best

    def _strength(self, observation: Observation, state: SignalState) -> float | None:
        if self._is_blind(state):
            return None
        if observation.level is not None:
            if state.observed is None or not math.isfinite(state.observed):
                return None
            holds = 1.0 if observation.level.holds(state.observed) else 0.0
            if not observation.also_deviates or not holds:
                return holds
        return self._deviation(observation, state)

    def _deviation(self, observation: Observation, state: SignalState) -> float | None:
        if state.direction is Direction.ABSENT and observation.direction is not Direction.ABSENT:
            return None
        weak, strong = self._settings.weak_score, self._settings.strong_score
        ramp = (state.score - weak) / max(strong - weak, 1e-9)
        strength = min(1.0, max(0.0, ramp))
        if state.active:
            # The alert policy has looked at how long it lasts as well.
            strength = max(strength, self._settings.active_strength)
        if state.direction is observation.direction:
            return strength
        if state.direction is Direction.EVENT and strength > 0:
            return strength
        # Without a baseline, "not deviating" only means that nobody knows what normal is.
        return 0.0 if state.warmed_up else None

    def _is_blind(self, state: SignalState) -> bool:
        source = self._topology.source_of(state.key.entity, state.key.signal)
        if source is None or source not in self._dead_collectors:
            return False
        # What came with the failure itself, such as the state of a GPU that hangs, is what it knows.
        if state.observed is not None and state.age_seconds <= self._dead_collectors[source]:
            return False
        # An event that arrived before the collector died did happen.
        return not (is_event(state.key.signal) and bool(state.observed))

    def _find_dead_collectors(self) -> Mapping[str, float]:
        """Return the collectors whose last call failed, with the age of that word in seconds."""
        return {
            entity: state.age_seconds
            for entity, state in self._by_signal.get("scrape_success", {}).items()
            if state.observed is None or state.observed < 0.5
        }


def is_event(signal: str) -> bool:
    """Say whether a signal is an event, which counts although it lasts one tick only."""
    known = signal_catalogue().get(signal)
    return known is not None and known.kind is Kind.EVENT


def earliest_symptom(observed: Iterable[Observed]) -> float | None:
    """Return the onset of the first symptom that is seen, None where there is none."""
    onsets = [
        each.state.onset_seconds
        for each in observed
        if each.seen
        and each.observation.role is Role.SYMPTOM
        and each.state is not None
        and each.state.onset_seconds is not None
    ]
    return min(onsets, default=None)


def to_evidence(
    observed: Observed, weight: float, *, expected: bool, simulated: bool = False
) -> Evidence:
    """Turn an answer into the record that people read.

    Args:
        observed: an answer that has a state.
        weight: what it adds to the log-odds, in nats.
        expected: whether the cause expects the observation, or expects it not to be there.
        simulated: whether a simulated device gave the value.
    """
    state = observed.state
    if state is None:
        raise ValueError(f"{observed.observation.name} has no series to speak of")
    unit = unit_of(state.key.signal)
    return Evidence(
        entity=state.key.entity,
        signal=state.key.signal,
        unit=unit,
        direction=_direction(observed),
        baseline=state.expected,
        observed=state.observed,
        low=state.low,
        high=state.high,
        score=state.score,
        onset_seconds=state.onset_seconds,
        weight=weight,
        statement=_statement(observed, state, unit, expected=expected),
        simulated=simulated,
    )


def _direction(observed: Observed) -> Direction:
    if not observed.seen:
        return Direction.NORMAL
    state = observed.state
    if state is not None and state.direction is not Direction.NORMAL:
        return state.direction
    return observed.observation.direction


def _statement(observed: Observed, state: SignalState, unit: str, *, expected: bool) -> str:
    label = observed.observation.label
    signal = state.key.signal
    value = "no value" if state.observed is None else value_words(state.observed, unit, signal)
    usual = range_words(state.low, state.high, state.expected, unit, signal)
    normally = f", {usual}" if usual else ""
    if observed.seen:
        since = f", since {clock_words(state.onset_seconds)}" if state.onset_seconds else ""
        ahead = f", {ahead_words(state.exhaustion, unit, signal)}" if state.exhaustion else ""
        return f"{label} {value}{normally}{since}{ahead}"
    if expected:
        wanted = _expectation(observed.observation, unit)
        return f"expected and not seen: {label} {wanted}; it is {value}{normally}"
    return f"{label} is as it should be: {value}{normally}"


def _expectation(observation: Observation, unit: str) -> str:
    if observation.level is not None and unit == "state":
        return " or ".join(
            value_words(v, unit, observation.signal) for v in observation.level.values
        )
    if observation.level is not None and len(observation.level.values) > _MOST_VALUES_TOLD:
        return f"one of {len(observation.level.values)} values"
    if observation.level is not None:
        values = " ".join(f"{value:g}" for value in observation.level.values)
        return f"{observation.level.operator} {values}"
    return observation.direction.value
