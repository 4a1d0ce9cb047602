"""Which signals make up what is unusual of an entity, and the anomalies that people read.

A share joins two views of an entity: how far each of its series is beyond its own normal, and what part
each has in the distance of the whole row, which also sees broken relations. The shares of an entity sum
to 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.detection.contract import FloatArray, Scores, SignalState
from analysis.detection.states import States, TickArrays
from analysis.findings import Anomaly, SignalShare
from collectors.contract import SeriesKey
from collectors.signals import unit_of

_MOST_NAMED = 5
_LEAST_SHARE = 0.05
"""Signals with less are not named."""


class SignalNaming:
    """Knows the series of each entity."""

    def __init__(self) -> None:
        self._entities: dict[str, int] = {}
        self._entity_of: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def grow(self, keys: Sequence[SeriesKey]) -> None:
        """Add series."""
        added = [self._entities.setdefault(key.entity, len(self._entities)) for key in keys]
        self._entity_of = np.append(self._entity_of, np.array(added, dtype=np.int64))

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Drop the series where ``kept`` is false, and the entities that have none left."""
        left, self._entity_of = np.unique(self._entity_of[kept], return_inverse=True)
        names = list(self._entities)
        self._entities = {names[old]: new for new, old in enumerate(left.tolist())}

    def shares(
        self, score: FloatArray, active: NDArray[np.bool_], vote: Scores | None
    ) -> FloatArray:
        """Return each series' share ``[series]`` in its entity; 0 where nothing of it is active.

        Args:
            score: what is shown of every series.
            active: which series are raised.
            vote: scores that a multivariate detector hands to the series of an entity.
        """
        share = np.zeros(len(score))
        if not active.any():
            return share
        concerned = np.zeros(len(self._entities), dtype=bool)
        concerned[self._entity_of[active]] = True
        chosen = np.flatnonzero(concerned[self._entity_of])
        entity = self._entity_of[chosen]
        alone = _normalised(score[chosen] ** 2, entity)
        if vote is None:
            share[chosen] = alone
            return share
        together = _normalised(np.nan_to_num(vote.score[chosen]), entity)
        told = np.bincount(entity, together)[entity] > 0
        share[chosen] = np.where(told, 0.5 * (alone + together), alone)
        return share

    def top(
        self, arrays: TickArrays, states: States, keys: Sequence[SeriesKey]
    ) -> dict[str, tuple[SignalShare, ...]]:
        """Return the signals with the largest shares, by entity, for the entities with an anomaly."""
        chosen = np.flatnonzero(arrays.share >= _LEAST_SHARE)
        ranked = chosen[np.lexsort((-arrays.share[chosen], self._entity_of[chosen]))]
        named: dict[str, tuple[SignalShare, ...]] = {}
        for column in ranked:
            state = states[keys[column]]
            before = named.get(state.key.entity, ())
            if len(before) < _MOST_NAMED:
                named[state.key.entity] = (*before, _share_of(state))
        return named


def anomalies_of(
    now_seconds: float,
    states: States,
    top: Mapping[str, tuple[SignalShare, ...]],
    simulated: Mapping[SeriesKey, bool],
) -> Iterator[Anomaly]:
    """Yield an anomaly for every active series.

    Args:
        now_seconds: the time of the tick.
        states: as the newest deviating values showed them.
        top: the signals to name, by entity.
        simulated: whether a simulated device gave the values of each active series.
    """
    for key, is_simulated in simulated.items():
        state = states[key]
        yield Anomaly(
            entity=key.entity,
            signal=key.signal,
            unit=unit_of(key.signal),
            time_seconds=now_seconds,
            onset_seconds=now_seconds if state.onset_seconds is None else state.onset_seconds,
            score=state.score,
            direction=state.direction,
            observed=state.observed,
            expected=state.expected,
            low=state.low,
            high=state.high,
            detectors=state.detectors,
            simulated=is_simulated,
            p_value=state.p_value,
            top_signals=top.get(key.entity, ()),
            exhaustion=state.exhaustion,
            shift=state.shift,
        )


def _share_of(state: SignalState) -> SignalShare:
    return SignalShare(
        signal=state.key.signal,
        share=round(min(state.share, 1.0), 4),
        direction=state.direction,
        expected=state.expected,
        low=state.low,
        high=state.high,
        onset_seconds=state.onset_seconds,
    )


def _normalised(parts: FloatArray, entity: NDArray[np.int64]) -> FloatArray:
    """Return parts ``[n]`` over the sum of their entity; 0 where that is 0."""
    total = np.bincount(entity, parts)[entity]
    return np.divide(parts, total, out=np.zeros(len(parts)), where=total > 0)
