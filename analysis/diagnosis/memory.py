"""A short memory of what was worst, so that a fault that shows for one tick still counts.

A crash is one event in one scrape; a supervisor may have the engine back before diagnosis is sure. The
memory shows diagnosis the worst recent state of each series for a while after it has passed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from analysis.detection.contract import Detections, SignalState
from analysis.detection.states import deviating, readings
from analysis.diagnosis.causes import CauseCatalogue, Level
from analysis.diagnosis.evidence import is_event
from analysis.diagnosis.settings import MemorySettings
from analysis.findings import Direction
from collectors.contract import SeriesKey


@dataclass(slots=True)
class _Kept:
    state: SignalState
    last_seen_seconds: float


class StatesOverlay(Mapping[SeriesKey, SignalState]):
    """Some states over all others, without making the states of series that nobody looks at."""

    def __init__(
        self, kept: Mapping[SeriesKey, SignalState], states: Mapping[SeriesKey, SignalState]
    ) -> None:
        self._kept = kept
        self._states = states

    def __getitem__(self, key: SeriesKey) -> SignalState:
        kept = self._kept.get(key)
        return self._states[key] if kept is None else kept

    def __iter__(self) -> Iterator[SeriesKey]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)


class EvidenceMemory:
    """Keeps the worst state of every series that deviated lately.

    Args:
        settings: how long events and states are kept.
        causes: the catalogue, whose levels make a state worth keeping without any deviation.
    """

    def __init__(self, settings: MemorySettings, causes: CauseCatalogue) -> None:
        self._settings = settings
        self._levels: dict[str, list[Level]] = {}
        for each in causes.observations.values():
            if each.level is not None and not each.also_deviates:
                self._levels.setdefault(each.signal, []).append(each.level)
        self._kept: dict[SeriesKey, _Kept] = {}
        self._forgotten_seconds: dict[str, float] = {}

    def remember(self, detections: Detections) -> Detections:
        """Take in one tick and return it with what passed recently still in it.

        The anomalies stay those of the tick: what has passed explains, and raises nothing.
        """
        now = detections.time_seconds
        over: dict[SeriesKey, SignalState] = {}
        states = detections.states
        far = deviating(states)
        for key in far:
            state = states[key]
            if self._is_accounted_for(state):
                over[key] = _quiet(state)
            elif self._is_notable(state):
                self._keep(key, state, now)
        known = set(far)
        for key, observed, _ in readings(states):
            if self._has_level(key.signal, observed) and key not in known:
                self._keep(key, states[key], now)
        self._drop_expired(now)
        over.update((key, kept.state) for key, kept in self._kept.items())
        return replace(detections, states=StatesOverlay(over, detections.states))

    def forget(self, entities: Collection[str], now_seconds: float) -> None:
        """Forget a set of entities, so that one fault does not colour the next one's diagnosis.

        Detection shows events for a while after they happened; those up to now are passed over too.
        """
        self._kept = {key: kept for key, kept in self._kept.items() if key.entity not in entities}
        self._forgotten_seconds.update(dict.fromkeys(entities, now_seconds))

    def _is_accounted_for(self, state: SignalState) -> bool:
        forgotten = self._forgotten_seconds.get(state.key.entity)
        return (
            forgotten is not None
            and state.onset_seconds is not None
            and state.onset_seconds <= forgotten
            and is_event(state.key.signal)
        )

    def _keep(self, key: SeriesKey, state: SignalState, now: float) -> None:
        kept = self._kept.get(key)
        turned = kept is not None and kept.state.direction is not state.direction
        if kept is None or turned or state.score >= kept.state.score:
            self._kept[key] = _Kept(state, now)
        else:
            kept.last_seen_seconds = now

    def _is_notable(self, state: SignalState) -> bool:
        if state.active or state.score >= 1:
            return True
        return state.observed is not None and self._has_level(state.key.signal, state.observed)

    def _has_level(self, signal: str, observed: float) -> bool:
        """Say whether a value is of a level that is worth keeping without any deviation."""
        return any(level.holds(observed) for level in self._levels.get(signal, ()))

    def _drop_expired(self, now: float) -> None:
        def lifetime(key: SeriesKey) -> float:
            event = is_event(key.signal)
            return self._settings.event_seconds if event else self._settings.state_seconds

        self._kept = {
            key: kept
            for key, kept in self._kept.items()
            if now - kept.last_seen_seconds <= lifetime(key)
        }


def _quiet(state: SignalState) -> SignalState:
    return replace(
        state, observed=0.0, score=0.0, direction=Direction.NORMAL, onset_seconds=None, active=False
    )
