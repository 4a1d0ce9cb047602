"""The states of all series at one tick, made only for the series that somebody looks at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from analysis.detection.contract import FloatArray, SignalState
from analysis.detection.exhaustion import Forecast
from analysis.findings import Direction, Exhaustion, LevelShift
from collectors.contract import SeriesKey
from collectors.signals import unit_of

DIRECTIONS = (
    Direction.NORMAL,
    Direction.UP,
    Direction.DOWN,
    Direction.ABSENT,
    Direction.EVENT,
    Direction.FLAT,
)
NORMAL, UP, DOWN, ABSENT, EVENT, FLAT = range(6)
"""Directions as small numbers, in the order of :data:`DIRECTIONS`."""


@dataclass(frozen=True, slots=True)
class TickArrays:
    """One tick's result, each array ``[series]``."""

    observed: FloatArray
    age_seconds: FloatArray
    expected: FloatArray
    low: FloatArray
    high: FloatArray
    score: FloatArray
    direction: NDArray[np.int8]
    onset_seconds: FloatArray
    active: NDArray[np.bool_]
    warmed_up: NDArray[np.bool_]
    detectors: NDArray[np.int64]
    """Bit ``i`` is set where detector ``i`` scores above 1."""
    p_value: FloatArray
    share: FloatArray
    """Of what is unusual of the entity."""
    shifted_at: FloatArray
    """When a deviation began that is a new level; NaN where there is none."""
    shifted_from: FloatArray
    shifted_to: FloatArray
    forecast: Forecast | None
    """Times to physical limits; None where nothing grows towards one."""

    def exhaustion(self, column: int) -> Exhaustion | None:
        """Return when a series meets its limit, if it grows towards one."""
        ahead = self.forecast
        if ahead is None or not np.isfinite(ahead.seconds[column]):
            return None
        return Exhaustion(
            limit=float(ahead.limit[column]),
            per_second=float(ahead.per_second[column]),
            seconds=float(ahead.seconds[column]),
            soonest_seconds=float(ahead.soonest[column]),
            latest_seconds=_number(ahead.latest[column]),
        )

    def shift(self, column: int, key: SeriesKey) -> LevelShift | None:
        """Return the shift that a deviation turned out to be."""
        if not np.isfinite(self.shifted_at[column]):
            return None
        return LevelShift(
            entity=key.entity,
            signal=key.signal,
            unit=unit_of(key.signal),
            at_seconds=float(self.shifted_at[column]),
            before=float(self.shifted_from[column]),
            after=float(self.shifted_to[column]),
        )


class States(Mapping[SeriesKey, SignalState]):
    """A read-only view of one tick: 10,000 series cost nothing until one is read."""

    def __init__(
        self, index: Mapping[SeriesKey, int], arrays: TickArrays, names: Sequence[str]
    ) -> None:
        self._index = index
        self._count = len(arrays.score)
        self._arrays = arrays
        self._names = names

    @property
    def arrays(self) -> TickArrays:
        """The same as arrays ``[series]``."""
        return self._arrays

    def __getitem__(self, key: SeriesKey) -> SignalState:
        column = self._index[key]
        if column >= self._count:
            raise KeyError(key)
        arrays = self._arrays
        bits = int(arrays.detectors[column])
        return SignalState(
            key=key,
            observed=_number(arrays.observed[column]),
            age_seconds=float(arrays.age_seconds[column]),
            expected=_number(arrays.expected[column]),
            low=_number(arrays.low[column]),
            high=_number(arrays.high[column]),
            score=float(arrays.score[column]),
            direction=DIRECTIONS[arrays.direction[column]],
            onset_seconds=_number(arrays.onset_seconds[column]),
            active=bool(arrays.active[column]),
            warmed_up=bool(arrays.warmed_up[column]),
            detectors=tuple(name for bit, name in enumerate(self._names) if bits >> bit & 1),
            p_value=_number(arrays.p_value[column]),
            share=float(arrays.share[column]),
            exhaustion=arrays.exhaustion(column),
            shift=arrays.shift(column, key),
        )

    def readings(self) -> Iterator[tuple[SeriesKey, float, float]]:
        """Yield the present value and the score of every series that has one."""
        arrays = self._arrays
        told = zip(self._index, arrays.observed.tolist(), arrays.score.tolist(), strict=False)
        return (each for each in told if isfinite(each[1]))

    def deviating(self) -> list[SeriesKey]:
        """Return the series that are raised, score 1 or more, or have an onset."""
        arrays = self._arrays
        far = arrays.active | (arrays.score >= 1.0) | np.isfinite(arrays.onset_seconds)
        keys = list(self._index)
        return [keys[column] for column in np.flatnonzero(far)]

    def __iter__(self) -> Iterator[SeriesKey]:
        for key, column in self._index.items():
            if column < self._count:
                yield key

    def __len__(self) -> int:
        return self._count


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def readings(
    states: Mapping[SeriesKey, SignalState],
) -> Iterator[tuple[SeriesKey, float, float]]:
    """Yield the present value and the score of every series that has one.

    Who looks at all series at every tick asks this: making the state of each takes twenty times as long
    as the tick of detection does.
    """
    if isinstance(states, States):
        yield from states.readings()
        return
    for key, state in states.items():
        if state.observed is not None:
            yield key, state.observed, state.score


def deviating(states: Mapping[SeriesKey, SignalState]) -> list[SeriesKey]:
    """Return the series that are raised, score 1 or more, or have an onset."""
    if isinstance(states, States):
        return states.deviating()
    return [
        key
        for key, state in states.items()
        if state.active or state.score >= 1.0 or state.onset_seconds is not None
    ]
